"""Backbones: an id and labels to a model with a new head, or to its layout alone.

timm, transformers and torchvision differ in where weights come from and how a folder looks. They
meet here, and nothing downstream asks where a model came from.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_transfer.backbones.blueprint import Backbone, Blueprint
from hf_transfer.backbones.building import (
    build,
    build_network,
    check_weights,
    draw,
    load,
    own_labels,
)
from hf_transfer.backbones.from_object import describe
from hf_transfer.backbones.new_head import start_small
from hf_transfer.backbones.origins import Origin, locate
from hf_transfer.backbones.regression_units import plain_scale
from hf_transfer.backbones.saving import save_model, wrap
from hf_transfer.backbones.trace import head_names, trace_layout
from hf_transfer.backbones.weights import transfer
from hf_transfer.base.download import BackboneError
from hf_transfer.planning.groups import group_layers
from hf_transfer.planning.layout import GroupsError, Layout
from hf_transfer.recipe.specs import Recipe
from hf_transfer.recipe.tasks import TASKS

__all__ = [
    "Backbone",
    "BackboneError",
    "Origin",
    "build_network",
    "describe",
    "layout_of",
    "load_backbone",
    "load_model",
    "planned_layout",
    "save_model",
]


def load_backbone(
    backbone_id: str,
    labels: Sequence[str] | None = None,
    *,
    pretrained: bool = True,
    weights: str | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    replace_layers: int = 1,
    keep_head: bool = False,
    seed: int = 0,
    task: str | None = None,
) -> PreTrainedModel:
    """Return a model for `labels` with `.backbone`: what is its head, its groups, its pixels.

    The last `replace_layers` layers are newly initialised, a function of `seed`; with `keep_head`,
    or without labels, the checkpoint's head stays. `weights` is a file to read instead of the
    library's own. `forward(pixel_values (B, C, H, W), labels (B,))` has `.loss` and `.logits`.
    `task` is classification, multi_label or regression; None: the kept head's, or classification.
    """
    blueprint = draw(locate(backbone_id), image_size, channels)
    keep = keep_head or labels is None
    task = task or (blueprint.task if keep else "classification")
    if task not in TASKS:
        raise BackboneError(f"task {task!r}; there are {', '.join(TASKS)}")
    names = tuple(labels) if labels is not None else _own_labels(blueprint)
    _check(blueprint, names, keep, replace_layers)
    if pretrained and weights is None:
        check_weights(blueprint)
    donor, lacking = None, frozenset[str]()
    with _seeded(seed):
        if pretrained or weights is not None:
            donor, lacking = load(blueprint, Path(weights).expanduser() if weights else None)
        elif keep_head:
            raise BackboneError(f"{backbone_id} with random weights has no head to keep")
    with _seeded(seed):
        whole = keep and donor is not None and not blueprint.is_changed
        network = donor if whole else build(blueprint, len(names))
        layout = _layout(blueprint, names, replace_layers, network)
        if not keep:
            start_small(network, _classifier(blueprint, len(names)), len(names))
        if donor is not None:
            if keep:
                _keep_head(blueprint, donor, lacking, layout.head, names)
            if not whole:
                new = lacking if keep else lacking | set(layout.head)
                transfer(network, donor, new, str(blueprint.origin))
            fresh = lacking | set(layout.head)
            head = tuple(name for name, _ in layout.parameters if name in fresh)
            refitted = _refitted(blueprint)
            layout = replace(layout, head=head, head_kept=keep, refitted=refitted)
        model, prefix = wrap(blueprint, network, names, task)
    model.backbone = Backbone(
        id=backbone_id,
        source=blueprint.origin.source,
        prefix=prefix,
        labels=names,
        groups=group_layers(layout),
        image=blueprint.image,
        weights=weights or ("pretrained" if pretrained else "random"),
        adapted=layout.refitted,
        task=task,
        scale=plain_scale(len(names)) if keep and task == "regression" else None,
    )
    return model


def load_model(where: str | Path) -> PreTrainedModel:
    """Return a model as `save_model` wrote it, in evaluation mode; a run folder's is its model/.

    `where` is a run folder, a model folder or a Hub repository. Raises BackboneError.
    """
    folder = Path(where).expanduser()
    if not folder.is_dir():
        if len(Path(where).parts) != 2 or str(where).startswith((".", "/", "~")):
            raise BackboneError(
                f"model {str(where)!r} is neither a folder nor a Hub repository (owner/name)"
            )
        from hf_transfer.base.download import pull

        folder = pull(str(where))
    return load_backbone(str(folder)).eval()


def layout_of(
    backbone_id: str,
    labels: int,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    replace_layers: int = 1,
    keep_head: bool = False,
    pretrained: bool = True,
) -> Layout:
    """Return the layout of a backbone with a head for so many labels, as `load_backbone` makes it.

    No weights are read or downloaded; the network is built on meta where it can be.
    """
    blueprint = draw(locate(backbone_id), image_size, channels)
    names = tuple(str(i) for i in range(labels))
    _check(blueprint, names, keep_head, replace_layers)
    if keep_head and len(_own_labels(blueprint)) != labels:
        raise BackboneError(
            f"the head of {blueprint.origin} is for {len(_own_labels(blueprint))} labels, not "
            f"{labels}; drop head.keep for a new one"
        )
    layout = _layout(blueprint, names, replace_layers)
    refitted = _refitted(blueprint) if pretrained else ()
    return replace(layout, head_kept=keep_head, refitted=refitted)


def planned_layout(recipe: Recipe, labels: int) -> Layout:
    """Return the layout that a recipe's run will have, without reading weights."""
    if recipe.backbone is None:
        raise BackboneError(f"recipe {recipe.name} names no backbone; add --backbone ID")
    if recipe.pretrained and recipe.weights is None:
        check_weights(draw(locate(recipe.backbone)))
    return layout_of(
        recipe.backbone,
        labels,
        image_size=recipe.data.image_size,
        channels=recipe.data.channels,
        replace_layers=recipe.head.replace,
        keep_head=recipe.head.keep,
        pretrained=recipe.pretrained or recipe.weights is not None,
    )


