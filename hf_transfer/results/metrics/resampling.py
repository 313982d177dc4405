"""Resampling: 95% intervals of metrics by the percentile bootstrap over rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CONFIDENCE = 0.95
NORMAL = 1.959964  # standard deviations that hold 95% of a normal distribution
# So many numbers are held at once for a metric; the result does not depend on it.
CHUNK = 400_000
# The share of resamples in which a metric must be defined for its interval to be stated.
DEFINED = 0.95


def intervals(
    n: int,
    resamples: int,
    seed: int,
    measure: Callable[[Ints], dict[str, Floats]],
    cells: int = 0,
    groups: Sequence[Any] | None = None,
) -> tuple[dict[str, list[float]], tuple[str, ...]]:
    """Return [low, high] of each metric, and the names of those defined in too few resamples.

    `measure` gets B draws of n row numbers (B, n), and returns B values of each metric; `cells` is
    how many numbers it holds for a draw, where these are more than n. With `groups`, one for each
    row, whole groups are drawn, since rows of a patient are no independent ones: draws then come
    one at a time, of as many rows as their groups have. Sources: Efron and Tibshirani 1993,
    chapter 13; Davison and Hinkley 1997, section 3.8.
    """
    if resamples < 1:
        return {}, ()
    generator = np.random.default_rng(seed)
    chunks: list[dict[str, Floats]] = []
    if groups is not None:
        members = _members(groups)
        for _ in range(resamples):
            drawn = generator.integers(0, len(members), size=len(members))
            chunks.append(measure(np.concatenate([members[at] for at in drawn])[None, :]))
    step = max(1, CHUNK // max(n, cells))
    for start in range(0, resamples if groups is None else 0, step):
        size = (min(step, resamples - start), n)
        chunks.append(measure(generator.integers(0, n, size=size)))
    tail = 100 * (1 - CONFIDENCE) / 2
    found: dict[str, list[float]] = {}
    undefined = []
    for name in chunks[0]:
        values = np.concatenate([chunk[name] for chunk in chunks])
        values = values[np.isfinite(values)]
        if len(values) >= DEFINED * resamples:
            found[name] = [float(v) for v in np.percentile(values, [tail, 100 - tail])]
        else:
            undefined.append(name)
    return found, tuple(undefined)


def accuracy_interval(right: int, n: int) -> list[float]:
    """Return the 95% interval of a share of n; n is at least 1."""
    return list(share_interval(right / n, n))


def share_interval(share: float, n: float) -> tuple[float, float]:
    """Return the 95% interval of a share of n draws (Wilson 1927), of which there may be parts."""
    z = NORMAL
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - half if share > 0 else 0.0), (middle + half if share < 1 else 1.0)


def cross_validated(parts: int) -> float:
    """Return by how much a mean over a cross-validation varies more than one over as many
    independent images, as a factor on its variance (Nadeau and Bengio 2003, section 3)."""
    return 1 + parts / (parts - 1)


UNBOUNDED = ("r2", "mae", "rmse", "nll")  # metrics that may be above 1


def widen(values: dict[str, Any], parts: int) -> None:
    """Widen the intervals of metrics in place, where they are of a cross-validation in so many
    parts: the models that predict share their training images."""
    factor = math.sqrt(cross_validated(parts))
    for name, (low, high) in values["intervals"].items():
        value = values[name]
        low, high = value - factor * (value - low), value + factor * (high - value)
        least, most = -math.inf if name == "r2" else 0.0, math.inf if name in UNBOUNDED else 1.0
        values["intervals"][name] = [max(low, least), min(high, most)]


def mend_flat(
    found: dict[str, list[float]],
    values: Mapping[str, Any],
    n: int,
    groups: Sequence[Any] | None = None,
    shares: Collection[str] = (),
) -> dict[str, str]:
    """Mend intervals without width: where all rows are alike, all resamples are, which says nothing
    of other rows.

    Those of `shares` of rows become Wilson's, a group counting as one row; the others are taken
    out. Returns why, by their names.
    """
    count = n if groups is None else len(set(groups))
    reasons = {}
    for name in [name for name, (low, high) in found.items() if low == high]:
        if name in shares:
            found[name] = accuracy_interval(round(count * values[name]), count)
        else:
            del found[name]
            reasons[f"{name} interval"] = "all resamples have the same value"
    return reasons


def _members(groups: Sequence[Any]) -> list[Ints]:
    """Return the rows of each group."""
    _, codes = np.unique(np.asarray(groups), return_inverse=True)
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)


def weights_of(drawn: Ints, n: int) -> Floats:
    """Return how often each of n rows is in each of B draws: (B, n)."""
    count = len(drawn)
    cells = (np.arange(count)[:, None] * n + drawn).ravel()
    return np.bincount(cells, minlength=count * n).astype(np.float64).reshape(count, n)


def standard_error(values: Floats, groups: Sequence[Any] | NDArray[Any] | None = None) -> float:
    """Return the standard error of the mean of values (N,); those of a group go together."""
    apart = values - values.mean()
    if groups is not None:
        apart = np.bincount(np.unique(groups, return_inverse=True)[1], apart)
    count = len(apart)
    if count < 2:
        return float("inf")
    return float(np.sqrt((apart**2).sum() * count / (count - 1)) / len(values))


def exceeds(mean: float, error: float) -> bool:
    """Return whether a mean is above its standard error, by more than rounding: one image of N is
    a gain of exactly its error."""
    return mean > error * (1 + 1e-9) + 1e-9
