"""The plan: what a recipe comes to on one backbone and one data set, before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hf_transfer.base.cache import Room
from hf_transfer.planning.adapters import adapted
from hf_transfer.planning.cost import (
    BYTES,
    EFFICIENCY,
    OUTPUT_OPERATIONS,
    PHASE_SECONDS,
    STEP_SECONDS,
    _Cost,
    _held,
)
from hf_transfer.planning.frozen_prefix import (
    check_kept,
    insists,
    stored_bytes,
    view_count,
    why_live,
)
from hf_transfer.planning.groups import LayerGroups
from hf_transfer.planning.layout import Layout
from hf_transfer.planning.phase import Phase, span
from hf_transfer.planning.phase_checks import FOR_FEATURES, phase_notes
from hf_transfer.planning.rates import ParamGroup, param_groups
from hf_transfer.planning.selection import head_parameters
from hf_transfer.planning.steps import check_warmup, optimizer_steps
from hf_transfer.recipe.specs import Recipe

Counts = Mapping[str, Mapping[str, int]]  # images of each class, by split

SMALL_RATE = 1e-3  # of the head's rate: below it a group learns next to nothing


@dataclass(frozen=True)
class PlannedPhase:
    """What one phase trains and costs. Memory, operations and seconds are estimates."""

    phase: Phase
    groups: LayerGroups  # with the phase's adapters
    trains: str  # its groups in short
    parameters: int  # scalars that train
    rates: tuple[ParamGroup, ...]
    head_lr: float  # rate of the head; where it does not train, the largest
    images: int  # seen in training, augmented ones counted each time
    steps: int
    live: str | None  # why the frozen part runs in every epoch; None: its features are cached
    reduced_bytes: int  # of gradients that each process gives to the others in a step
    disk_bytes: int  # that the cached features take
    memory_bytes: int
    operations: float  # multiplications and additions
    seconds: float | None

    @property
    def lowest(self) -> float:
        """Return the smallest rate in the phase."""
        return min(group.lr for group in self.rates)

    @property
    def highest(self) -> float:
        """Return the largest rate in the phase."""
        return max(group.lr for group in self.rates)

    @property
    def hardly_moves(self) -> bool:
        """Return whether a rate is so far below the head's that what it is for is nearly frozen."""
        return self.lowest < SMALL_RATE * self.head_lr


@dataclass(frozen=True)
class Plan:
    """A recipe on a backbone and a data set: phases, what they cost, and what to look at again."""

    recipe: Recipe
    layout: Layout
    groups: LayerGroups
    counts: dict[str, int]  # images by split
    labels: int
    image_px: int
    phases: tuple[PlannedPhase, ...]
    notes: tuple[str, ...]
    processes: int = 1
    sharded: bool = False  # whether these share out the parameters (FSDP)

    @property
    def seconds(self) -> float | None:
        """Return the estimated time of all phases and seeds; None where speed is not known."""
        parts = [phase.seconds for phase in self.phases if phase.seconds is not None]
        return sum(parts) * self.recipe.seeds if len(parts) == len(self.phases) else None


def make_plan(
    recipe: Recipe,
    layout: Layout,
    groups: LayerGroups,
    phases: Sequence[Phase],
    counts: Counts,
    speed: float | None = None,
    processes: int = 1,
    images: Mapping[str, int] | None = None,
    sharded: bool = False,
    room: Room | None = None,
) -> Plan:
    """Return the plan of a recipe; nothing is loaded or changed.

    `counts` holds the images of each class by split ("train", "validation", "test"), `images` those
    of each split where one may count for several labels or for none. `speed` is the matrix rate in
    operations per second of all `processes` together, from `measure_speed`; None leaves out the
    times. `sharded` says whether they share out the parameters, `room` what may be kept on disk;
    None is no limit. Raises as `check_warmup` and `check_kept`.
    """
    images = images or {split: sum(classes.values()) for split, classes in counts.items()}
    check_warmup(phases, images.get("train", 0), processes)
    side = recipe.data.image_size or int(layout.image.get("size", 224))
    layout = layout.at(side)
    halved = recipe.precision != "fp32"
    check_kept(phases, groups, layout, images, room, sharded=sharded, halved=halved)
    cost = _Cost(layout, BYTES[recipe.precision])
    planned = tuple(
        _planned(phase, groups, layout, images, cost, speed, processes, sharded, room)
        for phase in phases
    )
    labels = len({label for classes in counts.values() for label in classes})
    notes = (*phase_notes(phases, groups, layout), *_rate_notes(planned), *_idle_notes(planned))
    return Plan(
        recipe, layout, groups, dict(images), labels, side, planned, notes, processes, sharded
    )


