"""Trackers such as TensorBoard see one run over all phases: one start, continuous steps, one end.

Trainer's callbacks for them start again in each `train()`, of which a phase is one: steps would be
written over each other, and MLflow would open a run a phase.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import INTEGRATION_TO_CALLBACK, TensorBoardCallback

from hf_transfer.base.errors import UserError
from hf_transfer.base.nearest import nearest
from hf_transfer.planning.phase import Phase, span
from hf_transfer.results.report import PhaseReport
from hf_transfer.training.seam import Seam

TEXT = ("TensorBoardCallback", "WandbCallback", "TrackioCallback")  # which take words, too


def check_trackers(names: Sequence[str] | str | None) -> None:
    """Raise UserError for a tracker that is unknown, or not installed."""
    for name in [names] if isinstance(names, str) else names or ():
        if name in ("all", "none"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            near = nearest(name, INTEGRATION_TO_CALLBACK) or "; take tensorboard, for example"
            raise UserError(f"report_to: there is no tracker {name!r}{near}")
        if name in ("tensorboard", "wandb", "mlflow", "trackio") and find_spec(name) is None:
            raise UserError(
                f"report_to: {name} is not installed; pip install {name}, or remove report_to"
            )


def joined_trackers(trainer: Seam) -> Trackers:
    """Put one callback in the place of a Trainer's trackers and return it."""
    kinds = tuple(INTEGRATION_TO_CALLBACK.values())
    found = [each for each in trainer.callback_handler.callbacks if isinstance(each, kinds)]
    for each in found:
        trainer.remove_callback(each)
    made = Trackers(found, trainer.args)
    if found:
        trainer.add_callback(made)
    return made


class Trackers(TrainerCallback):
    """Hands on to trackers what is logged, at the step and epoch of the whole run."""

    def __init__(self, trackers: Sequence[TrainerCallback], args: TrainingArguments) -> None:
        self.trackers, self.args = trackers, copy.copy(args)  # of the run: a phase has a copy
        # Trackers show all arguments to others: of the folder's path the last part.
        self.args.output_dir = Path(args.output_dir).resolve().name
        self.phase: Phase | None = None
        self.steps, self.epochs = 0, 0.0  # of the phases before
        self.begun = self.marked = False
        self.last = TrainerState()  # of the run, as trackers know it
        for each in trackers:
            if isinstance(each, TensorBoardCallback) and each.logging_dir is None:
                each.logging_dir = str(Path(args.output_dir) / "tensorboard")

    def enter(self, phase: Phase, reports: Sequence[PhaseReport]) -> None:
        """Take what is logged from now on for that of a phase after those of the reports."""
        self.phase, self.marked = phase, False
        self.steps = sum(report.steps for report in reports)
        self.epochs = sum(report.epochs for report in reports)

    def leave(self) -> None:
        """End the run, where it was."""
        for each in self.trackers if self.begun else ():
            each.on_train_end(self.args, self.last, TrainerControl())
        self.phase, self.begun, self.steps, self.epochs = None, False, 0, 0.0

    # --- what Trainer calls -------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the run in its first phase, and mark where each phase begins."""
        self._mark(state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Hand on what is logged; `phase` counts from 1."""
        self._mark(state, control, **kwargs)
        logs = dict(logs or {})
        if self.phase is not None:
            logs["phase"] = self.phase.index
            if "epoch" in logs:
                logs["epoch"] += self.epochs
        self._tell("on_log", state, control, logs=logs, **kwargs)

    # --- what trackers are told ---------------------------------------------------------------

    def _mark(self, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell of the phase's start: what trains in it, and how much of the network is frozen."""
        if self.phase is None or self.marked:
            return
        self.marked = True
        if not self.begun:
            self.begun = True
            self._tell("on_train_begin", state, control, **kwargs)
        phase, sizes = self.phase, self.phase.layout.sizes
        numbers = {
            "phase": phase.index,
            "phase/frozen_groups": phase.frozen_prefix,
            "phase/trained_parameters": sum(sizes[name] for name in phase.parameters),
        }
        words = {"phase/trains": f"{phase.index} {phase.name}: {span(phase.groups, phase.network)}"}
        for each in self.trackers:
            logs = {**numbers, **words} if type(each).__name__ in TEXT else dict(numbers)
            self._tell_one(each, "on_log", replace(state, global_step=0), control, logs=logs)

    def _tell(self, event: str, state: Any, control: Any, **kwargs: Any) -> None:
        for each in self.trackers:
            self._tell_one(each, event, state, control, **kwargs)

    def _tell_one(
        self, tracker: TrainerCallback, event: str, state: Any, control: Any, **kwargs: Any
    ) -> None:
        epoch = (state.epoch or 0.0) + self.epochs
        self.last = replace(state, global_step=state.global_step + self.steps, epoch=epoch)
        getattr(tracker, event)(self.args, self.last, control, **kwargs)
