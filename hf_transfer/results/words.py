"""Metrics and numbers as a reader sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

NOT_STATED, NOT_MEASURED = "not stated", "not measured"

JsonDict = dict[str, Any]  # plain values, as report.json holds them

# The scalar metrics of all tasks, in the order in which they are shown.
METRIC_TITLES = {
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
    "probe_accuracy": "Accuracy of a linear probe",
    "probe_map": "Mean average precision of a linear probe",
    "probe_r2": "R² of a linear probe",
    "rank": "Effective rank of the features",
    "spread": "Spread of the features",
}
ADDED = "added images"  # the phase in which `train --add` solves the head again
CROSS = "cross-validation"  # in a split's place: images that models judged without training on them
LABELLED = "labelled"  # in a split's place: images that a finished model was scored on
COUNTS = ("n", "groups")  # of images, and of groups that intervals are over
IN_UNITS = ("mae", "rmse")  # of the target
PERCENTAGES = ("accuracy", "balanced_accuracy")
LARGEST = 1e60  # beyond it a number in a report is no measurement


def metric_titles(values: JsonDict) -> dict[str, str]:
    """Return name -> title of a split's scalar metrics: ours in order, then a recipe's own.

    Errors of several targets have no units in common, so they are shown for each target only.
    """
    mixed = IN_UNITS if len(values.get("per_target") or ()) > 1 else ()
    ours = {name: t for name, t in METRIC_TITLES.items() if name in values and name not in mixed}
    others = {
        k: k for k, v in values.items() if k not in (*METRIC_TITLES, *COUNTS) and is_number(v)
    }
    return ours | others


def metric_title(name: str) -> str:
    """Return a metric's title; the name itself for a recipe's own."""
    return METRIC_TITLES.get(name, name)


def metric_phrase(name: str) -> str:
    """Return a metric's title within a sentence."""
    title = metric_title(name)
    return title[0].lower() + title[1:] if title[1:2].islower() else title


def metric_with_article(name: str) -> str:
    """Return a metric's title within a sentence, with its article: "a macro F1", "an R²"."""
    phrase = metric_phrase(name)
    return f"{'an' if phrase[0] in 'aeioAR' else 'a'} {phrase}"


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value is a number that can be written, compared and drawn."""
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and -LARGEST < value < LARGEST  # false for NaN
    )


def show_metric(name: str, value: float | None) -> str:
    """Return a metric's value, shares to three places, errors in units; "–" for None."""
    if value is None:
        return "–"
    return show_number(value, 4) if name in IN_UNITS else f"{value:.3f}"


def show_headline(name: str, value: float) -> str:
    """Return a metric's value as people say it: accuracies in percent."""
    return f"{value:.1%}" if name in PERCENTAGES else show_metric(name, value)


def show_score(name: str, value: float, places: int = 3, sign: str = "") -> str:
    """Return a metric's value to so many places, accuracies in percent; a gain with sign "+"."""
    value = round(value, places) + 0.0  # never -0.0
    percent = name in PERCENTAGES
    return f"{value:{sign}.{places - 2}%}" if percent else f"{value:{sign}.{places}f}"


def show_number(value: float, digits: int = 5) -> str:
    """Return a number to so many digits: 0.1235, 42, 2,147,483,647; 1.5e-9 where it is tiny."""
    if 10 ** (digits - 1) <= abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}".replace("e-0", "e-").replace("e+0", "e+")


def show_count(count: int | None) -> str:
    """Return a number of parameters: 962, 15.4K, 4.92M; "–" for None."""
    if count is None:
        return "–"
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)


def show_rate(rate: float | None) -> str:
    """Return a learning rate as recipes write it: 1e-3, 3.2e-5, 0.01; "–" for None."""
    if rate is None:
        return "–"
    if rate == 0 or 0.01 <= rate < 1000:
        return f"{rate:.3g}"
    mantissa, exponent = f"{rate:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def show_seconds(seconds: float) -> str:
    """Return a time: 0.4 s, 12 s, 2 min 5 s, 1 h 4 min."""
    whole = round(seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def over_time(took: float, allowed: float | None) -> tuple[str, ...]:
    """Return the note on work that took over a fifth longer than its seconds allowed, if it did."""
    if allowed is None or took <= 1.2 * allowed:
        return ()
    return (f"this took {show_seconds(took)}, longer than the {show_seconds(allowed)} allowed",)


def split_words(split: str) -> str:
    """Return where something was measured: "on validation", "on these images"."""
    if split == CROSS:
        return f"in {split}"
    return "on these images" if split == LABELLED else f"on {split}"


def images_words(split: str, images: str = "images") -> str:
    """Return images of a split: "validation images"; of none "labelled images"."""
    return f"{LABELLED if split == CROSS else split} {images}"


def range_words(counts: Sequence[int]) -> str:
    """Return "20", or "18 to 22" where counts differ."""
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def listed(names: Sequence[str], most: int, last: str = " and ") -> str:
    """Return names as a list in words: "a, b and c"; beyond `most` "a, b and 7 more"."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most:,} more"
    return last.join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
