"""When a phase is best and when it stops: pure functions of the metrics seen so far."""

from __future__ import annotations

import math
from collections.abc import Sequence

LOWER_IS_BETTER = ("loss", "nll", "ece", "mae", "rmse", "mse")


def better(metric: str, value: float, than: float, min_change: float = 0.0) -> bool:
    """Return whether `value` of the metric improves on `than` by more than `min_change`."""
    if math.isnan(value):
        return False
    gain = than - value if metric.removeprefix("eval_") in LOWER_IS_BETTER else value - than
    return gain > min_change


def best_index(metric: str, values: Sequence[float], min_change: float = 0.0) -> int:
    """Return the position of the best value; the earliest of equals. Raises on no values."""
    best = 0
    for i, value in enumerate(values):
        if math.isnan(values[best]) or better(metric, value, values[best], min_change):
            best = i
    return best


def should_stop(metric: str, values: Sequence[float], patience: int, min_change: float) -> bool:
    """Return whether the last `patience` values all failed to improve on the best before them."""
    return len(values) - 1 - best_index(metric, values, min_change) >= patience
