"""What a report says of the environment, the backbone, the data and the phases."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_transfer.base import launch
from hf_transfer.base.version import __version__, version_of
from hf_transfer.data.held_out import KINDS
from hf_transfer.data.image_set import ImageData, ImageSet
from hf_transfer.recipe.tasks import PROBES
from hf_transfer.results.metrics.regression import rounded
from hf_transfer.results.report import PhaseReport, RunReport
from hf_transfer.results.words import JsonDict, is_number

LIBRARIES = ("torch", "transformers", "timm", "torchvision", "accelerate", "datasets")


def environment() -> JsonDict:
    """Return versions and hardware, without anything that names the machine or its user."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "hf_transfer": __version__,
        "python": platform.python_version(),
        **{name: version_of(name) for name in LIBRARIES},
        "hardware": ", ".join(gpus) or f"CPU, {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": launch.count(),
    }


def now() -> str:
    """Return the time as ISO 8601 in UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def backbone_facts(model: Any, backbone_id: str) -> JsonDict:
    """Return what the report says of the backbone; `license` is what its weights' source states."""
    backbone = model.backbone
    stated = getattr(model.config, "pretrained_cfg", None) or {}
    hub = backbone.source == "transformers" and not Path(backbone_id).is_dir()
    return {
        "id": backbone_id,
        **({"repo": backbone_id.removeprefix("transformers/")} if hub else {}),
        "source": backbone.source,
        "weights": backbone.weights,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "license": None if backbone.weights == "random" else stated.get("license"),
        "image_size": backbone.image.size,
        "channels": backbone.image.channels,
        "preprocessing": {**asdict(backbone.image), "stored": backbone.image.stored},
    }


def data_facts(data: ImageData, beside: ImageData | None = None) -> JsonDict:
    """Return what the report says of the data: counts per split and class, and the audit; and of
    images without labels `beside` it."""
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    return {
        "path": data.path,
        "labels": list(data.labels),
        "images": {name: len(images) for name, images in data.splits.items()},
        "counts": {name: _counts(images) for name, images in splits.items()},
        **({"targets": _targets(data)} if data.scale else {}),
        "fingerprint": data.fingerprint,
        "audit": data.audit.to_dict(),
        **({"unlabelled": _unlabelled(beside)} if beside else {}),
    }


def _unlabelled(beside: ImageData) -> JsonDict:
    """Return where images without labels are, how many, and how many were left out of them."""
    left = sum(one.count for one in beside.audit.findings if one.kind in KINDS)
    return {
        "path": beside.path,
        "images": len(beside.train),
        "held_out": left,
        "fingerprint": beside.fingerprint,
    }


def _targets(data: ImageData) -> dict[str, list[JsonDict]]:
    """Return the mean, spread and range of each target in each split, in the target's units."""
    assert data.scale is not None
    return {
        split: [
            {
                "target": name,
                "mean": float(values.mean()),
                "std": float(values.std()),
                "min": float(values.min()),
                "max": float(values.max()),
            }
            for name, column in zip(data.labels, data.scale.to_units(images.labels).T, strict=True)
            if len(column)
            for values in [rounded(column)]
        ]
        for split, images in data.splits.items()
    }


def _counts(images: ImageSet | None) -> dict[str, int]:
    if images is None:
        return {}
    return dict(zip(images.names, images.class_counts, strict=True))


def source_facts(report: RunReport) -> JsonDict:
    """Return what the report says of the task that its backbone was trained on first.

    `curve` holds [epoch, value] of the probe of the target's images, where a pretext had one.
    """
    probe = next((name for name in report.metrics if name in PROBES.values()), None)
    curve, start = [], 0.0
    for phase in report.phases:
        rows = [row for row in phase.history if f"eval_{probe}" in row and "epoch" in row]
        curve += [[start + row["epoch"], row[f"eval_{probe}"]] for row in rows]
        start += phase.epochs
    findings = (report.data.get("audit") or {}).get("findings", [])
    return {
        "task": report.task.name,
        "backbone": report.backbone.get("id"),
        "weights": report.backbone.get("weights"),
        "path": report.data.get("path"),
        "images": report.data.get("images"),
        "held_out": sum(one["count"] for one in findings if one["kind"] in KINDS),
        "phases": [phase.name for phase in report.phases],
        "metrics": {name: value for name, value in report.metrics.items() if is_number(value)},
        "before": report.metrics.get("before") or {},
        "probe": probe,
        "curve": curve,
        "seconds": report.seconds.get("wall"),
        "warnings": list(report.warnings),
    }


def warnings_of(phases: Sequence[PhaseReport], source: JsonDict | None = None) -> tuple[str, ...]:
    """Return what a reader of the report must know of the training, and of its source's."""
    found = [f"source: {text}" for text in (source or {}).get("warnings", ())]
    for phase in phases:
        if phase.rollbacks:
            often = "once" if phase.rollbacks == 1 else f"{phase.rollbacks} times, each time"
            found.append(
                f"phase {phase.name}: the loss exploded; the phase was rolled back {often} and "
                "continued at a tenth of its rates"
            )
        unmoved = phase.checks["unmoved"]
        if unmoved:
            found.append(
                f"phase {phase.name}: {len(unmoved)} parameters that should have trained did not "
                f"change ({', '.join(unmoved[:3])}): no gradient reached them"
            )
    return tuple(found)
