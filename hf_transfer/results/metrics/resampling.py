"""Resampling: 95% intervals of metrics by the percentile bootstrap over rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CONFIDENCE = 0.95
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


def standard_error(values: Floats, groups: Sequence[Any] | None = None) -> float:
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
