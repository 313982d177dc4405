"""Rates: the optimizer's groups of a phase, each with its rate and weight decay."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from hf_transfer.planning.groups import LayerGroups
from hf_transfer.planning.phase import Phase, span
from hf_transfer.planning.selection import select

FULL_DEPTH = 12  # groups below the head from which on the decay is spread over the depth


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that train at one rate with one weight decay, in execution order."""

    label: str  # the groups they are of, such as "layer4.0 … head", unique in its phase
    names: tuple[str, ...]
    lr: float
    weight_decay: float


def lr_scale(depth: int, decay: float, deepest: int) -> float:
    """Return the factor on the head's rate, in (0, 1]; depth counts groups from the head (0).

    `decay ** depth`, with depth scaled so that the deepest group has 12 at most: the first layer of
    a deep network still learns. Raises ValueError unless 0 < decay <= 1 and 0 <= depth <= deepest.
    Source: BEiT, arXiv:2106.08254, appendix; there 12 blocks.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay must be above 0 and at most 1, got {decay}")
    if not 0 <= depth <= deepest:
        raise ValueError(f"depth must be in 0..{deepest}, got {depth}")
    return float(decay ** (depth * min(1.0, FULL_DEPTH / max(deepest, 1))))


def param_groups(phase: Phase) -> tuple[ParamGroup, ...]:
    """Return the optimizer's groups of a phase: every parameter that trains in exactly one.

    The head's come first, since Trainer logs the first group's rate. Parameters of one dimension,
    and those that the backbone names, have no weight decay.
    """
    rates = parameter_rates(phase)
    shapes, spared = dict(phase.layout.parameters), set(phase.layout.no_decay)
    buckets: dict[tuple[float, float], list[str]] = {}
    for name, lr in rates.items():
        decays = len(shapes[name]) > 1 and name not in spared
        buckets.setdefault((lr, phase.spec.weight_decay if decays else 0.0), []).append(name)
    first = {lr: i for i, lr in enumerate(_rates_from_the_head(rates, phase.network.head))}
    ordered = sorted(buckets.items(), key=lambda item: (first[item[0][0]], -item[0][1]))
    labels = _labels(ordered, phase.spec.weight_decay, phase.network)
    return tuple(
        ParamGroup(label, tuple(names), lr, weight_decay)
        for label, ((lr, weight_decay), names) in zip(labels, ordered, strict=True)
    )


def parameter_rates(phase: Phase) -> dict[str, float]:
    """Return the rate of each parameter that trains, in execution order.

    A rule of `lrs` comes before all else; then `lr` from the head down, times the layer decay; or
    the geometric series from the first group that trains to the last, all of the head as one.
    """
    spec = phase.spec
    depths = _depths(phase.network)
    deepest = max(depths.values())
    rates = dict.fromkeys(phase.parameters, spec.head_lr)
    if spec.lr_ends is not None:
        rates = _geometric(phase, spec.lr_ends, depths)
    elif spec.layer_decay is not None:
        decay = spec.layer_decay
        rates = {n: spec.head_lr * lr_scale(depths[n], decay, deepest) for n in phase.parameters}
    for selector, lr in reversed(spec.lrs):  # the first rule that matches wins
        for name in select(selector, phase.network):
            if name in rates:
                rates[name] = lr
    return rates


def _depths(groups: LayerGroups) -> dict[str, int]:
    """Return how many groups below the head each parameter is; all of the head is at 0."""
    depths: dict[str, int] = {}
    depth = 0
    for group in reversed(groups.groups):
        below = [name for name in group.parameters if name not in groups.head]
        if below:
            depth += 1
        depths.update(dict.fromkeys(below, depth))
        depths.update({name: 0 for name in group.parameters if name in groups.head})
    return depths


def _geometric(
    phase: Phase, ends: tuple[float, float], depths: Mapping[str, int]
) -> dict[str, float]:
    """Return rates in equal ratios from the deepest group that trains to the one nearest the head;
    with one group alone, the second rate."""
    levels = sorted({depths[name] for name in phase.parameters}, reverse=True)
    last = max(len(levels) - 1, 1)
    by_depth = {
        depth: ends[0] * (ends[1] / ends[0]) ** (i / last) for i, depth in enumerate(levels)
    }
    by_depth[levels[-1]] = ends[1]
    return {name: by_depth[depths[name]] for name in phase.parameters}


def _rates_from_the_head(rates: Mapping[str, float], head: Collection[str]) -> list[float]:
    """Return the distinct rates: the head's first, then in order from the top down."""
    names = list(rates)[::-1]
    ordered = [n for n in names if n in head] + [n for n in names if n not in head]
    return list(dict.fromkeys(rates[name] for name in ordered))


def _labels(
    buckets: Sequence[tuple[tuple[float, float], list[str]]], decay: float, groups: LayerGroups
) -> list[str]:
    """Return a label for each bucket: the span of its groups, with what tells equal ones apart."""
    labels: list[str] = []
    for (_, weight_decay), names in buckets:
        label = span({groups.of(name).name for name in names}, groups)
        label += " (no decay)" if weight_decay != decay else ""
        same = sum(known == label or known.startswith(f"{label} #") for known in labels)
        labels.append(f"{label} #{same + 1}" if same else label)
    return labels
