"""Building networks: a blueprint says how, for any number of labels; each library knows its part.

A blueprint is drawn from names and small files alone: planning reads no weights.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from hf_transfer.backbones.blueprint import Blueprint
from hf_transfer.backbones.origins import Origin
from hf_transfer.base.download import BackboneError, answering_hub, one_line
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.recipe.tasks import task_of

LARGEST = 16_384  # px, the side of a network's input


def draw(origin: Origin, image_size: int | None = None, channels: int | None = None) -> Blueprint:
    """Return the blueprint of a network for this input; None is what its checkpoint has seen.

    Reads no weights. Raises BackboneError.
    """
    with one_line(str(origin)):
        found: Blueprint = _library(origin).draw(origin, image_size, channels)
    if origin.source != "timm":  # all others are published for transformers' processors
        image, own = (replace(each, crop_offset="down") for each in (found.image, found.own))
        found = replace(found, image=image, own=own)
    for image in (found.own, found.image):
        _check_pixels(image, str(origin))
    config = origin.config or {}
    return replace(found, task=task_of(config.get("problem_type"), config.get("pretext")))


def _check_pixels(image: ImageSettings, place: str) -> None:
    """Raise BackboneError for settings that turn no image into finite numbers."""
    finite = all(math.isfinite(value) for value in (*image.mean, *image.std))
    if not finite or min(image.std) <= 0:
        raise BackboneError(
            f"{place}: pixels cannot be normalised by mean {list(image.mean)} and std "
            f"{list(image.std)}; mend its config"
        )
    if image.size > LARGEST:
        raise BackboneError(f"{place}: images of {image.size:,} px are over {LARGEST:,} px")


def build(blueprint: Blueprint, labels: int) -> nn.Module:
    """Return the bare network for this number of labels, its weights random, on torch's device."""
    size = f" at {blueprint.image.size} px" if blueprint.is_changed else ""
    with one_line(f"{blueprint.origin}{size}"):
        return _library(blueprint.origin).build(blueprint, labels)


def load(blueprint: Blueprint, weights: Path | None) -> tuple[nn.Module, frozenset[str]]:
    """Return the network with the checkpoint's weights and its own head, and the names of what
    the checkpoint lacks; from the file `weights` where that is given. Raises BackboneError."""
    origin = blueprint.origin
    weights = weights or origin.weights
    what = f"the weights {weights or ''} of {origin}".replace("  ", " ")
    on_hub = weights is None and origin.folder is None and origin.source != "torchvision"
    with one_line(what), answering_hub() if on_hub else nullcontext():
        return _library(origin).load(blueprint, weights)


def check_weights(blueprint: Blueprint) -> None:
    """Raise BackboneError where the library itself says that it has no pretrained weights."""
    _library(blueprint.origin).check_weights(blueprint)


def own_labels(blueprint: Blueprint) -> tuple[str, ...]:
    """Return the names of the checkpoint's own labels, numbers where nobody has named them."""
    named = blueprint.labels or _library(blueprint.origin).default_labels(blueprint)
    return named or tuple(str(i) for i in range(blueprint.classes))


def build_network(
    origin: Origin, labels: int, image_size: int | None = None, channels: int | None = None
) -> nn.Module:
    """Return the bare network behind an origin for `labels` labels, its weights random."""
    return build(draw(origin, image_size, channels), labels)


def _library(origin: Origin) -> Any:
    """Return the module that knows the library: four functions, the same in each."""
    if origin.source == "timm":
        from hf_transfer.backbones import from_timm

        return from_timm
    if origin.source == "torchvision":
        from hf_transfer.backbones import from_torchvision

        return from_torchvision
    from hf_transfer.backbones import from_transformers

    return from_transformers
