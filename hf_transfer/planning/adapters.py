"""Adapters: what `lora(r=8)` means for a backbone; small matrices that train beside its layers.

The layers themselves stay frozen. Names and shapes are those that peft gives; training's
`adapter_layers` has peft insert them. An adapter belongs to the group of its layer, so rates and
phases see no difference.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from hf_transfer.planning.groups import LayerGroups
from hf_transfer.planning.layout import Layout
from hf_transfer.planning.selection import SelectorError, select

KINDS = ("lora", "dora", "loha", "lokr")
WRITTEN = re.compile(rf"({'|'.join(KINDS)})(?: ?\(([^()]*)\))?(?: (.+))?")
BEGUN = re.compile(rf"(?:{'|'.join(KINDS)})(?![\w.*?\[])")
TARGETS = {"all": (2, 4), "linear": (2,), "conv": (4,)}  # dimensions of the layers' weights
OWN = re.compile(r"\.(lora|hada|lokr)_\w+\.default\b")
RANK = 8


@dataclass(frozen=True)
class Adapters:
    """The adapters of a phase: of one kind and rank, beside these layers."""

    kind: str  # one of KINDS
    r: int
    alpha: float  # alpha / r is the factor on what an adapter adds
    dropout: float
    layers: tuple[str, ...]  # paths in the bare network, in order of execution


def select_adapted(
    train: str | Sequence[str], groups: LayerGroups
) -> tuple[tuple[str, ...], Adapters | None]:
    """Return what a phase's `train` selects in execution order, and its adapters if it has any.

    Adapters bring the head with them, and are given to layers that do not train themselves. Raises
    SelectorError.
    """
    terms = [train] if isinstance(train, str) else list(train)
    words = [" ".join(text.split()) for text in terms]
    written = [text for text in words if BEGUN.match(text)]
    if not written:
        return select(train, groups), None
    if len(written) > 1:
        raise SelectorError(f"a phase has one kind of adapters, not {' and '.join(written)}")
    settings, targets, where = _read(written[0])
    plus = [t for t in words if t not in written and not t.startswith("not ")]
    minus = [t.removeprefix("not ") for t in words if t.startswith("not ")]
    out = {name for text in minus for name in select(text, groups)}
    whole = set(select(["head", *plus], groups)) - out
    region = set(select(where, groups)) - out - whole - groups.head
    layout = groups.layout
    adaptable = set(layout.adaptable)
    paths = [name.removesuffix(".weight") for name in layout.used if name in region]
    paths = [path for path in paths if path in adaptable and _is_target(path, targets, layout)]
    if not paths:
        raise SelectorError(
            f"{written[0]!r} matches no plain linear or convolution layer; "
            "name other targets, or train the layers themselves"
        )
    adapters = replace(settings, layers=tuple(paths))
    names = whole | set(parameters_of(adapters, layout))
    used = with_adapters(groups, adapters).layout.used
    return tuple(name for name in used if name in names), adapters


def with_adapters(groups: LayerGroups, adapters: Adapters | None) -> LayerGroups:
    """Return the network with its adapters: each just after its layer's weight, in that group.

    Without adapters, the network as it is.
    """
    if adapters is None:
        return groups
    added = {f"{p}.weight": _shapes(adapters, p, groups.layout) for p in adapters.layers}
    layout = _longer(groups.layout, added)
    members = []
    for group in groups.groups:
        names = [n for own in group.parameters for n in (own, *added.get(own, ()))]
        size = sum(layout.sizes[name] for name in names)
        members.append(replace(group, parameters=tuple(names), size=size))
    return LayerGroups(tuple(members), layout)


def _longer(layout: Layout, added: Mapping[str, Mapping[str, tuple[int, ...]]]) -> Layout:
    """Return a layout with more parameters after the weights that they are `added` to.

    They work on as many positions as the weight; what they give is added to what its layer gives.
    """
    names = [name for name, _ in layout.parameters]
    macs = dict(zip(names, layout.macs, strict=False))
    crossing = dict(zip(names, layout.crossing, strict=False))
    parameters: dict[str, tuple[int, ...]] = {}
    magnitudes = []
    for weight, shape in layout.parameters:
        parameters[weight] = shape
        positions = macs.get(weight, 0) // max(1, layout.sizes[weight])
        for name, own in added.get(weight, {}).items():
            parameters[name] = own
            is_product = "_A." in name or "_B." in name
            macs[name] = math.prod(own) * positions * is_product
            crossing[name] = crossing.get(weight, 0) + positions * shape[0]
            if "magnitude" in name:
                magnitudes.append(name)
    return replace(
        layout,
        parameters=tuple(parameters.items()),
        macs=tuple(macs[name] for name in parameters) if layout.macs else (),
        crossing=tuple(crossing[name] for name in parameters) if layout.crossing else (),
        no_decay=(*layout.no_decay, *magnitudes),
    )


def parameters_of(adapters: Adapters, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of all parameters of the adapters."""
    return {
        name: shape
        for path in adapters.layers
        for name, shape in _shapes(adapters, path, layout).items()
    }


