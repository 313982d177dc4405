"""The plan: what a recipe means for one backbone and one data set, before anything trains."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from hf_transfer.base.cache import Room
from hf_transfer.planning.cost import Speed, Work
from hf_transfer.planning.data_checks import Counts, check_batches, check_metrics
from hf_transfer.planning.frozen_prefix import (
    PRETEXT,
    check_kept,
    insists,
    stored_bytes,
    why_live,
)
from hf_transfer.planning.groups import LayerGroups
from hf_transfer.planning.phase import Phase, span
from hf_transfer.planning.phase_checks import FOR_FEATURES, phase_notes
from hf_transfer.planning.rates import ParamGroup, param_groups
from hf_transfer.planning.steps import check_warmup, epochs_of, images_seen, optimizer_steps
from hf_transfer.recipe.specs import Recipe
from hf_transfer.recipe.tasks import TASKS

SMALL_RATE = 1e-3  # of the head's rate: below it a group learns next to nothing


@dataclass(frozen=True)
class Machine:
    """What a recipe is to run on; what is None is not known, or has no limit."""

    speed: Speed | None = None  # of all processes together
    processes: int = 1
    sharded: bool = False  # whether these share out the parameters (FSDP)
    room: Room | None = None  # for features on disk
    bf16: float = 1.0  # time of training in bfloat16 beside float32 on the processor


@dataclass(frozen=True)
class PlannedPhase:
    """What one phase trains and costs. Memory, operations and seconds are estimates."""

    phase: Phase
    trains: str  # its groups in short
    parameters: int  # scalars that train
    rates: tuple[ParamGroup, ...]
    head_lr: float  # rate of the head; where it does not train, the largest
    images: int  # seen in training, augmented ones counted each time
    steps: int
    epochs: float | None  # of these steps, where the recipe counts in epochs
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
    groups: LayerGroups
    counts: dict[str, int]  # images by split
    by_label: Counts
    labels: int
    image_px: int
    phases: tuple[PlannedPhase, ...]
    notes: tuple[str, ...]
    machine: Machine = Machine()

    @property
    def seconds(self) -> float | None:
        """Return the estimated time of all runs of all phases; None where speed is not known."""
        parts = [phase.seconds for phase in self.phases if phase.seconds is not None]
        return sum(parts) * self.recipe.runs if len(parts) == len(self.phases) else None


def make_plan(
    recipe: Recipe,
    groups: LayerGroups,
    phases: Sequence[Phase],
    counts: Counts,
    machine: Machine = Machine(),
    images: Mapping[str, int] | None = None,
    probed: int = 0,
) -> Plan:
    """Return the plan of a recipe; nothing is loaded or changed.

    `groups` and `phases` are at the size of the recipe's images. `counts` holds the images of each
    class by split ("train", "validation", "test"), `images` those of each split where one may count
    for several labels or for none, `probed` those whose features probe a pretext after each epoch.
    Raises RecipeError as the checks named so.
    """
    images = images or {split: sum(classes.values()) for split, classes in counts.items()}
    train = images.get("train", 0)
    check_warmup(phases, train, machine.processes)
    check_metrics(recipe, counts)
    if not (recipe.sync_batchnorm and machine.processes > 1):
        check_batches(phases, train, machine.processes)
    halved = recipe.precision != "fp32"
    check_kept(phases, images, machine.room, sharded=machine.sharded, halved=halved)
    planned = tuple(_planned(phase, images, recipe, machine, probed) for phase in phases)
    return Plan(
        recipe=recipe,
        groups=groups,
        counts=dict(images),
        by_label=counts,
        labels=len({label for classes in counts.values() for label in classes}),
        image_px=int(groups.layout.image.get("size", 224)),
        phases=planned,
        notes=(
            *phase_notes(phases, groups),
            *_rate_notes(planned),
            *_idle_notes(planned),
            *_precision_notes(recipe, machine),
        ),
        machine=machine,
    )


# --- one phase -------------------------------------------------------------------------------


def _planned(
    phase: Phase, images: Mapping[str, int], recipe: Recipe, machine: Machine, probed: int
) -> PlannedPhase:
    spec, sizes = phase.spec, phase.layout.sizes
    train, validation = images.get("train", 0), images.get("validation", 0)
    task = TASKS[recipe.task]
    live, stored = (PRETEXT, 0) if task.is_pretext else _features(phase, images, machine)
    steps = optimizer_steps(spec, train, machine.processes)
    seen = images_seen(spec, train, machine.processes)
    judged = validation * task.views + probed
    views = task.views + (2 * spec.pseudo.per_image if spec.pseudo else 0)
    work = Work(phase, train, judged, seen, live=live is not None, views=views)
    shares = {"bf16": machine.bf16, "auto": min(machine.bf16, 1.0)}  # auto takes the fastest
    share = 1.0 if spec.solve else shares.get(recipe.precision, 1.0)
    parameters = sum(sizes[name] for name in phase.parameters)
    rates = param_groups(phase)
    return PlannedPhase(
        phase=phase,
        trains=span(phase.groups, phase.network),
        parameters=parameters,
        rates=rates,
        head_lr=_head_rate(rates, phase.network.head),
        images=seen,
        steps=steps,
        epochs=epochs_of(spec, train, machine.processes),
        live=live,
        reduced_bytes=0 if machine.processes == 1 or spec.solve else 4 * parameters,
        disk_bytes=stored,
        memory_bytes=work.memory_bytes(recipe.precision),
        operations=work.operations(),
        seconds=work.seconds(machine.speed, steps, share) if machine.speed else None,
    )


def _features(phase: Phase, images: Mapping[str, int], machine: Machine) -> tuple[str | None, int]:
    """Return why a phase's frozen part runs in every epoch, or None and the bytes of its
    features."""
    live = why_live(phase, images.get("train", 0), machine.sharded)
    if live:
        return live, 0
    stored = stored_bytes(phase, images)
    lack = machine.room.lack(stored) if machine.room and not insists(phase.spec) else None
    return ("; ".join(lack), 0) if lack else (None, stored)


def _head_rate(rates: Sequence[ParamGroup], head: Collection[str]) -> float:
    of_head = [group.lr for group in rates if not set(head).isdisjoint(group.names)]
    return max(of_head or [group.lr for group in rates])


def _rate_notes(phases: Sequence[PlannedPhase]) -> list[str]:
    """Return which rates are so small that what they train is nearly frozen."""
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


def _precision_notes(recipe: Recipe, machine: Machine) -> list[str]:
    """Return that bfloat16 is slow on this processor."""
    if recipe.precision != "bf16" or machine.bf16 <= 1:
        return []
    return [
        f"bf16 takes about {machine.bf16:g} times as long as fp32 on this processor; it is fast on "
        "GPUs and on processors with AMX. precision: auto measures both and takes the faster"
    ]
