"""Images to labels: decoded and cut as in training, answered with ranked probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from hf_transfer.backbone import load_model
from hf_transfer.decoding import ImageError, decode
from hf_transfer.images import to_model_input
from hf_transfer.recipe import UserError
from hf_transfer.sources import IMAGE_SUFFIXES

Source = str | Path | bytes | Image.Image


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image: (label, probability in 0..1), the likeliest first.

    `error` is one line for an image that could not be read; it has no labels then.
    """

    file: str
    labels: tuple[tuple[str, float], ...] = ()
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction as plain JSON values."""
        ranked = [{"label": label, "probability": share} for label, share in self.labels]
        return {"file": self.file, "labels": ranked, "error": self.error}


def predict(
    model: PreTrainedModel | str | Path,
    images: Source | Iterable[Source],
    *,
    top: int = 5,
    batch_size: int = 32,
) -> list[Prediction]:
    """Return a prediction for each image, in order; see `iter_predictions`."""
    if isinstance(images, (str, Path, bytes, Image.Image)):
        images = [images]
    return list(iter_predictions(model, images, top=top, batch_size=batch_size))


def iter_predictions(
    model: PreTrainedModel | str | Path,
    images: Iterable[Source],
    *,
    top: int = 5,
    batch_size: int = 32,
) -> Iterator[Prediction]:
    """Yield a prediction for each image, in order, as soon as its batch is done.

    `model` is a model of ours, or what `load_model` takes; `images` are paths, bytes or PIL
    images. The `top` likeliest labels are kept. An image that cannot be read yields a prediction
    with an `error`. Raises UserError for a model that is not there.
    """
    if top < 1 or batch_size < 1:
        raise UserError(f"top and batch_size must be at least 1, got {top} and {batch_size}")
    if not isinstance(model, PreTrainedModel):
        model = ready(model)
    remaining = iter(images)
    while batch := list(islice(remaining, batch_size)):
        yield from _answer(model, batch, top)


def ready(where: str | Path) -> PreTrainedModel:
    """Return what `load_model` finds, on the accelerator where there is one."""
    device = torch.accelerator.current_accelerator(check_available=True)
    return load_model(where).to(device or "cpu")


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """Return the files named, and of each folder named all images below it, sorted.

    Files named are kept whatever they are; hidden files in folders are not. Raises UserError for
    a path that is not there and for a folder without images.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            if not path.exists():
                raise UserError(f"there is no image or folder {path}")
            found.append(path)
            continue
        below = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in IMAGE_SUFFIXES
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
        )
        if not below:
            raise UserError(f"the folder {path} holds no images")
        found += below
    return found


def format_predictions(predictions: Iterable[Prediction]) -> str:
    """Return one line per image: its name, then labels with probabilities, or why it has none."""
    rows = list(predictions)
    names = max((len(row.file) for row in rows), default=0)
    labels = max((len(label) for row in rows for label, _ in row.labels), default=0)
    lines = []
    for row in rows:
        cells = [f"{label:<{labels}} {share:.3f}" for label, share in row.labels]
        why = (row.error or "").removeprefix(f"{row.file}: ")
        text = f"error: {why}" if row.error else "   ".join(cells)
        lines.append(f"{row.file:<{names}}   {text}")
    return "\n".join(lines)


def _answer(model: PreTrainedModel, images: list[Source], top: int) -> list[Prediction]:
    settings, labels = model.backbone.image, model.backbone.labels
    results: list[Prediction | None] = []
    pixels = []
    for source in images:
        try:
            pixels.append(torch.from_numpy(decode(source, settings).copy()))
            results.append(None)
        except ImageError as error:
            results.append(Prediction(_name(source), error=str(error)))
    ranked = iter(_rank(model, torch.stack(pixels), top) if pixels else ())
    return [
        result or Prediction(_name(source), tuple((labels[i], p) for i, p in next(ranked)))
        for source, result in zip(images, results, strict=True)
    ]


@torch.inference_mode()
def _rank(model: PreTrainedModel, pixels: torch.Tensor, top: int) -> list[list[tuple[int, float]]]:
    """Return for each image of uint8 (B, S', S', C) its (class, probability), likeliest first."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    x = to_model_input(pixels.to(model.device), model.backbone.image).to(model.dtype)
    logits = model(pixel_values=x).logits.float()
    for module, mode in modes:
        module.training = mode
    shares = logits.softmax(-1).cpu()
    values, classes = torch.sort(shares, dim=-1, descending=True, stable=True)
    return [
        list(zip(row[:top].tolist(), share[:top].tolist(), strict=True))
        for row, share in zip(classes, values, strict=True)
    ]


def _name(source: Source) -> str:
    return str(source) if isinstance(source, (str, Path)) else "image"