def is_adapter(name: str) -> bool:
    """Return whether a parameter is an adapter's, by its name."""
    return OWN.search(name) is not None


# --- reading ---------------------------------------------------------------------------------


def _read(text: str) -> tuple[Adapters, str, str]:
    """Return settings without layers, targets and the selector, of `lora(r=8) last 2 stages`."""
    found = WRITTEN.fullmatch(text)
    if found is None:
        raise SelectorError(
            f"{text!r} is not closed; write lora(r=8 alpha=16), with quotes where it has commas "
            "and stands in {…} or […]"
        )
    values = {"r": str(RANK), "dropout": "0", "targets": "all"}
    for part in re.split(r"[, ]+", (found[2] or "").strip(", ")):
        key, equals, value = part.partition("=")
        if part and (not equals or key not in (*values, "alpha")):
            raise SelectorError(
                f"{text!r}: {part!r} is no setting of adapters; write r=8, alpha=8, dropout=0.1 "
                "and targets=linear|conv|NAME"
            )
        values |= {key: value} if part else {}
    r = _number(text, "r", values["r"], 1, math.inf)
    alpha = _number(text, "alpha", values.get("alpha", values["r"]), 1e-6, math.inf)
    dropout = _number(text, "dropout", values["dropout"], 0, 1 - 1e-6)
    if r != int(r):
        raise SelectorError(f"{text!r}: r is a whole number")
    return Adapters(found[1], int(r), alpha, dropout, ()), values["targets"], found[3] or "all"


def _number(text: str, key: str, value: str, low: float, high: float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not low <= number <= high or math.isinf(number):
        least = {"r": "a whole number from 1", "alpha": "above 0", "dropout": "from 0 to below 1"}
        raise SelectorError(f"{text!r}: {key} must be {least[key]}, got {value!r}")
    return number


def _is_target(path: str, targets: str, layout: Layout) -> bool:
    """Return whether a layer is one of `targets`: a kind of layers, or names and patterns
    with | between them, of whole paths or their ends."""
    sides = TARGETS.get(targets)
    if sides is not None:
        return len(dict(layout.parameters)[f"{path}.weight"]) in sides
    return any(
        fnmatchcase(path, one) or fnmatchcase(path, f"*.{one}") for one in targets.split("|")
    )


# --- shapes ----------------------------------------------------------------------------------


def _shapes(adapters: Adapters, path: str, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Return the parameters that peft puts beside a layer, by name; of loha and lokr those without
    a decomposition of the kernel."""
    out, wide, *kernel = dict(layout.parameters)[f"{path}.weight"]
    r, ones, area = adapters.r, (1,) * len(kernel), math.prod(kernel)
    found: dict[str, tuple[int, ...]]
    if adapters.kind in ("lora", "dora"):
        found = {
            "lora_A.default.weight": (r, wide, *kernel),
            "lora_B.default.weight": (out, r, *ones),
        }
        if adapters.kind == "dora":
            found["lora_magnitude_vector.default.weight"] = (1, out, *ones) if kernel else (out,)
    elif adapters.kind == "loha":
        sides = {"a": (out, r), "b": (r, wide * area)}
        found = {f"hada_w{i}_{k}.default": side for i in (1, 2) for k, side in sides.items()}
    else:
        (first, second), (left, right) = _factors(out), _factors(wide)
        found = {"lokr_w1.default": (first, left)}
        if r >= max(second, right) / 2:
            found["lokr_w2.default"] = (second, right, *kernel)
        else:
            found["lokr_w2_a.default"] = (second, r)
            found["lokr_w2_b.default"] = (r, right * area)
    return {f"{path}.{name}": shape for name, shape in found.items()}


def _factors(count: int) -> tuple[int, int]:
    """Return the two factors of a number that are nearest to each other, the smaller first."""
    small = next(i for i in range(math.isqrt(count), 0, -1) if count % i == 0)
    return small, count // small
