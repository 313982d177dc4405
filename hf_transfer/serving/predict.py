"""Images to answers: decoded and cut as in training; ranked probabilities, or numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from hf_transfer.backbones.blueprint import Backbone
from hf_transfer.backbones.load import load_model
from hf_transfer.base.errors import UserError
from hf_transfer.data.decoding import ImageError, decode
from hf_transfer.data.sources import looks_like_image, shown
from hf_transfer.inputs.model_input import to_model_input
from hf_transfer.recipe.tasks import THRESHOLD

ANSWERS = 5  # classes that are kept where nobody says how many
Source = str | Path | bytes | Image.Image


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image: (label, probability in 0..1), the likeliest first.

    Of several labels at once those from `threshold` on are there; with a regression `values` holds
    (target, number in its own units). `error` is one line for an image that could not be read.
    """

    file: str
    labels: tuple[tuple[str, float], ...] = ()
    error: str | None = None
    values: tuple[tuple[str, float], ...] | None = None
    threshold: float | None = None

    @property
    def there(self) -> tuple[tuple[str, float], ...]:
        """The labels that the image shows: of several at once those from the threshold on."""
        if self.threshold is None:
            return self.labels
        return tuple(pair for pair in self.labels if pair[1] >= self.threshold)

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction as plain JSON values."""
        if self.values is not None:
            told = [{"target": target, "value": value} for target, value in self.values]
            return {"file": self.file, "values": told, "error": self.error}
        ranked = [{"label": label, "probability": share} for label, share in self.labels]
        answer: dict[str, Any] = {"file": self.file, "labels": ranked, "error": self.error}
        if self.threshold is None:
            return answer
        return answer | {"threshold": self.threshold, "there": [name for name, _ in self.there]}


def predict(
    model: PreTrainedModel | str | Path,
    images: Source | Iterable[Source],
    *,
    top: int | None = None,
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
    top: int | None = None,
    batch_size: int = 32,
) -> Iterator[Prediction]:
    """Yield a prediction for each image, in order, as soon as its batch is done.

    `model` is a model of ours, or what `load_model` takes; `images` are paths, bytes or PIL
    images. The `top` likeliest labels are kept: 5 of classes, all of several labels. An image that
    cannot be read yields a prediction with an `error`. Raises UserError where there is no model.
    """
    if (top is not None and top < 1) or batch_size < 1:
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

    Files named are kept whatever they are; in folders those that training takes. Raises UserError
    for a path that is not there and for a folder without images.
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
            if looks_like_image(file.name)
            and all(map(shown, file.relative_to(path).parts))
            and file.is_file()
        )
        if not below:
            raise UserError(f"the folder {path} holds no images")
        found += below
    return found


def format_predictions(predictions: Iterable[Prediction]) -> str:
    """Return one line per image: its name, then labels with probabilities, or targets with their
    values, or why it has none; below them from which probability several labels count."""
    rows = list(predictions)
    names = max((len(row.file) for row in rows), default=0)
    labels = max((len(label) for row in rows for label, _ in row.there), default=0)
    lines = []
    for row in rows:
        cells = [f"{label:<{labels}} {share:.3f}" for label, share in row.there]
        cells += [f"{target} {value:.7g}" for target, value in row.values or ()]
        if not cells and row.labels:
            label, share = row.labels[0]
            cells = [f"none; the likeliest is {label} {share:.3f}"]
        why = (row.error or "").removeprefix(f"{row.file}: ")
        text = f"error: {why}" if row.error else "   ".join(cells)
        lines.append(f"{row.file:<{names}}   {text}")
    limits = {row.threshold for row in rows if row.threshold is not None}
    lines += [f"Labels with a probability of {limit:g} or more." for limit in limits]
    return "\n".join(lines)


def _answer(model: PreTrainedModel, images: list[Source], top: int | None) -> list[Prediction]:
    settings = model.backbone.image
    results: list[Prediction | None] = []
    pixels = []
    for source in images:
        try:
            pixels.append(torch.from_numpy(decode(source, settings).copy()))
            results.append(None)
        except ImageError as error:
            results.append(Prediction(_name(source), error=str(error)))
    outputs = iter(_outputs(model, torch.stack(pixels)) if pixels else ())
    return [
        result or _told(model.backbone, _name(source), next(outputs), top)
        for source, result in zip(images, results, strict=True)
    ]


def _told(backbone: Backbone, name: str, output: torch.Tensor, top: int | None) -> Prediction:
    """Return what the outputs (C,) of one image mean for the model's task."""
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
    return Prediction(name, ranked[:kept], threshold=THRESHOLD if several else None)


@torch.inference_mode()
def _outputs(model: PreTrainedModel, pixels: torch.Tensor) -> torch.Tensor:
    """Return the model's outputs (B, C), float32 on the CPU, for images of uint8 (B, S', S', C)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    x = to_model_input(pixels.to(model.device), model.backbone.image).to(model.dtype)
    logits = model(pixel_values=x).logits.float()
    for module, mode in modes:
        module.training = mode
    return logits.cpu()


def _name(source: Source) -> str:
    return str(source) if isinstance(source, (str, Path)) else "image"
