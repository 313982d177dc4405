"""Backbones: (source, name, labels) to a model with a new head, and back to a folder.

timm, transformers and torchvision differ in where weights come from and how a folder looks.
They meet here, and nothing downstream asks where a model came from.
"""

from __future__ import annotations

import copy
import difflib
import fnmatch
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel

from hf_transfer.groups import LayerGroups, Layout, group_layers
from hf_transfer.images import ImageSettings
from hf_transfer.recipe import UserError
from hf_transfer.trace import head_names, trace_layout

logger = logging.getLogger(__name__)

SOURCES = ("timm", "transformers", "torchvision")


class BackboneError(UserError):
    """A backbone that cannot be found, built or loaded."""


@dataclass(frozen=True)
class Backbone:
    """What the loader knows of the model it made; travels as `model.backbone`."""

    id: str
    source: str
    prefix: str  # of the bare network's names inside the model that trains
    labels: tuple[str, ...]
    layout: Layout
    groups: LayerGroups
    image: ImageSettings
    weights: str  # "pretrained", "random", or the file they were read from


@dataclass(frozen=True)
class Origin:
    """Where a backbone id leads: a library and the name (or folder) that it knows."""

    source: str
    name: str
    folder: Path | None = None


def locate(backbone_id: str) -> Origin:
    """Return the library and name behind `timm/NAME`, `transformers/REPO`, `torchvision/NAME`
    or a local folder, by what its config.json says. Raises BackboneError."""
    folder = Path(backbone_id).expanduser()
    if folder.is_dir():
        return _locate_folder(folder)
    source, _, name = backbone_id.partition("/")
    if source in SOURCES and name:
        return _locate_folder(Path(name)) if Path(name).is_dir() else Origin(source, name)
    if backbone_id.startswith((".", "/", "~")):
        raise BackboneError(f"backbone folder {backbone_id} does not exist")
    raise BackboneError(
        f"backbone {backbone_id!r} names no library; write timm/NAME, transformers/REPO, "
        "torchvision/NAME or the path of a folder"
    )


def _locate_folder(folder: Path) -> Origin:
    path = folder / "config.json"
    if not path.is_file():
        raise BackboneError(
            f"backbone folder {folder} has no config.json; give a folder that timm, transformers "
            "or hf-transfer saved"
        )
    try:
        config = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise BackboneError(f"{path} is not valid JSON ({error}); save the model again") from None
    if "architecture" in config and config.get("model_type", "timm_wrapper") == "timm_wrapper":
        return Origin("timm", config["architecture"], folder)
    if config.get("model_type") == "hf_transfer_torchvision":
        return Origin("torchvision", config["architecture"], folder)
    if "model_type" in config:
        return Origin("transformers", str(folder), folder)
    raise BackboneError(f"{path} names neither an architecture (timm) nor a model_type")


# --- building -------------------------------------------------------------------------------


def build_network(
    origin: Origin,
    labels: int,
    *,
    pretrained: bool = False,
    image_size: int | None = None,
) -> nn.Module:
    """Return the bare network for `labels` labels, its head new unless the checkpoint's fits.

    Weights come from the library's own loader where `pretrained`; else they are random.
    """
    build = {"timm": _build_timm, "transformers": _build_transformers}.get(
        origin.source, _build_torchvision
    )
    return build(origin, labels, pretrained, image_size)


def _build_timm(origin: Origin, labels: int, pretrained: bool, image_size: int | None) -> nn.Module:
    import timm

    name = f"local-dir:{origin.folder}" if origin.folder else origin.name
    kwargs: dict[str, Any] = {}
    if origin.folder is None:
        architecture = origin.name.partition(".")[0]
        if not timm.is_model(architecture):
            near = _nearest(architecture, timm.list_models())
            raise BackboneError(f"timm has no architecture {architecture!r}{near}")
        settings = timm.get_pretrained_cfg(origin.name, allow_unregistered=False)
        if settings is None:
            tags = timm.list_pretrained(architecture + ".*")
            raise BackboneError(
                f"timm has no weights {origin.name!r}; it has {', '.join(tags) or 'none'}"
            )
        if pretrained and not settings.has_weights:
            raise BackboneError(
                f"timm has no pretrained weights of {origin.name}; choose another backbone or "
                "set pretrained: false"
            )
        if image_size and settings.fixed_input_size and image_size != settings.input_size[-1]:
            kwargs["img_size"] = image_size
    else:
        config = json.loads((origin.folder / "config.json").read_text())
        settings = config.get("pretrained_cfg", {})
        size = settings.get("input_size", (3, 224, 224))[-1]
        if image_size and settings.get("fixed_input_size") and image_size != size:
            kwargs["img_size"] = image_size
    with _one_line(f"timm/{origin.name}"):
        network = timm.create_model(name, pretrained=pretrained, num_classes=labels, **kwargs)
    network.build_args = kwargs
    return network


