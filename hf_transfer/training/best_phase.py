"""Which phase a run ends with: the best, unless told otherwise; and what a later one spoilt.

A phase that learned from its own answers (`pseudo`) is undone where validation says it is worse.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_transfer.planning.phase import Phase
from hf_transfer.recipe import stopping
from hf_transfer.recipe.tasks import TASKS
from hf_transfer.results.metrics.resampling import exceeds, standard_error
from hf_transfer.results.report import PhaseReport

logger = logging.getLogger(__name__)

JUMP = 10.0  # times the loss of the phase before: its rates spoil what it starts from
SMALL = 0.3  # a loss below this rises that much by augmentation or smoothing alone


Predict = Callable[[int], tuple[np.ndarray[Any, Any], Any]]  # of a phase: logits and labels


class BestPhase:
    """Keeps the weights of the best phase so far, where the run may end with an earlier one.

    A phase after a head that was solved for gives way to it only for a loss above its standard
    error on the same validation images. With few of them it looks better or worse by chance, and
    it is more often better: with 20 flowers a class, two backbones and three draws, `lp_ft` gained
    in five of six, 2.4 points on average (400 other images).
    """

    def __init__(self, phases: Sequence[Phase], task: str, best: bool) -> None:
        self.phases, self.task, self.best = phases, task, best
        self.index = 0  # of the phase that the run ends with, as far as is known
        self.chance = ""  # what a head was better by, where that is no more than chance explains
        self.weights: dict[int, dict[str, torch.Tensor]] = {}  # of phases that it may end with
        self.undone: dict[int, str] = {}  # what was said of phases that were
        self.guarded = any(phase.spec.pseudo for phase in phases)

    def after(self, model: nn.Module, reports: Sequence[PhaseReport]) -> None:
        """Look at the newest of the reports; the model has the weights of that phase."""
        last = len(reports) - 1
        if said := self._undone(reports):
            logger.warning("%s", said)
            self.undone[last] = said
            model.load_state_dict(self.weights[self.index])
            return
        if said := worse(self.phases, reports, self.task):
            logger.warning("%s", said)
        self.index = best_index(self.phases, reports, self.task) if self.best else last
        ends = {self.index, self.rival(reports)} if self.best or self.guarded else set()
        self.weights = {index: self.weights[index] for index in ends & self.weights.keys()}
        if last in ends and (len(reports) < len(self.phases) or len(ends) > 1):
            state = model.state_dict()
            self.weights[last] = {name: t.detach().cpu().clone() for name, t in state.items()}

    def _undone(self, reports: Sequence[PhaseReport]) -> str | None:
        """Return what to say of a newest phase with `pseudo` that left validation worse than the
        phase whose weights are kept; None where it did not."""
        metric = compared_by(self.phases, reports, self.task)
        if not self.phases[len(reports) - 1].spec.pseudo or metric is None or not self.weights:
            return None
        now, then = (report.metrics[metric] for report in (reports[-1], reports[self.index]))
        if stopping.best_index(metric, [now, then]) == 0:
            return None
        return (
            f"phase {reports[-1].name} is undone: {metric} {now:.4f}, after phase "
            f"{reports[self.index].name} it was {then:.4f}; the network's own answers did not help"
        )

    def rival(self, reports: Sequence[PhaseReport]) -> int:
        """Return the place of the best phase after a solved head that is the best of all; else that
        of the best phase itself. A phase that was undone is none."""
        later = [i for i in range(self.index + 1, len(reports)) if i not in self.undone]
        metric = compared_by(self.phases, reports, self.task)
        paired = self.best and metric == TASKS[self.task].headline
        if not paired or not self.phases[self.index].spec.solve or not later:
            return self.index
        return later[best_index(self.phases, [reports[i] for i in later], self.task)]

    def bring_back(
        self,
        model: nn.Module,
        reports: Sequence[PhaseReport],
        predict: Predict,
        groups: Sequence[Any] | None = None,
    ) -> None:
        """Give the model the weights of the phase that the run ends with.

        `predict` gives the logits and labels of the validation images, of the model as it is when
        a phase is done; those of a group count together.
        """
        at, rival = len(reports) - 1, self.rival(reports)
        if rival != self.index:
            scores = []
            for at in (self.index, rival):
                model.load_state_dict(self.weights[at])
                scores.append(score_of_each(self.task, *predict(at)))
            gain = scores[0] - scores[1]
            mean, error = float(gain.mean()), standard_error(gain, groups)
            if not exceeds(mean, error):
                by = f" ({100 * mean:.1f} ± {100 * error:.1f} points)"
                name, shown = reports[self.index].name, TASKS[self.task].headline == "accuracy"
                self.chance = f"phase {name} was better by no more than chance explains{by * shown}"
                self.index = rival
        if said := self.end(reports):
            logger.warning("%s", said)
        if at != self.index:
            model.load_state_dict(self.weights[self.index])
        self.weights = {}

    def end(self, reports: Sequence[PhaseReport]) -> str | None:
        """Return what to say of the phase that a run ends with, where that was a choice."""
        name = reports[self.index].name
        if self.chance:
            return f"{self.chance}: the model is that of phase {name} (ends_with: best)"
        if not self.best or self.index == len(reports) - 1:
            return None
        return f"the model is that of phase {name}, the best one (ends_with: best)"

    def notes(self, reports: Sequence[PhaseReport]) -> tuple[str, ...]:
        """Return what to say of phases whose loss jumped, and of the one that the model is of; the
        report itself says which made it worse."""
        found: list[str | None] = []
        for i in range(1, len(reports)):
            first = next((row["loss"] for row in reports[i].history if "loss" in row), None)
            found.append(jump(reports[i - 1], self.phases[i], first))
        return tuple(note for note in [*found, *self.undone.values(), self.end(reports)] if note)


def score_of_each(task: str, logits: np.ndarray[Any, Any], labels: Any) -> np.ndarray[Any, Any]:
    """Return how well each image was answered, shape (N,): 1 or 0 for its class, the share of its
    labels that are right, or minus the squared error of its numbers."""
    logits, labels = np.asarray(logits, float), np.asarray(labels)
    if task == "classification":
        return (logits.argmax(axis=1) == labels).astype(float)
    if task == "multi_label":
        return ((logits > 0) == (labels > 0.5)).mean(axis=1)
    return -((logits - labels.reshape(logits.shape)) ** 2).mean(axis=1)


def compared_by(phases: Sequence[Phase], reports: Sequence[PhaseReport], task: str) -> str | None:
    """Return the metric that phases are compared by: what the last phase's `best` names, else the
    task's leading one, else the loss; None where not all have it."""
    named = phases[-1].spec.best
    for metric in ([] if named in ("loss", "last") else [named]) + [TASKS[task].headline, "loss"]:
        if all(_number(report.metrics.get(metric)) for report in reports):
            return metric
    return None


