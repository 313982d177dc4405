"""Backbones: an id and labels to a model with a new head.

timm, transformers and torchvision differ in where weights come from and how a folder looks. They
meet here, and nothing downstream asks where a model came from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_transfer.backbones.blueprint import Backbone, Blueprint
from hf_transfer.backbones.building import build, build_network, check_weights, draw, load
from hf_transfer.backbones.config_checks import thresholds_of
from hf_transfer.backbones.from_object import describe
from hf_transfer.backbones.kept_head import keep_head as keep_own_head
from hf_transfer.backbones.kept_head import labels_of_head
from hf_transfer.backbones.layouts import (
    check_head,
    classifier_of,
    layout_of,
    layout_with_head,
    planned_layout,
    refitted_layers,
)
from hf_transfer.backbones.new_head import start_apart, start_small
from hf_transfer.backbones.origins import Origin, check_model, locate
from hf_transfer.backbones.preprocessing import saved_dicom
from hf_transfer.backbones.regression_units import plain_scale
from hf_transfer.backbones.saving import save_as_published, save_model, wrap
from hf_transfer.backbones.weights import FILES, check_finite, transfer
from hf_transfer.base.download import BackboneError, pull
from hf_transfer.base.files import expanded
from hf_transfer.base.signatures import checked
from hf_transfer.data.image_settings import fitted, with_dicom
from hf_transfer.planning.groups import group_layers
from hf_transfer.planning.layout import Layout
from hf_transfer.recipe.specs import Recipe
from hf_transfer.recipe.tasks import TASKS, check_task

__all__ = [
    "Backbone",
    "BackboneError",
    "Origin",
    "build_network",
    "describe",
    "layout_of",
    "load_backbone",
    "load_model",
    "options_of",
    "planned_layout",
    "save_model",
]


def options_of(recipe: Recipe) -> dict[str, Any]:
    """Return what a recipe says of its network, as `load_backbone` takes it."""
    data, head = recipe.data, recipe.head
    return {
        "task": recipe.task,
        "pretrained": recipe.pretrained,
        "weights": recipe.weights,
        "image_size": data.image_size,
        "channels": data.channels,
        "fit": data.fit,
        "window": data.window,
        "frame": data.frame,
        "replace_layers": head.replace,
        "keep_head": head.keep,
        "seed": recipe.seed,
    }


@checked
def load_backbone(
    backbone_id: str | Path,
    labels: Sequence[str] | None = None,
    *,
    pretrained: bool = True,
    weights: str | Path | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    fit: str | None = None,
    window: Sequence[float] | None = None,
    frame: int | None = None,
    replace_layers: int = 1,
    keep_head: bool = False,
    seed: int = 0,
    task: str | None = None,
) -> PreTrainedModel:
    """Return a model for `labels` with `.backbone`: what is its head, its groups, its pixels.

    `backbone_id` is timm/NAME, transformers/REPO, torchvision/NAME or a folder; unless `pretrained`
    its weights are random. `image_size` (px) and `channels` are by default the checkpoint's.
    The last `replace_layers` layers are newly initialised, a function of `seed`; with `keep_head`,
    or without labels, the checkpoint's head stays. `weights` is a file to read instead of the
    library's own. `forward(pixel_values (B, C, H, W), labels (B,))` has `.loss` and `.logits`.
    `task` is one of `recipe.tasks`; None: the kept head's, or classification.
    `fit` is how pictures become squares, crop, squash or pad; None: as for the checkpoint.
    `window` (centre, width) and `frame` say how DICOM files are read, and are saved with the model.
    """
    blueprint = draw(locate(str(backbone_id)), image_size, channels)
    image = with_dicom(fitted(blueprint.image, fit), *saved_dicom(blueprint.origin.folder))
    blueprint = replace(blueprint, image=with_dicom(image, window, frame))
    if fit == "pad" and blueprint.origin.source != "timm":
        raise BackboneError(
            f"data.fit: pad needs a backbone of timm's, and {backbone_id} is not: the image "
            "processors of transformers do not pad, so the saved model would see other pictures; "
            "use fit: squash"
        )
    keep = keep_head or labels is None
    task = task or (blueprint.task if keep else "classification")
    check_task(task)
    names = tuple(labels) if labels is not None else labels_of_head(blueprint)
    check_head(blueprint, names, keep, replace_layers)
    file = weights or blueprint.origin.weights
    if keep_head and not (pretrained or file):
        raise BackboneError(f"{backbone_id} with random weights has no head to keep")
    with _seeded(seed):
        donor = _donor(blueprint, file) if pretrained or file else None
    with _seeded(seed):
        if donor is None:
            network, layout = _untrained(blueprint, names, replace_layers)
            layout = replace(layout, random=True)
        else:
            network, layout = _pretrained(blueprint, donor, names, keep, replace_layers)
            check_finite(network, file or _weights_of(blueprint.origin))
        if TASKS[task].views > 1 and not keep:
            start_apart(network, classifier_of(blueprint, len(names)), len(names))
        model, prefix = wrap(blueprint, network, names, task)
    model.backbone = Backbone(
        id=str(backbone_id),
        source=blueprint.origin.source,
        prefix=prefix,
        labels=names,
        groups=group_layers(layout),
        image=blueprint.image,
        weights=str(file) if file else "random" if donor is None else "pretrained",
        task=task,
        scale=plain_scale(len(names)) if keep and task == "regression" else None,
        thresholds=thresholds_of(blueprint.origin.config, names)
        if keep and task == "multi_label"
        else (),
        tta=keep and bool((blueprint.origin.config or {}).get("tta")),
    )
    save_as_published(model)
    return model


@checked
def load_model(where: str | Path) -> PreTrainedModel:
    """Return a model as `save_model` wrote it, in evaluation mode; a run folder's is its model/.

    `where` is a run folder, a model folder or a Hub repository. Raises BackboneError.
    """
    folder = check_model(where) or pull(str(where))
    return load_backbone(str(folder)).eval()


# --- weights ---------------------------------------------------------------------------------

Donor = tuple[nn.Module, frozenset[str]]  # a pretrained network, and what its checkpoint lacked


def _weights_of(origin: Origin) -> Path | Origin:
    """Return the file of an origin's weights where it lies in a folder."""
    inside = (origin.folder / name for name in FILES) if origin.folder else ()
    return next((path for path in inside if path.is_file()), origin)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from a seed of its own, then restore the generators."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _donor(blueprint: Blueprint, file: str | Path | None) -> Donor:
    """Return the network as its checkpoint has it. Raises BackboneError."""
    if file is None:
        check_weights(blueprint)
    return load(blueprint, expanded(file) if file else None)


