"""The frozen prefix of a phase: whether it runs once for all epochs, and what its features take."""

from __future__ import annotations

import math

from hf_transfer.groups import LayerGroups, Layout
from hf_transfer.phases import Phase, never_cached
from hf_transfer.specs import Augment

# Multiply-adds that a byte of features must save to be worth reading back: about 20 billion a
# second are computed, and 2 GB a second read, on two cores of a CPU.
WORTH = 10


def why_live(
    phase: Phase,
    groups: LayerGroups,
    layout: Layout,
    images: int | None = None,
    sharded: bool = False,
) -> str | None:
    """Return why what is frozen must run in every epoch of a phase; None where once is enough.

    With the number of training `images` also a phase given in steps is judged by its length.
    Parameters that are `sharded` while a phase trains are no network to be cut.
    `features: cached` overrides what is only a matter of cost.
    """
    spec = phase.spec
    never = never_cached(phase)
    if never is not None:
        return never[0]
    if sharded and not spec.solve:
        return "the parameters are sharded (FSDP)"
    if spec.features == "cached" or spec.solve:
        return None
    passes = spec.epochs or math.inf
    if spec.steps is not None and images:
        passes = spec.steps * spec.batch_size * spec.accumulate / images
    if passes < view_count(phase):
        return f"{passes:.2g} epochs are fewer than the {view_count(phase)} views"
    macs, size = prefix_macs(phase, groups, layout), feature_bytes(phase, groups, layout)
    if any(layout.macs) and macs < WORTH * size:
        return "running it again costs less than reading its features back"
    return None


def view_count(phase: Phase) -> int:
    """Return how many versions of each training image have their features stored."""
    return phase.spec.views if phase.spec.augment != Augment() else 1


def prefix_macs(phase: Phase, groups: LayerGroups, layout: Layout) -> int:
    """Return the multiply-adds of one image in what is frozen below what trains."""
    return sum(macs for _, macs in _prefix(phase, groups, layout))


def top_macs(phase: Phase, groups: LayerGroups, layout: Layout) -> int:
    """Return the multiply-adds of one image in all that is not frozen below what trains."""
    return sum(layout.macs) - prefix_macs(phase, groups, layout)


def feature_bytes(phase: Phase, groups: LayerGroups, layout: Layout) -> int:
    """Return about how many bytes one image's features take.

    They are what the last frozen layer gives, or where the head alone trains, what it takes.
    """
    scalar = 2 if phase.spec.feature_precision == "fp16" else 4
    shapes = dict(layout.parameters)
    first = next((n for n, _ in layout.parameters if n in set(phase.parameters)), None)
    if first in layout.head and len(shapes[first]) > 1:
        return scalar * math.prod(shapes[first][1:])
    outputs = [macs // math.prod(shapes[n][1:]) for n, macs in _prefix(phase, groups, layout)]
    return scalar * next((count for count in reversed(outputs) if count), 0)


def _prefix(phase: Phase, groups: LayerGroups, layout: Layout) -> list[tuple[str, int]]:
    frozen = {n for g in groups.groups[: phase.frozen_prefix] for n in g.parameters}
    macs = layout.macs or (0,) * len(layout.parameters)
    return [(n, m) for (n, _), m in zip(layout.parameters, macs, strict=True) if n in frozen]
