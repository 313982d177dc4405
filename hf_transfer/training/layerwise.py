"""LayerwiseTrainer: one phase in which everything trains, each layer at its own rate."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainingArguments

from hf_transfer.training.trainer import TransferTrainer


class LayerwiseTrainer(TransferTrainer):
    """A Trainer with one phase in which everything trains, each layer at its own rate.

    `layer_decay` multiplies the rate from group to group below the head (normalised for depth);
    all else comes from `args`, and the last weights are kept unless `load_best_model_at_end` asks
    for the best. Source: BEiT, arXiv:2106.08254.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments | None = None,
        layer_decay: float = 0.75,
        **kwargs: Any,
    ) -> None:
        best = (
            (args.metric_for_best_model or "loss") if args and args.load_best_model_at_end else ""
        )
        phase = {
            "train": "all",
            "layer_decay": layer_decay,
            "cold_head": True,
            "best": best.removeprefix("eval_") or "last",
        }
        super().__init__(model, args, phases=[phase], **kwargs)
