"""transformers: repositories and folders of its own form, and model types without weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS,
)

from hf_transfer.backbones.blueprint import Blueprint
from hf_transfer.backbones.meta_device import on_meta
from hf_transfer.backbones.origins import Origin, no_type
from hf_transfer.backbones.preprocessing import read_processor, takes_bgr, with_input
from hf_transfer.backbones.weights import FEW, bare, read_weights
from hf_transfer.base.boundary import untrusted
from hf_transfer.base.download import BackboneError, one_line
from hf_transfer.base.errors import UserError
from hf_transfer.data.image_settings import ImageSettings


def draw(origin: Origin, image_size: int | None, channels: int | None) -> Blueprint:
    """Return the blueprint; its settings are the config for the wanted size and channels."""
    config = _config_of(origin)
    own, flipped = _own_image(origin, config)
    seen = _vision(config)
    own = with_input(own, None, getattr(seen, "num_channels", None))
    image = with_input(own, image_size, channels)
    wanted = copy.deepcopy(config)
    if image.channels != own.channels:
        if not hasattr(seen, "num_channels"):
            raise BackboneError(f"{origin} takes images of {own.channels} channels only")
        _vision(wanted).num_channels = image.channels
    if _side(seen) not in (None, image.size) and not _runs(wanted, image):
        own = with_input(own, _side(seen), None)
        _vision(wanted).image_size = _like(seen.image_size, image.size)
    names = config.id2label or {}
    return Blueprint(
        origin,
        image,
        own,
        classes=len(names),
        labels=tuple(names[key] for key in sorted(names)),
        settings=(wanted, config),
        reversed=flipped,
    )


def _config_of(origin: Origin) -> Any:
    """Return the config of a classifier of images with one head. Raises BackboneError."""
    if origin.config is not None:
        _check_own_code(origin)
        config = AutoConfig.from_pretrained(origin.name, trust_remote_code=False)
    elif origin.name in CONFIG_MAPPING_NAMES:
        config = AutoConfig.for_model(origin.name)
    else:
        raise no_type(origin.name, CLASSIFIERS)
    if config.model_type not in CLASSIFIERS:
        raise BackboneError(
            f"{origin} is a {config.model_type}, which transformers does not classify images "
            "with; choose another backbone"
        )
    # With a teacher's second head a model has no loss; the class with one head is built instead.
    named = config.architectures or []
    config.architectures = [name for name in named if not name.endswith("WithTeacher")]
    config.problem_type = None
    config.__dict__.pop("pretext", None)
    return config


def _check_own_code(origin: Origin) -> None:
    """Raise BackboneError for a model that comes with code of its own, which is never run."""
    config = origin.config or {}
    if config.get("auto_map") and config.get("model_type") not in CONFIG_MAPPING_NAMES:
        raise BackboneError(
            f"{origin} needs code of its own (auto_map in its config.json), and code that comes "
            "with a model is not run; choose a backbone of timm, transformers or torchvision"
        )


def _vision(config: Any) -> Any:
    """Return the part of a config that is about images."""
    return getattr(config, "vision_config", config)


def _side(config: Any) -> int | None:
    size = getattr(config, "image_size", None)
    return size[-1] if isinstance(size, (list, tuple)) else size


def _like(old: Any, side: int) -> Any:
    return type(old)([side] * len(old)) if isinstance(old, (list, tuple)) else side


def _own_image(origin: Origin, config: Any) -> tuple[ImageSettings, bool]:
    """Return the pixels' settings that travel with the model, and whether it takes BGR."""
    if origin.config is None:
        return ImageSettings(
            size=_side(_vision(config)) or 224, mean=(0.5,) * 3, std=(0.5,) * 3
        ), False
    if origin.folder and not (origin.folder / "preprocessor_config.json").is_file():
        raise BackboneError(
            f"{origin.folder} has no preprocessor_config.json, which says what pixels the model "
            "takes; copy it from where the model comes from"
        )
    with one_line(f"the image processor of {origin}"):
        processor = AutoImageProcessor.from_pretrained(origin.name, trust_remote_code=False)
    return read_processor(processor, str(origin)), takes_bgr(processor)


def _runs(config: Any, image: ImageSettings) -> bool:
    """Whether the network takes images of this size as it is: it interpolates, or need not."""
    with on_meta():
        network = _from_config(config, 2).eval()
    # Not inside the device's block: BEiT caches an index that it makes in forward, and for good.
    pixels = torch.zeros(1, image.channels, image.size, image.size, device="meta")
    try:
        with torch.random.fork_rng(devices=[]), untrusted(config.model_type, verb="run"):
            network(pixel_values=pixels)
    except UserError:
        return False
    return True


def _from_config(config: Any, labels: int) -> nn.Module:
    config = copy.deepcopy(config)
    config.num_labels = labels
    return AutoModelForImageClassification.from_config(
        config, dtype=torch.float32, trust_remote_code=False
    )


def build(blueprint: Blueprint, labels: int) -> nn.Module:
    """Return the network with random weights."""
    return _from_config(blueprint.settings[0], labels)


def check_weights(blueprint: Blueprint) -> None:
    """Raise BackboneError for a model type, which has no weights."""
    if blueprint.origin.config is None:
        raise BackboneError(
            f"{blueprint.origin} is an architecture without weights; give a repository or folder, "
            "or set pretrained: false"
        )


def load(blueprint: Blueprint, weights: Path | None) -> tuple[nn.Module, frozenset[str]]:
    """Return the network as its checkpoint has it, and what the checkpoint lacks."""
    origin, config = blueprint.origin, copy.deepcopy(blueprint.settings[1])
    options: dict[str, Any] = {"config": config, "dtype": torch.float32}
    options |= {"output_loading_info": True, "trust_remote_code": False}
    if weights is None:
        network, info = AutoModelForImageClassification.from_pretrained(origin.name, **options)
    else:  # by the same loader, which knows the names in older checkpoints
        with on_meta():
            empty = _from_config(config, config.num_labels)
        state = bare(read_weights(weights), empty.state_dict())
        del options["trust_remote_code"]
        network, info = type(empty).from_pretrained(None, state_dict=state, **options)
    lacking = frozenset(info["missing_keys"])
    sizes = {name: tensor.numel() for name, tensor in network.state_dict().items()}
    head = {name for name in lacking if "classifier" in name}
    missed = sum(sizes.get(name, 0) for name in lacking - head)
    if missed > FEW * sum(sizes.values()):
        raise BackboneError(
            f"the weights of {origin} lack {len(lacking)} of the network's {len(sizes)} tensors "
            f"({', '.join(sorted(lacking)[:3])}); these are weights of another architecture"
        )
    if blueprint.reversed:
        _turn_to_rgb(network)
    return network, lacking


@torch.no_grad()
def _turn_to_rgb(network: nn.Module) -> None:
    """Reverse the first layer's input channels, as a processor that gives BGR would."""
    first = next(p for p in network.parameters() if p.ndim == 4 and p.shape[1] == 3)
    first.copy_(first.flip(1))


def default_labels(blueprint: Blueprint) -> tuple[str, ...]:
    """Return (): a config names its labels."""
    return ()
