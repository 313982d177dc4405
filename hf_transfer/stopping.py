"""When a phase is best and when it stops: pure functions of the metrics seen so far."""

from __future__ import annotations

import math
from collections.abc import Sequence

LOWER_IS_BETTER = ("loss", "nll", "ece", "mae", "rmse", "mse", "error", "brier")


def lower_is_better(metric: str) -> bool:
    """Return whether less of a metric is better, by the last word of its name: flowers_loss is."""
    return metric.rpartition("_")[2] in LOWER_IS_BETTER


def better(metric: str, value: float, than: float, min_change: float = 0.0) -> bool:
    """Return whether `value` of the metric improves on `than` by more than `min_change`."""
    if math.isnan(value):
        return False
    gain = than - value if lower_is_better(metric) else value - than
    return gain > min_change


def best_index(metric: str, values: Sequence[float], min_change: float = 0.0) -> int:
    """Return the position of the best value, the earliest of equals; -1 where there is none."""
    best = -1
    for i, value in enumerate(values):
        if best < 0 or math.isnan(values[best]) or better(metric, value, values[best], min_change):
            best = i
    return best


def should_stop(metric: str, values: Sequence[float], patience: int, min_change: float) -> bool:
    """Return whether the last `patience` values all failed to improve on the best before them."""
    return len(values) - 1 - best_index(metric, values, min_change) >= patience
