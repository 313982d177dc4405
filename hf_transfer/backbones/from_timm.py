"""timm: registered names with tags, folders and repositories in timm's form or TimmWrapper's."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import timm
from timm.models import PretrainedCfg
from torch import nn

from hf_transfer.backbones.blueprint import Blueprint
from hf_transfer.backbones.meta_device import on_meta
from hf_transfer.backbones.origins import Origin, local_folder, no_architecture, no_weights
from hf_transfer.backbones.preprocessing import with_input
from hf_transfer.backbones.weights import bare, read_weights, weights_in
from hf_transfer.base.boundary import printable
from hf_transfer.base.download import BackboneError
from hf_transfer.data.image_settings import ImageSettings

STRUCTURE = ("input_size", "fixed_input_size", "pool_size", "first_conv", "classifier")
USUAL = ("in_chans", "img_size", "global_pool", "drop_rate", "drop_path_rate")
SIZES = ("dynamic_img_size", "use_naflex")  # arguments of networks that take any size


def draw(origin: Origin, image_size: int | None, channels: int | None) -> Blueprint:
    """Return the blueprint; fixed input sizes and other channels become builder's arguments."""
    settings, arguments = _registered(origin) if origin.config is None else _saved(origin)
    image = image_of(settings)
    if channels and channels != image.channels:
        arguments["in_chans"] = channels
    fixed = settings.get("fixed_input_size") and not any(arguments.get(key) for key in SIZES)
    if fixed or "img_size" in arguments:
        arguments["img_size"] = image_size or image.size
    return Blueprint(
        origin,
        with_input(image, image_size, channels),
        image,
        classes=max(0, settings.get("num_classes") or 0),
        labels=tuple(settings.get("label_names") or ()),
        arguments=arguments,
        settings=settings,
    )


def _registered(origin: Origin) -> tuple[dict[str, Any], dict[str, Any]]:
    architecture, _, tag = origin.name.partition(".")
    if not timm.is_model(architecture):
        raise no_architecture("timm", architecture, timm.list_models())
    if tag:
        known = timm.list_pretrained(f"{architecture}.*")
        if origin.name not in known:
            raise no_weights("timm", origin.name, known)
    return timm.get_pretrained_cfg(origin.name).to_dict(), {}


def _saved(origin: Origin) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return pretrained_cfg and builder's arguments of a config.json, new, old or TimmWrapper's."""
    config = origin.config or {}
    if not timm.is_model(origin.name):
        raise BackboneError(f"{origin}: {no_architecture('timm', origin.name, timm.list_models())}")
    known = {item.name for item in dataclasses.fields(PretrainedCfg)}
    usual = timm.get_pretrained_cfg(origin.name).to_dict()  # for what an old file does not say
    settings = {key: usual[key] for key in STRUCTURE if usual.get(key)}
    settings |= config.get("pretrained_cfg") or config
    settings |= {key: config[key] for key in ("num_classes", "label_names") if config.get(key)}
    settings |= {"architecture": origin.name, "custom_load": False}
    arguments = dict(config.get("model_args") or {})
    arguments.pop("num_classes", None)
    _check_arguments(origin, arguments)
    own = PretrainedCfg(**{key: v for key, v in settings.items() if key in known}).to_dict()
    channels, size = arguments.get("in_chans"), arguments.get("img_size")
    sides = list(own["input_size"])
    if channels:
        sides[0] = channels
    if size:
        sides[1:] = [size, size] if isinstance(size, int) else size
    return own | {"input_size": tuple(sides)}, arguments


def _check_arguments(origin: Origin, arguments: dict[str, Any]) -> None:
    """Raise BackboneError unless a saved network's arguments are its own class's: timm's builders
    also take others, which open a file or fetch a URL."""
    if not set(arguments) - set(USUAL):
        return
    with on_meta():
        kind = type(timm.create_model(origin.name, pretrained=False))
    taken = inspect.signature(kind.__init__).parameters
    builders = (timm.create_model, timm.models.build_model_with_cfg)
    others = {name for builder in builders for name in inspect.signature(builder).parameters}
    passes_on = any(each.kind is each.VAR_KEYWORD for each in taken.values())
    for name in arguments:
        apart = name in others or name.startswith(("pretrained", "feature", "cache"))
        if name not in taken and (apart or not passes_on):
            raise BackboneError(
                f"model_args of {origin}: {printable(name)!r} is not an argument of timm's "
                f"{kind.__name__}; save the model again without it"
            )


def image_of(settings: dict[str, Any]) -> ImageSettings:
    """Return the pixels' settings in a pretrained_cfg."""
    channels, _, size = settings["input_size"]
    found = ImageSettings(
        size=size,
        mean=tuple(settings["mean"]) if len(settings["mean"]) == 3 else (0.5,) * 3,
        std=tuple(settings["std"]) if len(settings["std"]) == 3 else (0.5,) * 3,
        interpolation=settings["interpolation"],
        crop_pct=min(1.0, settings["crop_pct"] or 1.0),  # above 1 (volo) timm pads with black
        crop_mode=mode if (mode := settings.get("crop_mode")) in ("squash", "border") else "center",
    )
    stated = (tuple(settings["mean"]), tuple(settings["std"]))
    known = len(stated[0]) == len(stated[1]) == channels
    return with_input(found, None, channels, stated if known else None)


