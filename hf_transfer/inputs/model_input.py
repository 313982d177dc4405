"""Stored pixels as a network's input: cropped to the middle, scaled, normalised, collated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_transfer.data.image_settings import ImageSettings, middle


def to_model_input(pixels: Tensor, settings: ImageSettings) -> Tensor:
    """Return float32 (B, C, size, size) from uint8 (B, S', S', C): the middle, normalised.

    Bit for bit what torchvision's CenterCrop, ToTensor and Normalize make of the same pixels.
    """
    _check(pixels, settings)
    return _normalise(_middle(pixels, settings), settings)


def _middle(pixels: Tensor, settings: ImageSettings) -> Tensor:
    """Return float32 (B, C, size, size) in 0..1: the centred cut that evaluation sees."""
    side, size = pixels.shape[1], settings.size
    start = middle(side, size)
    cut = pixels[:, start : start + size, start : start + size]
    return (
        cut.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    )


def _check(pixels: Tensor, settings: ImageSettings) -> None:
    shape, size, channels = tuple(pixels.shape), settings.size, settings.channels
    fits = len(shape) == 4 and shape[1] == shape[2] >= size and shape[3] == channels
    if pixels.dtype != torch.uint8 or not fits:
        raise ValueError(
            f"pixels are {pixels.dtype} {shape}; the model takes uint8 (B, S, S, {channels}), "
            f"S at least {size}"
        )


def _normalise(x: Tensor, settings: ImageSettings) -> Tensor:
    options: dict[str, Any] = {"dtype": x.dtype, "device": x.device}
    mean, std = torch.tensor(settings.mean, **options), torch.tensor(settings.std, **options)
    return x.sub_(mean[:, None, None]).div_(std[:, None, None])


def collate(batch: dict[str, torch.Tensor] | list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return a batch as it came from `__getitems__`, or one made of single items."""
    if isinstance(batch, dict):
        return batch
    return {
        "pixels": torch.stack([item["pixels"] for item in batch]),
        "labels": torch.stack([torch.as_tensor(item["labels"]) for item in batch]),
        "index": torch.tensor([item["index"] for item in batch]),
    }
