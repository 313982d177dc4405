"""What `auto` tries within its time, one after the other, and what each comes to out of fold."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from hf_transfer.base.errors import UserError
from hf_transfer.data.image_set import ImageData, ImageSet
from hf_transfer.deciding import bag, tuning
from hf_transfer.deciding.boundaries import boundary_features, statistics_of
from hf_transfer.deciding.choosing import FEWEST, gain, predicted
from hf_transfer.deciding.depth import SURE, choose, depths_of
from hf_transfer.deciding.folds import folds, pairs
from hf_transfer.deciding.probes import targets_of
from hf_transfer.deciding.tried import RESERVE, Clock, Trial, Tried
from hf_transfer.deciding.truth import task_of, truth_of
from hf_transfer.deciding.tuning import Candidate, Tuned, Work
from hf_transfer.deciding.uneven import metric_of, objective_of, setting_of, weights_to_judge
from hf_transfer.recipe.specs import Recipe
from hf_transfer.recipe.tasks import CLASSIFICATION
from hf_transfer.results.metrics.by_name import measure
from hf_transfer.results.words import show_seconds
from hf_transfer.training.norm_statistics import layers

Say = Callable[[str], None]
HEADS = 0.25  # of the time left that heads with other statistics may take
SCRATCH = 1 / 3  # of it that training from random weights may take, where that is asked for
PATIENCE = 30.0  # seconds that a training may take, however short it should be
HELD_OUT = 4  # of so many parts one is held out, where there is no time for cross-validation


@dataclass
class Attempts:
    """The labelled images of a run, and what was tried on them.

    `ways` are outputs (N, C) by what was tried, the exact head first; rows that a way has not
    predicted are NaN.
    """

    model: PreTrainedModel
    recipe: Recipe
    data: ImageData
    images: ImageSet
    groups: np.ndarray | None
    clock: Clock
    say: Say
    refit: bool = True
    tried: list[Tried] = field(default_factory=list)
    ways: dict[str, np.ndarray] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    aside: float = 0.0  # seconds that are kept for training from random weights
    origin: dict[str, tuple[Trial, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.truth = truth_of(self.images)
        self.task = task_of(self.truth)
        self.objective = objective_of(self.recipe, self.images)
        self.weights = weights_to_judge(self.truth, self.objective)
        self.metric = metric_of(self.recipe)
        self.folds = self._dealt()
        self.few = self._least() < FEWEST

    def note(self, tried: Tried) -> None:
        """Keep a line of what was tried, and say it."""
        tried = dataclasses.replace(tried, metric=self.metric)
        self.tried.append(tried)
        self.say(f"  {tried}")

    # --- heads --------------------------------------------------------------------------------

    def heads(self) -> None:
        """Solve for the head; then with a share of the images' own statistics, where that helps."""
        if setting := setting_of(self.recipe):
            self.note(Tried(setting, "counts in heads, in fine-tuning and in the choice"))
        began = time.monotonic()
        self.start = bag.head_start(self.model, self.images, self.folds, self.objective)
        bag.head_parameters(self.model)
        self.ways = {self.start.what: self.start.logits}
        repeats, parts = len(self.folds), len(np.unique(self.folds[0]))
        count = len(self.start.strengths)
        mean = f"the mean of {count} strengths" if count > 1 else "one strength"
        self.note(
            Tried(
                self.start.what,
                f"the start: {mean}, {parts} folds, {repeats} repeats",
                self._value(self.start.logits),
                time.monotonic() - began,
            )
        )
        self.each = tuning.seconds_per_image(self.model, self.recipe.precision)
        if layers(self.model):
            self._blended()

    def _blended(self) -> None:
        began, what = time.monotonic(), "exact head, blended statistics"
        passes, allowed = bag.blended_passes(self.folds), HEADS * self.clock.left
        if self.few:
            return self.note(Tried(what, f"not tried: {self.too_few()}"))
        needed = (passes + 1) * len(self.images) * self.each / 3
        if needed <= allowed:  # as far as is known before the first pass
            own = statistics_of(self.model, self.images)
            needed = (passes + 1) * (time.monotonic() - began)
        if needed > allowed:
            return self.note(Tried(what, self._no_time(needed, HEADS)))
        found = bag.blended_start(self.model, self.images, self.folds, own, self.objective)
        gained = gain(found.logits, self.start.logits, *self.of())
        self.note(
            Tried(
                what,
                f"{gained} against the exact head; {'kept' if gained.is_real else 'dropped'}",
                self._value(found.logits),
                time.monotonic() - began,
            )
        )
        self.ways[found.what] = found.logits
        if gained.is_real:
            self.start = found

    # --- fine-tuning --------------------------------------------------------------------------

    def advised(self, epochs: float | None) -> tuple[Candidate, ...]:
        """Return the ways to fine-tune: first to the depth that probes advise."""
        if self.task is not CLASSIFICATION:  # how deep to go is told of classes alone
            return tuning.candidates(epochs=epochs)
        began, labels = time.monotonic(), self.truth
        found = boundary_features(self.model, self.images)
        targets = targets_of(labels, len(self.images.names))
        groups = self.model.backbone.groups
        depths = depths_of(groups, found, labels, targets, self.folds[:1], self.groups)
        choice = choose(depths, min(self.images.class_counts))
        took = time.monotonic() - began
        sure = choice.depth.stages and choice.sure == SURE  # small rates keep what need not move
        what = f"unfreeze {choice.depth.words}" if sure else "no layer is left out"
        self.note(Tried("advice", f"{what}: {choice.why}", seconds=took))
        if not sure:
            return tuning.candidates(epochs=epochs)
        return tuning.candidates(choice.depth.train, choice.depth.words, epochs)

    def fine_tune(self, epochs: float | None = None) -> None:
        """Try each candidate in as many folds as there is time for."""
        if self.few and self.task is not CLASSIFICATION:
            return self.note(Tried("fine-tuning", f"not tried: {self.too_few()}"))
        ways = self._safe(epochs) if self.few else self.advised(epochs)
        for i, candidate in enumerate(ways):
            most = 5 if not self.trials else self.trials[0].work.folds
            about = self.left, candidate.spec, len(self.images), self.each, most, self.refit
            work = tuning.work_within(*about, ways=len(ways) - i) or tuning.work_within(*about)
            if work is None:
                needed = tuning.least_seconds(candidate.spec, len(self.images), self.each)
                self.note(Tried(candidate.what, self._no_time(needed)))
                break
            self._try(self._trial(candidate.shortened(work.steps), work))
        self._try_more()

    def _safe(self, epochs: float | None) -> tuple[Candidate, ...]:
        """Return the one way that is taken where images are too few to choose by: it gained on
        most tasks that it was measured on (docs/results.md)."""
        gently, _ = tuning.candidates(epochs=epochs)
        best = max(gently.points, key=lambda point: gently.points[point].mean)
        return (dataclasses.replace(gently, points={best: gently.points[best]}),)

    def _trial(self, candidate: Candidate, work: Work) -> Trial:
        shape = len(self.images), len(self.images.names)
        logits = {point: np.full(shape, np.nan) for point in candidate.points}
        return Trial(candidate, work, logits, self._parts(work.folds))

    def _try(self, trial: Trial) -> None:
        try:
            while trial.done < min(trial.work.folds, len(trial.parts)):  # groups may be fewer
                self._hold_out(trial)
                if self.left < trial.took * (1 + self.refit):
                    break
        except UserError as error:  # it diverged, or was too short to move anything
            return self.note(Tried(trial.candidate.what, f"dropped: {error}"))
        self.trials.append(trial)
        self._judge(trial)

    def _try_more(self) -> None:
        """Hold out further parts while there is time for one of each trial: one part alone says
        little."""
        going = [trial for trial in self.trials if trial.done < len(trial.parts)]
        more = sum(trial.took for trial in going)
        last = max((trial.took for trial in self.trials), default=0.0) * self.refit
        held = {trial.candidate.what: trial.done for trial in going}
        while going and self.left > more + last:
            for trial in list(going):
                try:
                    self._hold_out(trial)
                except UserError:  # what the other parts told stays
                    going.remove(trial)
            going = [trial for trial in going if trial.done < len(trial.parts)]
        for trial in self.trials:
            if trial.done > held.get(trial.candidate.what, trial.done):
                self._judge(trial)

    @property
    def left(self) -> float:
        """Seconds that are left for ways that may be chosen."""
        return self.clock.left - self.aside

    def keep_for_scratch(self, epochs: float | None = None) -> None:
        """Set the time of one training from random weights aside, if that is no large share."""
        seconds = self._scratch(tuning.from_scratch(epochs), 1).seconds
        self.aside = seconds if seconds <= SCRATCH * self.clock.left else 0.0

    def _scratch(self, way: Candidate, parts: int) -> Work:
        """Return the work of training from random weights in all its steps."""
        about = way.spec, len(self.images), self.each, parts, False
        work = tuning.work_within(float("inf"), *about)
        assert work is not None
        return work

    def from_scratch(self, model: PreTrainedModel, epochs: float | None = None) -> None:
        """Train a network with random weights in as many of the parts that judge the other ways as
        there is time for: to compare with, never to choose."""
        way = tuning.from_scratch(epochs)
        parts = max((trial.done for trial in self.trials), default=1)
        work = self._scratch(way, parts)
        if work.seconds > self.clock.left:
            return self.note(Tried(way.what, self._no_time(work.seconds, SCRATCH)))
        trial = self._trial(way, work)
        while trial.done < min(parts, len(trial.parts)) and self.clock.left > trial.took:
            self._hold_out(trial, model)
        (outputs,) = trial.logits.values()
        over = f"to compare with, never chosen ({trial.told}, {work.steps} steps)"
        self.note(Tried(way.what, over, self._value(outputs), trial.seconds))

    def _hold_out(self, trial: Trial, model: PreTrainedModel | None = None) -> None:
        """Train a candidate without the next part of the images, and predict that."""
        inside, outside = trial.parts[trial.done]
        if self.task is CLASSIFICATION and len(np.unique(self.truth[inside])) < 2:
            raise UserError("without one part of the images there is one class alone")
        began, seconds = time.monotonic(), trial.work.seconds
        late = began + max(PATIENCE, 2 * seconds)
        tuned = self.trained(trial.candidate, inside, min(late, self.clock.end), model)
        here = self.images, inside, outside
        for point, found in tuning.logits_at(tuned, tuple(trial.candidate.points), *here).items():
            trial.logits[point][outside] = found
        trial.took = time.monotonic() - began
        self.each *= (trial.took / max(1e-9, seconds)) ** 0.5 if not trial.done else 1
        trial.done, trial.seconds = trial.done + 1, trial.seconds + trial.took

    def _judge(self, trial: Trial) -> None:
        """Note what each point of a trial gains on the start, in place of what fewer parts told."""
        steps, base = trial.candidate.spec.steps, self.start.logits
        over = f"({trial.told}, {steps} step{'s' * (steps != 1)})"
        for at, point in enumerate(trial.candidate.points):
            name = f"{trial.candidate.what}, {point}"
            self.ways[name] = trial.logits[point]
            self.origin[name] = trial, point
            gained = gain(trial.logits[point], base, *self.of())
            self.tried = [one for one in self.tried if one.what != name]
            self.note(
                Tried(
                    name,
                    f"{gained} against the {self.start.what} {over}",
                    self._value(trial.logits[point]),
                    0.0 if at else trial.seconds,
                )
            )

    def trained(
        self,
        candidate: Candidate,
        rows: np.ndarray,
        end: float,
        model: PreTrainedModel | None = None,
    ) -> Tuned:
        """Return the model (or another one) trained by a candidate on these images, until `end` at
        the latest."""
        here = self.recipe, self.data, self.images, rows, self.start, candidate, end
        return tuning.tune(model or self.model, *here)

    def _parts(self, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the parts that may be held out; of several the first, where there is time for
        one. They are those of the first trial, so that mostly the same images judge all of them."""
        if self.trials:
            return self.trials[0].parts
        if count == len(np.unique(self.folds[0])):
            return list(pairs(self.folds[0]))
        dealt = self._dealt(HELD_OUT if count == 1 else count, repeats=1)
        return list(pairs(dealt[0]))

    def _dealt(self, *count: int, **repeats: int) -> np.ndarray:
        return folds(
            self.truth,
            *count,
            **repeats,
            groups=self.groups,
            seed=self.recipe.seed,
        )

    # --- the images -----------------------------------------------------------------------------

    def of(self) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Return what is true of the images, their groups, and how much each counts."""
        return self.truth, self.groups, self.weights

    def _groups(self, rows: np.ndarray) -> np.ndarray | None:
        return None if self.groups is None else self.groups[rows]

    def measured(self, outputs: np.ndarray, rows: np.ndarray, **more: Any) -> dict[str, Any]:
        """Return the metrics of the task for the images of these rows, and outputs (rows, C)."""
        of = self.images.labels[rows], self.images.names, self.images.scale
        return measure(self.task.name, outputs, *of, groups=self._groups(rows), **more)

    def _value(self, outputs: np.ndarray) -> float | None:
        rows = np.flatnonzero(predicted(outputs))
        found = self.measured(outputs[rows], rows, bootstrap=0, tables=False)
        return found[self.metric]

    def _least(self) -> int:
        """Return how many images the smallest class has; without classes, half of all."""
        counts = self.images.class_counts
        return min(counts) if self.task is CLASSIFICATION else len(self.images) // 2

    def too_few(self) -> str:
        """Return that nothing can be chosen by these images, and how many that needs."""
        if self.task is CLASSIFICATION:
            some, needed = f"{self._least()} images in the smallest class", FEWEST
        else:
            some, needed = f"{len(self.images)} images", 2 * FEWEST
        return f"with {some} nothing can be chosen ({needed} needed)"

    def _no_time(self, needed: float, share: float = 1.0) -> str:
        """Return that this is not tried, and the minutes of whose rest a `share` is enough."""
        spent = (1 - RESERVE) * self.clock.seconds - max(0.0, self.clock.left)
        whole = (needed / share + spent) / (1 - RESERVE) / 60
        minutes = max(1, int(whole + 1))
        allowed = f"{minutes} minute{'s' * (minutes > 1)}"
        return f"not tried: it takes {show_seconds(needed)}; allow {allowed}"
