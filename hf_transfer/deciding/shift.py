"""How far images are from those that a backbone was trained on, and where its layers must move."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_transfer.backbones.access import bare_names, evaluating
from hf_transfer.data.image_set import ImageSet
from hf_transfer.deciding.heads import Head
from hf_transfer.deciding.truth import task_of, truth_of
from hf_transfer.inputs.arriving import at_once, input_of, pooled_input
from hf_transfer.training.loss import LOSSES
from hf_transfer.training.norm_statistics import layers, sums_of


@dataclass(frozen=True)
class Distance:
    """How far images are from the backbone's own, 0 to 1: the mean over BatchNorm layers of the
    Hellinger distance between a channel's values and its running statistics, each taken as a
    normal distribution; in all layers, and in the first and the last third of them."""

    all: float
    first: float
    last: float


class Watch:
    """Sums of what comes to each BatchNorm layer while a network runs; a context manager."""

    def __init__(self, model: nn.Module) -> None:
        self.layers = layers(model)
        self.sums: dict[str, list[Tensor]] = {}
        self.images = 0  # that came to the first layer
        self.stack = ExitStack()

    def __enter__(self) -> Watch:
        for name, layer in self.layers.items():
            self.stack.callback(layer.register_forward_pre_hook(self._hook(name)).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def _hook(self, name: str) -> Any:
        first = next(iter(self.layers))

        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            if name == first:
                self.images += len(args[0])
            found = sums_of(args[0])
            before = self.sums.get(name)
            self.sums[name] = (
                [a + b for a, b in zip(before, found, strict=True)] if before else found
            )

        return hook

    def distance(self) -> Distance | None:
        """Return how far the images were; None without BatchNorm layers."""
        found = [self._hellinger(name) for name in self.layers if name in self.sums]
        if not found:
            return None
        third = max(1, len(found) // 3)
        first, last = np.mean(found[:third]), np.mean(found[-third:])
        return Distance(float(np.mean(found)), float(first), float(last))

    def _hellinger(self, name: str) -> float:
        count, total, squares = self.sums[name]
        layer = self.layers[name]
        own, spread = layer.running_mean.double().cpu(), layer.running_var.double().cpu() + 1e-8
        mean = total / count
        variance = (squares / count - mean**2).clamp(min=0) + 1e-8
        both = variance + spread
        same = (2 * (variance * spread).sqrt() / both).sqrt()
        same = same * torch.exp(-((mean - own) ** 2) / (4 * both))
        return float((1 - same).mean())


def distance_of(model: PreTrainedModel, images: ImageSet) -> Distance | None:
    """Return how far images are from those that the network was trained on, in one pass."""
    size = at_once(model)
    with torch.no_grad(), evaluating(model), Watch(model) as watch:
        if not watch.layers:
            return None
        for first in range(0, len(images), size):
            rows = np.arange(first, min(first + size, len(images)))
            model(pixel_values=input_of(model, images, rows))
        return watch.distance()


def gradient_norms(
    model: PreTrainedModel, images: ImageSet, rows: np.ndarray, head: Head
) -> dict[str, float]:
    """Return for each group below the head the norm of the loss's gradient over that of its
    weights: where it is large, a small change of the weights helps most.

    `head` is on the features that arrive at the network's own, and has not seen these images.
    Source: Lee et al. 2022, arXiv:2210.11466, section 4 (relative gradient norm).
    """
    backbone, caught = model.backbone, list[Tensor]()
    own = backbone.groups.groups[-1]
    named = {
        name: parameter
        for name, parameter in bare_names(model, backbone.prefix).items()
        if name not in backbone.groups.head and name in backbone.layout.used
    }

    def note(_: nn.Module, args: Any, kwargs: Any) -> None:
        if not caught:
            caught.append(pooled_input(args, kwargs, at))

    weight = torch.from_numpy(head.weight).float().to(model.device)
    bias = torch.from_numpy(head.bias).float().to(model.device)
    labels = torch.from_numpy(images.labels).to(model.device)
    lost = LOSSES[task_of(truth_of(images)).name]  # a sum over a batch
    sums = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    before = {name: parameter.requires_grad for name, parameter in named.items()}
    size = max(1, at_once(model) // 2)
    tops = [model.get_submodule(f"{backbone.prefix}{path}") for path in own.modules]
    with evaluating(model), ExitStack() as stack:
        for module in dict.fromkeys(m for top in tops for m in top.modules()):
            stack.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        for name, parameter in named.items():
            parameter.requires_grad_(True)
            stack.callback(parameter.requires_grad_, before[name])
        for first in range(0, len(rows), size):
            some = rows[first : first + size]
            at = len(some)
            caught.clear()
            model(pixel_values=input_of(model, images, some))
            logits = caught[0] @ weight.T + bias
            loss = lost(logits, labels[some]) / labels[rows].numel()
            found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            for name, gradient in zip(named, found, strict=True):
                if gradient is not None:
                    sums[name] += gradient
    norms = {}
    for group in backbone.groups.groups[:-1]:
        mine = [name for name in group.parameters if name in named]
        size_of = sum(float(named[name].detach().pow(2).sum()) for name in mine) ** 0.5
        norm = sum(float(sums[name].pow(2).sum()) for name in mine) ** 0.5
        norms[group.name] = norm / size_of if size_of else 0.0
    return norms
