"""`TransferTrainer`: a transformers Trainer that runs phases.

A phase is one `Trainer.train()`. Before each, `requires_grad` is set on every parameter and the
optimizer, scheduler and wrapped model are dropped, so that Trainer builds and wraps anew: DDP and
FSDP only ever see a fixed trainable set. The Trainer decides nothing: phases, groups and rates
come in as data.
"""

from __future__ import annotations

import copy
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import nn
from torch.nn import functional as F
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import TrainOutput, get_last_checkpoint

from hf_transfer import freezing, stopping
from hf_transfer.arguments import phase_arguments, resolved_phases
from hf_transfer.backbone import describe
from hf_transfer.checkpoints import read_best, read_phase, write_phase
from hf_transfer.data import ImageSet, collate
from hf_transfer.features import Replay, head_module, why_live
from hf_transfer.images import augment, mix, to_model_input
from hf_transfer.metrics import compute_metrics
from hf_transfer.outcome import metric_values, phase_report
from hf_transfer.phases import Phase
from hf_transfer.rates import param_groups
from hf_transfer.recipe import PhaseSpec
from hf_transfer.report import PhaseReport

logger = logging.getLogger(__name__)


class TransferTrainer(Trainer):
    """A Trainer whose `train()` runs phases: what trains, at which rates, for how long.

    `phases` is a sequence of PhaseSpec, of mappings with the keys of a recipe's phase (what is
    absent comes from `args`), or of Phase. The model is one that `load_backbone` made, or any
    transformers classifier, or a module that maps pixel_values to logits together with `head`:
    names or patterns of its newly initialised parameters. All else is as for a Trainer.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments | None = None,
        phases: Sequence[PhaseSpec | Phase | dict[str, Any]] = (),
        *,
        head: Sequence[str] | None = None,
        class_weights: torch.Tensor | None = None,
        checkpoint_seconds: float | None = None,
        **kwargs: Any,
    ) -> None:
        args = copy.copy(args) if args is not None else TrainingArguments("run")
        args.remove_unused_columns = False  # it would drop the images
        self.backbone = describe(model, head)
        self.phases = resolved_phases(phases, args, self.backbone)
        self.class_weights = class_weights
        self.checkpoint_seconds = checkpoint_seconds
        self.reports: list[PhaseReport] = []
        self.phase: Phase | None = None
        if isinstance(kwargs.get("train_dataset", kwargs.get("eval_dataset")), ImageSet):
            kwargs.setdefault("data_collator", collate)
        kwargs.setdefault("compute_metrics", compute_metrics)
        super().__init__(model=model, args=args, **kwargs)
        self._run_args = self.args
        self._still: list[nn.Module] = []
        self._best: dict[str, torch.Tensor] | None = None
        self._start: dict[str, torch.Tensor] = {}
        self._saved_at = time.monotonic()
        self.remove_callback(PrinterCallback)  # a library does not print
        self.add_callback(_PhaseWatch(self))

    # --- phases -----------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: bool | str | None = None, **kwargs: Any) -> TrainOutput:
        """Run every phase in order, each from the best weights of the one before.

        With `resume_from_checkpoint=True` finished phases are read from `args.output_dir`, and an
        interrupted one goes on from its last checkpoint. Returns the last phase's TrainOutput.
        """
        if not self.phases:
            raise ValueError("there are no phases to train; pass phases=[{'train': 'head', …}]")
        self.reports = []
        if any(phase.spec.l2_sp for phase in self.phases):
            named = freezing.bare_names(self.model, self.backbone.prefix)
            self._start = {name: p.detach().clone() for name, p in named.items()}
        output = TrainOutput(0, 0.0, {})
        for phase in self.phases:
            done = self._read_phase(phase) if resume_from_checkpoint else None
            if done is not None:
                self.reports.append(done)
                continue
            output = self._train_phase(phase, bool(resume_from_checkpoint), **kwargs)
        self.args = self._run_args
        return output

    def _train_phase(self, phase: Phase, resume: bool, **kwargs: Any) -> TrainOutput:
        """Apply a phase, train it, end with its best weights, prove it and write it down."""
        started = time.monotonic()
        self._apply(phase)
        before = freezing.fingerprint(self.model, self.backbone.prefix)
        replay = self._replay(phase)
        try:
            checkpoint = self._last_checkpoint() if resume else None
            output = super().train(resume_from_checkpoint=checkpoint, **kwargs)
        finally:
            if replay is not None:
                self.train_dataset, self.eval_dataset = replay.close()
        self._unwrap()
        self._load_best(phase)
        proof = self._prove(phase, before)
        seconds = time.monotonic() - started
        report = phase_report(
            phase, self.backbone, self.state, proof, seconds, cached=replay is not None
        )
        self.reports.append(report)
        self._write_phase(phase, report)
        self.phase = None
        return output

    def _apply(self, phase: Phase) -> None:
        """Make the network and the Trainer ready for a phase; idempotent."""
        self.phase = phase
        self.args = phase_arguments(self._run_args, phase, self.eval_dataset is not None)
        self._train_batch_size = self.args.train_batch_size
        self._unwrap()
        prefix, spec = self.backbone.prefix, phase.spec
        freezing.freeze_all_but(self.model, prefix, phase.parameters)
        names = freezing.still_modules(
            self.model,
            prefix,
            self.backbone.layout,
            self.backbone.groups,
            phase.parameters,
            spec.still_norms,
        )
        self._still_names = _with_children(self.model, names)
        self._still = [self.model.get_submodule(name) for name in self._still_names]
        self._best = None
        self._saved_at = time.monotonic()
        set_seed(self.args.seed)
        total = sum(p.numel() for p in self.model.parameters())
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        rates = [
            group.lr for group in param_groups(phase, self.backbone.groups, self.backbone.layout)
        ]
        logger.info(
            "phase %d %s: %s; %s of %s parameters; rates %.3g to %.3g",
            phase.index,
            phase.name,
            ", ".join(phase.groups),
            f"{trained:,}",
            f"{total:,}",
            min(rates),
            max(rates),
        )

    def _unwrap(self) -> None:
        """Drop wrapper, optimizer and scheduler, so that the next `train()` builds them anew."""
        self.model = self.accelerator.unwrap_model(self.model_wrapped, keep_fp32_wrapper=False)
        self.model.__dict__.pop("_original_forward", None)
        self.model.__dict__.pop("forward", None)
        self.model_wrapped = self.model
        self.optimizer = self.lr_scheduler = None
        self.accelerator.free_memory()

    def _replay(self, phase: Phase) -> Replay | None:
        """Compute what leaves the frozen prefix, once, and train on it; None where it runs live."""
        spec = phase.spec
        if spec.features == "live":
            return None
        reason = why_live(phase, self.backbone.layout.head, self.train_dataset, self.eval_dataset)
        found = None if reason else head_module(self.model, self.backbone, self._still)
        if found is None:
            if spec.features == "cached":
                raise ValueError(
                    f"phase {phase.name}: features: cached is not possible, because "
                    f"{reason or 'the head does not replay to the same logits'}; use auto or live"
                )
            return None
        replay = Replay(self.model, found, self.train_dataset, self.eval_dataset)
        self.train_dataset, self.eval_dataset = replay.train, replay.evaluation
        return replay

    # --- what Trainer calls -------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the phase's optimizer from named groups, the head's first."""
        model = model or self.model
        if self.phase is None or self.optimizer is not None:
            return super().create_optimizer(model)
        named = freezing.bare_names(model, self.backbone.prefix)
        groups = [
            {
                "params": [(name, named[name]) for name in group.names],
                "lr": group.lr,
                "weight_decay": group.weight_decay,
            }
            for group in param_groups(self.phase, self.backbone.groups, self.backbone.layout)
        ]
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, model)
        self.optimizer_cls_and_kwargs = (kind, {**options, "params": groups})
        return super().create_optimizer(model)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Turn a batch of stored pixels into the model's input, augmented while training."""
        inputs = super()._prepare_inputs(inputs)
        index = inputs.pop("index", None)
        if "pixels" not in inputs:
            return inputs
        pixels, image = inputs.pop("pixels"), self.backbone.image
        if not (self.model.training and self.phase):
            return {**inputs, "pixel_values": to_model_input(pixels, image)}
        spec, seed, epoch = self.phase.spec, self.args.seed, int((self.state.epoch or 0) + 1e-6)
        inputs["pixel_values"] = augment(pixels, index, epoch, seed, spec.augment, image)
        if spec.mixup or spec.cutmix:
            inputs["pixel_values"], inputs["soft_labels"] = mix(
                inputs["pixel_values"],
                inputs["labels"],
                index,
                epoch,
                seed,
                mixup=spec.mixup,
                cutmix=spec.cutmix,
                classes=len(self.backbone.labels),
                images=len(self.train_dataset),
                partner=self._partner,
            )
        return inputs

    def _partner(self, index: torch.Tensor, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return augmented pixels and labels of the images with these indices, for mixing."""
        batch = self.train_dataset.__getitems__(index.tolist())
        device = self.args.device
        pixels = augment(
            batch["pixels"].to(device),
            index,
            epoch,
            self.args.seed,
            self.phase.spec.augment,
            self.backbone.image,
        )
        return pixels, batch["labels"].to(device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the loss; frozen modules are set still here, after Trainer's `model.train()`."""
        training = self.model.training
        if training:
            for module in self._still:
                module.training = False
        spec = self.phase.spec if self.phase and training else None
        soft = inputs.pop("soft_labels", None)
        smoothing = spec.label_smoothing if spec else 0.0
        plain = soft is None and not smoothing and self.class_weights is None
        if plain and isinstance(self.model, PreTrainedModel) and not (spec and spec.l2_sp):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        logits = outputs if isinstance(outputs, torch.Tensor) else outputs["logits"]
        weights = self.class_weights.to(logits) if self.class_weights is not None else None
        target = labels if soft is None else soft
        loss = F.cross_entropy(logits, target, weight=weights, label_smoothing=smoothing)
        if spec and spec.l2_sp:
            loss = loss + spec.l2_sp * self._distance_from_start()
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    def _distance_from_start(self) -> torch.Tensor:
        """Return half the squared distance of the trained backbone from its pretrained weights.

        Source: L2-SP, arXiv:1802.01483, equation 3; the head is new and has no start to keep to.
        """
        head = set(self.backbone.layout.head)
        named = freezing.bare_names(self.model, self.backbone.prefix)
        terms = [
            (parameter - self._start[name].to(parameter)).pow(2).sum()
            for name, parameter in named.items()
            if parameter.requires_grad and name not in head
        ]
        return 0.5 * torch.stack(terms).sum() if terms else torch.zeros((), device=self.args.device)

    def floating_point_ops(self, inputs: dict[str, Any]) -> float:
        """Return 0: Trainer's estimate is for tokens and walks over all parameters each step."""
        return 0.0

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save as Trainer does; safetensors takes no channels-last tensor as it is."""
        state = self.model.state_dict() if state_dict is None else state_dict
        super()._save(output_dir, {name: tensor.contiguous() for name, tensor in state.items()})

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save as Trainer does, and with it the best weights of the phase so far."""
        super()._save_checkpoint(model, trial)
        if self._best is not None and self.args.should_save:
            from safetensors.torch import save_file

            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            save_file({k: v.cpu().contiguous() for k, v in self._best.items()}, folder / "best.safetensors")

    # --- best weights, proof, report ----------------------------------------------------------

    def judge(self) -> bool:
        """Keep the weights if this evaluation is the best of the phase; return whether to stop."""
        spec = self.phase.spec
        if spec.best != "last":
            values = self._values(spec.best)
            if stopping.best_index(spec.best, values) == len(values) - 1:
                self._best = {
                    name: tensor.detach().clone() for name, tensor in self._moving().items()
                }
        if spec.stop is None:
            return False
        values = self._values(spec.stop.metric)
        return stopping.should_stop(
            spec.stop.metric, values, spec.stop.patience, spec.stop.min_change
        )

    def _values(self, metric: str) -> list[float]:
        return metric_values(metric, self.state.log_history, self.phase.name)

    def _moving(self) -> dict[str, torch.Tensor]:
        """Return what may change in this phase: trained parameters, statistics not still."""
        free = freezing.free_buffers(self.model, self.backbone.prefix, self._still_names)
        prefix = self.backbone.prefix
        moving = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        moving |= {n: b for n, b in self.model.named_buffers() if n.removeprefix(prefix) in free}
        return moving

    @torch.no_grad()
    def _load_best(self, phase: Phase) -> None:
        if self._best is None:
            return
        moving = self._moving()
        for name, value in self._best.items():
            moving[name].copy_(value)
        self._best = None

    def _prove(self, phase: Phase, before: freezing.Fingerprints) -> freezing.Proof:
        after = freezing.fingerprint(self.model, self.backbone.prefix)
        free = freezing.free_buffers(self.model, self.backbone.prefix, self._still_names)
        ranks = _ranks_agree(after, phase)
        return freezing.prove(before, after, phase.parameters, self.backbone.groups, free, ranks)

    def _write_phase(self, phase: Phase, report: PhaseReport) -> None:
        if self.args.should_save:
            state = {"log_history": self.state.log_history, "global_step": self.state.global_step}
            write_phase(Path(self.args.output_dir), self.model, report, state, repr(phase))
        if torch.distributed.is_initialized():
            torch.distributed.barrier()

    def _read_phase(self, phase: Phase) -> PhaseReport | None:
        folder = Path(self._run_args.output_dir) / phase.folder
        return read_phase(folder, self.model, repr(phase))

    def _last_checkpoint(self) -> str | None:
        """Return the last checkpoint of the current phase, and take up its best weights."""
        if not os.path.isdir(self.args.output_dir):
            return None
        checkpoint = get_last_checkpoint(self.args.output_dir)
        if checkpoint is not None:
            best = read_best(Path(checkpoint))
            self._best = best and {k: v.to(self.args.device) for k, v in best.items()}
        return checkpoint


class LayerwiseTrainer(TransferTrainer):
    """A Trainer with one phase in which everything trains, each layer at its own rate.

    `layer_decay` multiplies the rate from group to group below the head (normalised for depth);
    all else comes from `args`. Source: BEiT, arXiv:2106.08254.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments | None = None,
        layer_decay: float = 0.75,
        **kwargs: Any,
    ) -> None:
        phase = {"train": "all", "layer_decay": layer_decay, "cold_head": True}
        super().__init__(model, args, phases=[phase], **kwargs)


class _PhaseWatch(TrainerCallback):
    """Judges each evaluation, and asks for a checkpoint when the last one is old enough."""

    def __init__(self, trainer: TransferTrainer) -> None:
        self.trainer = trainer

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.is_in_train and self.trainer.phase and self.trainer.judge():
            control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        every = self.trainer.checkpoint_seconds
        if every is not None and time.monotonic() - self.trainer._saved_at >= every:
            self.trainer._saved_at = time.monotonic()
            control.should_save = True


def _with_children(model: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """Return the names and those of all modules below them."""
    found: dict[str, None] = {}
    for name in names:
        for path, _ in model.get_submodule(name).named_modules(prefix=name):
            found[path] = None
    return tuple(found)


def _ranks_agree(after: freezing.Fingerprints, phase: Phase) -> int:
    """Return the number of processes; raise FreezingError with the names where they differ."""
    if not torch.distributed.is_initialized():
        return 1
    world = torch.distributed.get_world_size()
    everyone: list[Any] = [None] * world
    torch.distributed.all_gather_object(everyone, after.values)
    names = set(phase.parameters)
    for rank, values in enumerate(everyone):
        apart = sorted(n for n in names if values[n] != after.values[n])
        if apart:
            raise freezing.FreezingError(
                f"after phase {phase.name} process {rank} differs in {len(apart)} parameters, "
                f"the first of them {apart[0]}"
            )
    return world