# --- one phase -------------------------------------------------------------------------------


def _planned(
    phase: Phase,
    groups: LayerGroups,
    layout: Layout,
    images: Mapping[str, int],
    cost: _Cost,
    speed: float | None,
    processes: int,
    sharded: bool,
    room: Room | None,
) -> PlannedPhase:
    spec, chosen = phase.spec, set(phase.parameters)
    groups, layout = adapted(phase.adapters, groups, layout)
    cost = replace(cost, layout=layout)
    sizes = {name: math.prod(shape) for name, shape in layout.parameters}
    parameters = sum(sizes[name] for name in phase.parameters)
    rates = param_groups(phase, groups, layout)
    train, validation = images.get("train", 0), images.get("validation", 0)
    live = why_live(phase, groups, layout, train, sharded)
    stored = 0 if live else stored_bytes(phase, layout, images)
    lack = room.lack(stored) if room and not insists(spec) else None
    if lack:
        live, stored = "; ".join(lack), 0
    rows = train * view_count(phase) + validation
    steps = optimizer_steps(spec, train, processes)
    seen = round((spec.epochs or 0) * train)
    if spec.steps is not None:
        seen = spec.steps * spec.batch_size * spec.accumulate * processes
    above = {name for group in groups.groups[phase.frozen_prefix :] for name in group.parameters}
    part = None if live else above

    def operations(cost: _Cost) -> float:
        forward, backward = cost.operations(part, chosen)
        whole = cost.operations(None, set())[0]
        rounds = math.ceil(seen / train) if train else 0
        found = seen * (forward + backward) + rounds * validation * forward
        if part is not None:  # the frozen part runs once over every image
            found += rows * (whole - forward)
        if spec.reestimate_norms:
            anew = train if spec.reestimate_norms is True else min(spec.reestimate_norms, train)
            found += anew * whole
        return found

    seconds = None
    if speed:
        effort = operations(replace(cost, per_output=OUTPUT_OPERATIONS))
        seconds = effort / (speed * EFFICIENCY) + STEP_SECONDS * steps + PHASE_SECONDS
    at_once = min(spec.batch_size, max(train, 1))
    activations = int(at_once * cost.activations(part, chosen))
    return PlannedPhase(
        phase=phase,
        groups=groups,
        trains=span(phase.groups, groups),
        parameters=parameters,
        rates=rates,
        head_lr=_head_rate(rates, head_parameters(groups, layout)),
        images=seen,
        steps=steps,
        live=live,
        reduced_bytes=0 if processes == 1 or spec.solve else 4 * parameters,
        disk_bytes=stored,
        memory_bytes=_held(spec, sum(sizes.values()), parameters) + activations,
        operations=operations(cost),
        seconds=seconds,
    )


def _head_rate(rates: Sequence[ParamGroup], head: set[str]) -> float:
    of_head = [group.lr for group in rates if not head.isdisjoint(group.names)]
    return max(of_head or [group.lr for group in rates])


def _rate_notes(phases: Sequence[PlannedPhase]) -> list[str]:
    """Return which rates are so small that what they are for is as good as frozen."""
    notes = []
    highest = max((phase.head_lr for phase in phases), default=0.0)
    for planned in phases:
        name = planned.phase.name
        if planned.hardly_moves:
            lowest = min(planned.rates, key=lambda group: group.lr)
            notes.append(
                f"phase {name}: {lowest.label} trains at {planned.lowest / planned.head_lr:.1e} of "
                "the head's rate and will hardly move; raise layer_decay or the rate"
            )
        elif planned.highest < SMALL_RATE * highest:
            notes.append(
                f"phase {name}: its rate {planned.highest:.1e} is {planned.highest / highest:.1e} "
                "of the highest in the recipe, and little will move; raise lr or lr_drop"
            )
    return notes


def _idle_notes(phases: Sequence[PlannedPhase]) -> list[str]:
    """Return what is for kept features in phases that keep none."""
    return [
        f"phase {planned.phase.name}: {key} has no effect, because {planned.live}"
        for planned in phases
        for key, default in FOR_FEATURES.items()
        if planned.live and getattr(planned.phase.spec, key) != default
    ]
