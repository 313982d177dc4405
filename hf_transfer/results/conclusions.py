"""What a report comes to, in sentences: the page, the card and the command line all say these."""

from __future__ import annotations

from hf_transfer.results.learned_first import worse_start
from hf_transfer.results.places import place_name
from hf_transfer.results.report import PhaseReport, RunReport
from hf_transfer.results.words import (
    ADDED,
    CROSS,
    JsonDict,
    images_words,
    is_number,
    listed,
    metric_phrase,
    metric_title,
    metric_with_article,
    show_headline,
)

KINDS = {
    "classification": "Image classifier",
    "multi_label": "Image classifier for several labels at once",
    "regression": "Image regression",
    "pretext": "Features of images without labels",
}
MOST_IN_TITLE = 6
NAMED_OF_MANY = 3
LONGEST_TITLE = 80
MOST_NAMED = 5
FEW_GROUPS = 10  # below which the bootstrap over groups is known to give intervals too narrow
WORSE = 0.005  # how much of the leading metric a phase must lose before it is worth a word


def title(report: RunReport) -> str:
    """Return what the model is for, from its task, its labels and, on the Hub, its data."""
    kind, labels = KINDS[report.task.kind], report.labels
    if report.task.is_pretext:
        return report.task.title
    if not labels:
        return kind
    if numbers := _all_numbers(labels):
        return f"{kind}: {numbers}"
    few = len(labels) <= MOST_IN_TITLE and len(", ".join(labels)) <= LONGEST_TITLE
    if few:
        return f"{kind}: {', '.join(labels)}"
    count = f"{len(labels):,} {report.task.nouns}"
    if repo := report.data.get("repo"):
        return f"{kind}: {count} of {place_name(repo)}"
    named = labels[:NAMED_OF_MANY]
    if len(", ".join(named)) > LONGEST_TITLE:
        return f"{kind}: {count}"
    return f"{kind}: {', '.join(named)} and {len(labels) - len(named):,} more {report.task.nouns}"


def _all_numbers(labels: tuple[str, ...]) -> str | None:
    """Return "0 to 9" for labels that are whole numbers one after the other."""
    if len(labels) < 3 or not all(label.isdecimal() for label in labels):
        return None
    numbers = [int(label) for label in labels]
    each = all(b == a + 1 for a, b in zip(numbers, numbers[1:], strict=False))
    return f"{labels[0]} to {labels[-1]}" if each else None


def data_name(report: RunReport) -> str | None:
    """Return the data's repository, or the last part of its path; None where neither is stated."""
    place = report.data.get("repo") or report.data.get("path")
    place = place and place_name(place)
    return " ".join(place.split()) or None if place else None


# --- what a model must beat ------------------------------------------------------------------


def baselines(report: RunReport, split: str) -> list[tuple[str, str, float]]:
    """Return (what needs no model, its metric, its value) for a split that was measured."""
    values = report.splits.get(split, {})
    kind = report.task.name
    if kind == "classification" and values.get("per_class"):
        return _of_classes(values["per_class"])
    if kind == "multi_label" and values.get("per_label") and values.get("n"):
        shares = [row["n"] / values["n"] for row in values["per_label"] if row["n"]]
        return [("a random order", "map", sum(shares) / len(shares))] if shares else []
    if kind == "regression":
        return [("always answering the mean", "r2", 0.0)]
    return []


def told_baselines(report: RunReport, split: str) -> list[tuple[str, str, float]]:
    """Return the baselines to tell in words: those of the leading metric first, and of the others
    none that says the same share again."""
    found, leads = baselines(report, split), report.leading_metric
    told = [one for one in found if one[1] == leads]
    known = {value for _, _, value in told}
    return told + [one for one in found if one[1] != leads and one[2] not in known]


def _of_classes(rows: list[JsonDict]) -> list[tuple[str, str, float]]:
    images = sum(row["n"] for row in rows)
    seen = [row for row in rows if row["n"]]
    if not seen:
        return []
    largest = max(seen, key=lambda row: row["n"])
    share, chance = largest["n"] / images, 1 / len(rows)
    always = ("always giving the same answer", "balanced_accuracy", 1 / len(seen))
    if share == chance:  # the classes are even
        return [("always giving the same answer or guessing", "accuracy", chance), always]
    most_common = f"always answering '{largest['label']}' (the most common class)"
    return [(most_common, "accuracy", share), ("guessing at random", "accuracy", chance), always]


