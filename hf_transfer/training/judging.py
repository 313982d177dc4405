"""What an evaluation within a phase comes to: the best weights are kept, or the phase ends."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback

from hf_transfer.base.processes import Processes
from hf_transfer.recipe import stopping
from hf_transfer.training import best_weights
from hf_transfer.training.outcome import check_metric, metric_values
from hf_transfer.training.phase_state import PhaseState


class Judging(TrainerCallback):
    """Keeps the weights of a phase's best evaluation, and stops it where its `stop` says so."""

    def __init__(self, state: PhaseState, processes: Processes, several: bool) -> None:
        self.state, self.processes = state, processes
        self.several = several  # validation sets, each with metrics under its own name

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Share statistics before an evaluation that comes within an epoch."""
        if control.should_evaluate:
            best_weights.share_statistics(kwargs["model"], self.state, self.processes)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Share statistics before the evaluation of the epoch."""
        best_weights.share_statistics(kwargs["model"], self.state, self.processes)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Judge an evaluation; one before the first step is of no end of the phase."""
        if state.global_step and self._judge(kwargs["model"], metrics, state):
            control.should_training_stop = True

    def _judge(self, model: nn.Module, metrics: dict[str, Any], state: Any) -> bool:
        """Keep the weights if this evaluation is the best of the phase; return whether to stop,
        which no phase does before its least number of steps: with few images an epoch is a step."""
        spec, log = self.state.phase.spec, state.log_history
        if not self.several:
            for metric in {spec.best, spec.stop.metric if spec.stop else "last"} - {"last"}:
                check_metric(metric, metrics, self.state.phase.name)
        values = metric_values(spec.best, log)
        if values and stopping.best_index(spec.best, values) == len(values) - 1:
            best_weights.keep(model, self.state)
        if spec.stop is None or state.global_step < (spec.min_steps or 0):
            return False
        values = metric_values(spec.stop.metric, log)
        return stopping.should_stop(
            spec.stop.metric, values, spec.stop.patience, spec.stop.min_change
        )
