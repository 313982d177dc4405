"""Metrics of numbers read off images: predictions and targets in their own units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hf_transfer.results.metrics.classification import finite
from hf_transfer.results.metrics.resampling import Floats, Ints, intervals, mend_flat

POINTS = 400  # pairs of true and predicted kept for a chart


def regression_metrics(
    predictions: ArrayLike,
    targets: ArrayLike,
    target_names: Sequence[str] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    tables: bool = True,
    groups: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Return R2, MAE and RMSE (units of the target) of two arrays (N,) or (N, T), as JSON values.

    Of several targets each is the mean over them; `per_target`, of `tables`, has them one by one,
    with up to POINTS pairs [true, predicted] of rows evenly spaced. R2 is None, with the cause
    under `reasons`, where a target is the same in every row. `intervals` are 95% percentile
    bootstrap of rows, or of `groups` (0: none).
    """
    values = finite(predictions).astype(np.float64, copy=False)
    truth = np.asarray(targets, dtype=np.float64)
    if truth.ndim == 1 and values.shape == (len(truth), 1):  # as transformers, too, takes them
        truth = truth[:, None]
    if values.shape != truth.shape or values.ndim not in (1, 2):
        raise ValueError(f"predictions {values.shape} and targets {truth.shape} differ in shape")
    values, truth = values.reshape(len(values), -1), truth.reshape(len(truth), -1)
    names = [str(i) for i in range(truth.shape[1])] if target_names is None else list(target_names)
    if len(names) != truth.shape[1]:
        raise ValueError(f"{len(names)} target names for {truth.shape[1]} columns")
    own = _measured(values, truth, np.arange(len(truth))[None, :])
    constant = [name for name, r2 in zip(names, own["r2"][0], strict=True) if np.isnan(r2)]

    def measure(drawn: Ints) -> dict[str, Floats]:
        found = _measured(values, truth, drawn)
        return {name: each.mean(axis=1) for name, each in found.items()}

    bounds, undefined = intervals(len(truth), bootstrap, seed, measure, truth.size, groups)
    reasons = {"r2": _same(constant, len(names))} if constant else {}
    reasons |= mend_flat(bounds, {}, len(truth))
    if "r2" in undefined and not constant:
        reasons["r2 interval"] = "there are so few images that in many resamples all are the same"
    result: dict[str, Any] = {
        "n": len(truth),
        "r2": None if constant else float(own["r2"].mean()),
        "mae": float(own["mae"].mean()),
        "rmse": float(own["rmse"].mean()),
        "reasons": reasons,
        "intervals": bounds,
    }
    if tables:
        result["per_target"] = [
            _target(name, {key: each[0, i] for key, each in own.items()}, truth[:, i], values[:, i])
            for i, name in enumerate(names)
        ]
    return result


def _measured(values: Floats, truth: Floats, drawn: Ints) -> dict[str, Floats]:
    """Return each metric of each target in B draws of row numbers (B, N): (B, T)."""
    residual, wanted = (values - truth)[drawn], truth[drawn]
    squares = (residual**2).mean(axis=1)
    spread = wanted.var(axis=1)
    same = (wanted == wanted[:, :1]).all(axis=1)
    r2 = np.where(same, np.nan, 1 - squares / np.where(spread > 0, spread, 1.0))
    return {"r2": r2, "mae": np.abs(residual).mean(axis=1), "rmse": np.sqrt(squares)}


def r2_parts(values: Floats, truth: Floats) -> Floats:
    """What each row adds to R2, (N,), of predictions and targets (N,) that are not all the same.

    Their mean is R2, and their standard error its own, to the first order (as of
    `average_precision_parts`).
    """
    lost, spread = (values - truth) ** 2, (truth - truth.mean()) ** 2
    share = lost.mean() / spread.mean()
    result: Floats = 1 - (lost + share * (spread.mean() - spread)) / spread.mean()
    return result


def _same(names: Sequence[str], targets: int) -> str:
    if targets == 1:
        return "all targets are equal"
    return f"{names[0]} is the same in every image"


def rounded(values: Floats) -> Floats:
    """Return numbers to a millionth of their spread, without what float32 has left of zeros."""
    spread = float(np.ptp(values)) or float(np.abs(values).max()) or 1.0
    result: Floats = np.round(values, 6 - math.floor(math.log10(spread))) + 0.0
    return result


def _target(name: str, own: dict[str, float], truth: Floats, values: Floats) -> dict[str, Any]:
    step = max(1, -(-len(truth) // POINTS))
    pairs = zip(rounded(truth)[::step].tolist(), values[::step].tolist(), strict=True)
    return {
        "target": name,
        "n": len(truth),
        "r2": float(own["r2"]) if np.isfinite(own["r2"]) else None,
        "mae": float(own["mae"]),
        "rmse": float(own["rmse"]),
        "points": [[float(f"{a:.6g}"), float(f"{b:.6g}")] for a, b in pairs],
    }