def _build_transformers(
    origin: Origin, labels: int, pretrained: bool, image_size: int | None
) -> nn.Module:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    with _one_line(f"transformers/{origin.name}"):
        if origin.folder is None and origin.name in CONFIG_MAPPING_NAMES:
            if pretrained:
                raise BackboneError(
                    f"transformers/{origin.name} is an architecture without weights; give a "
                    "repository or folder, or set pretrained: false"
                )
            config = AutoConfig.for_model(origin.name, num_labels=labels)
        else:
            config = AutoConfig.from_pretrained(origin.name, num_labels=labels)
        if image_size and getattr(config, "image_size", image_size) != image_size:
            if pretrained:
                raise BackboneError(
                    f"transformers/{origin.name} was trained at {config.image_size} px and keeps "
                    f"its position embeddings; set image_size: {config.image_size}"
                )
            config.image_size = image_size
        if not pretrained:
            return AutoModelForImageClassification.from_config(config)
        model, info = AutoModelForImageClassification.from_pretrained(
            origin.name, config=config, ignore_mismatched_sizes=True, output_loading_info=True
        )
        model.newly_initialised = tuple(
            sorted({*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])})
        )
        return model


def _build_torchvision(
    origin: Origin, labels: int, pretrained: bool, image_size: int | None
) -> nn.Module:
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    if origin.name not in names:
        raise BackboneError(
            f"torchvision has no model {origin.name!r}{_nearest(origin.name, names)}"
        )
    with _one_line(f"torchvision/{origin.name}"):
        network = torchvision.models.get_model(origin.name, weights=None, num_classes=labels)
        if pretrained and origin.folder is None:
            weights = torchvision.models.get_model_weights(origin.name).DEFAULT
            fill(network, weights.get_state_dict(check_hash=True), f"torchvision/{origin.name}")
        elif pretrained:
            state = read_weights(origin.folder / "model.safetensors")
            fill(network, {k.removeprefix("network."): v for k, v in state.items()}, str(origin))
    return network


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the state dict in a .safetensors, or (weights only) a .pt or .pth file."""
    if not path.is_file():
        raise BackboneError(f"weights file {path} does not exist")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        with _one_line(str(path)):
            return load_file(path)
    with _one_line(str(path)):
        state = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model"):
        state = state.get(key, state)
    return state


def fill(network: nn.Module, state: dict[str, torch.Tensor], where: str) -> tuple[str, ...]:
    """Copy the weights that fit into the network; return the names that stay newly initialised.

    Raises BackboneError where nothing fits: these are the weights of another network.
    """
    own = network.state_dict()
    fits = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    if len(fits) < len(own) / 2:
        raise BackboneError(
            f"{where} holds {len(state)} tensors of which {len(fits)} fit the {len(own)} of this "
            "network; these are the weights of another architecture"
        )
    network.load_state_dict(fits, strict=False)
    return tuple(name for name in own if name not in fits)


class _one_line:
    """Turns a library's failure to find, fetch or build into one line that says what to do."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        import httpx
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
        from safetensors import SafetensorError

        if isinstance(error, BackboneError):
            return
        unreachable = (ConnectionError, TimeoutError, httpx.HTTPError)
        broken = (OSError, RuntimeError, ValueError, TypeError, AssertionError, KeyError)
        if isinstance(error, unreachable) or "offline" in str(error).lower():
            raise BackboneError(
                f"cannot reach the weights of {self.what}: no connection; give a local folder, or "
                "set pretrained: false for random weights"
            ) from error
        if isinstance(error, (*broken, HfHubHTTPError, HFValidationError, SafetensorError)):
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BackboneError(f"cannot load {self.what}: {first}") from error


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"; nearest: {', '.join(near)}" if near else ""


# --- loading --------------------------------------------------------------------------------


