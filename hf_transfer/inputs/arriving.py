"""What arrives at each group of a network, pooled to a vector for each image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_transfer.backbones.watching import tensors_in
from hf_transfer.data.image_set import ImageSet
from hf_transfer.inputs.model_input import to_model_input

BATCH = 256  # images, at most
BATCH_PIXELS, DEVICE_PIXELS = 2**20, 2**24  # in a batch: 64 images of 128 px on a CPU


def at_once(model: PreTrainedModel) -> int:
    """Return how many images go through the network together."""
    pixels = BATCH_PIXELS if model.device.type == "cpu" else DEVICE_PIXELS
    return max(1, min(BATCH, pixels // model.backbone.image.size**2))


def input_of(model: PreTrainedModel, images: ImageSet, rows: Sequence[int] | np.ndarray) -> Tensor:
    """Return these images as the network takes them, where it is."""
    pixels = images.__getitems__(list(rows))["pixels"].to(model.device)
    return to_model_input(pixels, model.backbone.image).to(model.dtype)


@torch.no_grad()
def arriving(model: PreTrainedModel, values: Tensor, only: str | None = None) -> dict[str, Tensor]:
    """Return what arrives at each group but the first, or at one only, pooled: float32 (B, D); a
    group whose modules take no tensor with a row for each image is left out."""
    backbone, caught = model.backbone, dict[str, Tensor]()

    def note(group: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            if group not in caught:
                caught[group] = pooled_input(args, kwargs, len(values))

        return hook

    with ExitStack() as stack:
        for group in backbone.groups.groups[1:]:
            modules = () if only not in (None, group.name) else _modules_of(model, group.modules)
            for module in modules:
                handle = module.register_forward_pre_hook(note(group.name), with_kwargs=True)
                stack.callback(handle.remove)
        model(pixel_values=values)
    order = backbone.groups.names
    return {name: caught[name] for name in order if name in caught and caught[name].ndim == 2}


def _modules_of(model: PreTrainedModel, paths: Sequence[str]) -> list[nn.Module]:
    """Return these modules and all below them, each once: the first that runs is the group's."""
    tops = [model.get_submodule(f"{model.backbone.prefix}{path}") for path in paths]
    return list(dict.fromkeys(module for top in tops for module in top.modules()))


def pooled_input(args: Any, kwargs: Any, rows: int) -> Tensor:
    """Return what a module takes first, pooled; a list, as DenseNet's layers take, is joined."""
    first = next(iter((*args, *kwargs.values())), None)
    listed = isinstance(first, (list, tuple))
    taken = [
        x for x in tensors_in(first if listed else (args, kwargs)) if x.ndim and len(x) == rows
    ]
    some = taken if listed else taken[:1]
    return torch.cat([pooled(x) for x in some], dim=1) if some else torch.zeros(0)


def pooled(x: Tensor) -> Tensor:
    """Return float32 (B, D) of vectors (B, D), tokens (B, N, D), or places: (B, D, H, W), or
    (B, H, W, D) where only this makes a square of them."""
    x = x.float()
    if x.ndim == 4:
        last = x.shape[1] == x.shape[2] != x.shape[3]
        return x.mean(dim=(1, 2) if last else (2, 3))
    return x.mean(dim=1) if x.ndim == 3 else x.flatten(1)
