"""Trials: ways to train on the same images, from the same starts, tested on the same other images.

A way whose first phases are another's goes on from there: work is done once.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from hf_transfer.backbones.load import load_backbone, options_of
from hf_transfer.base.errors import UserError
from hf_transfer.data.image_set import ImageData, ImageSet, joined
from hf_transfer.deciding.auto import search
from hf_transfer.deciding.bag import head_parameters, model_logits
from hf_transfer.deciding.tried import Clock
from hf_transfer.planning.phases import make_phases
from hf_transfer.recipe.specs import Recipe
from hf_transfer.recipe.tasks import TASKS
from hf_transfer.results.metrics.by_name import measure
from hf_transfer.results.report import PhaseReport
from hf_transfer.run import prepare

Draw = Callable[[int | None, int, PreTrainedModel], ImageData]
Failed = Callable[[str, int, UserError], None]  # gets a way, a seed, and what went wrong


@dataclass(frozen=True)
class Way:
    """One way to train: its name in the table, and its recipe; or `auto` with so many minutes, and
    epochs of fine-tuning."""

    name: str
    recipe: Recipe
    minutes: float | None = None
    epochs: float | None = None

    @property
    def is_solved(self) -> bool:
        """Whether nothing of it is trained in epochs."""
        return self.minutes is None and all(spec.solve for spec in self.recipe.phases)


@dataclass(frozen=True)
class Trial:
    """One way, trained on one draw of the images and tested.

    `value` is the task's leading metric; `right` (N,) says of each test image whether the answer
    was right (classification only), and `groups` (N,) which group it is of, if there are any.
    """

    way: str
    per_class: int | None
    seed: int
    value: float
    right: np.ndarray | None
    seconds: float
    parameters: int  # the most that trained in a phase
    groups: np.ndarray | None = None


@dataclass(frozen=True)
class Trained:
    """A trial's model, its answers to the test images, and what its phases did."""

    trial: Trial
    model: PreTrainedModel
    logits: np.ndarray
    phases: tuple[PhaseReport, ...]


def trials_of(
    ways: Sequence[Way],
    labels: Sequence[str],
    draw: Draw,
    counts: Sequence[int | None],
    seeds: Sequence[int],
    failed: Failed | None = None,
) -> Iterator[tuple[Trained, ImageSet]]:
    """Yield each way trained at each number of images with each seed, and the images that tested.

    `draw(count, seed, model)` returns the same images for the same count and seed. A way that fails
    is not tried again where `failed` is told of it; else its UserError is raised. A phase that does
    not go with the network is an error before anything is trained.
    """
    left = {way.name: way for way in ways}

    def fail(name: str, seed: int, error: UserError) -> None:
        if failed is None:
            raise error
        del left[name]
        failed(name, seed, error)

    for seed in seeds:
        starts = _Starts(tuple(labels), seed)
        if seed == seeds[0]:
            _check(ways, starts)
        for count in counts:
            yield from _one_draw(tuple(left.values()), starts, draw, count, seed, fail)


def _check(ways: Sequence[Way], starts: _Starts) -> None:
    """Raise UserError for phases that do not go with their network."""
    for way in ways:
        try:
            model = starts.of(way.recipe)
            make_phases(way.recipe.phases, model.backbone.groups)
            if way.minutes is not None:
                head_parameters(model)
        except UserError as error:
            raise UserError(f"recipe {way.name}: {error}") from error


def _one_draw(
    ways: Sequence[Way],
    starts: _Starts,
    draw: Draw,
    count: int | None,
    seed: int,
    failed: Failed,
) -> Iterator[tuple[Trained, ImageSet]]:
    done: dict[Any, Trained] = {}
    for way in sorted(ways, key=lambda way: len(way.recipe.phases)):
        recipe = dataclasses.replace(way.recipe, seed=seed)
        settings = dataclasses.replace(recipe, name="any", phases=recipe.phases[:1])
        before = [k for k in range(len(recipe.phases)) if (settings, recipe.phases[:k]) in done]
        before = before if way.minutes is None else []
        skip = max(before, default=0)
        first = done.get((settings, recipe.phases[:skip]))
        model = copy.deepcopy(first.model if first else starts.of(recipe))
        model.requires_grad_(True)  # what earlier phases froze no user has
        data = draw(count, seed, model)
        test = data.test if data.test is not None else data.validation
        try:
            if way.minutes is not None:
                trained = _auto(way, way.minutes, recipe, model, data)
            else:
                trained = _train(way.name, recipe, model, data, skip, first)
        except UserError as error:
            failed(way.name, seed, error)
            continue
        told = (data.task, trained.logits, test.labels, test.names, test.scale)
        values = measure(*told, bootstrap=0, tables=False)  # only the headline is read
        right = None
        if data.task == "classification":
            right = trained.logits.argmax(1) == test.labels
        trial = dataclasses.replace(
            trained.trial,
            per_class=count,
            value=float(values[TASKS[data.task].headline] or 0.0),
            right=right,
            groups=test.groups,
        )
        trained = dataclasses.replace(trained, trial=trial)
        if way.minutes is None:
            done[settings, recipe.phases] = trained
        yield trained, test


def _train(
    name: str,
    recipe: Recipe,
    model: PreTrainedModel,
    data: ImageData,
    skip: int,
    first: Trained | None,
) -> Trained:
    """Train a model by the phases of a recipe that are left, and let it answer the test images."""
    began = time.monotonic()
    backbone = model.backbone
    with tempfile.TemporaryDirectory() as scratch:
        phases = make_phases(recipe.phases, backbone.groups)[skip:]
        trainer, _ = prepare(recipe, model, data, Path(scratch), phases=phases)
        trainer.train()
        test = data.test if data.test is not None else data.validation
        logits = model_logits(model, test)
    reports = (*(first.phases if first else ()), *trainer.reports)
    earlier = first.trial.seconds if first else 0.0
    trial = Trial(
        way=name,
        per_class=None,
        seed=recipe.seed,
        value=0.0,
        right=None,
        seconds=earlier + time.monotonic() - began,
        parameters=max(phase.trainable_parameters for phase in reports),
    )
    return Trained(trial, model, logits, reports)


def _auto(
    way: Way, minutes: float, recipe: Recipe, model: PreTrainedModel, data: ImageData
) -> Trained:
    """Let auto find a model on the images that train and validate, and answer the test images."""
    clock = Clock(60 * minutes)
    pool = joined(data.train, data.validation)
    own = dataclasses.replace(data, train=pool, validation=pool.subset([]))
    found = search(recipe, clock, lambda _: None, epochs=way.epochs, model=model, data=own)
    test = data.test if data.test is not None else data.validation
    trial = Trial(
        way=way.name,
        per_class=None,
        seed=recipe.seed,
        value=0.0,
        right=None,
        seconds=time.monotonic() - clock.began,
        parameters=max(phase.trainable_parameters for phase in found.phases),
    )
    return Trained(trial, found.model, model_logits(found.model, test), found.phases)


@dataclass
class _Starts:
    """The networks that a seed's trials start from, each loaded once."""

    labels: tuple[str, ...]
    seed: int
    made: dict[Any, PreTrainedModel] = field(default_factory=dict)

    def of(self, recipe: Recipe) -> PreTrainedModel:
        """Return the network that a recipe starts from; the caller copies it."""
        assert recipe.backbone is not None  # one with a source is refused
        options = {**options_of(recipe), "seed": self.seed}
        key = (recipe.backbone, *options.values())
        if key not in self.made:
            self.made[key] = load_backbone(recipe.backbone, self.labels, **options)
        return self.made[key]