# --- structure -------------------------------------------------------------------------------


def _check(blueprint: Blueprint, labels: Sequence[str], keep: bool, layers: int) -> None:
    """Raise BackboneError for what can be said before anything is built."""
    if len(labels) < 1:
        raise BackboneError(f"{blueprint.origin} needs labels; name those of your data")
    if layers < 1:
        raise BackboneError(f"head.replace is {layers}; the head is at least 1 layer")
    if keep and layers > 1:
        raise BackboneError(f"keep_head and head.replace {layers} exclude each other; drop one")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from a seed of its own and give the generators back as they were."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _classifier(blueprint: Blueprint, labels: int) -> tuple[str, ...]:
    """Return the names of what depends on the number of labels."""
    with torch.device("meta"):
        one, other = (build(blueprint, n) for n in (labels, labels + 1))
    return head_names(one, other)


def _layout(
    blueprint: Blueprint, labels: Sequence[str], layers: int, network: nn.Module | None = None
) -> Layout:
    """Return the layout with the head widened to so many layers; on meta without a network."""
    with torch.device("meta"):
        one, other = (build(blueprint, n) for n in (len(labels), len(labels) + 1))
    head = head_names(one, other)
    if not head:
        raise BackboneError(
            f"{blueprint.origin} is an encoder that its library gives no head for labels; choose "
            "another backbone"
        )
    image = asdict(blueprint.image)
    try:
        try:
            layout = trace_layout(network or one, image=image, head=head, labels=len(labels))
        except GroupsError:
            if network is not None:
                raise
            with torch.random.fork_rng():  # some run with values only
                real = build(blueprint, len(labels))
            layout = trace_layout(real, image=image, head=head, labels=len(labels))
    except GroupsError as error:
        raise BackboneError(
            f"{blueprint.origin} takes no images of {blueprint.image.size} px ({error}); its own "
            f"size is {blueprint.own.size}"
        ) from error
    return replace(layout, head=_widened(layout, layers)) if layers > 1 else layout


def _widened(layout: Layout, layers: int) -> tuple[str, ...]:
    """Return the names of the last `layers` layers with weights and of what runs after them."""
    head, weights = set(layout.head), layout.weights
    names = [name for name, _ in layout.parameters if name not in layout.unused]
    below = [name for name in names if name in weights and name not in head]
    owners = list(dict.fromkeys(name.rpartition(".")[0] for name in below))
    if layers - 1 >= len(owners):
        raise BackboneError(
            f"head.replace is {layers}, but the network has {len(owners) + 1} layers with weights"
        )
    first = owners[-(layers - 1)]
    at = next(i for i, name in enumerate(names) if name.rpartition(".")[0] == first)
    wide = head | set(names[at:])
    return tuple(name for name, _ in layout.parameters if name in wide)


def _refitted(blueprint: Blueprint) -> tuple[str, ...]:
    """Return the parameters whose shape follows the number of input channels, where it changed."""
    if blueprint.image.channels == blueprint.own.channels:
        return ()
    labels = max(1, blueprint.classes)
    usual = draw(blueprint.origin, blueprint.image.size)
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in build(usual, labels).named_parameters()}
        changed = build(blueprint, labels)
    return tuple(n for n, p in changed.named_parameters() if shapes.get(n) != p.shape)


# --- a head that stays -----------------------------------------------------------------------


def _own_labels(blueprint: Blueprint) -> tuple[str, ...]:
    labels = own_labels(blueprint)
    if not labels:
        raise BackboneError(f"{blueprint.origin} has no head of its own; give labels")
    return labels


@torch.no_grad()
def _keep_head(
    blueprint: Blueprint,
    donor: nn.Module,
    lacking: Collection[str],
    head: Sequence[str],
    labels: Sequence[str],
) -> None:
    """Bring the checkpoint's own head into the order of `labels`. Raises BackboneError where it
    has none for them."""
    own, place = blueprint.labels, str(blueprint.origin)
    given = dict(donor.named_parameters())
    if not all(name in given and name not in lacking for name in head):
        raise BackboneError(f"{place} has no head to keep; its head for {len(labels)} is new")
    if own and set(own) != set(labels):
        odd = sorted(set(labels) - set(own)) or sorted(set(own) - set(labels))
        raise BackboneError(
            f"the head of {place} is for {len(own)} other labels ({odd[0]!r} is in one of the two "
            "lists only); drop keep_head for a new one"
        )
    rows = [own.index(label) for label in labels] if own else list(range(len(labels)))
    for name in head:
        if len(given[name]) != len(rows):
            count = len(given[name])
            raise BackboneError(f"the head of {place} is for {count} labels, not {len(rows)}")
        given[name].copy_(given[name][rows])
