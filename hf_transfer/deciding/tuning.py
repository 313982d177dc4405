"""Fine-tuning candidates: trained gently from an exact head, or freely from a new one, and the
points on the way.

Each is a phase of a recipe that the Trainer runs. What is judged is not the last step but the mean
of the last epochs' weights (Izmailov et al. 2018, arXiv:1803.05407), and points on the way from the
start to it (Wortsman et al. 2021, arXiv:2109.01903).
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, TrainerCallback

from hf_transfer.base.machine import kept_memory
from hf_transfer.data.image_set import ImageData, ImageSet
from hf_transfer.deciding.bag import Start, fitted, model_logits, put_head, start_of
from hf_transfer.deciding.boundaries import boundary_features
from hf_transfer.deciding.choosing import Prior
from hf_transfer.planning.phases import make_phases
from hf_transfer.planning.steps import optimizer_steps, steps_of_epoch
from hf_transfer.recipe.phase_parts import AUGMENTS
from hf_transfer.recipe.specs import PhaseSpec, Recipe
from hf_transfer.results.report import PhaseReport
from hf_transfer.run import prepare
from hf_transfer.training.machine.precision import images_per_second

TAIL = 1 / 3  # of a phase, whose epochs' weights are averaged
HALF, WHOLE, SOLVED = "half way", "all the way", "all the way, its head solved again"
POINTS = {HALF: 0.5, WHOLE: 1.0, SOLVED: 1.0}  # how far from the start each is
EPOCHS, STEPS, FEWEST = 10, 60, 30  # of fine-tuning; and the fewest steps worth trying
FREE_STEPS = 100  # from a new head, as in `full`
RATE = 3e-4
SCRATCH_STEPS, SCRATCH_RATE = 200, 1e-3  # from random weights, as in `scratch`

# Gains on an exact head in accuracy, measured over tasks with few images (docs/results.md). Half
# way from a new head there is nothing yet.
GENTLE = {HALF: Prior(0.02, 0.03), WHOLE: Prior(0.02, 0.04), SOLVED: Prior(0.035, 0.03)}
FREE = {WHOLE: Prior(0.0, 0.08), SOLVED: Prior(0.0, 0.08)}

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Candidate:
    """One way to fine-tune, in words, and the phase that does it: from the exact head, or from a
    new one."""

    what: str
    spec: PhaseSpec
    new_head: bool
    points: Mapping[str, Prior]  # that are judged, and what each gains on other tasks

    def shortened(self, steps: int) -> Candidate:
        """Return the same way in so many steps."""
        spec = dataclasses.replace(self.spec, epochs=None, min_steps=None, steps=steps)
        return dataclasses.replace(self, spec=spec)


def candidates(
    train: tuple[str, ...] = ("all",), words: str = "everything", epochs: float | None = None
) -> tuple[Candidate, ...]:
    """Return the two ways to fine-tune that are tried. `train` are selectors of what is advised,
    and `words` say what they select.

    The first trains that gently, as `lp_ft` does. The second is `full`: a new head, one rate, batch
    statistics that move. Which of them is better depends on the backbone: with 100 flowers a class
    they reach 0.618 and 0.652 of a ResNet-10-T, 0.684 and 0.659 of an EfficientNet-Lite0.
    """
    common = PhaseSpec(
        "all",
        epochs=epochs or EPOCHS,
        min_steps=None if epochs else STEPS,
        lr=RATE,
        warmup=0.1,
        augment=AUGMENTS["light"],
        best="last",
        cold_head=True,  # a head that is solved for is so before the Trainer sees the model
    )
    selected = train if len(train) > 1 else train[0]
    gentle = dataclasses.replace(common, train=selected, layer_decay=0.75, still_norms=True)
    free = dataclasses.replace(common, min_steps=None if epochs else FREE_STEPS)
    return (
        Candidate(f"{words}, gently", gentle, False, GENTLE),
        Candidate("everything, from a new head", free, True, FREE),
    )


def from_scratch(epochs: float | None = None) -> Candidate:
    """Return what to compare with: the same network from random weights, as `scratch` trains it."""
    _, free = candidates(epochs=epochs)
    least = None if epochs else SCRATCH_STEPS
    spec = dataclasses.replace(free.spec, lr=SCRATCH_RATE, min_steps=least)
    return Candidate("everything, from random weights", spec, True, {WHOLE: FREE[WHOLE]})


@dataclass(frozen=True)
class Tuned:
    """A model that a candidate has trained, and its weights at the start and at the end."""

    model: PreTrainedModel
    start: Start
    before: Weights
    after: Weights
    report: PhaseReport
    seconds: float

    def at(self, point: str, images: ImageSet, rows: np.ndarray) -> PreTrainedModel:
        """Return the model at a point between, with `rows` as the images it was trained on."""
        share = POINTS[point]
        state = self.model.state_dict()
        with torch.no_grad():
            for name, then in self.before.items():
                state[name].copy_(torch.lerp(then, self.after[name], share))
        if point == SOLVED:
            some = images.subset(rows)
            features = boundary_features(self.model, some, keep=False).head
            of = self.start.strengths, self.start.objective
            put_head(self.model, fitted(features, some, *of))
        return self.model


class TailMean(TrainerCallback):
    """Keeps the mean of the weights that train, over the ends of the last epochs."""

    def __init__(self) -> None:
        self.sums: Weights = {}
        self.count = 0

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the weights of an epoch near the end."""
        if state.global_step <= (1 - TAIL) * state.max_steps:
            return
        self.count += 1
        for name, value in kwargs["model"].named_parameters():
            if value.requires_grad:
                now = value.detach().to("cpu", torch.float32, copy=True)
                self.sums[name] = self.sums[name] + now if name in self.sums else now

    def mean(self) -> Weights:
        """Return the mean of each weight; empty where no epoch ended near the end."""
        return {name: total / self.count for name, total in self.sums.items()}


