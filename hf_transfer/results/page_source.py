"""The page's account of what the backbone learned first: from which images, and how it went."""

from __future__ import annotations

from markupsafe import Markup

from hf_transfer.recipe.tasks import TASKS
from hf_transfer.results.charts import Band, Line, line_chart
from hf_transfer.results.places import place_name
from hf_transfer.results.report import RunReport
from hf_transfer.results.words import JsonDict, is_number, metric_title, show_metric, show_seconds


def source(report: RunReport) -> JsonDict | None:
    """Return what the backbone was trained on first; None where there was no such task."""
    facts = report.source
    if not facts:
        return None
    before, after = facts.get("before") or {}, facts.get("metrics") or {}
    return {
        "text": source_words(report),
        "rows": [
            (metric_title(name), show_metric(name, before[name]), show_metric(name, after[name]))
            for name in before
            if is_number(before[name]) and is_number(after.get(name))
        ],
        "chart": _chart(facts),
    }


def source_words(report: RunReport) -> str:
    """Return in sentences what the backbone was trained on first; empty where there was no such
    task."""
    facts = report.source
    if not facts:
        return ""
    images, place = facts.get("images") or {}, facts.get("path")
    task, count = TASKS[facts.get("task") or "classification"], sum(images.values())
    start = "pretrained weights" if facts.get("weights") == "pretrained" else "random weights"
    what = f"{count:,} images without labels" if task.is_pretext else f"{count:,} labelled images"
    found = f"The backbone first trained on {what}"
    found += f" of {place_name(place)}" if place else ""
    found += f", from {start}: {task.title[0].lower()}{task.title[1:]}"
    if is_number(facts.get("seconds")):
        found += f", {show_seconds(facts['seconds'])}"
    if facts.get("held_out"):
        found += (
            f". {facts['held_out']:,} of these images were left out, as they are among the "
            "validation or test images"
        )
    return f"{found}."


def _chart(facts: JsonDict) -> Markup | None:
    """Return the probe's values over the epochs, from before the first one."""
    name, curve = facts.get("probe"), facts.get("curve") or []
    if not name or not curve:
        return None
    first = (facts.get("before") or {}).get(name)
    points = [(0.0, first)] if is_number(first) else []
    points += [(row[0], row[1]) for row in curve]
    bands = [Band(str((facts.get("phases") or ["source"])[0]), 0.0, points[-1][0], "")]
    line = Line("probe", "valid", tuple(points), (), marked=len(points) <= 80)
    return Markup(line_chart(metric_title(name), [line], bands, "{:.3g}".format))  # noqa: S704
