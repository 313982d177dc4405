"""From a batch of stored pixels to the model's input: normalised, or augmented while training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import IterableDataset

from hf_transfer.base.boundary import untrusted
from hf_transfer.base.errors import UserError
from hf_transfer.data.image_set import ImageSet
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.inputs.augmentation import augment, mix
from hf_transfer.inputs.model_input import check_pixels, to_model_input
from hf_transfer.recipe.specs import Augment, PhaseSpec

Batch = dict[str, Any]


def evaluation_inputs(batch: Batch, image: ImageSettings) -> Batch:
    """Return {"pixel_values", "labels"} of a batch {"pixels", "labels"}."""
    return {"pixel_values": to_model_input(batch["pixels"], image), "labels": batch["labels"]}


def training_inputs(
    batch: Batch, spec: PhaseSpec, image: ImageSettings, images: ImageSet, epoch: int, seed: int
) -> Batch:
    """Return the same of a batch {"pixels", "labels", "index"}, varied as the phase says: a pure
    function of (seed, epoch, index).

    With mixup or cutmix also "soft_labels" (B, classes); partners come from all of `images`.
    """
    if spec.augment == Augment() and not spec.mixup and not spec.cutmix:
        return evaluation_inputs(batch, image)

    def varied(pixels: torch.Tensor, index: torch.Tensor, epoch: int) -> torch.Tensor:
        return augment(pixels, index, epoch, seed, spec.augment, image)

    def partner(index: torch.Tensor, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        found = images.__getitems__(index.tolist())
        return varied(found["pixels"].to(device), index, epoch), found["labels"].to(device)

    device, index, labels = batch["pixels"].device, batch["index"], batch["labels"]
    pixels = varied(batch["pixels"], index, epoch)
    if not spec.mixup and not spec.cutmix:
        return {"pixel_values": pixels, "labels": labels}
    pixels, soft = mix(
        pixels,
        labels,
        index,
        epoch,
        seed,
        mixup=spec.mixup,
        cutmix=spec.cutmix,
        classes=len(images.names),
        images=len(images),
        partner=partner,
    )
    return {"pixel_values": pixels, "labels": labels, "soft_labels": soft}


def check_first_item(
    images: Any, what: str, image: ImageSettings, labels: Sequence[str] = ()
) -> tuple[Any, tuple[int, ...]] | None:
    """Raise UserError unless the first item of `what`, such as "the training set", is one that
    `collate` and a step can take; return its label, which one of `labels` may name, too, and the
    shape of its pixel_values, () for stored pixels. A set that can only be gone through is not
    looked at, and has None.
    """
    if isinstance(images, IterableDataset) or not hasattr(images, "__getitem__"):
        return None
    remedy = "each item is a dictionary with pixel_values (C, H, W) and labels; or use load_data"
    with untrusted(f"the first item of {what}", remedy):
        item = images[0]
    if not isinstance(item, Mapping):
        raise UserError(f"{what} gives {_kind(item)} for each image; {remedy}")
    key = next((key for key in ("pixels", "pixel_values") if key in item), None)
    if key is None:
        raise UserError(f"{what} gives {', '.join(map(repr, item)) or 'nothing'}; {remedy}")
    named = [name for name in (*labels, "labels", "label", "label_ids") if name in item]
    if not named:
        raise UserError(f"{what} gives no labels, but {', '.join(map(repr, item))}; {remedy}")
    if key == "pixels":
        with untrusted(f"the first item of {what}", remedy):
            check_pixels(torch.as_tensor(item[key])[None], image)
        return item[named[0]], ()
    shape = getattr(item[key], "shape", None)
    if shape is None:
        raise UserError(f"{what} gives {_kind(item[key])} as {key}; {remedy}")
    if len(shape) != 3 or shape[0] != image.channels:
        raise UserError(
            f"{what} gives {key} of shape {tuple(shape)}, and the model takes {image.channels} "
            f"channels; {remedy}"
        )
    return item[named[0]], tuple(shape)


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
