"""Phases and recipes in Trainer's words: what a PhaseSpec is as TrainingArguments, and back."""

from __future__ import annotations

import copy
import difflib
import logging
import os
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SchedulerType
from transformers.training_args import OptimizerNames

from hf_transfer.backbones.access import bare_names
from hf_transfer.backbones.blueprint import Backbone
from hf_transfer.base import launch, processes
from hf_transfer.base.errors import UserError
from hf_transfer.base.machine import NO_COMPILER, compiler
from hf_transfer.base.processes import Processes, peer_seconds
from hf_transfer.planning.phase import Phase
from hf_transfer.planning.phases import make_phases
from hf_transfer.planning.rates import param_groups
from hf_transfer.planning.steps import epochs_of
from hf_transfer.recipe.load import parse_phase
from hf_transfer.recipe.specs import GradualSpec, PhaseSpec, Recipe
from hf_transfer.training.argument_table import ALWAYS, best_of, check_taken
from hf_transfer.training.phase_state import PhaseState

logger = logging.getLogger(__name__)

# A recipe's short words; any other name of Trainer's `optim` goes through as it is.
OPTIMIZERS = {"adamw": "adamw_torch_fused"}
SEED_STEP = 1_000_003  # from one phase's seed to the next; repeats of a run use seed, seed + 1, …
Name = TypeVar("Name", bound=Enum)


def resolved_phases(
    phases: Sequence[PhaseSpec | GradualSpec | Phase | dict[str, Any]],
    args: TrainingArguments,
    backbone: Backbone,
) -> tuple[Phase, ...]:
    """Return the phases as Phase; what a mapping leaves out comes from the TrainingArguments.

    Raises UserError for an optimizer or a schedule that transformers does not have.
    """
    check_taken(args, phases)
    made = tuple(phase for phase in phases if isinstance(phase, Phase))
    if len(made) < len(phases):
        made = make_phases([_spec(phase, args) for phase in phases], backbone.groups)
    for phase in made:
        place = f"phase {phase.name}"
        _named(OptimizerNames, OPTIMIZERS.get(phase.spec.optimizer, phase.spec.optimizer), place)
        if _named(SchedulerType, phase.spec.schedule, place) == SchedulerType.REDUCE_ON_PLATEAU:
            raise UserError(
                f"{place}: schedule: reduce_lr_on_plateau follows evaluations, and rates are known "
                "before a phase starts; take cosine or linear, or stop: {patience: 3}"
            )
    return made


def own_arguments(args: TrainingArguments | None) -> TrainingArguments:
    """Return a copy of a user's arguments with what holds for every phase."""
    if not isinstance(args, TrainingArguments | None):
        raise UserError(
            f"args are of type {type(args).__name__}; pass transformers' TrainingArguments('run')"
        )
    args = copy.copy(args) if args is not None else TrainingArguments("run")
    for name, (value, _) in ALWAYS.items():
        setattr(args, name, value)
    args.dataloader_pin_memory &= torch.accelerator.is_available()  # else torch warns
    args.label_names = args.label_names or ["labels"]  # a bare module's forward names none
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = False  # what is not used is kept frozen
    if args.ddp_broadcast_buffers is None:
        args.ddp_broadcast_buffers = False  # statistics are shared before they are looked at
    if args.n_gpu > 1:
        logger.info("one of %d GPUs is used; accelerate launch uses all", args.n_gpu)
        args._n_gpu = 1  # DataParallel copies the network in every step
    return args


def optimizer_groups(model: nn.Module, state: PhaseState) -> list[dict[str, Any]]:
    """Return what a phase trains as an optimizer takes it, with names and rates."""
    named = bare_names(model, state.backbone.prefix)
    return [
        {
            "params": [(name, named[name]) for name in group.names],
            "lr": group.lr,
            "weight_decay": group.weight_decay,
        }
        for group in param_groups(state.phase)
    ]


def group_rates(
    state: PhaseState, optimizer: torch.optim.Optimizer, logs: Mapping[str, float]
) -> dict[str, float]:
    """Return the rate of each group, by its label, in the step that is logged, whose first one is
    in `logs`: the optimizer already has those of the next step. Nothing for a single group."""
    groups = param_groups(state.phase)
    if len(groups) < 2 or len(groups) != len(optimizer.param_groups):
        return {}
    first = [own.get("initial_lr", own["lr"]) for own in optimizer.param_groups]
    share = logs.get("learning_rate", first[0]) / first[0]
    pairs = zip(groups, first, strict=True)
    return {f"learning_rate/{group.label}": share * own for group, own in pairs}


