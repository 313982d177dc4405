"""When a phase is best and when it stops: pure functions of the metrics seen so far."""

from __future__ import annotations

import math
from collections.abc import Sequence

# Ends of the names of metrics: ours, those of `evaluate`, and what others commonly call theirs.
LOWER_IS_BETTER = {
    *("loss", "nll", "ece", "mae", "rmse", "mse", "error", "brier", "brier_score", "distance"),
    *("mape", "smape", "mase", "perplexity", "wer", "cer", "ter"),
}
HIGHER_IS_BETTER = {
    *("accuracy", "acc", "top1", "top3", "top5", "f1", "precision", "recall", "sensitivity"),
    *("specificity", "auroc", "auc", "ap", "map", "iou", "miou", "dice", "jaccard", "kappa"),
    *("correlation", "pearsonr", "spearmanr", "r2", "r_squared", "score", "match", "right"),
}


def lower_is_better(metric: str) -> bool:
    """Return whether less of a metric is better, by the end of its name: flowers_loss is.

    Of a name with no known end more is better, as transformers has it; `unclear` says so.
    """
    return _known(metric) in LOWER_IS_BETTER


def unclear(metric: str) -> str | None:
    """Return what to do about a metric whose name does not say what is better; None if it does."""
    if _known(metric) is not None:
        return None
    return (
        f"whether more or less of {metric!r} is better is not known; take a metric whose name says "
        "so by its last word, such as accuracy, f1, score, loss or error"
    )


def _known(metric: str) -> str | None:
    """Return the longest known end of a metric's name, in whole words."""
    words = metric.lower().split("_")
    ends = ("_".join(words[i:]) for i in range(len(words)))
    return next((end for end in ends if end in LOWER_IS_BETTER | HIGHER_IS_BETTER), None)


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
