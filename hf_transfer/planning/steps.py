"""The optimizer steps of a phase: how many it takes, and how many of them warm up."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hf_transfer.base.errors import RecipeError
from hf_transfer.planning.phase import Phase
from hf_transfer.recipe.specs import PhaseSpec


def optimizer_steps(spec: PhaseSpec, images: int, processes: int = 1) -> int:
    """Return the number of optimizer steps that a phase takes on `images` training images; 0 with
    `solve`."""
    if spec.steps is not None:
        return spec.steps
    each = steps_of_epoch(spec, images, processes)
    return math.ceil((epochs_of(spec, images, processes) or 0) * each)


def steps_of_epoch(spec: PhaseSpec, images: int, processes: int = 1) -> int:
    """Return the number of optimizer steps in which all training images pass once."""
    return math.ceil(math.ceil(images / (spec.batch_size * processes)) / spec.accumulate)


def epochs_of(spec: PhaseSpec, images: int, processes: int = 1) -> float | None:
    """Return the length of a phase in epochs, whole ones where `min_steps` asks for more than the
    recipe's; None where its length is given otherwise."""
    if spec.epochs is None or not spec.min_steps or not images:
        return spec.epochs
    each = steps_of_epoch(spec, images, processes)
    return spec.epochs if spec.epochs * each >= spec.min_steps else math.ceil(spec.min_steps / each)


def images_seen(spec: PhaseSpec, images: int, processes: int = 1) -> int:
    """Return the number of training images that a phase passes, each counted every time."""
    if spec.steps is not None:
        return spec.steps * spec.batch_size * spec.accumulate * processes
    return round((epochs_of(spec, images, processes) or 0) * images)


def warmup_steps(warmup: float | None, steps: int) -> int:
    """Return for how many of a phase's steps the rates rise; a share leaves at least one of them.

    As TrainingArguments.get_warmup_steps, but for a share that rounds up to all of the phase: its
    only step would have a rate of 0.
    """
    warmup = warmup or 0.0
    return int(warmup) if warmup >= 1 else min(math.ceil(steps * warmup), max(steps - 1, 0))


def check_warmup(phases: Sequence[Phase], images: int, processes: int = 1) -> None:
    """Raise RecipeError, naming each, for a warmup that is as long as its phase or longer."""
    problems = []
    for phase in phases:
        spec, steps = phase.spec, optimizer_steps(phase.spec, images, processes)
        if 0 < steps <= warmup_steps(spec.warmup, steps):
            place = spec.place or f"phase {phase.name}"
            problems.append(
                f"{place}: warmup: {spec.warmup:g} leaves none of the phase's {steps} steps at its "
                "full rate; write fewer, or a share such as 0.1"
            )
    if problems:
        raise RecipeError(problems)
