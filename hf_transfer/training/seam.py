"""What the phases of a run use of TransferTrainer, and how the model comes out of its wrappers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import TrainOutput

from hf_transfer.backbones.blueprint import Backbone
from hf_transfer.base.processes import Processes
from hf_transfer.data.image_set import ImageSet
from hf_transfer.planning.phase import Phase
from hf_transfer.results.report import PhaseReport
from hf_transfer.training.phase_state import PhaseState
from hf_transfer.training.step_loss import StepLoss


class Seam(Protocol):
    """What PhaseRunner uses of TransferTrainer besides Trainer's own public attributes."""

    phases: tuple[Phase, ...]
    backbone: Backbone
    reports: list[PhaseReport]
    processes: Processes
    loss: StepLoss
    now: PhaseState | None
    sharded: bool
    unlabelled: ImageSet | None  # for phases with `pseudo`
    running: dict[str, float]  # the loss since the last log, and the step of that log

    def __getattr__(self, name: str) -> Any:
        """Return a public attribute of Trainer."""

    def begin(self, args: TrainingArguments) -> None:
        """Take the arguments of a phase."""

    def forget_loaders(self) -> None:
        """Drop the loaders that Trainer keeps between evaluations."""

    def model_inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return what the model takes of a batch."""

    def train_steps(self, checkpoint: str | None, **kwargs: Any) -> TrainOutput:
        """Train as Trainer does."""


def unwrap(trainer: Trainer, own_forward: Callable[..., Any] | None) -> None:
    """Drop wrapper, optimizer and scheduler, so that the next training builds them again; the model
    gets back the forward that it came with."""
    wrapped = trainer.model_wrapped is not trainer.model
    trainer.model = trainer.accelerator.unwrap_model(
        trainer.model_wrapped, keep_fp32_wrapper=False, keep_torch_compile=False
    )
    for left in ("_original_forward", "_is_accelerate_prepared", "forward"):  # by an evaluation
        trainer.model.__dict__.pop(left, None)
    if own_forward is not None:
        trainer.model.forward = own_forward
    trainer.model_wrapped = trainer.model
    trainer.optimizer = trainer.lr_scheduler = None
    handler = trainer.callback_handler
    handler.optimizer = handler.lr_scheduler = None
    handler.train_dataloader = handler.eval_dataloader = None
    trainer.accelerator._models.clear()  # evaluation then prepares the model as training does
    if wrapped:
        trainer.accelerator.free_memory()  # collects garbage, which takes half a second
