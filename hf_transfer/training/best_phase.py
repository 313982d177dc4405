"""Which phase a run ends with: the best, unless told otherwise; and what a later one spoilt.

A phase that learned from its own answers (`pseudo`) is undone where validation says it is worse.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hf_transfer.planning.phase import Phase
from hf_transfer.recipe import stopping
from hf_transfer.recipe.tasks import TASKS
from hf_transfer.results.report import PhaseReport

logger = logging.getLogger(__name__)

JUMP = 10.0  # times the loss of the phase before: its rates spoil what it starts from
SMALL = 0.3  # a loss below this rises that much by augmentation or smoothing alone


class BestPhase:
    """Keeps the weights of the best phase so far, where the run may end with an earlier one."""

    def __init__(self, phases: Sequence[Phase], task: str, best: bool) -> None:
        self.phases, self.task, self.best = phases, task, best
        self.index = 0  # of the phase that the run ends with, as far as is known
        self.weights: dict[str, torch.Tensor] = {}
        self.undone: list[str] = []  # what was said of phases that were
        self.guarded = any(phase.spec.pseudo for phase in phases)

    def after(self, model: nn.Module, reports: Sequence[PhaseReport]) -> None:
        """Look at the newest of the reports; the model has the weights of that phase."""
        last = len(reports) - 1
        if said := self._undone(reports):
            logger.warning("%s", said)
            self.undone.append(said)
            model.load_state_dict(self.weights)
            return
        if said := worse(self.phases, reports, self.task):
            logger.warning("%s", said)
        if not self.best or best_index(self.phases, reports, self.task) == last:
            self.index, self.weights = last, {}
            if (self.best or self.guarded) and len(reports) < len(self.phases):
                self.weights = {n: t.detach().cpu().clone() for n, t in model.state_dict().items()}

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

    def bring_back(self, model: nn.Module, reports: Sequence[PhaseReport]) -> None:
        """Give the model the weights of the best phase, where that is not the last one."""
        if self.index < len(reports) - 1:
            for said in self._end(reports):
                logger.warning("%s", said)
            model.load_state_dict(self.weights)
        self.weights = {}

    def notes(self, reports: Sequence[PhaseReport]) -> tuple[str, ...]:
        """Return what to say of phases whose loss jumped, and of the one that the model is of; the
        report itself says which made it worse."""
        found: list[str | None] = []
        for i in range(1, len(reports)):
            first = next((row["loss"] for row in reports[i].history if "loss" in row), None)
            found.append(jump(reports[i - 1], self.phases[i], first))
        return tuple(note for note in [*found, *self.undone, *self._end(reports)] if note)

    def _end(self, reports: Sequence[PhaseReport]) -> list[str]:
        """Return what to say of the phase that a run ends with, where that was chosen."""
        said = end(reports, self.index) if self.best else None
        return [said] if said else []


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


def end(reports: Sequence[PhaseReport], index: int) -> str | None:
    """Return what to say of a run that ends with an earlier phase than the last."""
    if index == len(reports) - 1:
        return None
    return f"the model is that of phase {reports[index].name}, the best one (ends_with: best)"


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