def _spec(phase: PhaseSpec | GradualSpec | Phase | dict[str, Any], args: TrainingArguments) -> Any:
    if isinstance(phase, Phase):
        return phase.spec
    if not isinstance(phase, dict):
        return phase
    if phase.get("solve") is not None:
        return parse_phase(phase)  # nothing that the arguments set is the solver's
    length = {"steps": args.max_steps} if args.max_steps > 0 else {"epochs": args.num_train_epochs}
    defaults = {
        "lr": args.learning_rate,
        "weight_decay": args.weight_decay,
        "optimizer": str(OptimizerNames(args.optim).value),
        "schedule": str(SchedulerType(args.lr_scheduler_type).value),
        "warmup": args.warmup_steps or None,
        "batch_size": args.per_device_train_batch_size,
        "accumulate": args.gradient_accumulation_steps,
        "label_smoothing": args.label_smoothing_factor,
        "max_grad_norm": args.max_grad_norm,
        **best_of(args),
    }
    given = {"epochs", "steps"} & set(phase)
    return parse_phase({**defaults, **({} if given else length), **phase})


def _named(names: type[Name], name: str, place: str) -> Name:
    """Return the member of transformers' enumeration, or raise UserError with the nearest."""
    known = [str(member.value) for member in names]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        what = "optimizer" if names is OptimizerNames else "schedule"
        raise UserError(
            f"{place}: transformers knows no {what} {name!r}; nearest: "
            f"{', '.join(near) or ', '.join(known[:5])}"
        )
    return names(name)


def phase_arguments(
    args: TrainingArguments, phase: Phase, images: Any = None, validation: Any = None
) -> TrainingArguments:
    """Return a copy of the run's arguments with what this phase sets on its training images."""
    spec, args = phase.spec, copy.copy(args)
    args.output_dir = os.path.join(args.output_dir, phase.folder)
    args.seed = (args.seed + SEED_STEP * (phase.index - 1)) % 2**32  # numpy takes 32 bits
    count, evaluates = len(images) if hasattr(images, "__len__") else 0, validation is not None
    epochs = epochs_of(spec, count, args.world_size)
    args.num_train_epochs = epochs if epochs is not None else 1
    args.max_steps = spec.steps if spec.steps is not None else -1
    args.learning_rate = spec.head_lr
    args.lr_scheduler_type = SchedulerType(spec.schedule)
    args.warmup_steps = spec.warmup or 0
    args.weight_decay = spec.weight_decay
    args.optim = OptimizerNames(OPTIMIZERS.get(spec.optimizer, spec.optimizer))
    args.optim_args = f"momentum={spec.momentum}" if spec.momentum is not None else args.optim_args
    args.per_device_train_batch_size = spec.batch_size
    args.gradient_accumulation_steps = spec.accumulate
    args.max_grad_norm = spec.max_grad_norm
    args.label_smoothing_factor = 0.0  # applied in compute_loss, in training only
    if not (evaluates and args.eval_strategy == IntervalStrategy.STEPS):
        args.eval_strategy = IntervalStrategy.EPOCH if evaluates else IntervalStrategy.NO
    if args.logging_strategy == IntervalStrategy.STEPS and args.logging_steps == 500:  # defaults
        args.logging_strategy = IntervalStrategy.EPOCH
    args.load_best_model_at_end = False  # ours keeps the best weights in memory
    return args


def training_arguments(recipe: Recipe, out: Path) -> TrainingArguments:
    """Return the arguments that hold for all phases of a run; each phase sets the rest.

    Raises UserError for a precision that this machine does not have.
    """
    if recipe.precision == "fp16" and not torch.accelerator.is_available():
        raise UserError("precision: fp16 needs an accelerator; write fp32 or bf16")
    if recipe.compile and not torch.accelerator.is_available() and not compiler():
        raise UserError(f"compile: true {NO_COMPILER}")
    patience = peer_seconds()
    if not torch.accelerator.is_available():
        processes.meet(patience)
    fast = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    args = TrainingArguments(
        output_dir=str(out),
        seed=recipe.seed,
        bf16=recipe.precision == "bf16" or (recipe.precision == "auto" and fast),
        fp16=recipe.precision == "fp16",
        use_cpu=not torch.accelerator.is_available(),
        dataloader_num_workers=recipe.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        torch_compile=recipe.compile,
        activation_checkpointing=recipe.gradient_checkpointing,
        per_device_eval_batch_size=64,
        save_strategy="no",  # checkpoints are written by time: see checkpoint_seconds
        report_to=list(recipe.report_to) or "none",
        run_name=recipe.name,
        ddp_timeout=patience,
        disable_tqdm=True,
    )
    if not (args.bf16 or args.fp16):
        args.mixed_precision = "no"  # and not what accelerate launch left in the environment
    if not recipe.compile:
        args.torch_compile_backend = "no"  # likewise
    return args


def joined(recipe: Recipe, out: Path) -> Processes:
    """Return the processes of a run before there is a Trainer; all of them call this together."""
    if launch.count() == 1:
        return Processes()
    return Processes.here(training_arguments(recipe, out).ddp_timeout)  # these join them
