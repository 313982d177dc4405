"""The report, page and card of a model to whose classifier images were added."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from hf_transfer.base.files import write_bytes
from hf_transfer.data.image_set import ImageData
from hf_transfer.results import facts, run_folder
from hf_transfer.results.report import PhaseReport, RunReport
from hf_transfer.results.words import ADDED, JsonDict
from hf_transfer.training.solver import Solution


def write_report(
    run: Path,
    out: Path,
    model: PreTrainedModel,
    data: ImageData,
    counts: Mapping[str, Mapping[str, int]],
    metrics: JsonDict,
    solution: Solution,
    seconds: float,
    warnings: tuple[str, ...] = (),
) -> RunReport:
    """Write report.json, report.html, recipe.yaml and the card of the model in `out`, to which the
    images of `data` were added, and return the report.

    It goes on from the report of the `run` that was added to, if there is one. `counts` are the
    images of each class by split, of old and new ones; `metrics` those on all held-out images.
    """
    here = run_folder.RunFolder(run)
    before = RunReport.load(here.report) if here.report.is_file() else None
    head = [f"{model.backbone.prefix}{name}" for name in model.backbone.layout.head]
    phase = PhaseReport(
        name=ADDED,
        groups=(model.backbone.groups.names[-1],),
        trainable_parameters=sum(model.get_parameter(name).numel() for name in head),
        total_parameters=sum(parameter.numel() for parameter in model.parameters()),
        epochs=0.0,
        steps=solution.steps,
        seconds=seconds,
        metrics=metrics,
        solve="lbfgs",
        features="cached",
    )
    own = facts.data_facts(data)
    path = _place(before.data.get("path") if before else None, own["path"])
    own |= {"path": path, "labels": list(model.backbone.labels), "counts": counts}
    own |= {"images": {split: sum(of.values()) for split, of in counts.items()}}
    started: dict[str, Any] = {
        "name": before.name if before else Path(os.path.realpath(run)).name,
        "recipe": before.recipe if before else {"task": "classification"},
        "backbone": before.backbone if before else facts.backbone_facts(model, str(run)),
        "phases": (*(before.phases if before else ()), phase),
        "source": before.source if before else {},
        "moved": before.moved if before else (),
        "figures": before.figures if before else (),
    }
    report = RunReport(
        **started,
        data={key: value for key, value in own.items() if key != "fingerprint"},
        metrics=metrics,
        seconds={"wall": seconds, "training": seconds},
        environment=facts.environment(),
        seed=before.seed if before else 0,
        warnings=(*(before.warnings if before else ()), *warnings),
        created=facts.now(),
    )
    if here.recipe.is_file():
        write_bytes(run_folder.RunFolder(out).recipe, here.recipe.read_bytes())
    return run_folder.finish(report, out)


def counts_of(
    classes: np.ndarray[Any, Any], held_out: np.ndarray[Any, Any], labels: tuple[str, ...]
) -> dict[str, dict[str, int]]:
    """Return how many images of each class train, and how many are held out."""
    return {
        split: dict(zip(labels, np.bincount(classes[rows], minlength=len(labels)).tolist(),
                        strict=True))
        for split, rows in (("train", ~held_out), ("validation", held_out))
    }  # fmt: skip


def _place(before: str | None, added: str) -> str:
    """Return in words where images come from, without the folders that they lie in."""
    names = [Path(place).name for place in (before, added) if place]
    return " and ".join(dict.fromkeys(names))
