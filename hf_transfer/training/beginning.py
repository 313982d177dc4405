"""What is done as a phase begins to step, so that it steps as the unbroken run does."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from hf_transfer.training.machine.cheap_steps import light_order, settle_sums
from hf_transfer.training.machine.image_weights import count_rows
from hf_transfer.training.phase_state import PhaseState
from hf_transfer.training.seam import Seam


class Beginning(TrainerCallback):
    """Makes the first step of a phase that of the unbroken run."""

    def __init__(self, trainer: Seam, state: PhaseState) -> None:
        self.trainer, self.state = trainer, state

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Fix the order of sums and of images, and take up the loss since the last log."""
        settle_sums(self.trainer.model_wrapped)
        light_order(kwargs.get("train_dataloader"))
        count_rows(kwargs.get("train_dataloader"))
        if self.state.running is not None:
            self.trainer.running = self.state.running
