"""Where in an image a model sees a label: heat maps by captum.

Convolutional networks get a map of the Grad-CAM family: activation times gradient, summed over
channels (HiResCAM, arXiv:2011.08891), of the last layers that keep enough places apart.
Transformers mix places in every block, so that the last tokens say little of where; they get
integrated gradients (arXiv:1703.01365) from the mean colour to the image, summed over the cells of
a grid.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from captum.attr import IntegratedGradients, LayerGradientXActivation
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate
from transformers import PreTrainedModel

from hf_transfer.backbones.access import evaluating, logits_of
from hf_transfer.backbones.watching import tensors_in
from hf_transfer.base.bars import bar
from hf_transfer.base.boundary import printable
from hf_transfer.base.errors import UserError
from hf_transfer.base.files import write_bytes
from hf_transfer.base.nearest import similar
from hf_transfer.base.outputs import folder_to_write
from hf_transfer.base.signatures import checked
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.inputs.model_input import to_model_input
from hf_transfer.serving.onnx_model import OnnxModel
from hf_transfer.serving.pictures import batches, find_images
from hf_transfer.serving.predict import Prediction, answering, network_of, outputs, prediction_of

if TYPE_CHECKING:
    from hf_transfer.serving.load import Model

BATCH = 16  # gradients need memory
COLOURS = "inferno"  # matplotlib's; brighter is hotter, also in gray and to the colour-blind
# Of a layer, along a side. ResNet-10-T sees 2 x 2 places of 64 px in its last layers: hiding the
# hottest quarter of 30 flowers cost the answer no more than the coldest (0.10 and 0.09 nats);
# by the map of the 4 x 4 places before them it cost 0.86 and -0.02.
PLACES = 4
CELLS = 8  # of integrated gradients, along a side; they overlap by half
STEPS = 16  # from the mean colour to the image
NAME_LENGTH = 80
Method = Callable[[Tensor, Tensor], Tensor]  # inputs (B, C, S, S), columns (B,) -> (B, h, w)
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, by ITU-R BT.601
LEAST = 384  # pixels of a side of a written map, so that one of a small input can be seen
STRENGTH = 0.65  # how much of an overlay is colour where the map is 1


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where in an image a model sees a label, or in `error` why nobody can say.

    `image` uint8 (S, S, C) is the square that the model sees; `heat` float32 (S, S) is 1 where the
    label gets most and 0 where it gets nothing, or where the place speaks against it. It is 0
    everywhere if no place speaks for the label. `probability` is the label's, None with a
    regression, where `value` is the prediction in units.
    """

    file: str
    label: str | None = None
    probability: float | None = None
    value: float | None = None
    image: np.ndarray[Any, Any] | None = None
    heat: np.ndarray[Any, Any] | None = None
    error: str | None = None

    def overlay(self, strength: float = STRENGTH) -> Image.Image:
        """Return the image in gray under its heat map, coloured by `strength` (0..1) where it is
        hottest. Raises UserError where there is no map.
        """
        if self.image is None or self.heat is None:
            raise UserError(self.error or f"{self.file} has no heat map")
        from matplotlib import colormaps

        colours = colormaps[COLOURS](self.heat)[..., :3] * 255
        share = strength * self.heat[..., None]
        gray = (_rgb(self.image) @ LUMA)[..., None]  # or its own colours would look like heat
        mixed = gray * (1 - share) + colours * share
        return Image.fromarray((mixed + 0.5).astype(np.uint8))


@checked
def explain(
    model: Model | PreTrainedModel | OnnxModel | str | Path,
    images: Any,
    *,
    label: str | Sequence[str] | None = None,
    batch_size: int = BATCH,
    out: str | Path | None = None,
) -> list[Explanation]:
    """Return a heat map for each image, in order; for several labels one after the other.

    `model` and `images` are what `predict` takes; `batch_size` of them are passed through the
    network at once. `label` is one of the model's labels or targets, or several; None: the
    likeliest of each image, the first target of a regression. `out` is a folder to write each map
    over its image to, as PNG. An image that cannot be read has an explanation with an `error`.
    Raises UserError.
    """
    folder = None if out is None else folder_to_write(out)
    found = list(iter_explanations(model, images, label=label, batch_size=batch_size))
    if folder is not None:
        taken = set[str]()
        for one in found:
            _write(one, folder, taken)
    return found


