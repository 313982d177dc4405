"""Layouts of backbones, as `load_backbone` makes them: what a plan needs, without weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_transfer.backbones.blueprint import Blueprint
from hf_transfer.backbones.building import build, check_weights, draw
from hf_transfer.backbones.kept_head import DROP, labels_of_head
from hf_transfer.backbones.meta_device import on_meta
from hf_transfer.backbones.origins import locate
from hf_transfer.backbones.trace import head_names, trace_layout
from hf_transfer.base.boundary import printable
from hf_transfer.base.download import BackboneError
from hf_transfer.planning.layout import GroupsError, Layout
from hf_transfer.recipe.specs import Recipe

MOST_TRACED = 32
TRACED: dict[tuple[Any, ...], Layout] = {}  # by how the network is built


def layout_of(
    backbone_id: str | Path,
    labels: int,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    replace_layers: int = 1,
    keep_head: bool = False,
    pretrained: bool = True,
) -> Layout:
    """Return the layout that `load_backbone` gives a backbone with this number of labels.

    No weights are read or downloaded; the network is built on meta where it can be.
    """
    blueprint = draw(locate(str(backbone_id)), image_size, channels)
    check_head(blueprint, [str(i) for i in range(labels)], keep_head, replace_layers)
    if keep_head and len(labels_of_head(blueprint)) != labels:
        raise BackboneError(
            f"the head of {blueprint.origin} is for {len(labels_of_head(blueprint))} labels, not "
            f"{labels}; {DROP}"
        )
    classifier = classifier_of(blueprint, labels)
    layout = layout_with_head(blueprint, classifier, labels, replace_layers)
    refitted = refitted_layers(blueprint) if pretrained else ()
    return replace(layout, head_kept=keep_head, refitted=refitted, random=not pretrained)


def planned_layout(recipe: Recipe, labels: int) -> Layout:
    """Return the layout that a recipe's run will have, without reading weights."""
    if recipe.backbone is None:
        raise BackboneError(f"recipe {recipe.name} has no backbone; add --backbone ID")
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


def check_head(blueprint: Blueprint, labels: Sequence[str], keep: bool, layers: int) -> None:
    """Raise BackboneError for an impossible head, before anything is built."""
    if len(labels) < 1:
        raise BackboneError(f"{blueprint.origin} needs labels; name those of your data")
    twice = next((label for label, count in Counter(labels).items() if count > 1), None)
    if twice is not None and not keep:
        raise BackboneError(
            f"{blueprint.origin}: the label {printable(twice)!r} is there twice; give each label "
            "one name of its own"
        )
    if layers < 1:
        raise BackboneError(f"head.replace is {layers}; the head is at least 1 layer")
    if keep and layers > 1:
        raise BackboneError(f"keep_head and head.replace {layers} exclude each other; remove one")


def classifier_of(
    blueprint: Blueprint, labels: int, network: nn.Module | None = None
) -> tuple[str, ...]:
    """Return the names of the parameters that depend on the number of labels; `network` is the one
    for so many labels where it was built."""
    with on_meta():
        names = head_names(
            build(blueprint, labels) if network is None else network, build(blueprint, labels + 1)
        )
    if not names:
        raise BackboneError(
            f"{blueprint.origin} is an encoder that its library gives no head for labels; choose "
            "another backbone"
        )
    return names


def layout_with_head(
    blueprint: Blueprint,
    classifier: Sequence[str],
    labels: int,
    layers: int,
    network: nn.Module | None = None,
) -> Layout:
    """Return the layout whose head is the classifier and the `layers` - 1 layers before it.

    Traces the network, or without one a copy on meta. Raises BackboneError where the network does
    not run on images of the blueprint's size.
    """
    try:
        if network is not None:
            layout = _traced(blueprint, network, classifier, labels)
        else:
            layout = _traced_without_values(blueprint, classifier, labels)
    except GroupsError as error:
        raise BackboneError(
            f"{blueprint.origin} takes no images of {blueprint.image.size} px ({error}); its own "
            f"size is {blueprint.own.size}"
        ) from error
    return replace(layout, head=_widened(layout, layers)) if layers > 1 else layout


def _traced(
    blueprint: Blueprint, network: nn.Module, classifier: Sequence[str], labels: int
) -> Layout:
    """Return the layout of a network, which is traced unless one that is built alike was: a run
    loads its network three times, and tracing takes most of that."""
    source, name = blueprint.origin.source, blueprint.origin.name.partition(".")[0]
    built = blueprint.settings[0] if source == "transformers" else name
    made = tuple((path, type(module)) for path, module in network.named_modules())
    shapes = tuple((path, parameter.shape) for path, parameter in network.named_parameters())
    told = repr((built, blueprint.arguments, blueprint.image))
    key = (source, told, made, shapes, tuple(classifier), labels)
    layout = TRACED.get(key)
    if layout is None:
        image = asdict(blueprint.image)
        layout = trace_layout(network, image=image, head=classifier, labels=labels)
        if len(TRACED) >= MOST_TRACED:
            TRACED.clear()
        TRACED[key] = layout
    return layout


def _traced_without_values(blueprint: Blueprint, classifier: Sequence[str], labels: int) -> Layout:
    """Return the layout of the network on meta, or of a real one where it needs its values."""
    image = asdict(blueprint.image)
    with on_meta():
        network = build(blueprint, labels)
    try:
        return trace_layout(network, image=image, head=classifier, labels=labels)
    except GroupsError:
        with torch.random.fork_rng():
            network = build(blueprint, labels)
        return trace_layout(network, image=image, head=classifier, labels=labels)


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


def refitted_layers(blueprint: Blueprint) -> tuple[str, ...]:
    """Return the parameters whose shape follows the number of input channels, where it changed."""
    if blueprint.image.channels == blueprint.own.channels:
        return ()
    labels = max(1, blueprint.classes)
    usual = draw(blueprint.origin, blueprint.image.size)
    with on_meta():
        shapes = {name: p.shape for name, p in build(usual, labels).named_parameters()}
        changed = build(blueprint, labels)
    return tuple(n for n, p in changed.named_parameters() if shapes.get(n) != p.shape)
