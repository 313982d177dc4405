"""The card's account of how a model was made: input, settings of each phase, what to expect."""

from __future__ import annotations

from collections.abc import Iterator

from hf_transfer.results import conclusions
from hf_transfer.results.report import PhaseReport, RunReport
from hf_transfer.results.words import (
    NOT_STATED,
    PERCENTAGES,
    JsonDict,
    images_words,
    metric_phrase,
    metric_with_article,
    show_headline,
)

CROPS = {
    "center": "the shorter side is resized to {stored} px, and the middle {size} × {size} px are "
    "cut out",
    "squash": "both sides are resized to {stored} px{cut}",
    "border": "the longer side is resized to {stored} px, and borders of the mean colour are added",
}
AS_IS = "none"
MORE = {  # settings that are worth a word where they are not 0, with a place for the number
    "label_smoothing": "label smoothing {:g}",
    "mixup": "mixup {:g}",
    "cutmix": "cutmix {:g}",
    "l2_sp": "L2-SP {:g}",
    "layer_decay": "rates fall by {:g} from the head to the input",
}


def preprocessing(report: RunReport) -> list[tuple[str, str]]:
    """Return how a picture becomes the network's input, as rows of a table; [] where unknown."""
    found = report.backbone.get("preprocessing")
    if not found:
        return []
    size, stored = found["size"], found["stored"]
    cut = f", and the middle {size} × {size} px are cut out" if stored != size else ""
    how = CROPS[found["crop_mode"]].format(size=size, stored=stored, cut=cut)
    rows = [
        ("Input size", f"{size} × {size} px, {_channels(found['channels'])}"),
        ("Resizing", f"{how} ({found['interpolation']})"),
        ("Scale", "pixels of 0..255 become 0..1, less the mean, divided by the standard deviation"),
        ("Mean", _numbers(found["mean"])),
        ("Standard deviation", _numbers(found["std"])),
    ]
    if window := found.get("window"):
        rows.append(("DICOM window", f"centre {window[0]:g}, width {window[1]:g}"))
    if frame := found.get("frame"):
        rows.append(("DICOM frame", str(frame)))
    return rows


def _channels(count: int) -> str:
    return {1: "gray", 3: "RGB", 4: "RGBA"}.get(count, f"{count} channels")


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def settings(report: RunReport) -> list[list[str]]:
    """Return the settings of each phase as rows of a table; [] where none are known."""
    return [
        [
            f"{number} {phase.name}",
            *(_solved(phase) if phase.solve else _trained(phase.settings)),
            "; ".join(_more(phase.settings)) or AS_IS,
        ]
        for number, phase in enumerate(report.phases, 1)
        if phase.settings
    ]


SETTINGS_HEAD = ("Phase", "Optimizer", "Schedule", "Batch", "Weight decay", "Augmentation", "More")


def _solved(phase: PhaseReport) -> list[str]:
    return [f"none: solved ({phase.solve})", "–", "–", "–", augment_words(phase.settings)]


def _trained(found: JsonDict) -> list[str]:
    warmup = found.get("warmup") or 0
    rise = f"{warmup:.0%} of the steps" if warmup < 1 else f"{warmup:g} steps"
    batch, times = found.get("batch_size"), found.get("accumulate") or 1
    return [
        str(found.get("optimizer") or NOT_STATED),
        f"{found.get('schedule') or NOT_STATED}{f', warm-up over {rise}' if warmup else ''}",
        f"{batch}{f' × {times} steps' if times > 1 else ''}" if batch else NOT_STATED,
        f"{found.get('weight_decay', 0):g}",
        augment_words(found),
    ]


def augment_words(found: JsonDict) -> str:
    """Return how a phase varied its images, in words."""
    how, words = found.get("augment") or {}, []
    if crop := how.get("crop"):
        words.append(f"crops of {crop[0]:.0%} to {crop[1]:.0%} of the area")
    if how.get("flip"):
        words.append("mirrored left to right")
    if how.get("vertical_flip"):
        words.append("mirrored top to bottom")
    if how.get("color"):
        words.append(f"colour by {how['color']:g}")
    if how.get("rotate"):
        words.append(f"turned by up to {how['rotate']:g}°")
    if how.get("erase"):
        words.append(f"a rectangle erased in {how['erase']:.0%}")
    return ", ".join(words) or AS_IS


def _more(found: JsonDict) -> Iterator[str]:
    """Yield the other settings that are not as usual."""
    for key, words in () if found.get("solve") else MORE.items():
        if found.get(key):
            yield words.format(found[key])
    if found.get("still_norms"):
        yield "statistics of normalisation frozen"
    if found.get("reestimate_norms"):
        yield "BatchNorm statistics re-estimated from the images"


def expected(report: RunReport) -> str:
    """Return what to expect of new images, in a sentence; "" where nothing was measured."""
    split, values = report.measured
    leads, value = report.leading_metric, report.headline
    if value is None:
        return ""
    bounds = values.get("intervals", {}).get(leads)
    ends = " to ".join(show_headline(leads, end) for end in bounds or ())
    over = f", over {values['groups']:,} groups" if values.get("groups") else ""
    span = f" (95% interval {ends}{over})" if ends else ""
    shown, share = show_headline(leads, value), leads in PERCENTAGES
    said = (
        f"{shown} {metric_phrase(leads)}" if share else f"{metric_with_article(leads)} of {shown}"
    )
    said += span
    if split == "validation" and any(phase.best_epoch is not None for phase in report.phases):
        return (
            f"On new images like the validation images, expect a little less than {said}, since "
            "the best epochs were chosen on them."
        )
    named = images_words(report.split_name(split))
    return f"On new images like the {named}, expect {said}."


def weakest_words(report: RunReport) -> str:
    """Return which class or label the model knows least well, for the limits; "" for none."""
    _, values = report.measured
    weakest = conclusions.weakest_row(values)
    if not weakest:
        return ""
    return (
        f"Weakest {report.task.noun} {report.where}: {weakest['label']}, F1 {weakest['f1']:.3f} "
        f"(n = {weakest['n']:,})."
    )
