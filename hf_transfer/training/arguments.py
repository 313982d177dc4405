"""Phases and recipes in Trainer's words: what a PhaseSpec is as TrainingArguments, and back."""

from __future__ import annotations

import copy
import difflib
import os
import shutil
from collections.abc import Collection, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SchedulerType
from transformers.training_args import OptimizerNames

from hf_transfer.backbones.building import Backbone
from hf_transfer.base import launch, processes
from hf_transfer.base.cache import room
from hf_transfer.base.processes import Processes
from hf_transfer.data.image_set import ImageSet
from hf_transfer.data.rows import StoredPixels
from hf_transfer.planning.frozen_prefix import check_kept, insists
from hf_transfer.planning.phases import Phase, make_phases
from hf_transfer.recipe import stopping
from hf_transfer.recipe.load import parse_phase
from hf_transfer.recipe.specs import Augment, PhaseSpec, Recipe, UserError
from hf_transfer.recipe.tasks import phase_conflicts
from hf_transfer.training.machine import sync_batchnorm as batchnorm

# A recipe's short words; any other name of Trainer's `optim` goes through as it is.
OPTIMIZERS = {"adamw": "adamw_torch_fused"}
SEED_STEP = 1_000_003  # from one phase's seed to the next; repeats of a run use seed, seed + 1, …
NO_COMPILER = "needs a C++ compiler (CXX, g++ or clang++); install one"
PEER_SECONDS = 600  # after which a process that does not answer is lost; they wait for each other
Name = TypeVar("Name", bound=Enum)


def resolved_phases(
    phases: Sequence[PhaseSpec | Phase | dict[str, Any]],
    args: TrainingArguments,
    backbone: Backbone,
) -> tuple[Phase, ...]:
    """Return the phases as Phase; what a mapping leaves out comes from the TrainingArguments.

    Raises UserError for an optimizer or a schedule that transformers does not have.
    """
    if not all(isinstance(phase, Phase) for phase in phases):
        phases = make_phases(
            [_spec(phase, args) for phase in phases], backbone.groups, backbone.layout
        )
    for phase in phases:
        place = f"phase {phase.name}"
        _named(OptimizerNames, OPTIMIZERS.get(phase.spec.optimizer, phase.spec.optimizer), place)
        _named(SchedulerType, phase.spec.schedule, place)
    return tuple(phases)


def _spec(phase: PhaseSpec | Phase | dict[str, Any], args: TrainingArguments) -> Any:
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
        "warmup": args.warmup_steps,
        "batch_size": args.per_device_train_batch_size,
        "accumulate": args.gradient_accumulation_steps,
        "label_smoothing": args.label_smoothing_factor,
        "max_grad_norm": args.max_grad_norm,
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


def phase_arguments(args: TrainingArguments, phase: Phase, evaluates: bool) -> TrainingArguments:
    """Return a copy of the run's arguments with what this phase sets."""
    spec, args = phase.spec, copy.copy(args)
    args.output_dir = os.path.join(args.output_dir, phase.folder)
    args.seed = (args.seed + SEED_STEP * (phase.index - 1)) % 2**32  # numpy takes 32 bits
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
    if not (evaluates and args.eval_strategy == IntervalStrategy.STEPS):
        args.eval_strategy = IntervalStrategy.EPOCH if evaluates else IntervalStrategy.NO
    if args.logging_strategy == IntervalStrategy.STEPS and args.logging_steps == 500:  # defaults
        args.logging_strategy = IntervalStrategy.EPOCH
    args.logging_nan_inf_filter = False  # it waits for the device in every step, and hides
    args.load_best_model_at_end = False  # ours keeps the best weights in memory
    return args


def training_arguments(recipe: Recipe, out: Path) -> TrainingArguments:
    """Return the arguments that hold for all phases of a run; each phase sets the rest.

    Raises UserError for a precision that this machine does not have.
    """
    if recipe.precision == "fp16" and not torch.accelerator.is_available():
        raise UserError("precision: fp16 needs an accelerator; write fp32 or bf16")
    if recipe.compile is True and not torch.accelerator.is_available() and not compiler():
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
        torch_compile=recipe.compile is True,
        activation_checkpointing=recipe.gradient_checkpointing,
        per_device_eval_batch_size=64,
        save_strategy="no",  # checkpoints are written by time: see checkpoint_seconds
        report_to="none",
        ddp_timeout=patience,
        disable_tqdm=True,
    )
    if not (args.bf16 or args.fp16):
        args.mixed_precision = "no"  # and not what accelerate launch left in the environment
    if recipe.compile is not True:
        args.torch_compile_backend = "no"  # likewise
    return args


def joined(recipe: Recipe, out: Path) -> Processes:
    """Return the processes of a run before there is a Trainer; all of them call this together."""
    if launch.count() == 1:
        return Processes()
    return Processes.here(training_arguments(recipe, out).ddp_timeout)  # these join them


def peer_seconds() -> int:
    """Return after how many seconds a process that does not answer is lost.

    Raises UserError for a HF_TRANSFER_PEER_SECONDS that is no such number.
    """
    text = os.environ.get("HF_TRANSFER_PEER_SECONDS", str(PEER_SECONDS))
    if not text.isdecimal() or int(text) < 1:
        raise UserError(
            f"HF_TRANSFER_PEER_SECONDS is {text!r}; set it to whole seconds, such as {PEER_SECONDS}"
        )
    return int(text)


