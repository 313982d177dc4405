"""The published folder: config.json, model.safetensors, preprocessor_config.json; no pickles.

One folder opens in transformers, and in timm where the backbone is timm's, with equal logits.
"""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any, NoReturn

from torch import nn
from transformers import PreTrainedModel

from hf_transfer.backbones.blueprint import Backbone, Blueprint
from hf_transfer.backbones.meta_device import on_meta
from hf_transfer.backbones.preprocessing import processor_config
from hf_transfer.backbones.regression_units import in_units
from hf_transfer.base.download import BackboneError
from hf_transfer.base.errors import UserError
from hf_transfer.base.files import expanded, written_folder
from hf_transfer.base.signatures import checked
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.recipe.tasks import TASKS

KEPT = (  # of timm's pretrained_cfg; where weights came from and old labels are not
    "tag", "fixed_input_size", "pool_size", "first_conv", "classifier", "license",
)  # fmt: skip


def wrap(
    blueprint: Blueprint, network: nn.Module, labels: tuple[str, ...], task: str
) -> tuple[PreTrainedModel, str]:
    """Return the network as a transformers model, and the prefix that its names have there."""
    naming: dict[str, Any] = {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": TASKS[task].problem_type,
        **({"pretext": task} if TASKS[task].is_pretext else {}),
    }
    origin, image = blueprint.origin, blueprint.image
    if origin.source == "transformers":
        for key, value in naming.items():
            setattr(network.config, key, value)
        if origin.folder:  # of this machine's path the last part: others read a config
            network.config._name_or_path = origin.folder.resolve().name
        return network, ""
    if origin.source == "timm":
        from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

        config = TimmWrapperConfig(
            architecture=origin.name.partition(".")[0],
            label_names=list(labels),
            pretrained_cfg=_pretrained_cfg(network, image),
            model_args=blueprint.arguments or None,
            **naming,
        )
        # On meta, for post_init would overwrite weights; the real network goes in afterwards.
        with on_meta():
            model = TimmWrapperForImageClassification(config)
        model.timm_model = network
        return model, "timm_model."
    from hf_transfer.backbones.modeling_torchvision import (
        TorchvisionConfig,
        TorchvisionForImageClassification,
    )

    config = TorchvisionConfig(
        architecture=origin.name.partition(".")[0],
        network_args=blueprint.arguments,
        image_size=image.size,
        num_channels=image.channels,
        **naming,
    )
    return TorchvisionForImageClassification(config, network), "network."


def _pretrained_cfg(network: nn.Module, image: ImageSettings) -> dict[str, Any]:
    """Return timm's description of the network, with the pixel settings that this model was trained
    with."""
    own = network.pretrained_cfg
    return {key: own[key] for key in KEPT if own.get(key) is not None} | {
        "custom_load": False,
        "input_size": [image.channels, image.size, image.size],
        "interpolation": image.interpolation,
        "crop_pct": image.crop_pct,
        "crop_mode": image.crop_mode,
        "mean": list(image.mean),
        "std": list(image.std),
    }


@checked
def save_model(model: nn.Module, folder: str | Path) -> None:
    """Write a model of `load_backbone` as one folder that transformers opens, and timm its own.

    Either all files are written or none. Those of a model that was saved there before are removed,
    those of others stay; if one has a name that is needed, WriteError is raised. A regression's
    scale goes into the weights that are written: everywhere it answers in the targets' units.
    """
    own = isinstance(getattr(model, "backbone", None), Backbone)
    if not (own and isinstance(model, PreTrainedModel)):
        raise BackboneError(
            f"this {type(model).__name__} is not from load_backbone, which knows how it is saved; "
            "save it with its own save_pretrained"
        )
    with written_folder(expanded(folder), "model") as aside, in_units(model):
        _write(model, aside)


def _write(model: PreTrainedModel, folder: Path) -> None:
    backbone: Backbone = model.backbone
    timm = backbone.source == "timm"
    if timm:
        _write_timm(model, folder)
    else:
        if backbone.source == "torchvision":
            type(model).register_for_auto_class("AutoModelForImageClassification")
            type(model.config).register_for_auto_class()
        model.config.thresholds = _thresholds(backbone) or None
        model.config.tta = backbone.tta or None
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        type(model).save_pretrained(model, folder, state_dict=state)
    _write_json(folder / "preprocessor_config.json", processor_config(backbone.image, timm))


def _thresholds(backbone: Backbone) -> dict[str, float]:
    return dict(zip(backbone.labels, backbone.thresholds, strict=False))


def _write_timm(model: PreTrainedModel, folder: Path) -> None:
    """Write timm's form, which transformers reads too: names without prefix, no empty model_args,
    and never `num_classes` among them."""
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
    if backbone.thresholds:
        config["thresholds"] = _thresholds(backbone)
    if backbone.tta:
        config["tta"] = True
    if TASKS[backbone.task].is_pretext:
        config["pretext"] = backbone.task
    if model.config.problem_type:
        config["problem_type"] = model.config.problem_type
    if model.config.model_args:
        config["model_args"] = model.config.model_args
    _write_json(folder / "config.json", config)
    state = {k: v.detach().cpu().contiguous().clone() for k, v in network.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


# --- a model's own ways to save ------------------------------------------------------------------


class _Saved:
    """A model's `save_pretrained` that writes what `save_model` does: transformers' own forgets the
    image processor, thresholds and units, and timm cannot open it."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = weakref.ref(model)

    def __call__(
        self, save_directory: str | Path, is_main_process: bool = True, **options: Any
    ) -> None:
        model: Any = self._model()
        if options.get("push_to_hub"):
            unpublished()
        if options.get("state_dict") is not None:  # a trainer's, of other weights than these
            type(model).save_pretrained(model, save_directory, is_main_process, **options)
        elif unknown := {
            name
            for name, value in options.items()
            if value not in (None, False) and name != "safe_serialization"
        }:
            raise BackboneError(
                f"save_pretrained takes a folder alone here, not {', '.join(sorted(unknown))}: it "
                "writes one model.safetensors, as save_model does"
            )
        elif is_main_process:
            save_model(model, save_directory)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Saved, (self._model(),)  # a copy's is that of the copy


def unpublished(*_: Any, **__: Any) -> NoReturn:
    """Raise UserError in place of transformers' ways to publish: they know nothing of the run."""
    raise UserError(
        "neither a model nor a Trainer publishes: save_model(FOLDER) of either writes the model, "
        "and hf-transfer push FOLDER OWNER/NAME, or hf_transfer.push, uploads that"
    )


def save_as_published(model: PreTrainedModel) -> None:
    """Have a model's `save_pretrained` write what `save_model` does, and `push_to_hub` refuse."""
    model.save_pretrained, model.push_to_hub = _Saved(model), unpublished
