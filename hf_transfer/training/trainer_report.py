"""What a Trainer did, as a report: for the card of a model that is saved from Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hf_transfer.backbones.saving import save_model
from hf_transfer.base.files import add_text, expanded
from hf_transfer.data.image_set import ImageSet
from hf_transfer.results import facts, run_folder
from hf_transfer.results.report import RunReport
from hf_transfer.results.words import JsonDict, is_number
from hf_transfer.training.seam import Seam


def save(trainer: Seam, folder: str | Path) -> None:
    """Write the model's folder as it is published, with its card and report. Raises UserError."""
    place, report = expanded(folder), report_of(trainer)
    save_model(trainer.model, place)
    run_folder.write_card(report, place)
    text = json.dumps(report.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
    add_text(place, run_folder.RunFolder(place).report.name, text + "\n", "model")


def report_of(trainer: Seam) -> RunReport:
    """Return all that a Trainer knows of its run: of a data set the labels and the counts, and the
    metrics that the phase ended with. What it does not know is left out."""
    args, backbone, reports = trainer.args, trainer.backbone, trainer.reports
    best = trainer.runner.best.index  # of the phase that the run ended with
    found = reports[best].metrics if reports else {}
    metrics = {key: value for key, value in found.items() if is_number(value)}
    if metrics and hasattr(trainer.eval_dataset, "__len__"):
        metrics["n"] = len(trainer.eval_dataset)
    return RunReport(
        name=Path(args.output_dir).resolve().name,
        recipe={"task": backbone.task},  # and no phases: there is no recipe to run again
        backbone=facts.backbone_facts(trainer.model, backbone.id),
        data=_data(trainer),
        phases=tuple(reports),
        metrics=metrics,
        seconds={"training": sum(report.seconds for report in reports)},
        environment=facts.environment(),
        seed=args.seed,
        warnings=(*facts.warnings_of(reports), *(trainer.notes if reports else ())),
        created=facts.now(),
        best_phase=reports[best].name if len(reports) > 1 else None,
    )


def _data(trainer: Seam) -> JsonDict:
    sets: dict[str, Any] = {"train": trainer.train_dataset, "validation": trainer.eval_dataset}
    ours = {split: images for split, images in sets.items() if isinstance(images, ImageSet)}
    sized = {k: v for k, v in sets.items() if hasattr(v, "__len__") and not isinstance(v, dict)}
    return {
        "labels": list(trainer.backbone.labels),
        "images": {split: len(images) for split, images in sized.items()},
        "counts": {
            split: dict(zip(images.names, images.class_counts, strict=True))
            for split, images in ours.items()
        },
    }