def compiler() -> str | None:
    """Return the C++ compiler that torch.compile would call on a CPU."""
    names = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


# --- what cannot be trained ------------------------------------------------------------------


def check_model(model: nn.Module, args: TrainingArguments, sync_batchnorm: bool = False) -> None:
    """Raise UserError where the network cannot do what the arguments ask of it."""
    if sync_batchnorm:
        batchnorm.check(model)
    if args.activation_checkpointing and not getattr(
        model, "supports_gradient_checkpointing", False
    ):
        name = getattr(getattr(model, "backbone", None), "id", type(model).__name__)
        raise UserError(
            f"{name} knows no gradient checkpointing; remove gradient_checkpointing, and for "
            "memory take a smaller batch_size with accumulate"
        )


def check_phases(
    phases: Sequence[Phase],
    train: Any,
    evaluation: Any,
    metrics: Collection[str] | None,
    own_loss: bool,
    task: str = "classification",
) -> None:
    """Raise UserError with everything that would fail or have no effect, before any training.

    `metrics` are the names that an evaluation gives, None where that is not known yet;
    `own_loss` says that the user's own function computes the loss.
    """
    if not phases:
        raise UserError("there are no phases to train; pass phases=[{'train': 'head', …}]")
    if train is None:
        raise UserError("there is nothing to train on; pass train_dataset=")
    problems = [
        f"phase {phase.name}: {problem}"
        for phase in phases
        for problem in (
            *phase_conflicts(phase.spec, task),
            *_data_problems(phase.spec, train, own_loss),
            *_metric_problems(phase.spec, evaluation, metrics),
        )
    ]
    if problems:
        raise UserError("\n".join(problems))


def check_features(
    phases: Sequence[Phase],
    backbone: Backbone,
    train: Any,
    evaluation: Any,
    here: Processes,
    *,
    sharded: bool,
    halved: bool,
) -> None:
    """Raise UserError for phases that insist on features that one of the machines cannot keep, as
    `check_kept`, or that there are no stored pixels for. All processes call this together."""
    phases = [phase for phase in phases if insists(phase.spec)]
    if not phases:
        return
    for what, data in {"data set": train, "validation set": evaluation}.items():
        if not isinstance(data, ImageSet | None):
            wanted = insists(phases[0].spec)
            raise UserError(
                f"phase {phases[0].name}: {wanted} is not possible, because the {what} gives no "
                f"stored pixels; make it with load_data, or remove {wanted}"
            )
    problem = None
    sets = [data.pixels for data in (train, evaluation) if data is not None]
    pixels = {stored.path.parent for stored in sets if isinstance(stored, StoredPixels)}
    held_out = len(evaluation) if isinstance(evaluation, ImageSet) else 0
    images = {"train": len(train), "validation": held_out}
    try:
        check_kept(
            phases,
            backbone.groups,
            backbone.layout,
            images,
            room(*pixels),
            sharded=sharded,
            halved=halved,
        )
    except UserError as error:
        problem = error
    if here.most(int(problem is not None)):
        names = ", ".join(phase.name for phase in phases)
        raise problem or UserError(f"another process has no room for features of phase {names}")


def _data_problems(spec: PhaseSpec, train: Any, own_loss: bool) -> list[str]:
    varied = {"augment": spec.augment != Augment(), "mixup": spec.mixup, "cutmix": spec.cutmix}
    named = [key for key, used in varied.items() if used]
    problems = []
    if spec.solve and isinstance(train, ImageSet) and len(np.unique(train.labels)) < 2:
        problems.append(
            f"solve: {spec.solve} needs training images of two classes at least, and all "
            f"{len(train)} are of one; add images of another, or write epochs: 10 instead"
        )
    if named and not isinstance(train, ImageSet):
        problems.append(
            f"{', '.join(named)} vary the pixels of an ImageSet, and this data set is a "
            f"{type(train).__name__}; vary them there, or make it with load_data"
        )
    changed = {"label_smoothing": spec.label_smoothing, "mixup": spec.mixup, "cutmix": spec.cutmix}
    named = [key for key, used in changed.items() if used]
    if named and own_loss:
        problems.append(f"{', '.join(named)} would change the loss that compute_loss_func gives")
    return problems


def _metric_problems(
    spec: PhaseSpec, evaluation: Any, metrics: Collection[str] | None
) -> list[str]:
    asked = {} if spec.best in ("last", "loss") else {"best": spec.best}
    asked |= {"stop": spec.stop.metric} if spec.stop else {}
    if evaluation is None:
        return [f"{key} needs validation images; pass eval_dataset=" for key in asked]
    if isinstance(evaluation, dict):
        known = sorted(f"{name}_loss" for name in evaluation)
        asked |= {"best": spec.best} if spec.best == "loss" else {}
        return [
            f"{key}: several validation sets have no {metric!r} in common; have {', '.join(known)}"
            for key, metric in asked.items()
            if not any(metric.startswith(f"{name}_") for name in evaluation)
        ]
    if metrics is None:
        return []
    return [
        f"{key}: {stopping.unclear(metric)}"
        if metric in metrics
        else f"{key}: there is no metric {metric!r}; have {', '.join(sorted(metrics))}"
        for key, metric in asked.items()
        if metric not in metrics or stopping.unclear(metric)
    ]
