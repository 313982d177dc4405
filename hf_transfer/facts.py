"""The facts of a run for its report, gathered from the objects that know them."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hf_transfer
from hf_transfer import launch
from hf_transfer.data import ImageData, ImageSet
from hf_transfer.evaluation import load_metric
from hf_transfer.freezing import fingerprint
from hf_transfer.metrics import classification_metrics, compute_metrics
from hf_transfer.schema import METRICS
from hf_transfer.trainer import TransferTrainer

Extra = Callable[[Any, Any], dict[str, Any]]
LIBRARIES = ("torch", "transformers", "timm", "torchvision", "accelerate", "datasets")


def environment() -> dict[str, Any]:
    """Return versions and hardware, without anything that names the machine or its user."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "hf_transfer": hf_transfer.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        "hardware": ", ".join(gpus) or f"CPU, {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": launch.count(),
    }


def now() -> str:
    """Return the time as ISO 8601 in UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def backbone_facts(model: torch.nn.Module, backbone_id: str) -> dict[str, Any]:
    """Return what the report says of the backbone; `license` is what its checkpoint states."""
    backbone = model.backbone
    stated = getattr(model.config, "pretrained_cfg", None) or {}
    hub = backbone.source == "transformers" and not Path(backbone_id).is_dir()
    return {
        "id": backbone_id,
        **({"repo": backbone_id.removeprefix("transformers/")} if hub else {}),
        "source": backbone.source,
        "weights": backbone.weights,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "license": stated.get("license"),
        "image_size": backbone.image.size,
    }


def data_facts(data: ImageData) -> dict[str, Any]:
    """Return what the report says of the data: counts per split and class, and the audit."""
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    return {
        "path": data.path,
        "labels": list(data.labels),
        "counts": {name: _counts(images) for name, images in splits.items()},
        "fingerprint": data.fingerprint,
        "audit": data.audit.to_dict(),
    }


def inputs(model: torch.nn.Module, data: ImageData) -> dict[str, Any]:
    """Return what a run starts from, by name: a resumed run must start from the same."""
    first = fingerprint(model, model.backbone.prefix)
    return {
        "images": sum(map(len, (data.train, data.validation, data.test or ()))),
        "data": data.fingerprint,
        "weights": first.digest(),
    }


def _counts(images: ImageSet | None) -> dict[str, int]:
    if images is None:
        return {}
    return dict(zip(images.names, images.class_counts, strict=True))


def warnings_of(trainer: TransferTrainer) -> tuple[str, ...]:
    """Return what a reader of the report should know of the training."""
    found = []
    for report in trainer.reports:
        unmoved = report.checks["unmoved"]
        if unmoved:
            found.append(
                f"phase {report.name}: {len(unmoved)} parameters were to train and did not move "
                f"({', '.join(unmoved[:3])}): no gradient reached them"
            )
    return tuple(found)


def class_weights(images: ImageSet) -> torch.Tensor:
    """Return (C,) weights that make every class count the same: total / (classes x count)."""
    counts = torch.tensor(images.class_counts, dtype=torch.float32).clamp(min=1)
    return counts.sum() / (len(counts) * counts)


def extra_metrics(names: Sequence[str]) -> tuple[Extra, ...]:
    """Return the further `evaluate` metrics of a recipe, loaded before anything is trained."""
    return tuple(load_metric(name) for name in names)


class EpochMetrics:
    """`compute_metrics` for a Trainer: ours and those of `extra`; `names` are what it gives.

    Each of `extra` is tried on random logits, so that its names are known, and its failures come,
    before anything is trained. Raises UserError.
    """

    def __init__(self, extra: Sequence[Extra], classes: int) -> None:
        self.extra = tuple(extra)
        random = np.random.default_rng(0)
        labels = np.arange(4 * classes) % classes
        found = self._extras(random.normal(size=(len(labels), classes)), labels)
        self.names = frozenset({*METRICS, *found})

    def _extras(self, logits: Any, labels: Any) -> dict[str, Any]:
        return {key: value for one in self.extra for key, value in one(logits, labels).items()}

    def __call__(self, prediction: Any) -> dict[str, Any]:
        """Return the scalars of an EvalPrediction."""
        logits, labels = prediction.predictions, prediction.label_ids
        return {**self._extras(logits, labels), **compute_metrics((logits, labels))}


def measure(
    trainer: TransferTrainer, data: ImageData, extra: Sequence[Extra] = ()
) -> dict[str, Any]:
    """Return the final metrics on validation, and under `test` on test where there is one.

    `extra` metrics are computed from the same logits.
    """
    metrics = _measured(trainer, data.validation, data.labels, extra)
    if data.test is not None:
        metrics["test"] = _measured(trainer, data.test, data.labels, extra)
    return metrics


def _measured(
    trainer: TransferTrainer, images: ImageSet, labels: Sequence[str], extra: Sequence[Extra]
) -> dict[str, Any]:
    logits = trainer.predict(images).predictions
    metrics = classification_metrics(logits, images.labels, labels)
    for metric in extra:
        metrics |= metric(logits, images.labels)
    return metrics
