"""Images to answers: decoded and cut as in training; ranked probabilities, or numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from hf_transfer.backbones.access import evaluating
from hf_transfer.backbones.blueprint import Backbone
from hf_transfer.backbones.load import load_model
from hf_transfer.base.boundary import as_text
from hf_transfer.base.errors import UserError
from hf_transfer.base.signatures import checked
from hf_transfer.inputs.head_features import outputs_and_features
from hf_transfer.inputs.mirror import mean_of_views
from hf_transfer.inputs.model_input import to_model_input
from hf_transfer.recipe.tasks import TASKS, THRESHOLD
from hf_transfer.serving.familiar import Familiar, familiar_of
from hf_transfer.serving.onnx_model import SUFFIX, OnnxFacts, OnnxModel
from hf_transfer.serving.pictures import Batch, batches

if TYPE_CHECKING:
    from hf_transfer.serving.load import Model

ANSWERS = 5  # classes that are kept where nobody says how many


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image: (label, probability in 0..1), the likeliest first.

    Of several labels at once those from `threshold` on are there, or from their own in
    `thresholds`; with a regression `values` holds
    (target, number in its own units). `error` is one line for an image that could not be read.
    `unlike` says how unlike any training image it is, where that was asked: above 1 it is unknown.
    """

    file: str
    labels: tuple[tuple[str, float], ...] = ()
    error: str | None = None
    values: tuple[tuple[str, float], ...] | None = None
    threshold: float | None = None
    thresholds: tuple[tuple[str, float], ...] = ()
    unlike: float | None = None

    @property
    def unknown(self) -> bool:
        """Whether the image is so unlike those of training that no answer should count."""
        return self.unlike is not None and self.unlike > 1

    @property
    def label(self) -> str | None:
        """The likeliest label, None where there is none."""
        return self.labels[0][0] if self.labels else None

    @property
    def there(self) -> tuple[tuple[str, float], ...]:
        """The labels that the image shows: of several at once those from the threshold on."""
        if self.threshold is None:
            return self.labels
        own = dict(self.thresholds)
        return tuple(
            (name, share) for name, share in self.labels if share >= own.get(name, self.threshold)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction as plain JSON values."""
        told = {} if self.unlike is None else {"unknown": self.unknown, "unlike": self.unlike}
        return self._answer() | told

    def _answer(self) -> dict[str, Any]:
        if self.values is not None:
            told = [{"target": target, "value": value} for target, value in self.values]
            return {"file": self.file, "values": told, "error": self.error}
        ranked = [{"label": label, "probability": share} for label, share in self.labels]
        answer: dict[str, Any] = {"file": self.file, "labels": ranked, "error": self.error}
        if self.threshold is None:
            return answer
        there = [name for name, _ in self.there]
        own = {"thresholds": dict(self.thresholds)} if self.thresholds else {}
        return answer | {"threshold": self.threshold, **own, "there": there}


class Predictions(list[Prediction]):
    """Predictions in order: a list that turns into a table of `datasets` or pandas."""

    def to_dataset(self) -> Any:
        """Return a `datasets.Dataset` with a row for each image, of what `to_dict` returns."""
        from datasets import Dataset

        return Dataset.from_list([row.to_dict() | {"file": as_text(row.file)} for row in self])

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame with a row for each image: its file, why it has no answer, the
        likeliest label, and a column with the probability or value of each label or target."""
        from pandas import DataFrame

        rows = []
        for row in self:
            label = {} if row.values is not None else {"label": row.label}
            told = dict(row.labels if row.values is None else row.values)
            unknown = {} if row.unlike is None else {"unknown": row.unknown, "unlike": row.unlike}
            rows.append({"file": as_text(row.file), "error": row.error, **label, **unknown, **told})
        return DataFrame(rows)


@checked
def predict(
    model: Model | PreTrainedModel | OnnxModel | str | Path,
    images: Any,
    *,
    top: int | None = None,
    batch_size: int = 32,
    threads: int | None = None,
    workers: int = 0,
    unknown: bool = False,
    tta: bool | None = None,
) -> Predictions:
    """Return a prediction for each image, in order, as a list that turns into a table.

    `model` is a run folder, a model folder, a Hub repository, an ONNX file that `export` wrote, or
    a loaded model. `images` are paths, folders, patterns ("photos/*.jpg"), tables with a column of
    images (CSV, JSON Lines, Parquet), bytes, open files, PIL images, arrays (H, W, C) or tensors
    (C, H, W) of uint8 or of floats in 0..1, rows or columns of `datasets`, or any iterable of
    these. The `top` likeliest labels are kept: 5 of classes, all of several labels. Of `batch_size`
    images at a time, `threads` decode (default: one for each core), or so many `workers`: processes
    that read up to two batches ahead. With `unknown` each prediction says how `unlike` the training
    images its image is. `tta` averages the answers for an image and its mirror image (default: as
    saved with the model). An image that cannot be read has a prediction with an `error`. Raises
    UserError where there is no model, or with `unknown` where it knows nothing of its training
    images.
    """
    options: Any = {"top": top, "batch_size": batch_size, "threads": threads, "workers": workers}
    model = answering(model)
    return Predictions(iter_predictions(model, images, unknown=unknown, tta=tta, **options))


def iter_predictions(
    model: Model | PreTrainedModel | OnnxModel | str | Path,
    images: Any,
    *,
    top: int | None = None,
    batch_size: int = 32,
    threads: int | None = None,
    workers: int = 0,
    unknown: bool = False,
    tta: bool | None = None,
) -> Iterator[Prediction]:
    """Yield a prediction for each image, in order, as soon as its batch is done; see `predict`."""
    if (top is not None and top < 1) or batch_size < 1:
        raise UserError(f"top and batch_size must be at least 1, got {top} and {batch_size}")
    model = ready(model)
    familiar = familiar_of(network_of(model)) if unknown else None
    both = averages(model, tta)
    for batch in batches(images, model.backbone.image, batch_size, threads, workers):
        yield from _answers(model, batch, top, familiar, both)


def averages(model: PreTrainedModel | OnnxModel, tta: bool | None) -> bool:
    """Return whether a model's answers are means with those for mirror images: as asked, else as
    saved with it."""
    return bool(model.backbone.tta if tta is None else tta)


def ready(where: Model | PreTrainedModel | OnnxModel | str | Path) -> PreTrainedModel | OnnxModel:
    """Return what `load_model` finds, on the accelerator where there is one; or an ONNX file. A
    model is returned as it is."""
    if isinstance(where, (PreTrainedModel, OnnxModel)):
        return where
    if not isinstance(where, (str, os.PathLike)):
        return where.network
    place = str(where)
    if place.lower().endswith(SUFFIX):
        return OnnxModel(place)
    device = torch.accelerator.current_accelerator(check_available=True)
    return load_model(place).to(device or "cpu")


def answering(
    where: Model | PreTrainedModel | OnnxModel | str | Path,
) -> PreTrainedModel | OnnxModel:
    """Return what `ready` does. Raises UserError as `check_answers` does."""
    model = ready(where)
    check_answers(model.backbone.id, model.backbone.task)
    return model


def check_answers(name: str, task: str) -> None:
    """Raise UserError for a model that learned from images without labels: its outputs say nothing
    about an image."""
    if TASKS[task].is_pretext:
        raise UserError(
            f"{name} learned from images without labels ({task}) and has no labels to answer with; "
            "train it on labelled images first, with it as --backbone"
        )


def _answers(
    model: PreTrainedModel | OnnxModel,
    batch: Batch,
    top: int | None,
    familiar: Familiar | None,
    tta: bool,
) -> Iterator[Prediction]:
    if familiar is None or not len(batch.pixels) or isinstance(model, OnnxModel):
        logits, unlike = outputs(model, batch.pixels, tta), None
    else:
        logits, features = outputs_and_features(model, batch.pixels)
        unlike = familiar.unlike(features).tolist()
        logits = _mean(model, batch.pixels, logits) if tta else logits
    row = 0
    for name, error in zip(batch.names, batch.errors, strict=True):
        if error:
            yield Prediction(name, error=error)
            continue
        told = prediction_of(model.backbone, name, logits[row], top)
        yield told if unlike is None or told.error else replace(told, unlike=unlike[row])
        row += 1


def prediction_of(
    backbone: Backbone | OnnxFacts, name: str, output: torch.Tensor, top: int | None = None
) -> Prediction:
    """Return what the outputs (C,) of one image mean for the model's task."""
    if not output.isfinite().all():
        why = "the model's answer is not a number; its weights or its config.json are damaged"
        return Prediction(name, error=f"{name}: {why}")
    if backbone.task == "regression":
        scale = backbone.scale
        values = (scale.to_units(output) if scale else output).tolist()
        return Prediction(name, values=tuple(zip(backbone.labels, values, strict=True)))
    several = backbone.task == "multi_label"
    shares = output.sigmoid() if several else output.softmax(-1)
    ordered, classes = torch.sort(shares, descending=True, stable=True)
    kept = top if top or several else ANSWERS
    names = [backbone.labels[place] for place in classes.tolist()]
    ranked = tuple(zip(names, ordered.tolist(), strict=True))
    own = tuple(zip(backbone.labels, backbone.thresholds, strict=False))
    return Prediction(name, ranked[:kept], threshold=THRESHOLD if several else None, thresholds=own)


def network_of(model: Model | PreTrainedModel | OnnxModel | str | Path) -> PreTrainedModel:
    """Return a model with layers, read from a folder or the Hub. Raises UserError for ONNX."""
    model = ready(model)
    if isinstance(model, PreTrainedModel):
        return model
    raise UserError(
        f"{model.backbone.id} is an ONNX file, which predict and evaluate read; for this give the "
        "run or the model that it was made of"
    )


@torch.inference_mode()
def outputs(
    model: PreTrainedModel | OnnxModel, pixels: torch.Tensor, tta: bool = False
) -> torch.Tensor:
    """Return the model's outputs (B, C), float32 on the CPU, for images of uint8 (B, S', S', C);
    with `tta` as means with those for the mirror images.

    The model is in evaluation mode meanwhile, and as it was afterwards.
    """
    if tta:
        return _mean(model, pixels, outputs(model, pixels))
    if isinstance(model, OnnxModel):
        return model.outputs(pixels)
    if not len(pixels):
        return torch.empty((0, len(model.backbone.labels)))
    with evaluating(model):
        x = to_model_input(pixels.to(model.device), model.backbone.image).to(model.dtype)
        return model(pixel_values=x).logits.float().cpu()


def _mean(
    model: PreTrainedModel | OnnxModel, pixels: torch.Tensor, found: torch.Tensor
) -> torch.Tensor:
    """Return outputs (B, C) as means with those for the mirror images."""
    views = [found, outputs(model, pixels.flip(2))]
    return mean_of_views(model.backbone.task, views).float()
