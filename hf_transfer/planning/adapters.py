"""Adapters: what `lora(r=8)` stands for on a backbone; small matrices that train beside its layers.

The layers themselves stay frozen. Names and shapes are those that peft gives; injecting.py has it
put them in. An adapter belongs to the group of its layer, so rates and phases see no difference.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from hf_transfer.planning.groups import LayerGroups
from hf_transfer.planning.layout import Layout
from hf_transfer.planning.selection import SelectorError, head_parameters, select, trainable

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
    train: str | Sequence[str], groups: LayerGroups, layout: Layout
) -> tuple[tuple[str, ...], Adapters | None]:
    """Return what a phase's `train` selects in execution order, and its adapters if it has any.

    Adapters bring the head with them, and stand beside layers that do not train themselves. Raises
    SelectorError.
    """
    terms = [train] if isinstance(train, str) else list(train)
    words = [" ".join(text.split()) for text in terms]
    written = [text for text in words if BEGUN.match(text)]
    if not written:
        return select(train, groups, layout), None
    if len(written) > 1:
        raise SelectorError(f"a phase has one kind of adapters, not {' and '.join(written)}")
    settings, targets, where = _read(written[0])
    plus = [t for t in words if t not in written and not t.startswith("not ")]
    minus = [t.removeprefix("not ") for t in words if t.startswith("not ")]
    out = {name for text in minus for name in select(text, groups, layout)}
    whole = set(select(["head", *plus], groups, layout)) - out
    region = set(select(where, groups, layout)) - out - whole - head_parameters(groups, layout)
    layers = set(layout.layers)
    owners = [name.removesuffix(".weight") for name in trainable(layout) if name in region]
    adapters = replace(
        settings, layers=tuple(p for p in owners if p in layers and _is_target(p, targets, layout))
    )
    if not adapters.layers:
        raise SelectorError(
            f"{written[0]!r} finds no plain linear or convolution layer to stand beside; "
            "name other targets, or train the layers themselves"
        )
    names = whole | set(parameters_of(adapters, layout))
    return tuple(n for n in trainable(adapted(adapters, groups, layout)[1]) if n in names), adapters


def adapted(
    adapters: Adapters | None, groups: LayerGroups, layout: Layout
) -> tuple[LayerGroups, Layout]:
    """Return groups and layout of the network with its adapters: each just after its layer's weight
    and in that group. Without adapters, as they are."""
    if adapters is None:
        return groups, layout
    macs = dict(zip((n for n, _ in layout.parameters), layout.macs, strict=False))
    crossing = dict(zip((n for n, _ in layout.parameters), layout.crossing, strict=False))
    added: dict[str, dict[str, tuple[int, ...]]] = {}
    costs: dict[str, int] = {}
    for path in adapters.layers:
        weight = f"{path}.weight"
        positions = macs.get(weight, 0) // max(1, layout.sizes[weight])
        own = _shapes(adapters, path, layout)
        added[weight] = own
        costs |= {n: math.prod(s) * positions * ("_A." in n or "_B." in n) for n, s in own.items()}
        given = positions * dict(layout.parameters)[weight][0]  # the adapter's own is added to it
        crossing |= dict.fromkeys(own, crossing.get(weight, 0) + given)
    parameters: dict[str, tuple[int, ...]] = {}
    for name, shape in layout.parameters:
        parameters |= {name: shape, **added.get(name, {})}
    costs |= macs
    magnitudes = tuple(name for name in costs if "magnitude" in name)
    longer = replace(
        layout,
        parameters=tuple(parameters.items()),
        macs=tuple(costs[name] for name in parameters) if layout.macs else (),
        crossing=tuple(crossing[name] for name in parameters) if layout.crossing else (),
        no_decay=(*layout.no_decay, *magnitudes),
    )
    members = []
    for group in groups.groups:
        names = [n for own in group.parameters for n in (own, *added.get(own, ()))]
        size = sum(longer.sizes[name] for name in names)
        members.append(replace(group, parameters=tuple(names), size=size))
    return LayerGroups(tuple(members)), longer


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
