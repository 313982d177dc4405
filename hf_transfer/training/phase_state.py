"""`PhaseState`: what one phase is and has come to. Made for the phase, read by its parts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_transfer.backbones.blueprint import Backbone
from hf_transfer.inputs.features import Replay
from hf_transfer.planning.phase import Phase


@dataclass
class PhaseState:
    """A phase under way."""

    phase: Phase  # at the rates that it has come to
    args: TrainingArguments  # the run's, with what the phase sets
    backbone: Backbone  # what is known of the model, the phase's adapters included
    still: tuple[str, ...]  # full names of the modules that stay in evaluation mode
    still_modules: list[nn.Module]  # the same, of the network that trains
    about: dict[str, Any] = field(default_factory=dict)  # what its checkpoints say of themselves
    rollbacks: int = 0
    slower: int = 0  # rollbacks since the checkpoint that it goes on from
    began: float = field(default_factory=time.monotonic)
    replay: Replay | None = None  # what it trains on in place of images
    confident: torch.Tensor | None = None  # share of the last step's images that `pseudo` counts
    share: float | None = None  # weight of the batch that is trained on; None is 1
    best: dict[str, torch.Tensor] | None = None  # what moves, as the best evaluation found it
    running: dict[str, float] | None = None  # loss since the last log, to be taken up
    saving: bool = False  # a checkpoint is being written

    @property
    def folder(self) -> Path:
        """Return the folder of the phase."""
        return Path(self.args.output_dir)

    def hold_still(self) -> None:
        """Set the frozen modules to evaluation mode; Trainer's `model.train()` undid it."""
        for module in self.still_modules:
            if module.training:  # asking is cheaper than telling, and a replay passes them by
                module.training = False


class Part:
    """What holds while a phase trains."""

    def check(self, trainer: Trainer, phases: Sequence[Phase]) -> None:
        """Raise UserError, before anything is trained, where a phase cannot have this."""

    def during(self, trainer: Trainer, state: PhaseState) -> AbstractContextManager[None]:
        """Return the context in which the phase trains."""
        return nullcontext()