def load_backbone(
    backbone_id: str,
    labels: Sequence[str] | None = None,
    *,
    pretrained: bool = True,
    weights: str | None = None,
    image_size: int | None = None,
    replace_layers: int = 1,
    seed: int = 0,
) -> PreTrainedModel:
    """Return a model for `labels` with `.backbone`: what is its head, its groups, its pixels.

    The last `replace_layers` layers with weights are newly initialised (a function of `seed`).
    With `labels=None` a checkpoint's own labels and head are kept. `weights` names a local file
    to read instead of the library's own. `forward(pixel_values (B, C, H, W), labels (B,))` gives
    `.loss` and `.logits` (B, labels). Raises BackboneError.
    """
    origin = locate(backbone_id)
    keep_head = labels is None
    labels = tuple(labels) if labels is not None else _own_labels(origin)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_network(
            origin, len(labels), pretrained=pretrained and weights is None, image_size=image_size
        )
        new = set(getattr(network, "newly_initialised", ()))
        if weights is not None:
            new |= set(fill(network, read_weights(Path(weights)), weights))
        image = _image_settings(origin, network, image_size)
        head = _head(origin, len(labels))
        layout = _trace(network, image, head, len(labels))
        if not keep_head:
            head = _widen(layout, head, replace_layers)
            layout = replace(layout, head=head)
            torch.manual_seed(seed)
            _renew(network, build_network(origin, len(labels), image_size=image_size), head)
    lost = sorted(n for n in new if n not in head and n in dict(network.named_parameters()))
    if lost and pretrained:
        raise BackboneError(
            f"{backbone_id}: the checkpoint lacks {len(lost)} tensors below the head "
            f"({', '.join(lost[:3])}…); these are not its weights at this input size"
        )
    model, prefix = _wrap(origin, network, labels, image)
    model.backbone = Backbone(
        id=backbone_id,
        source=origin.source,
        prefix=prefix,
        labels=labels,
        layout=layout,
        groups=group_layers(layout),
        image=image,
        weights=(weights or "pretrained") if pretrained or weights else "random",
    )
    return model


def _head(origin: Origin, labels: int) -> tuple[str, ...]:
    """Return the names whose shape follows the number of labels: what no checkpoint can fill."""
    device = "cpu" if origin.source == "torchvision" else "meta"  # regnets do not build on meta
    with torch.device(device):
        one, other = (build_network(replace(origin), n) for n in (labels, labels + 1))
    return head_names(one, other)


def _trace(network: nn.Module, image: ImageSettings, head: tuple[str, ...], labels: int) -> Layout:
    from dataclasses import asdict

    return trace_layout(network, image=asdict(image), head=head, labels=labels)


def _widen(layout: Layout, head: tuple[str, ...], layers: int) -> tuple[str, ...]:
    """Return the names of the last `layers` layers with weights, in the order that they run."""
    if layers < 1:
        raise BackboneError(f"head.replace is {layers}; the head is at least 1 layer")
    owners = list(dict.fromkeys(n.rpartition(".")[0] for n, _ in layout.parameters))
    heads = {name.rpartition(".")[0] for name in head}
    below = [owner for owner in owners if owner not in heads]
    if layers - 1 >= len(below):
        raise BackboneError(
            f"head.replace is {layers}, but the network has {len(below) + len(heads)} layers"
        )
    renewed = heads | set(below[len(below) - layers + 1 :])
    return tuple(n for n, _ in layout.parameters if n.rpartition(".")[0] in renewed)


@torch.no_grad()
def _renew(network: nn.Module, fresh: nn.Module, head: Sequence[str]) -> None:
    """Copy the newly initialised head into the network, whatever its checkpoint held there."""
    values = dict(fresh.named_parameters())
    for name, parameter in network.named_parameters():
        if name in head:
            parameter.copy_(values[name])


def _own_labels(origin: Origin) -> tuple[str, ...]:
    if origin.source == "torchvision" and origin.folder is None:
        import torchvision

        return tuple(torchvision.models.get_model_weights(origin.name).DEFAULT.meta["categories"])
    if origin.source == "timm" and origin.folder is None:
        raise BackboneError(f"timm/{origin.name} needs labels; name those of your data")
    if origin.source == "timm":
        config = json.loads((origin.folder / "config.json").read_text())
        names = config.get("label_names") or config.get("pretrained_cfg", {}).get("label_names")
        return tuple(names or (str(i) for i in range(config["num_classes"])))
    with _one_line(f"transformers/{origin.name}"):
        if origin.folder is not None:
            names = json.loads((origin.folder / "config.json").read_text()).get("id2label", {})
            return tuple(names[key] for key in sorted(names, key=int))
        return tuple(AutoConfig.from_pretrained(origin.name).id2label.values())


