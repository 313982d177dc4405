"""Metrics and numbers as a reader sees them."""

from __future__ import annotations

from typing import Any

# The scalars of all tasks in the order that reports show them, in words.
WORDS = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "map": "Mean average precision",
    "macro_f1": "Macro F1",
    "micro_f1": "Micro F1",
    "all_right": "Images with all labels right",
    "top5": "Top-5 accuracy",
    "auroc": "AUROC, one against the rest",
    "r2": "R²",
    "mae": "Mean absolute error",
    "rmse": "Root mean squared error",
    "ece": "Calibration error (ECE, 15 bins)",
    "nll": "Negative log-likelihood (nats)",
}
Facts = dict[str, Any]


def metric_words(values: Facts) -> dict[str, str]:
    """Return name -> words of a split's scalar metrics: ours in order, then a recipe's own.

    Errors of several targets have no units in common, and stand target by target only.
    """
    mixed = ("mae", "rmse") if len(values.get("per_target") or ()) > 1 else ()
    ours = {name: words for name, words in WORDS.items() if name in values and name not in mixed}
    others = {k: k for k, v in values.items() if k not in (*WORDS, "n") and _is_number(v)}
    return ours | others


def show_value(name: str, value: float) -> str:
    """Return a metric's value as people write it: shares to three places, units to four digits."""
    return f"{value:.4g}" if name in ("mae", "rmse") else f"{value:.3f}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def show_count(count: int | None) -> str:
    """Return a number of scalars as people write it: 962, 15.4K, 4.92M; a dash for None."""
    if count is None:
        return "–"
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)


def show_rate(rate: float | None) -> str:
    """Return a rate as recipes write it: 1e-3, 3.2e-5, 0.01; a dash for None."""
    if rate is None:
        return "–"
    if rate == 0 or 0.01 <= rate < 1000:
        return f"{rate:.3g}"
    mantissa, exponent = f"{rate:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def show_seconds(seconds: float) -> str:
    """Return a time as people write it: 0.4 s, 12 s, 2 min 5 s, 1 h 4 min."""
    whole = round(seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
