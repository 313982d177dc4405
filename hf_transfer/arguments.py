"""Phases and recipes in Trainer's words: what a PhaseSpec is as TrainingArguments, and back."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SchedulerType
from transformers.training_args import OptimizerNames

from hf_transfer.backbone import Backbone
from hf_transfer.phases import Phase, make_phases
from hf_transfer.recipe import PhaseSpec, Recipe, parse_phase

# A recipe's short words; any other name of Trainer's `optim` goes through as it is.
OPTIMIZERS = {"adamw": "adamw_torch_fused"}


def resolved_phases(
    phases: Sequence[PhaseSpec | Phase | dict[str, Any]],
    args: TrainingArguments,
    backbone: Backbone,
) -> tuple[Phase, ...]:
    """Return the phases as Phase; what a mapping leaves out comes from the TrainingArguments."""
    if all(isinstance(phase, Phase) for phase in phases):
        return tuple(phases)
    length = {"steps": args.max_steps} if args.max_steps > 0 else {"epochs": args.num_train_epochs}
    defaults = {
        "lr": args.learning_rate,
        "weight_decay": args.weight_decay,
        "optimizer": str(OptimizerNames(args.optim).value),
        "schedule": str(SchedulerType(args.lr_scheduler_type).value),
        "warmup": args.warmup_steps,
        "batch_size": args.per_device_train_batch_size,
        "accumulate": args.gradient_accumulation_steps,
        "label_smoothing": args.label_smoothing_factor,
        "max_grad_norm": args.max_grad_norm,
    }
    specs = [
        parse_phase({**defaults, **({} if {"epochs", "steps"} & set(phase) else length), **phase})
        if isinstance(phase, dict)
        else phase
        for phase in phases
    ]
    return make_phases(specs, backbone.groups, backbone.layout)


def phase_arguments(args: TrainingArguments, phase: Phase, evaluates: bool) -> TrainingArguments:
    """Return a copy of the run's arguments with what this phase sets."""
    spec, args = phase.spec, copy.copy(args)
    args.output_dir = os.path.join(args.output_dir, phase.folder)
    args.seed = args.seed + phase.index - 1  # no phase sees the shuffles of another
    args.num_train_epochs = spec.epochs if spec.epochs is not None else 1
    args.max_steps = spec.steps if spec.steps is not None else -1
    args.learning_rate = spec.lr
    args.lr_scheduler_type = SchedulerType(spec.schedule)
    args.warmup_steps = spec.warmup
    args.weight_decay = spec.weight_decay
    args.optim = OptimizerNames(OPTIMIZERS.get(spec.optimizer, spec.optimizer))
    args.optim_args = f"momentum={spec.momentum}" if spec.momentum is not None else args.optim_args
    args.per_device_train_batch_size = spec.batch_size
    args.gradient_accumulation_steps = spec.accumulate
    args.max_grad_norm = spec.max_grad_norm
    args.label_smoothing_factor = 0.0  # applied in compute_loss, in training only
    args.eval_strategy = IntervalStrategy.EPOCH if evaluates else IntervalStrategy.NO
    args.logging_strategy = IntervalStrategy.EPOCH
    args.logging_nan_inf_filter = False  # it waits for the device in every step
    args.load_best_model_at_end = False  # ours keeps the best weights in memory
    return args


def training_arguments(recipe: Recipe, out: Path) -> TrainingArguments:
    """Return the arguments that hold for all phases of a run; each phase sets the rest."""
    return TrainingArguments(
        output_dir=str(out),
        seed=recipe.seed,
        bf16=recipe.precision == "bf16",
        fp16=recipe.precision == "fp16",
        dataloader_num_workers=recipe.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        per_device_eval_batch_size=64,
        save_strategy="no",  # checkpoints are written by time: see checkpoint_seconds
        report_to="none",
        disable_tqdm=True,
    )