def best_index(phases: Sequence[Phase], reports: Sequence[PhaseReport], task: str) -> int:
    """Return the place of the best phase so far; of several that are as good, the last."""
    metric = compared_by(phases, reports, task)
    if metric is None:
        return len(reports) - 1
    values = [report.metrics[metric] for report in reversed(reports)]
    return len(reports) - 1 - stopping.best_index(metric, values)


def worse(phases: Sequence[Phase], reports: Sequence[PhaseReport], task: str) -> str | None:
    """Return what to say of the newest phase where an earlier one was better."""
    best, metric = best_index(phases, reports, task), compared_by(phases, reports, task)
    if metric is None or best == len(reports) - 1:
        return None
    now, then = reports[-1].metrics[metric], reports[best].metrics[metric]
    return (
        f"phase {reports[-1].name} made it worse: {metric} {now:.4f}, after phase "
        f"{reports[best].name} it was {then:.4f}"
    )


def jump(before: PhaseReport, phase: Phase, loss: float | None) -> str | None:
    """Return what to say of a phase whose first loss is an order of magnitude above that of the
    phase before."""
    known = [row["loss"] for row in before.history if _number(row.get("loss"))][-1:]
    if not known or not _number(loss) or loss <= JUMP * max(*known, SMALL):
        return None
    remedies = [] if phase.spec.warmup else ["warmup: 0.1"]
    remedies += (
        ["still_norms: true"] if phase.layout.batch_norms and not phase.spec.still_norms else []
    )
    more = f", or add {' and '.join(remedies)}" if remedies else ""
    return (
        f"phase {phase.name}: the loss starts at {loss:.3g}, {loss / known[0]:.0f} times the "
        f"last one of the phase before; lower its rates (lr: {phase.spec.head_lr / 10:g}){more}"
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
