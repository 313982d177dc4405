"""The frozen prefix of a phase: whether it runs once for all epochs, and what its features take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from hf_transfer.base.cache import Room
from hf_transfer.base.errors import RecipeError
from hf_transfer.planning.phase import Phase
from hf_transfer.planning.phase_checks import never_cached
from hf_transfer.recipe.specs import PhaseSpec

# Multiply-adds that a byte of features must save to be worth reading back: about 20 billion a
# second are computed, and 2 GB a second read, on two cores of a CPU.
WORTH = 10
SHARDED = "the parameters are sharded (FSDP)"
PRETEXT = "a pretext makes other pictures of its images in every epoch"


def why_live(phase: Phase, images: int | None = None, sharded: bool = False) -> str | None:
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
        return SHARDED
    if insists(spec):
        return None
    passes = spec.epochs or math.inf
    if spec.steps is not None and images:
        passes = spec.steps * spec.batch_size * spec.accumulate / images
    if passes < view_count(phase):
        return f"{passes:.2g} epochs are fewer than the {view_count(phase)} views"
    if any(phase.layout.macs) and prefix_macs(phase) < WORTH * feature_bytes(phase):
        return "running it again costs less than reading its features back"
    return None


def check_kept(
    phases: Sequence[Phase],
    images: Mapping[str, int],
    room: Room | None,
    *,
    sharded: bool = False,
    halved: bool = False,
) -> None:
    """Raise RecipeError, naming each, for phases that insist on features that cannot be kept.

    `images` are the numbers by split; with `halved` numbers may take 2 bytes where they have 4 in
    float32, because the network runs in half precision.
    """
    problems = []
    for phase in phases:
        wanted = insists(phase.spec)
        needed = stored_bytes(phase, images)
        if halved and phase.spec.feature_precision == "fp32":
            needed //= 2
        lack = (SHARDED, "train without FSDP") if sharded and not phase.spec.solve else None
        lack = lack or (room.lack(needed) if room else None)
        if wanted and lack:
            because, mend = lack
            place = f"{phase.spec.place}: " if phase.spec.place else ""
            instead = " and write epochs: 10" if phase.spec.solve else ""
            problems.append(
                f"{place}phase {phase.name}: {wanted} is not possible, because {because}; {mend}, "
                f"or remove {wanted}{instead}"
            )
    if problems:
        raise RecipeError(problems)


def insists(spec: PhaseSpec) -> str:
    """Return what in a phase cannot do without kept features, such as "solve: lbfgs"; "" where
    nothing does."""
    if spec.solve:
        return f"solve: {spec.solve}"
    return "features: cached" if spec.features == "cached" else ""


def view_count(phase: Phase) -> int:
    """Return how many versions of each training image have their features stored."""
    return phase.spec.views if phase.spec.is_augmented else 1


def prefix_macs(phase: Phase) -> int:
    """Return the multiply-adds of one image in what is frozen below what trains."""
    layout = phase.layout
    frozen = {n for g in phase.network.groups[: phase.frozen_prefix] for n in g.parameters}
    macs = zip(layout.parameters, layout.macs, strict=False)
    return sum(count for (name, _), count in macs if name in frozen)


def top_macs(phase: Phase) -> int:
    """Return the multiply-adds of one image in all that is not frozen below what trains."""
    return sum(phase.layout.macs) - prefix_macs(phase)


def feature_bytes(phase: Phase) -> int:
    """Return how many bytes one image's features take: all that is made below the first parameter
    that trains and used from it on. 0 where the layout does not say; of float32 numbers.
    """
    scalar, chosen = 2 if phase.spec.feature_precision == "fp16" else 4, set(phase.parameters)
    numbers = zip(phase.layout.parameters, phase.layout.crossing, strict=False)
    return scalar * next((count for (name, _), count in numbers if name in chosen), 0)


def stored_bytes(phase: Phase, images: Mapping[str, int]) -> int:
    """Return how many bytes the features of all images take: training ones once a view."""
    rows = images.get("train", 0) * view_count(phase) + images.get("validation", 0)
    return rows * feature_bytes(phase)