def head_alone(report: RunReport) -> list[tuple[str, str]]:
    """Return what the head alone reaches on validation, in words, where more trained after it."""
    first = report.phases[0] if len(report.phases) > 1 else None
    if first is None or not all(group == "head" for group in first.groups):
        return []
    if any(phase.name == ADDED for phase in report.phases):
        return []  # it knew fewer images, and perhaps fewer classes
    if report.folds:
        return []  # it was measured on few of the images that the cross-validation tells
    name, value = phase_value(report, first)
    if value is None:
        return []
    what = "the exact head alone" if first.solve else "the head alone"
    split, _ = report.measured
    if name != report.leading_metric:
        what = f"{metric_phrase(name)} of {what}"
    return [
        (what + (", on validation" if split != "validation" else ""), show_headline(name, value))
    ]


def to_beat(report: RunReport) -> tuple[str, float] | None:
    """Return the best answer without a model, by the leading metric: what it is, and its value."""
    split, _ = report.measured
    found = [(v, what) for what, m, v in baselines(report, split) if m == report.leading_metric]
    if not found:
        return None
    value, what = max(found)
    return what, value


# --- sentences ---------------------------------------------------------------------------------


def outcome(report: RunReport) -> str:
    """Return what came out, in one sentence."""
    split, values = report.measured
    leads, n = report.leading_metric, values.get("n")
    value, beat = report.headline, to_beat(report)
    if value is None:
        reason = (values.get("reasons") or {}).get(leads)
        return f"{metric_title(leads)} was not measured{f': {reason}' if reason else ''}."
    named = images_words(report.split_name(split))
    counted = images_words(report.split_name(split), "image" if n == 1 else "images")
    images = f"{n:,} {counted}" if n else f"the {named}"
    shown = show_headline(leads, value)
    if report.task.is_pretext:
        return f"On {images}, the pretext is solved in {shown} of cases."
    before = ""
    if leads == "accuracy":
        right = f"{round(value * n):,} of {images}" if n else f"{shown} of {images}"
        said = f"the model classifies {right} correctly ({shown})"
    elif leads == "balanced_accuracy":
        before = "The classes are uneven. "
        said = (
            "on average over the classes, the model classifies "
            f"{shown} of a class's {named} correctly"
        )
    else:
        said = f"on {images}, the model reaches {metric_with_article(leads)} of {shown}"
    crossed = report.split_name(split) == CROSS
    said = f"{before}In {CROSS}, {said}" if crossed else f"{before}{said[0].upper()}{said[1:]}"
    return f"{said}; {beat[0]} reaches {show_headline(leads, beat[1])}." if beat else f"{said}."


def advice(report: RunReport) -> str:
    """Return what to do next, in one sentence."""
    split, values = report.measured
    if report.task.is_pretext:
        return "Its features are for a task with labels: name the model's folder as a backbone."
    if report.headline is None:
        return "Measure it on labelled images before you rely on it."
    if not_better(report):
        return (
            "Do not use it yet: look at the labels and the training curves, then train longer, "
            "with another rate, or on more images."
        )
    if unpredicted(values):
        return (
            f"Add images of the {report.task.nouns} that are never predicted, or train with "
            "'loss: balanced' in the recipe."
        )
    if worsened(report):
        return "Lower the rate of the phase that made it worse, or leave that phase out."
    if weakest := weakest_row(values):
        noun = report.task.noun
        return (
            f"Look first at the {noun} '{weakest['label']}', which it knows least well (F1 "
            f"{weakest['f1']:.2f}): check its labels and add images of it."
        )
    return "Try it on images of your own before you rely on it."


def cautions(report: RunReport) -> list[str]:
    """Return everything that a reader must know before using the model; the worst first."""
    split, values = report.measured
    found = [not_better(report), worse_start(report), *worsened(report), *ended_early(report)]
    if missed := unpredicted(values):
        noun, nouns = report.task.noun, report.task.nouns
        these = f"{len(missed):,} of {len(report.labels):,} {nouns} are"
        if len(missed) == 1:
            these = f"One {noun} is"
        found.append(f"{these} never predicted {report.where}: {listed(missed, MOST_NAMED)}.")
    found.append(few_groups(values))
    stated = [f"{w[:1].upper()}{w[1:].rstrip('.')}." for w in report.warnings]
    return list(dict.fromkeys([*(one for one in found if one), *stated]))