def iter_explanations(
    model: Model | PreTrainedModel | OnnxModel | str | Path,
    images: Any,
    *,
    label: str | Sequence[str] | None = None,
    batch_size: int = BATCH,
) -> Iterator[Explanation]:
    """Yield a heat map for each image, as `explain` returns them, as soon as its batch is done."""
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}")
    model = network_of(answering(model))
    names = [label] if isinstance(label, str) else list(label or ())
    wanted = [_column(model.backbone.labels, name) for name in names]
    method: Method | None = None
    for batch in batches(images, model.backbone.image, batch_size):
        logits = outputs(model, batch.pixels)
        x = to_model_input(batch.pixels.to(model.device), model.backbone.image).to(model.dtype)
        columns = [torch.full((len(x),), one) for one in wanted] or [_likeliest(model, logits)]
        if len(x):
            method = method or _method(model, x, columns[0])
            maps = [_heat(method(x, one), model.backbone.image.size) for one in columns]
        row = 0
        for name, error in zip(batch.names, batch.errors, strict=True):
            if error:
                yield Explanation(name, error=error)
                continue
            told = prediction_of(model.backbone, name, logits[row], len(model.backbone.labels))
            if told.error:
                yield Explanation(name, error=told.error)
            else:
                pixels = _seen(batch.pixels[row].numpy(), model.backbone.image)
                for column, heat in zip(columns, maps, strict=True):
                    yield _explanation(told, model.backbone.labels[column[row]], pixels, heat[row])
            row += 1


def _column(labels: Sequence[str], label: str) -> int:
    if label in labels:
        return labels.index(label)
    near = similar(label, labels, cutoff=0.6)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(labels)}"
    raise UserError(f"the model has no label {label!r}; {hint}")


def _likeliest(model: PreTrainedModel, logits: Tensor) -> Tensor:
    """Return columns (B,): of the likeliest label, or of a regression's first target."""
    if model.backbone.task == "regression":
        return torch.zeros(len(logits), dtype=torch.long)
    return logits.argmax(dim=1)


def _explanation(
    told: Prediction, label: str, pixels: np.ndarray[Any, Any], heat: np.ndarray[Any, Any]
) -> Explanation:
    shares, values = dict(told.labels), dict(told.values or ())
    return Explanation(told.file, label, shares.get(label), values.get(label), pixels, heat)


def _seen(pixels: np.ndarray[Any, Any], settings: ImageSettings) -> np.ndarray[Any, Any]:
    """Return the middle (S, S, C) of stored pixels (S', S', C), which the model sees."""
    start, size = settings.middle(settings.stored), settings.size
    return pixels[start : start + size, start : start + size]


# --- maps --------------------------------------------------------------------------------------


def _method(model: PreTrainedModel, x: Tensor, columns: Tensor) -> Method:
    """Return what makes maps: of the last layers (B, C, h, w) of PLACES a side or more in which
    more than one place matters to the outputs; or, where no group of layers gives that, as in
    transformers, of the pixels."""
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, _: Any, given: Any) -> None:
        shapes[module] = tuple(next(tensors_in(given)).shape)

    paths = [path for group in model.backbone.groups.groups for path in group.modules]
    modules = [model.get_submodule(f"{model.backbone.prefix}{path}") for path in paths]
    hooks = [one.register_forward_hook(note) for one in modules]
    try:
        with evaluating(model), torch.no_grad():
            model(pixel_values=x[:1])
    finally:
        for hook in hooks:
            hook.remove()
    if any(len(shape) == 3 for shape in shapes.values()):  # tokens
        return partial(_cells, model)
    for module in reversed([one for one in modules if _has_places(shapes.get(one, ()))]):
        found = _activations(model, module, x, columns)
        if bool(((found != 0).flatten(1).sum(dim=1) > 1).any()):
            return partial(_activations, model, module)
    return partial(_cells, model)


