"""Stored pixels as a network's input: single images to a batch, the middle cut out, normalised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_transfer.base.errors import UserError
from hf_transfer.data.image_settings import ImageSettings


def to_model_input(pixels: Tensor, settings: ImageSettings) -> Tensor:
    """Return float32 (B, C, size, size) from uint8 (B, S', S', C): the middle, normalised.

    Bit for bit what torchvision's CenterCrop, ToTensor and Normalize make of the same pixels.
    """
    check_pixels(pixels, settings)
    return normalised(central(pixels, settings), settings)


def check_pixels(pixels: Tensor, settings: ImageSettings) -> None:
    """Raise ValueError unless stored pixels (B, S', S', C) are what a model's input is made of."""
    shape, size, channels = tuple(pixels.shape), settings.size, settings.channels
    fits = len(shape) == 4 and shape[1] == shape[2] >= size and shape[3] == channels
    if pixels.dtype != torch.uint8 or not fits:
        raise ValueError(
            f"pixels are {pixels.dtype} {shape}; the model takes uint8 (B, S, S, {channels}), "
            f"S at least {size}"
        )


def central(pixels: Tensor, settings: ImageSettings) -> Tensor:
    """Return float32 (B, C, size, size) in 0..1: the middle, which evaluation sees."""
    start, size = settings.middle(pixels.shape[1]), settings.size
    x = pixels[:, start : start + size, start : start + size].permute(0, 3, 1, 2)
    return x.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def normalised(x: Tensor, settings: ImageSettings) -> Tensor:
    """Return images (B, C, H, W) in 0..1 with the model's mean and deviation, in place."""
    options: dict[str, Any] = {"dtype": x.dtype, "device": x.device}
    mean, std = torch.tensor(settings.mean, **options), torch.tensor(settings.std, **options)
    return x.sub_(mean[:, None, None]).div_(std[:, None, None])


def collate(batch: Any) -> dict[str, Any]:
    """Return a batch as it came from `__getitems__`, or one made of single items.

    Items of an ImageSet are stacked, also from torch's Subset and ConcatDataset; all others are
    collated as transformers does. Raises UserError for images of different sizes.
    """
    if isinstance(batch, dict):
        return batch
    stored = [isinstance(item, Mapping) and "pixels" in item for item in batch]
    if any(stored) and not all(stored):
        raise UserError(
            "a batch holds stored pixels of an ImageSet beside other items; make all data sets "
            "with load_data, or let all of them give pixel_values"
        )
    other = next((item for item in batch if not isinstance(item, Mapping)), None)
    if other is not None:
        raise UserError(
            f"an image comes as a {type(other).__name__}; let the data set give dictionaries with "
            "pixel_values (C, H, W) and labels, or pass a data_collator that makes such a batch"
        )
    if not all(stored):
        sizes = {tuple(np.shape(item.get("pixel_values"))) for item in batch}
        if len(sizes) > 1:
            raise UserError(
                f"a batch holds pixel_values of {' and '.join(map(str, sorted(sizes)))}; let the "
                "data set give images of one size"
            )
        from transformers import default_data_collator

        made = dict(default_data_collator(list(batch)))
        labels = made.get("labels")
        if isinstance(labels, torch.Tensor) and labels.dtype == torch.bool and labels.dim() == 1:
            made["labels"] = labels.long()  # False and True are classes 0 and 1
        return made
    shapes = {tuple(item["pixels"].shape) for item in batch}
    if len(shapes) > 1:
        raise UserError(
            f"a batch holds images of {' and '.join(map(str, sorted(shapes)))}; make all data sets "
            "with the same settings"
        )
    keys = [key for key in batch[0] if all(key in item for item in batch)]
    return {key: torch.stack([torch.as_tensor(item[key]) for item in batch]) for key in keys}
