"""torchvision: registered names, with a tag where there are several weights; folders we saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torchvision
from torch import nn

from hf_transfer.backbones.blueprint import Blueprint
from hf_transfer.backbones.meta_device import on_meta
from hf_transfer.backbones.modeling_torchvision import network_of
from hf_transfer.backbones.origins import Origin, local_folder, no_architecture, no_weights
from hf_transfer.backbones.preprocessing import read_processor, with_input
from hf_transfer.backbones.trace import head_names
from hf_transfer.backbones.weights import bare, fill, read_weights, weights_in
from hf_transfer.data.image_settings import ImageSettings


def draw(origin: Origin, image_size: int | None, channels: int | None) -> Blueprint:
    """Return the blueprint; a vision transformer's size is an argument of its builder."""
    name, _, tag = origin.name.partition(".")
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise no_architecture("torchvision", name, names)
    saved = origin.config or {}
    weights = _weights(name, tag) if origin.config is None else None
    own = _preset(name, weights) if weights else _saved_image(origin)
    labels = tuple(weights.meta["categories"]) if weights else _saved_labels(saved)
    image = with_input(own, image_size, channels)
    return Blueprint(
        origin,
        image,
        own,
        classes=len(labels),
        labels=labels,
        arguments=_arguments(name, image.size),
        settings=weights,
    )


def _weights(name: str, tag: str) -> Any:
    known = torchvision.models.get_model_weights(name)
    if tag and tag not in known.__members__:
        members = [f"{name}.{member}" for member in known.__members__]
        raise no_weights("torchvision", f"{name}.{tag}", members)
    return known[tag] if tag else known.DEFAULT


def _preset(name: str, weights: Any) -> ImageSettings:
    preset = weights.transforms()
    size, side = preset.crop_size[0], preset.resize_size[0]
    # googlenet and inception turn ImageNet's statistics into these themselves, for 3 channels only.
    ported = name in ("googlenet", "inception_v3")
    return ImageSettings(
        size=size,
        mean=(0.5,) * 3 if ported else tuple(preset.mean),
        std=(0.5,) * 3 if ported else tuple(preset.std),
        interpolation=preset.interpolation.value,
        crop_pct=min(1.0, size / side),
    )


def _saved_image(origin: Origin) -> ImageSettings:
    from transformers import AutoImageProcessor

    place = local_folder(origin)
    processor = AutoImageProcessor.from_pretrained(place, trust_remote_code=False)
    return read_processor(processor, str(origin))


def _saved_labels(config: dict[str, Any]) -> tuple[str, ...]:
    names = config.get("id2label") or {}
    return tuple(names[key] for key in sorted(names, key=int))


def _arguments(name: str, size: int) -> dict[str, Any]:
    if name.startswith("vit_"):
        return {"image_size": size}
    if name.startswith("maxvit"):
        return {"input_size": [size, size]}
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True, "transform_input": False}
    return {}


def build(blueprint: Blueprint, labels: int) -> nn.Module:
    """Return the network with random weights."""
    name = blueprint.origin.name.partition(".")[0]
    return network_of(name, labels, blueprint.arguments, blueprint.image.channels)


def check_weights(blueprint: Blueprint) -> None:
    """Do nothing: torchvision has weights of each of its networks."""


def load(blueprint: Blueprint, weights: Path | None) -> tuple[nn.Module, frozenset[str]]:
    """Return the network with its weights at their own size and channels."""
    origin, own = blueprint.origin, blueprint.own
    name = origin.name.partition(".")[0]
    if weights is None and blueprint.settings is not None:
        state = blueprint.settings.get_state_dict(progress=True, check_hash=True)
    else:
        folder = local_folder(origin)
        state = read_weights(weights or weights_in(folder))
    arguments = _arguments(name, own.size)
    with on_meta():
        pair = [network_of(name, labels, arguments, own.channels) for labels in (2, 3)]
    head = head_names(*pair)
    state = bare(state, pair[0].state_dict())
    classes = next((len(state[key]) for key in reversed(head) if key in state), blueprint.classes)
    network = network_of(name, classes, arguments, own.channels)
    fill(network, state, head, str(weights or origin))
    return network, frozenset(name for name in head if name not in state)


def default_labels(blueprint: Blueprint) -> tuple[str, ...]:
    """Return (): weights name their categories."""
    return ()
