"""An evaluation as text."""

from __future__ import annotations

import shlex
from typing import Any

from hf_transfer.recipe.tasks import TASKS
from hf_transfer.results.conclusions import few_groups
from hf_transfer.results.words import metric_phrase, metric_title, metric_titles, show_metric

MOST_GROUPS = 20
MOST_PADDED = 60  # characters of a column: one long label should not push all others far away
MOST_CLASSES = 50  # that are listed; of more the weakest
JsonDict = dict[str, Any]


def format_evaluation(found: JsonDict) -> str:
    """Return what `evaluate` found as lines: labels without a partner, metrics, classes."""
    metrics = found["metrics"]
    groups = f" in {metrics['groups']:,} groups" if "groups" in metrics else ""
    lines = [f"{found['data']}: {metrics['n']:,} images{groups} ({_split(found['split'])})"]
    lines += _labels(found["labels"])
    for failed in found["unreadable"]:
        lines.append(f"left out: {failed['error']}")
    lines.append("")
    titles = metric_titles(metrics)
    width = max(map(len, titles.values()))
    for name, title in titles.items():
        value, bounds = metrics[name], metrics.get("intervals", {}).get(name)
        if value is None:
            told = f"not measured: {metrics.get('reasons', {}).get(name, 'undefined')}"
        else:
            told = f"{show_metric(name, value):>7}{_interval(name, bounds)}"
        lines.append(f"{title:<{width}}  {told}")
    if few := few_groups(metrics):
        lines += ["", few]
    if sure := found.get("confident"):
        lines += ["", told_of_confidence(sure)]
    if unknown := found.get("unknown"):
        lines += ["", told_of_unknown(unknown)]
    lines += _classes(metrics)
    lines += _groups(metrics, found["task"])
    if compared := found.get("comparison"):
        lines += ["", *told_of_comparison(compared)]
    return "\n".join(lines)


def told_of_unknown(unknown: JsonDict) -> str:
    """Return in a sentence or two what was called unknown, rightly and wrongly."""
    told = (
        f"Called unknown: {unknown['false_alarms']:,} of {unknown['n']:,} images of labels that "
        "the model knows"
    )
    if not unknown["strangers"]:
        return f"{told}."
    found = f"{unknown['found']:,} of {unknown['strangers']:,} images of other labels"
    area = "" if unknown["auroc"] is None else f"; AUROC {unknown['auroc']:.3f}"
    return f"{told}, and {found}{area}."


def command_of(asked: JsonDict) -> str:
    """Return the command that scores so again, with names in the place of files."""
    words = ["hf-transfer", "evaluate", "MODEL", "--data", "FOLDER"]
    for name, value in asked.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not None and value is not False:
            words += [f"--{name}", str(value)]
    if asked["tta"] is False:
        words.append("--no-tta")
    return shlex.join(words)


def _split(split: str) -> str:
    return "all" if split == "all" else f"the {split} split"


def _labels(labels: JsonDict) -> list[str]:
    """Return a table of the labels that only the data or only the model has."""
    rows = [
        [row["label"], "the data", f"{row['images']:,} not counted", row["nearest"] or ""]
        for row in labels["only_in_data"]
    ]
    rows += [[label, "the model", "none to count", ""] for label in labels["only_in_model"]]
    if not rows:
        return []
    head = ["Label without a partner", "Only in", "Images", "Nearest"]
    return ["", *_table(head, rows, left=True)]


def _interval(name: str, bounds: list[float] | None) -> str:
    if not bounds:
        return ""
    low, high = (show_metric(name, bound) for bound in bounds)
    return f"  95% interval {low} to {high}"


def told_of_confidence(sure: JsonDict) -> str:
    """Return how many answers are sure enough, and how many of them are right, in a sentence."""
    share = f"{sure['n']:,} of {sure['of']:,} answers have a probability of {sure['threshold']:g}"
    if not sure["n"]:
        return f"{share} or more."
    low, high = sure["interval"]
    right = f"accuracy {sure['accuracy']:.3f}, 95% interval {low:.3f} to {high:.3f}"
    return f"{share} or more; of these: {right}."


def _classes(metrics: JsonDict) -> list[str]:
    """Return a table of the classes, labels or targets; of very many the weakest."""
    if targets := metrics.get("per_target"):
        names = ("r2", "mae", "rmse")
        rows = [[row["target"], *(_cell(row[name]) for name in names)] for row in targets]
        return ["", *_table(["Target", *(metric_title(name) for name in names)], rows)]
    found = metrics.get("per_class") or metrics.get("per_label") or []
    found = [row for row in found if row["n"]]
    note = []
    if len(found) > MOST_CLASSES:
        note = [f"The {MOST_CLASSES} weakest of {len(found):,} classes:"]
        found = sorted(found, key=lambda row: row["f1"] or 0)[:MOST_CLASSES]
    rows = []
    for row in found:
        span = row.get("recall_interval")
        recall = _cell(row["recall"]) + (f" ({span[0]:.2f} to {span[1]:.2f})" if span else "")
        rows.append(
            [row["label"], f"{row['n']:,}", recall, _cell(row["precision"]), _cell(row["f1"])]
        )
    return ["", *note, *_table(["Class", "n", "Recall", "Precision", "F1"], rows)] if rows else []


def _groups(metrics: JsonDict, task: str) -> list[str]:
    """Return a table of the groups of images, the weakest first."""
    found = sorted(metrics.get("per_group") or (), key=lambda row: (row["value"] or 0, -row["n"]))
    title, few = metric_title(TASKS[task].headline), found[:MOST_GROUPS]
    note = [f"The {MOST_GROUPS} weakest of {len(found):,} groups:"] if len(found) > len(few) else []
    rows = [
        [row["group"], f"{row['n']:,}", _cell(row["value"]), _span(row.get("interval"))]
        for row in few
    ]
    return ["", *note, *_table(["Group", "n", title, "95% interval"], rows)] if rows else []


def _span(bounds: list[float] | None) -> str:
    return f"{bounds[0]:.2f} to {bounds[1]:.2f}" if bounds else ""


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _table(head: list[str], rows: list[list[str]], left: bool = False) -> list[str]:
    """Return a table as lines; the first column, or with `left` all, begin at the left."""
    side = "<" if left else ">"
    widths = [min(MOST_PADDED, max(len(row[i]) for row in [head, *rows])) for i in range(len(head))]
    lines = []
    for row in [head, *rows]:
        cells = [f"{row[0]:<{widths[0]}}"]
        cells += [f"{cell:{side}{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def told_of_comparison(found: JsonDict) -> list[str]:
    """Return what a comparison found, as lines."""
    metric = found["metric"]
    title, n, other = metric_phrase(metric), found["n"], found["other"]
    ours, theirs, apart = (found[key] for key in ("ours", "theirs", "difference"))
    lines = [
        f"compared with {other} on the same {n:,} images: {title} {ours:.3f} against {theirs:.3f}"
    ]
    bounds = found["interval"]
    span = f", 95% interval {bounds[0]:+.3f} to {bounds[1]:+.3f}" if bounds else ""
    lines.append(f"difference {apart:+.3f}{span}")
    if "p_value" in found:
        test = "permutation test of whole groups" if found["by_group"] else "McNemar's exact test"
        lines.append(
            f"only this model is right on {found['only_ours_right']:,}, only {other} on "
            f"{found['only_theirs_right']:,} ({test}: p = {found['p_value']:.2g})"
        )
    return lines