def _has_places(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[2] == shape[3] >= PLACES


def _heat(found: Tensor, side: int) -> np.ndarray[Any, Any]:
    """Return heat maps float32 (B, side, side) in 0..1 of what speaks for a label (B, h, w)."""
    heat = interpolate(found[:, None].relu(), (side, side), mode="bilinear")[:, 0]
    most = heat.flatten(1).amax(dim=1)[:, None, None]
    return (heat / most.where(most > 0, 1)).cpu().numpy()


def _activations(model: PreTrainedModel, layer: nn.Module, x: Tensor, columns: Tensor) -> Tensor:
    """Return (B, h, w): a layer's activation times the outputs' gradient, summed over channels."""
    with _watched(model) as forward:
        found = LayerGradientXActivation(forward, layer).attribute(x, columns.to(x.device))
    return next(tensors_in(found)).detach().float().sum(dim=1)


def _cells(model: PreTrainedModel, x: Tensor, columns: Tensor) -> Tensor:
    """Return (B, h, w): integrated gradients, summed over channels and over cells that overlap by
    half."""
    with _watched(model) as forward:
        found = IntegratedGradients(forward).attribute(
            x, target=columns.to(x.device), n_steps=STEPS, internal_batch_size=len(x)
        )
    cell = max(2, x.shape[-1] // CELLS)
    return avg_pool2d(found.detach().float().sum(dim=1, keepdim=True), cell, cell // 2)[:, 0]


@contextmanager
def _watched(model: PreTrainedModel) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield the function from inputs to outputs, with gradients and in evaluation mode."""
    with evaluating(model), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum tells that it makes the inputs require gradients
        yield lambda inputs: logits_of(model(pixel_values=inputs))


# --- files -------------------------------------------------------------------------------------


def _rgb(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return pixels (S, S, C) as three colours; of two or of many channels their mean, gray."""
    if pixels.shape[2] in (3, 4):
        return pixels[..., :3]
    return pixels.mean(axis=2, keepdims=True).repeat(3, axis=2)


def explain_to(
    model: str | Path,
    images: Sequence[str | Path],
    out: str | Path,
    label: str | Sequence[str] | None = None,
    batch_size: int = BATCH,
) -> tuple[list[str], list[str]]:
    """Write a heat map over each image as PNG to the folder `out`; return lines that tell of it,
    and why images were left out. Raises UserError."""
    folder = folder_to_write(out)
    files = find_images(images)
    lines, errors, taken = [], [], set[str]()
    with bar(len(files), "explain") as progress:
        last = None
        for one in iter_explanations(model, files, label=label, batch_size=batch_size):
            progress.update(one.file != last)
            last = one.file
            if one.error:
                errors.append(one.error)
                continue
            place = _write(one, folder, taken)
            told = f"{one.value:.7g}" if one.probability is None else f"{one.probability:.3f}"
            lines.append(
                f"{_shown(place)}   {one.label} {told} in {_shown(one.file)}{_nowhere(one)}"
            )
    return lines, errors


def _shown(path: str | Path) -> str:
    return printable(str(path))


def _nowhere(one: Explanation) -> str:
    """Return a note on a map that is gray all over."""
    return "" if one.heat is None or one.heat.any() else "   no part of the image speaks for it"


def _write(one: Explanation, folder: Path, taken: set[str]) -> Path:
    """Write a map over its image and return where; one without a map writes nothing."""
    place = folder / _name(one, taken)
    if one.error is None:
        content = io.BytesIO()
        drawn = one.overlay()
        if (side := drawn.width) < LEAST:
            times = -(-LEAST // side)
            drawn = drawn.resize((times * side, times * side), Image.Resampling.BICUBIC)
        drawn.save(content, "PNG")
        write_bytes(place, content.getvalue())
    return place


def _name(one: Explanation, taken: set[str]) -> str:
    """Return a file name of image and label that no other has."""
    words = f"{Path(one.file).stem}-{one.label}".encode(errors="replace").decode()
    stem = re.sub(r"[^\w.+-]+", "-", words).strip("-.")[:NAME_LENGTH]
    names = chain([stem], (f"{stem}-{number}" for number in count(2)))
    name = next(name for name in names if name.casefold() not in taken)
    taken.add(name.casefold())
    return f"{name}.png"