def build(blueprint: Blueprint, labels: int) -> nn.Module:
    """Return the network with random weights; `labels` 0 is without head."""
    origin = blueprint.origin
    saved = {} if origin.config is None else {"pretrained_cfg": dict(blueprint.settings)}
    return timm.create_model(
        origin.name, pretrained=False, num_classes=labels, **saved, **blueprint.arguments
    )


def check_weights(blueprint: Blueprint) -> None:
    """Raise BackboneError where timm has no pretrained weights of a registered name."""
    if blueprint.origin.config is None and not _has_weights(blueprint.settings):
        raise BackboneError(
            f"timm has no pretrained weights of {blueprint.origin.name}; choose another backbone "
            "or set pretrained: false"
        )


def _has_weights(settings: dict[str, Any]) -> bool:
    return any(settings.get(key) for key in ("url", "file", "hf_hub_id"))


def load(blueprint: Blueprint, weights: Path | None) -> tuple[nn.Module, frozenset[str]]:
    """Return the network with all its weights: timm's loader is strict about its own head."""
    origin = blueprint.origin
    if weights is None and origin.config is None:
        return timm.create_model(origin.name, pretrained=True, **blueprint.arguments), frozenset()
    folder = local_folder(origin)
    empty = _on_meta(blueprint)
    names, own = [name for name, _ in empty.named_parameters()], empty.state_dict()
    state = bare(read_weights(weights or weights_in(folder)), names)
    if state.keys() >= set(names):  # what a trainer keeps beside: a loss, metrics, a copy
        state = {name: tensor for name, tensor in state.items() if name in own}
    classifier = blueprint.settings.get("classifier") or ""
    first = classifier if isinstance(classifier, str) else classifier[0]
    found = state.get(f"{first}.weight")
    classes = 0 if found is None else found.shape[0]
    nowhere = dict.fromkeys(("url", "file", "hf_hub_id", "hf_hub_filename", "source"))
    settings = {**blueprint.settings, **nowhere, "state_dict": state, "num_classes": classes}
    settings |= {"custom_load": False, "label_offset": None}
    network = timm.create_model(
        origin.name.partition(".")[0],
        pretrained=True,
        num_classes=classes,
        pretrained_cfg=settings,
        **blueprint.arguments,
    )
    network.pretrained_cfg = network.default_cfg = dict(blueprint.settings)
    return network, frozenset()


def _on_meta(blueprint: Blueprint) -> nn.Module:
    with on_meta():
        return build(blueprint, max(1, blueprint.classes))


def default_labels(blueprint: Blueprint) -> tuple[str, ...]:
    """Return ImageNet's labels for a network that was trained on one of its subsets."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(dict(blueprint.settings))
    if not subset or not blueprint.classes:
        return ()
    info = ImageNetInfo(subset)
    return tuple(info.index_to_description(i) for i in range(blueprint.classes))