class Deadline(TrainerCallback):
    """Ends training when its time is over."""

    def __init__(self, at: float) -> None:
        self.at = at

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop after the step in which the time ran out."""
        if time.monotonic() > self.at:
            control.should_training_stop = True


def tune(
    model: PreTrainedModel,
    recipe: Recipe,
    data: ImageData,
    images: ImageSet,
    rows: np.ndarray,
    start: Start,
    candidate: Candidate,
    deadline: float,
    callbacks: Sequence[TrainerCallback] = (),
) -> Tuned:
    """Return a copy of the model, trained by a candidate on these images from their own start, or
    from the new head that the model has."""
    began, own = time.monotonic(), copy.deepcopy(model)
    here = start
    if not candidate.new_head:
        here = start if len(rows) == len(images) else start_of(own, images, start, rows)
        here.put(own)
    some = images.subset(rows)
    phases = make_phases((candidate.spec,), own.backbone.groups)
    before = {n: p.detach().to("cpu", torch.float32, copy=True) for n, p in own.named_parameters()}
    tail = TailMean()
    given = dataclasses.replace(data, train=some, validation=some.subset([]), test=None)
    with tempfile.TemporaryDirectory() as scratch:
        trainer, _ = prepare(
            recipe,
            own,
            given,
            Path(scratch),
            callbacks=[tail, Deadline(deadline), *callbacks],
            phases=phases,
        )
        trainer.train()
    last = {n: p.detach().to("cpu", torch.float32, copy=True) for n, p in own.named_parameters()}
    after = {**last, **tail.mean()}
    own.to(model.device)
    return Tuned(own, here, before, after, trainer.reports[0], time.monotonic() - began)


def logits_at(
    tuned: Tuned,
    points: Sequence[str],
    images: ImageSet,
    inside: np.ndarray,
    outside: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return the logits of the images outside, for each point between start and end."""
    others = images.subset(outside)
    return {point: model_logits(tuned.at(point, images, inside), others) for point in points}


# --- time ------------------------------------------------------------------------------------


def seconds_per_image(model: PreTrainedModel, precision: str, size: int = 16) -> float:
    """Return how long one image of a batch takes to train on, forward and backward."""
    own = copy.deepcopy(model).eval()
    with torch.random.fork_rng(), kept_memory():  # freed blocks are kept, as they are in training
        return 1 / images_per_second(own, size, model.device, precision)


@dataclass(frozen=True)
class Work:
    """How much of a candidate fits: over how many folds, in how many steps, and its seconds."""

    folds: int  # 1: a single part of the images is held out
    steps: int
    seconds: float  # of one training
    needed: float  # of all, with the last one on all images


def work_within(
    left: float,
    spec: PhaseSpec,
    images: int,
    each: float,
    most: int = 5,
    refit: bool = True,
    ways: int = 1,
) -> Work | None:
    """Return the most thorough work that fits into `left` seconds, as often as there are `ways` to
    try; None where none does.

    `each` is what an image takes to train on. Cross-validation comes before a single part held out,
    and all steps before fewer of them.
    """
    full = optimizer_steps(spec, images)
    options = [(folds, full) for folds in (5, 3, 1) if folds <= most]
    options += [(1, steps) for steps in (full // 2, FEWEST) if FEWEST <= steps < full]
    for folds, steps in options:
        one = steps * _at_once(spec, images) * each
        needed = one * (ways * folds + refit)
        if needed <= left:
            return Work(folds, steps, one, needed)
    return None


def least_seconds(spec: PhaseSpec, images: int, each: float) -> float:
    """Return what the least work that is worth it takes: one part held out, and all images."""
    return 2 * min(FEWEST, optimizer_steps(spec, images)) * _at_once(spec, images) * each


def _at_once(spec: PhaseSpec, images: int) -> float:
    """Return how many images a step takes on average: the last one of an epoch has fewer."""
    return images / steps_of_epoch(spec, images)