def _untrained(
    blueprint: Blueprint, labels: Sequence[str], layers: int
) -> tuple[nn.Module, Layout]:
    """Return a network with random weights whose head starts small, and its layout."""
    network = build(blueprint, len(labels))
    classifier = classifier_of(blueprint, len(labels), network)
    layout = layout_with_head(blueprint, classifier, len(labels), layers, network)
    start_small(network, classifier, len(labels))
    return network, layout


def _pretrained(
    blueprint: Blueprint, donor: Donor, labels: Sequence[str], keep: bool, layers: int
) -> tuple[nn.Module, Layout]:
    """Return a network with a checkpoint's weights, and its layout: new are the head, unless it is
    kept, and what the checkpoint lacked."""
    given, lacking = donor
    if not keep:
        network, layout = _untrained(blueprint, labels, layers)
        transfer(network, given, lacking | set(layout.head), str(blueprint.origin))
    else:
        network = build(blueprint, len(labels)) if blueprint.is_changed else given
        classifier = classifier_of(blueprint, len(labels))
        layout = layout_with_head(blueprint, classifier, len(labels), 1, network)
        keep_own_head(blueprint, given, lacking, layout.head, labels)
        if network is not given:
            transfer(network, given, lacking, str(blueprint.origin))
    fresh = lacking | set(layout.head)
    head = tuple(name for name, _ in layout.parameters if name in fresh)
    refitted = refitted_layers(blueprint)
    return network, replace(layout, head=head, head_kept=keep, refitted=refitted)
