"""Regression in the targets' own units: trained on standardised numbers, published in the targets'
units.

The last layer is affine, so a scale and a shift of what it gives can be put into its weights. The
published model needs no extra step in any library; while it trains, the weights stay standard.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_transfer.backbones.access import evaluating, logits_of
from hf_transfer.backbones.blueprint import Backbone
from hf_transfer.base.errors import UserError
from hf_transfer.data.scale import Scale

TOLERANCE = 1e-3  # in standard numbers, beyond what float32 can tell of a large mean
FLOAT32 = 1e-6


def plain_scale(targets: int) -> Scale:
    """Return the scale of numbers that are in their targets' units already."""
    return Scale((0.0,) * targets, (1.0,) * targets)


def take_scale(model: nn.Module, images: Any) -> None:
    """Give a model the scale of the standard numbers that `images` are labelled with, if they are.

    A head that already answers in another scale is changed so that its answers stay the same.
    Raises UserError where the model is for another task, or its head cannot take a scale.
    """
    scale: Scale | None = getattr(images, "scale", None)
    backbone = getattr(model, "backbone", None)
    if scale is None:
        return
    if not isinstance(backbone, Backbone) or backbone.task != "regression":
        raise UserError(
            "these images are labelled with numbers, but the model is not for regression; load it "
            "with load_backbone(…, task='regression')"
        )
    if backbone.scale == scale:
        return
    _check(model, backbone, scale)
    if backbone.scale is not None:
        _turn(_dense(model, backbone), backbone.scale, scale)
    model.backbone = replace(backbone, scale=scale)


@contextmanager
def in_units(model: nn.Module) -> Iterator[None]:
    """Make a model answer in the targets' units, then restore its weights bit for bit; a model
    without a scale is left alone."""
    backbone: Backbone = model.backbone
    if backbone.scale is None:
        yield
        return
    layers = _dense(model, backbone)
    before = [parameter.detach().clone() for pair in layers for parameter in pair]
    try:
        _turn(layers, backbone.scale, plain_scale(len(backbone.labels)))
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip((p for pair in layers for p in pair), before, strict=True):
                parameter.copy_(value)


Pair = tuple[nn.Parameter, nn.Parameter]


def _dense(model: nn.Module, backbone: Backbone) -> list[Pair]:
    """Return weight and bias of the dense layers in the head that give a number for each target."""
    network = model.get_submodule(backbone.prefix.rstrip(".")) if backbone.prefix else model
    named, targets = dict(network.named_parameters()), len(backbone.labels)
    pairs = []
    for name in backbone.layout.head:
        bias = named.get(f"{name.removesuffix('weight')}bias")
        fits = name.endswith("weight") and named[name].ndim > 1 and len(named[name]) == targets
        if fits and bias is not None:
            pairs.append((named[name], bias))
    return pairs


@torch.no_grad()
def _turn(layers: list[Pair], old: Scale, new: Scale) -> None:
    """Make layers that give numbers in the old scale give the same numbers in the new one."""
    factor = np.asarray(old.std) / np.asarray(new.std)
    shift = (np.asarray(old.mean) - np.asarray(new.mean)) / np.asarray(new.std)
    for weight, bias in layers:
        rows = torch.from_numpy(factor).to(weight.device)
        turned = weight.double() * rows.reshape(-1, *[1] * (weight.ndim - 1))
        weight.copy_(turned)
        bias.copy_(bias.double() * rows + torch.from_numpy(shift).to(bias.device))


def _check(model: nn.Module, backbone: Backbone, scale: Scale) -> None:
    """Raise UserError unless the scale in the head's weights does the same as on the answers."""
    probe = _Probe(model, backbone)
    model.backbone = replace(backbone, scale=scale)
    try:
        expected = scale.to_units(probe.answers())
        with in_units(model):
            found = probe.answers()
    finally:
        model.backbone = backbone
    mean, std = np.asarray(scale.mean), np.asarray(scale.std)
    apart = np.abs(found - expected) / (TOLERANCE * std + FLOAT32 * np.abs(mean))
    if not apart.max() <= 1:
        raise UserError(
            f"the head of {backbone.id} ({', '.join(backbone.layout.head)}) is not a dense layer "
            "with a bias that ends the network, so the targets' units cannot be put into it; "
            "choose another backbone"
        )


class _Probe:
    """The same few random images for a model, always in evaluation mode."""

    def __init__(self, model: nn.Module, backbone: Backbone) -> None:
        self.model, image = model, backbone.image
        device = next(model.parameters()).device
        generator = torch.Generator().manual_seed(0)
        size = (2, image.channels, image.size, image.size)
        self.pixels = torch.randn(size, generator=generator).to(device)

    def answers(self) -> np.ndarray:
        """Return what the model answers, float64 (2, T)."""
        with evaluating(self.model), torch.no_grad():
            logits = logits_of(self.model(pixel_values=self.pixels))
        return logits.double().cpu().numpy()
