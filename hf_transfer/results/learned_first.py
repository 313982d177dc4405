"""What a backbone learned before the run's own phases, or beside them, in sentences."""

from __future__ import annotations

from hf_transfer.recipe.tasks import TASKS
from hf_transfer.results.places import place_name
from hf_transfer.results.report import RunReport
from hf_transfer.results.words import JsonDict, is_number, metric_phrase, show_headline

WORSE = 0.005  # how much of a probe's metric a pretext must lose before it is worth a word


def learned_first(report: RunReport) -> str:
    """Return in sentences what the backbone was trained on first, and what of images without labels
    it learned from beside the labelled ones; empty where there was neither."""
    return " ".join(text for text in (_of_source(report), _of_unlabelled(report)) if text)


def _of_source(report: RunReport) -> str:
    facts = report.source
    if not facts:
        return ""
    found = f"The backbone first trained on {source_start(report)}.{_left(facts)}"
    if probed := _probed(report):
        name, (before, after) = facts["probe"], probed
        ends = (show_headline(name.removeprefix("probe_"), value) for value in (before, after))
        found += f" The {metric_phrase(name)} went from {' to '.join(ends)}."
    return found


def _of_unlabelled(report: RunReport) -> str:
    facts = report.data.get("unlabelled")
    if not facts:
        return ""
    names = [phase.name for phase in report.phases if phase.settings.get("pseudo")]
    left = "" if report.source.get("path") == facts["path"] else _left(facts)  # said already
    return (
        f"Phase {', '.join(names)} also learned from {facts['images']:,} images without labels of "
        f"{place_name(facts['path'])}, where the network was sure of its answer.{left}"
    )


def _left(facts: JsonDict) -> str:
    """Return how many images without labels were left out, in a sentence; empty for none."""
    count = facts.get("held_out")
    if not count:
        return ""
    was, it, its = ("was", "it", "its group") if count == 1 else ("were", "them", "their groups")
    return (
        f" {count:,} of these images {was} left out: the validation or test images have {it}, or "
        f"others of {its}."
    )


def _probed(report: RunReport) -> tuple[float, float] | None:
    """Return what the probe of a pretext gave before and after; None where there was none."""
    facts = report.source
    before, after = (
        (facts.get(key) or {}).get(facts.get("probe")) for key in ("before", "metrics")
    )
    return (before, after) if is_number(before) and is_number(after) else None


def worse_start(report: RunReport) -> str | None:
    """Return a sentence where learning first from images without labels made features worse."""
    probed = _probed(report)
    if probed is None or probed[1] >= probed[0] - WORSE:
        return None
    return (
        "What was learned first made a linear probe of the labelled images worse; compare with a "
        "run without it before you rely on it."
    )


def source_start(report: RunReport) -> str:
    """Return from what, how, and with which weights in the beginning the backbone was trained."""
    facts = report.source
    count, task = (
        sum((facts.get("images") or {}).values()),
        TASKS[facts.get("task") or "classification"],
    )
    what = "images without labels" if task.is_pretext else "labelled images"
    start = "pretrained" if facts.get("weights") == "pretrained" else "random"
    of = f" of {place_name(facts['path'])}" if facts.get("path") else ""
    return f"{count:,} {what}{of} ({task.title[0].lower()}{task.title[1:]}, from {start} weights)"
