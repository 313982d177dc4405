"""A loss that is no longer finite, or that explodes: the phase ends there, and says where."""

from __future__ import annotations

import logging
import math
from typing import Any, NoReturn

import torch
from torch import nn
from transformers import TrainerCallback, TrainerState

from hf_transfer.base.errors import UserError
from hf_transfer.base.processes import Processes
from hf_transfer.planning.phase import Phase
from hf_transfer.results.report import PhaseReport
from hf_transfer.training.best_phase import jump

logger = logging.getLogger(__name__)

EXPLODED = 1e3  # times the first loss that was logged, or 1: what comes next is no number


class DivergedError(UserError):
    """The loss exploded or is no longer a number: the rate is too high, or the data is bad."""


class Divergence(TrainerCallback):
    """Raises DivergedError by what is logged, and warns of a loss that jumps at the start."""

    def __init__(self, phase: Phase, before: PhaseReport | None) -> None:
        self.phase, self.before = phase, before

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Look at the loss and at the gradient's norm."""
        for key in ("loss", "grad_norm"):
            value = (logs or {}).get(key)
            if value is not None and not math.isfinite(value) and not (key != "loss" and args.fp16):
                _diverged(self.phase, state, "loss" if key == "loss" else "gradient", value)
        first = next((row["loss"] for row in state.log_history if "loss" in row), None)
        if self.before is not None and first is not None:
            if said := jump(self.before, self.phase, first):
                logger.warning("%s", said)
            self.before = None  # told once
        if first is not None and (logs or {}).get("loss", 0.0) > EXPLODED * max(first, 1.0):
            _diverged(self.phase, state, "loss", logs["loss"])


def check_finite(
    phase: Phase,
    state: TrainerState,
    loss: float,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    processes: Processes,
) -> None:
    """Raise DivergedError, in all processes, unless the loss since the last log, what trains and
    the optimizer's state are finite."""
    numbers = {
        "loss": [torch.tensor(loss)],
        "largest weight": [p for p in model.parameters() if p.requires_grad],
        "optimizer's state": [v for each in optimizer.state.values() for v in each.values()],
    }
    for what, values in numbers.items():
        if processes.most(int(not all(map(_finite, values)))):
            _diverged(phase, state, what, "not finite")


def good(state: TrainerState) -> bool:
    """Return whether a phase that diverges later may go back to this point: the end of an epoch
    (which does not depend on the clock), with a loss not above the first."""
    losses = [row["loss"] for row in state.log_history if "loss" in row]
    return float(state.epoch or 0.0).is_integer() and losses[-1:] <= losses[:1]


def _diverged(phase: Phase, state: TrainerState, what: str, value: float | str) -> NoReturn:
    """Raise DivergedError with the place in the run."""
    raise DivergedError(
        f"phase {phase.name}, epoch {math.ceil(state.epoch or 0)}, by step {state.global_step}: "
        f"the {what} is {value}; lower the rate (lr: {phase.spec.head_lr / 10:g}) or look for bad "
        "images"
    )


def _finite(value: Any) -> bool:
    """Return whether a tensor's numbers are all finite; a sharded one's are this process's."""
    local = getattr(value, "to_local", lambda: value)()
    return not isinstance(local, torch.Tensor) or bool(torch.isfinite(local).all())
