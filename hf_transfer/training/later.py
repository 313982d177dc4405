"""What was changed of a Trainer after it was made: phases were planned without it."""

from __future__ import annotations

from typing import Any

from hf_transfer.base.errors import UserError
from hf_transfer.training.argument_table import A_PHASES
from hf_transfer.training.seam import Seam


def planned_by(trainer: Seam) -> dict[str, Any]:
    """Return what the phases were planned by, by the names that a user gives it."""
    args = {f"args.{name}": getattr(trainer.args, name) for name in A_PHASES}
    named = ("args", "model", "phases", "compute_loss_func", "optimizer", "lr_scheduler")
    return args | {name: getattr(trainer, name) for name in named}


def check_unchanged(trainer: Seam, planned: dict[str, Any]) -> None:
    """Raise UserError for what would be passed over in silence, and for what is gone."""
    if not hasattr(trainer.accelerator.state, "dynamo_plugin"):
        raise UserError(
            "other TrainingArguments were made after this Trainer, which resets accelerate; make "
            "all arguments first, and then each Trainer just before it trains"
        )
    for name, value in planned_by(trainer).items():
        same = value == planned[name] if name.startswith("args.") else value is planned[name]
        if not same:
            raise UserError(
                f"{name}: this was changed after the Trainer was made, when its phases were "
                "planned; make a new TransferTrainer with it"
            )
