"""What leaves the frozen prefix stands for the images, while a phase trains and is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import Trainer

from hf_transfer.base.processes import Processes
from hf_transfer.inputs import features
from hf_transfer.inputs.model_input import collate
from hf_transfer.planning.phase import Phase
from hf_transfer.training.checks import check_features
from hf_transfer.training.phase_state import Part, PhaseState


class CachedFeatures(Part):
    """A phase trains on features that are computed once; where not possible, on images."""

    def __init__(self, processes: Processes, sharded: bool) -> None:
        self.processes, self.sharded = processes, sharded

    def check(self, trainer: Trainer, phases: Sequence[Phase]) -> None:
        """Raise UserError where a phase insists on features that cannot be kept."""
        low = trainer.args.bf16 or trainer.args.fp16
        low = low or next(trainer.model.parameters()).dtype != torch.float32
        check_features(
            phases,
            trainer.train_dataset,
            trainer.eval_dataset,
            self.processes,
            sharded=self.sharded,
            halved=low,
        )

    @contextmanager
    def during(self, trainer: Trainer, state: PhaseState) -> Iterator[None]:
        """Put features in place of the Trainer's images, until the block ends."""
        images = trainer.train_dataset, trainer.eval_dataset
        ours = trainer.data_collator is collate  # another may do anything with the pixels
        own = trainer.model.__dict__.get("forward")
        try:
            state.replay = features.replay_of(
                trainer.model,
                state.backbone,
                state.phase,
                state.still_modules,
                images[0] if ours else None,
                images[1],
                seed=state.args.seed,
                context=trainer.accelerator.autocast,
                processes=self.processes,
                sharded=self.sharded,
                workers=state.args.dataloader_num_workers,
            )
            if state.replay is None:
                yield
                return
            trainer.train_dataset, trainer.eval_dataset = (
                state.replay.train,
                state.replay.evaluation,
            )
            with state.replay.playing():
                yield
        finally:
            trainer.train_dataset, trainer.eval_dataset = images
            state.replay = None
            trainer.model.__dict__.pop("forward", None)
            if own is not None:
                trainer.model.forward = own