def describe(model: nn.Module, head: Sequence[str] | None = None) -> Backbone:
    """Return what is known of a model: from its loader, or found out from the model itself.

    A transformers classifier of the user's own is compared with one for another number of labels;
    for any other module `head` names (or matches with * and ?) the newly initialised parameters.
    """
    known = getattr(model, "backbone", None)
    if isinstance(known, Backbone):
        return known
    config = getattr(model, "config", None)
    names = [name for name, _ in model.named_parameters()]
    if head is not None:
        chosen = tuple(n for n in names if any(fnmatch.fnmatchcase(n, p) for p in head))
        if not chosen:
            raise BackboneError(f"head {list(head)} matches no parameter; the last is {names[-1]}")
    elif isinstance(model, PreTrainedModel) and getattr(config, "num_labels", None):
        chosen = _head_of(model)
    else:
        raise BackboneError(
            f"cannot tell the head of a {type(model).__name__}; name its parameters, for example "
            f"TransferTrainer(model, …, head=['{names[-1].rpartition('.')[0]}.*'])"
        )
    wrapped = type(model).__name__.startswith("TimmWrapper")
    prefix = "timm_model." if wrapped else ""
    cfg = (getattr(config, "pretrained_cfg", None) or {}) if wrapped else {}
    size = cfg.get("input_size", (3, getattr(config, "image_size", None) or 224))[-1]
    image = ImageSettings(
        size=size[-1] if isinstance(size, (list, tuple)) else size,
        mean=tuple(cfg.get("mean", (0.485, 0.456, 0.406))),
        std=tuple(cfg.get("std", (0.229, 0.224, 0.225))),
    )
    labels = getattr(config, "id2label", None) or {}
    network = model.timm_model if wrapped else model
    bare = tuple(name.removeprefix(prefix) for name in chosen)
    layout = _trace(network, image, bare, len(labels))
    return Backbone(
        id=getattr(config, "_name_or_path", "") or type(model).__name__,
        source="timm" if wrapped else "object",
        prefix=prefix,
        labels=tuple(labels.values()),
        layout=layout,
        groups=group_layers(layout),
        image=image,
        weights="as given",
    )


def _head_of(model: PreTrainedModel) -> tuple[str, ...]:
    pair = []
    for extra in (0, 1):
        config = copy.deepcopy(model.config)
        config.num_labels = model.config.num_labels + extra
        with torch.device("meta"):
            pair.append(type(model)(config))
    return head_names(*pair)


# --- pixels ---------------------------------------------------------------------------------


def _image_settings(origin: Origin, network: nn.Module, size: int | None) -> ImageSettings:
    if origin.source == "timm":
        cfg = network.pretrained_cfg
        found = ImageSettings(
            size=cfg["input_size"][-1],
            mean=tuple(cfg["mean"]),
            std=tuple(cfg["std"]),
            interpolation=cfg["interpolation"],
            crop_pct=cfg["crop_pct"] or 1.0,
        )
    elif origin.source == "torchvision" and origin.folder is None:
        import torchvision

        preset = torchvision.models.get_model_weights(origin.name).DEFAULT.transforms()
        found = ImageSettings(
            size=preset.crop_size[0],
            mean=tuple(preset.mean),
            std=tuple(preset.std),
            interpolation=preset.interpolation.value,
            crop_pct=preset.crop_size[0] / preset.resize_size[0],
        )
    else:
        found = _processor_settings(origin, network)
    return replace(found, size=size) if size else found


def _processor_settings(origin: Origin, network: nn.Module) -> ImageSettings:
    """Read the pixels' settings from the preprocessor_config.json that travels with the model."""
    from transformers import AutoImageProcessor
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if origin.folder is None and origin.name in CONFIG_MAPPING_NAMES:
        size = getattr(network.config, "image_size", 224)
        size = size if isinstance(size, int) else size[-1]
        return ImageSettings(size=size, mean=(0.5,) * 3, std=(0.5,) * 3)
    with _one_line(f"the image processor of {origin.name}"):
        processor = AutoImageProcessor.from_pretrained(origin.folder or origin.name)
    resized = dict(processor.size)
    shortest = resized.get("shortest_edge") or min(
        resized.get("height", 224), resized.get("width", 224)
    )
    crop = (
        getattr(processor, "crop_size", None)
        if getattr(processor, "do_center_crop", False)
        else None
    )
    size = dict(crop)["height"] if crop else shortest
    return ImageSettings(
        size=size,
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
        interpolation={0: "nearest", 2: "bilinear", 3: "bicubic"}.get(
            int(processor.resample), "bicubic"
        ),
        crop_pct=size / shortest if crop else getattr(processor, "crop_pct", None) or 1.0,
    )


# --- saving ---------------------------------------------------------------------------------