def not_better(report: RunReport) -> str | None:
    """Return a sentence where the model is not clearly better than an answer without a model."""
    beat, value, leads = to_beat(report), report.headline, report.leading_metric
    if beat is None or value is None:
        return None
    what, least = beat
    shown, name = show_headline(leads, least), metric_phrase(leads)
    if value <= least:
        return (
            f"The model is no better than {what}: its {name} is {show_headline(leads, value)} "
            f"against {shown}."
        )
    bounds = report.measured[1].get("intervals", {}).get(leads)
    if bounds and bounds[0] <= least:
        ends = " to ".join(show_headline(leads, end) for end in bounds)
        return (
            f"The model is not clearly better than {what}, which reaches {shown}: the 95% "
            f"interval is {ends}."
        )
    return None


def few_groups(values: JsonDict) -> str | None:
    """Return a sentence where intervals are over too few groups to trust their width.

    Source: Cameron, Gelbach and Miller 2008, section IV.
    """
    groups = values.get("groups")
    if not groups or groups >= FEW_GROUPS or not values.get("intervals"):
        return None
    return f"The intervals are over {groups:,} groups only, and probably too narrow."


def unpredicted(values: JsonDict) -> list[str]:
    """Return the classes or labels that images show and that the model never predicts."""
    classes = [r["label"] for r in values.get("per_class", ()) if r["n"] and r["precision"] is None]
    labels = [r["label"] for r in values.get("per_label", ()) if r["n"] and not r["predicted"]]
    return classes + labels


def weakest_row(values: JsonDict) -> JsonDict | None:
    """Return the row of the class or label with the lowest F1; None where none is defined."""
    rows: list[JsonDict] = [*values.get("per_class", ()), *values.get("per_label", ())]
    known = [row for row in rows if row["f1"] is not None]
    return min(known, key=_f1) if len(known) > 1 else None


def _f1(row: JsonDict) -> float:
    return float(row["f1"])


def phase_value(report: RunReport, phase: PhaseReport) -> tuple[str, float | None]:
    """Return a metric and its value on validation with the weights that a phase ended with."""
    for name in (report.leading_metric, report.task.headline):
        value = phase.metrics.get(name, phase.metrics.get(f"eval_{name}"))
        if is_number(value):
            return name, value
    return report.task.headline, None


def worsened(report: RunReport) -> list[str]:
    """Return a sentence for each phase that left the model worse than an earlier one."""
    found = []
    best: tuple[float, str] | None = None
    for phase in report.phases:
        if phase.name == ADDED:
            best = None  # measured on other images, and perhaps on other classes
        name, value = phase_value(report, phase)
        if value is None:
            continue
        if best and value < best[0] - WORSE:
            before, after = (show_headline(name, one) for one in (best[0], value))
            found.append(
                f"Phase {phase.name} made the model worse: {metric_phrase(name)} on "
                f"validation fell from {before} after phase {best[1]} to {after}."
            )
        if best is None or value > best[0]:
            best = (value, phase.name)
    if found and report.best_phase:
        found[-1] += f" The saved model is that of phase {report.best_phase}."
    return found


def ended_early(report: RunReport) -> list[str]:
    """Return a sentence for each phase that kept an epoch with less loss whose answers are worse
    than those of its last epoch, by more than two standard errors.

    While a network becomes surer of its mistakes, its loss rises, though it learns: an epoch that
    has learned nothing may have the least.
    """
    found, images = [], report.metrics.get("n")
    if report.task.kind != "classification" or not images:
        return []
    for phase in report.phases:
        name, kept = phase_value(report, phase)
        last = phase.history[-1].get(f"eval_{name}") if phase.history else None
        by_loss = phase.best_epoch is not None and phase.settings.get("best", "loss") == "loss"
        if not (by_loss and kept is not None and 0 <= kept <= 1 and is_number(last)):
            continue
        if last - kept > 2 * (kept * (1 - kept) / images) ** 0.5:
            before, after = (show_headline(name, one) for one in (kept, last))
            found.append(
                f"Phase {phase.name} kept epoch {phase.best_epoch:g}, which has the least "
                f"validation loss, but its last epoch answers better: {metric_phrase(name)} "
                f"{after} against {before}. Try best: last, or best: {name}."
            )
    return found
