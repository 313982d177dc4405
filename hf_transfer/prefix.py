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
    macs, size = prefix_macs(phase, groups, layout), feature_bytes(phase, layout)
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


def feature_bytes(phase: Phase, layout: Layout) -> int:
    """Return how many bytes one image's features take: all that is made below the first parameter
    that trains and used from it on. 0 where the layout does not say; of float32 numbers.
    """
    scalar, chosen = 2 if phase.spec.feature_precision == "fp16" else 4, set(phase.parameters)
    numbers = zip(layout.parameters, layout.crossing, strict=False)
    return scalar * next((count for (name, _), count in numbers if name in chosen), 0)


def _prefix(phase: Phase, groups: LayerGroups, layout: Layout) -> list[tuple[str, int]]:
    frozen = {n for g in groups.groups[: phase.frozen_prefix] for n in g.parameters}
    macs = layout.macs or (0,) * len(layout.parameters)
    return [(n, m) for (n, _), m in zip(layout.parameters, macs, strict=True) if n in frozen]