def _wrap(
    origin: Origin, network: nn.Module, labels: tuple[str, ...], image: ImageSettings
) -> tuple[PreTrainedModel, str]:
    """Return the network as a transformers model and the prefix that its names have there."""
    naming: dict[str, Any] = {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    if origin.source == "transformers":
        for key, value in naming.items():
            setattr(network.config, key, value)
        return network, ""
    # Built on meta: post_init would overwrite weights, so the real network goes in afterwards.
    if origin.source == "timm":
        from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

        config = TimmWrapperConfig(
            architecture=network.pretrained_cfg["architecture"],
            label_names=list(labels),
            pretrained_cfg=_pretrained_cfg(network, image),
            model_args=network.build_args or None,
            **naming,
        )
        with torch.device("meta"):
            model = TimmWrapperForImageClassification(config)
        model.timm_model = network
        return model, "timm_model."
    from hf_transfer.networks import TorchvisionConfig, TorchvisionForImageClassification

    config = TorchvisionConfig(architecture=origin.name, image_size=image.size, **naming)
    model = TorchvisionForImageClassification(config)
    model.network = network
    return model, "network."


def _pretrained_cfg(network: nn.Module, image: ImageSettings) -> dict[str, Any]:
    """Return timm's description of the network, with the pixels as this model was trained."""
    kept = (
        "tag",
        "crop_mode",
        "fixed_input_size",
        "pool_size",
        "first_conv",
        "classifier",
        "license",
    )
    cfg = {key: network.pretrained_cfg[key] for key in kept if key in network.pretrained_cfg}
    return cfg | {
        "input_size": [image.channels, image.size, image.size],
        "interpolation": image.interpolation,
        "crop_pct": image.crop_pct,
        "mean": list(image.mean),
        "std": list(image.std),
        "custom_load": False,
    }


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Write the model as one folder that transformers opens, and timm where it is timm's.

    The folder appears whole or not at all: it is written beside and then renamed.
    """
    folder = Path(folder)
    beside = folder.with_name(folder.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    backbone: Backbone = model.backbone
    if backbone.source == "timm":
        _save_timm(model, beside)
    else:
        if backbone.source == "torchvision":
            type(model).register_for_auto_class("AutoModelForImageClassification")
            type(model.config).register_for_auto_class()
        model.save_pretrained(beside)
        _write_json(beside / "preprocessor_config.json", _processor_config(backbone.image))
    if folder.exists():
        shutil.rmtree(folder)
    beside.rename(folder)


def _save_timm(model: PreTrainedModel, folder: Path) -> None:
    """Write timm's form: unprefixed names, no empty model_args; transformers reads it too."""
    from safetensors.torch import save_file

    network, backbone = model.timm_model, model.backbone
    config = {
        "architecture": model.config.architecture,
        "architectures": ["TimmWrapperForImageClassification"],
        "model_type": "timm_wrapper",
        "num_classes": len(backbone.labels),
        "num_features": network.num_features,
        "label_names": list(backbone.labels),
        "pretrained_cfg": _pretrained_cfg(network, backbone.image)
        | {"num_classes": len(backbone.labels)},
    }
    if model.config.model_args:
        config["model_args"] = model.config.model_args
    _write_json(folder / "config.json", config)
    _write_json(folder / "preprocessor_config.json", _processor_config(backbone.image))
    state = {k: v.detach().cpu().contiguous().clone() for k, v in network.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _processor_config(image: ImageSettings) -> dict[str, Any]:
    """Return transformers' words for our preprocessing: shortest side, centre crop, normalise."""
    resample = {"nearest": 0, "bilinear": 2, "bicubic": 3}[image.interpolation]
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": int(image.size / image.crop_pct)},
        "resample": resample,
        "do_center_crop": True,
        "crop_size": {"height": image.size, "width": image.size},
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": list(image.mean),
        "image_std": list(image.std),
    }


def load_model(where: str | Path) -> PreTrainedModel:
    """Return a model as `save_model` wrote it, in evaluation mode; a run folder's is its model/.

    `where` is a run folder, a model folder or a Hub repository. Raises BackboneError.
    """
    folder = Path(where).expanduser()
    if (folder / "model" / "config.json").is_file():
        folder = folder / "model"
    if not folder.is_dir():
        if len(Path(where).parts) != 2 or str(where).startswith((".", "/", "~")):
            raise BackboneError(
                f"model {str(where)!r} is neither a folder nor a Hub repository (owner/name)"
            )
        from hf_transfer.hub import pull

        folder = pull(str(where))
    return load_backbone(str(folder)).eval()


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
