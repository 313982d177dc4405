"""`TransferTrainer`: a transformers Trainer that runs phases.

A phase is one `Trainer.train()`. Before each, `requires_grad` is set on every parameter and the
optimizer, scheduler and wrapped model are dropped, so that Trainer builds and wraps anew: DDP and
FSDP only ever see a fixed trainable set. The Trainer decides nothing: phases, groups and rates
come in as data.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput, TrainOutput

from hf_transfer.backbones import access
from hf_transfer.backbones.blueprint import Backbone
from hf_transfer.backbones.from_object import describe
from hf_transfer.backbones.regression_units import take_scale
from hf_transfer.backbones.saving import save_model
from hf_transfer.base.errors import UserError
from hf_transfer.base.machine import kept_memory
from hf_transfer.base.processes import Processes
from hf_transfer.inputs import batches as inputs
from hf_transfer.inputs import extraction, features
from hf_transfer.inputs.model_input import collate
from hf_transfer.planning.phase import Phase
from hf_transfer.planning.rates import param_groups
from hf_transfer.planning.steps import check_warmup, warmup_steps
from hf_transfer.recipe.specs import PhaseSpec
from hf_transfer.results.metrics.by_name import EpochMetrics
from hf_transfer.results.report import PhaseReport
from hf_transfer.training import adapter_layers, exact_head, freezing, norm_statistics
from hf_transfer.training import loss as objective
from hf_transfer.training import proof as proof_module
from hf_transfer.training.arguments import phase_arguments, resolved_phases
from hf_transfer.training.checks import check_features, check_items, check_model, check_phases
from hf_transfer.training.machine import compiling, image_weights, sharding
from hf_transfer.training.machine import sync_batchnorm as batchnorm
from hf_transfer.training.machine.cheap_steps import light_steps
from hf_transfer.training.outcome import metric_names, phase_report
from hf_transfer.training.recovery import checkpoints, failures, resuming, rollback
from hf_transfer.training.recovery.checkpoints import write_phase
from hf_transfer.training.recovery.interruption import PhaseWatch

logger = logging.getLogger(__name__)


class TransferTrainer(Trainer):
    """A Trainer whose `train()` runs phases: what trains, at which rates, for how long.

    `phases` is a sequence of PhaseSpec, of mappings with the keys of a recipe's phase (what is
    absent comes from `args`), or of Phase. The model is one that `load_backbone` made, or any
    transformers classifier, or a module that maps pixel_values to logits together with `head`:
    names or patterns of its newly initialised parameters. `groups` are layers given by hand, from
    input to output: {"stem": ["conv1.*"], …, "head": ["fc.*"]}. With `checkpoint_seconds` a
    checkpoint is written whenever that many seconds have passed. `sync_batchnorm` takes batch
    statistics over the images of all processes, and `auto_compile` runs torch.compile in phases
    where, measured, it pays. All else is as for a Trainer.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments | None = None,
        phases: Sequence[PhaseSpec | Phase | dict[str, Any]] = (),
        *,
        head: Sequence[str] | None = None,
        groups: Mapping[str, Sequence[str]] | None = None,
        class_weights: torch.Tensor | None = None,
        checkpoint_seconds: float | None = None,
        sync_batchnorm: bool = False,
        auto_compile: bool = False,
        **kwargs: Any,
    ) -> None:
        args = copy.copy(args) if args is not None else TrainingArguments("run")
        check_model(model, args, sync_batchnorm)
        args.remove_unused_columns = False  # it would drop the images
        args.dataloader_pin_memory &= torch.accelerator.is_available()  # else torch warns
        args.label_names = args.label_names or ["labels"]  # a bare module's forward names none
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False  # what is not used is kept frozen
        if args.ddp_broadcast_buffers is None:
            args.ddp_broadcast_buffers = False  # statistics are shared before they are looked at
        if args.n_gpu > 1:
            logger.info("one of %d GPUs is used; accelerate launch uses all", args.n_gpu)
            args._n_gpu = 1  # DataParallel copies the network in every step
        take_scale(model, kwargs.get("train_dataset"))
        self.backbone = self._described = describe(model, head, groups)
        self.phases = resolved_phases(phases, args, self.backbone)
        self.class_weights, self.sync_batchnorm = class_weights, sync_batchnorm
        self.auto_compile, self.compiling = auto_compile, None
        self.reports: list[PhaseReport] = []
        self.phase: Phase | None = None
        kwargs["data_collator"] = kwargs.get("data_collator") or collate
        self.task, scale = self.backbone.task, self.backbone.scale
        kwargs.setdefault("compute_metrics", EpochMetrics(task=self.task, scale=scale))
        super().__init__(model=model, args=args, **kwargs)
        compiling.check(self)
        self.shards = sharding.take_over(self)
        self.label_smoother = None  # smoothing is a phase's, and for training only
        self.model_accepts_loss_kwargs = False  # some do not pass them on; a mean, shared, is exact
        self.processes = Processes.here(args.ddp_timeout)
        self._run_args = self.args
        self._own_forward = self.model.__dict__.get("forward")
        self._still: list[nn.Module] = []
        self._best: dict[str, torch.Tensor] | None = None
        self._start: dict[str, torch.Tensor] = {}
        self._about: dict[str, Any] = {}
        self._rollbacks = self._slower = 0
        self._saving = False
        self.share: float | None = None  # weight of the batch that is trained on; None is 1
        self._replay: features.Replay | None = None
        self.remove_callback(PrinterCallback)  # a library does not print
        self.watch = PhaseWatch(self, checkpoint_seconds)
        self.add_callback(self.watch)

    # --- phases -----------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: bool | None = None, **kwargs: Any) -> TrainOutput:
        """Run every phase in order, each from the best weights of the one before.

        With `resume_from_checkpoint=True` finished phases are read from `args.output_dir`, and an
        interrupted one goes on from its last checkpoint. Returns the last phase's TrainOutput.
        Raises UserError for what cannot be trained, before anything is.
        """
        if not isinstance(resume_from_checkpoint, bool | None):
            raise UserError(
                "resume_from_checkpoint is True or False: phases and checkpoints are found in "
                f"args.output_dir, {self.args.output_dir}"
            )
        known, own_loss = metric_names(self.compute_metrics), self.compute_loss_func is not None
        check_phases(self.phases, self.train_dataset, self.eval_dataset, known, own_loss, self.task)
        check_items(self.train_dataset, self.eval_dataset, self.data_collator, self.backbone.image)
        norm_statistics.check(self.model, self.phases, self.train_dataset)
        images = len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else 0
        check_warmup(self.phases, images, self.processes.count)
        low = self.args.bf16 or self.args.fp16
        low = low or next(self.model.parameters()).dtype != torch.float32
        check_features(
            self.phases,
            self.train_dataset,
            self.eval_dataset,
            self.processes,
            sharded=self.shards,
            halved=low,
        )
        self.reports, output = [], TrainOutput(0, 0.0, {})
        if any(phase.spec.l2_sp for phase in self.phases):
            named = access.bare_names(self.model, self.backbone.prefix)
            self._start = {name: p.detach().clone() for name, p in named.items()}
        at_first = proof_module.fingerprint(self.model, self.backbone.prefix)
        of = {"backbone": at_first.digest(without=self.backbone.layout.head)}
        of["sync_batchnorm"] = self.sync_batchnorm
        if hasattr(self.train_dataset, "__len__"):
            of["images"] = images
        try:
            with kept_memory():
                for phase in self.phases:
                    output = rollback.run_phase(
                        self, phase, of, bool(resume_from_checkpoint), **kwargs
                    )
        except (RuntimeError, OSError) as error:
            known = failures.in_one_line(error, self.phase, self.processes)
            if known is None:
                raise
            raise known from error
        finally:
            adapter_layers.remove(self.model)
            self.backbone = self._described
            self.args, self.phase, self.is_in_train = self._run_args, None, False
        return output

    def predict_validation(self) -> PredictionOutput:
        """Return what `predict` gives for the validation images when all phases are done: from the
        features of the last one where it kept them, which it trained on and was judged by."""
        last = self.phases[-1]
        if self.reports[-1].features != "cached" or last.adapters:
            return self.predict(self.eval_dataset)
        try:
            self._apply(last)
            with kept_memory(), self._features(last):
                return self.predict(self.eval_dataset)
        except extraction.FeaturesError as error:  # there is no room for them any more
            logger.info("%s", error)
            return self.predict(self.eval_dataset)
        finally:
            self._unwrap()
            self.args, self.phase = self._run_args, None

    def _train_phase(
        self, phase: Phase, before: proof_module.Fingerprints, resume: bool, **kwargs: Any
    ) -> TrainOutput:
        """Apply a phase, train it, end with its best weights, prove it and write it down."""
        began = time.monotonic()
        self._apply(phase)
        self._announce(phase)
        folder = Path(self.args.output_dir)
        checkpoint = resuming.take_up(self, folder, self._about) if resume else None
        saved = checkpoints.weights(checkpoint.folder) if checkpoint else None
        before = norm_statistics.begin(self, phase, before, saved)
        with self._features(phase), self.watch.listening(), light_steps():
            if checkpoint is None and self.watch.saves and self.processes.main:
                rollback.begin_anew(folder, self._rollbacks)
            self._began = began - (checkpoint.about["seconds"] if checkpoint else 0.0)
            if phase.spec.solve:
                output = exact_head.train_exactly(self, phase, self._replay)
            else:
                counted = norm_statistics.counted_once(
                    self.model, self.args.activation_checkpointing
                )
                weighed = compiling.weighed(self, folder, resume)
                with sharding.sharded(self), batchnorm.shared(self), counted, weighed:
                    output = super().train(checkpoint and str(checkpoint.folder), **kwargs)
            self._unwrap()
            self._load_best()
            proof = self._prove(phase, before)
            seconds = time.monotonic() - self._began
            cached, times = self._replay is not None, self._rollbacks
            report = phase_report(phase, self.backbone, self.state, proof, seconds, cached, times)
            report = dataclasses.replace(report, compiled=compiling.facts(self))
            self.reports.append(report)
            if phase.spec.keep_adapters and self.watch.saves and self.processes.main:
                adapter_layers.keep(self.model, self._described, phase, folder.with_name("adapter"))
            adapter_layers.merge(self.model)
            self.backbone = self._described
            if self.watch.saves:
                write_phase(folder, self.model, report, self._about, self.processes)
                if self.processes.main and self.args.save_strategy == "no":
                    checkpoints.drop(folder)  # those written by time; a user's own are kept
                self.processes.wait()
                if self.watch.left():
                    self.watch.leave("the phase is done")
        return output

    def _apply(self, phase: Phase) -> None:
        """Make the network and the Trainer ready for a phase; idempotent."""
        self.phase = phase
        self.args = phase_arguments(self._run_args, phase, self.eval_dataset is not None)
        self._train_batch_size = self.args.train_batch_size
        self._unwrap()
        self.backbone = adapter_layers.inject(self.model, self._described, phase, self.args.seed)
        prefix, groups = self.backbone.prefix, self.backbone.groups
        freezing.freeze_all_but(self.model, prefix, phase.parameters)
        self._still_names = freezing.still_modules(
            self.model, prefix, groups, phase.parameters, phase.spec.still_norms
        )
        self._still = [self.model.get_submodule(name) for name in self._still_names]
        self._best = self.compiling = None
        set_seed(self.args.seed)
        if self.accelerator.state.dynamo_plugin.backend.value != "NO":  # by args or a launcher
            torch._dynamo.reset()  # a frame compiled for other requires_grad may be reused

    def _announce(self, phase: Phase) -> None:
        """Log what a phase trains, and how."""
        sizes, rates = phase.layout.sizes, [group.lr for group in param_groups(phase)]
        logger.info(
            "phase %d %s: %s; %s of %s parameters; %s",
            phase.index,
            phase.name,
            ", ".join(phase.groups),
            f"{sum(sizes[name] for name in phase.parameters):,}",
            f"{sum(sizes.values()):,}",
            "solved" if phase.spec.solve else f"rates {min(rates):.3g} to {max(rates):.3g}",
        )

    def _unwrap(self) -> None:
        """Drop wrapper, optimizer and scheduler, so that the next `train()` builds them anew."""
        wrapped = self.model_wrapped is not self.model
        self.model = self.accelerator.unwrap_model(
            self.model_wrapped, keep_fp32_wrapper=False, keep_torch_compile=False
        )
        for left in ("_original_forward", "_is_accelerate_prepared"):  # by an evaluation alone
            self.model.__dict__.pop(left, None)
        self._forward_back()
        self.model_wrapped = self.model
        self.optimizer = self.lr_scheduler = None
        self.callback_handler.optimizer = self.callback_handler.lr_scheduler = None
        self.callback_handler.train_dataloader = self.callback_handler.eval_dataloader = None
        self.__dict__.pop("_eval_dataloaders", None)  # persistent ones, of other data perhaps
        self.accelerator._models.clear()  # evaluation then prepares the model as training does
        if wrapped:
            self.accelerator.free_memory()  # collects garbage, which takes half a second

    def _forward_back(self) -> None:
        """Give the model the forward that it came with."""
        self.model.__dict__.pop("forward", None)
        if self._own_forward is not None:
            self.model.forward = self._own_forward

    @contextmanager
    def _features(self, phase: Phase) -> Iterator[None]:
        """Train on what leaves the frozen prefix, computed once; where not possible, on images."""
        images = self.train_dataset, self.eval_dataset
        ours = self.data_collator is collate  # another may do anything with the pixels
        try:
            self._replay = features.replay_of(
                self.model,
                self.backbone,
                phase,
                self._still,
                images[0] if ours else None,
                images[1],
                seed=self.args.seed,
                context=self.accelerator.autocast,
                processes=self.processes,
                sharded=self.shards,
                workers=self._run_args.dataloader_num_workers,
            )
            if self._replay is None:
                yield
                return
            self.train_dataset, self.eval_dataset = self._replay.train, self._replay.evaluation
            with self._replay.playing():
                yield
        finally:
            self.train_dataset, self.eval_dataset = images
            self._replay = None
            self._forward_back()

    # --- what Trainer calls -------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the phase's optimizer from named groups, the head's first."""
        model = model or self.model
        if self.phase is None or self.optimizer is not None:
            return super().create_optimizer(model)
        named = access.bare_names(model, self.backbone.prefix)
        groups = [
            {
                "params": [(name, named[name]) for name in group.names],
                "lr": group.lr,
                "weight_decay": group.weight_decay,
            }
            for group in param_groups(self.phase)
        ]
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, model)
        self.optimizer_cls_and_kwargs = (kind, {**options, "params": groups})
        return super().create_optimizer(model)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """Build the phase's schedule; its warmup ends before its last step."""
        if self.phase is not None:
            self.args.warmup_steps = warmup_steps(self.phase.spec.warmup, num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Return the batches of the next step and their number of items; each image counts once."""
        progress = self.accelerator.gradient_state
        batches = image_weights.next_step(epoch_iterator, num_batches, progress, self.processes)
        count = super().get_batch_samples(image_weights.counted(batches), num_batches, device)[1]
        return batches, count

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Return a batch's loss, its gradients taken; compiled in a phase where that pays."""
        step = super().training_step
        if self.compiling is None:
            return step(model, inputs, num_items_in_batch)
        return self.compiling.step(
            lambda network: step(network, copy.copy(inputs), num_items_in_batch), model, inputs
        )

    def _prepare_inputs(self, inputs_: dict[str, Any]) -> dict[str, Any]:
        """Turn a batch of stored pixels into the model's input, varied while training."""
        share = {key: inputs_[key] for key in (image_weights.SHARE,) if key in inputs_}
        return {**self._model_inputs(inputs_), **share}

    def _model_inputs(self, inputs_: dict[str, Any]) -> dict[str, Any]:
        if self._replay is not None and "rows" in inputs_:
            inputs_ = self._replay.batch(inputs_, int(self.state.epoch or 0))
        batch = super()._prepare_inputs(inputs_)
        if "pixels" not in batch:
            return batch
        image = self.backbone.image
        if not (self.model.training and self.phase):
            return inputs.evaluation_inputs(batch, image)
        epoch = int(self.state.epoch or 0)
        return inputs.training_inputs(
            batch, self.phase.spec, image, self.train_dataset, epoch, self.args.seed
        )

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
                if module.training:  # asking is cheaper than telling, and a replay passes them by
                    module.training = False
        spec = self.phase.spec if self.phase and training else None
        share = self.share = inputs.pop(image_weights.SHARE, None)
        soft = inputs.pop("soft_labels", None)
        smoothing = spec.label_smoothing if spec else 0.0
        plain = soft is None and not smoothing and self.class_weights is None
        plain = plain and isinstance(self.model, PreTrainedModel) and self.task == "classification"
        if plain or self.compute_loss_func is not None:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            loss, outputs = loss if return_outputs else (loss, None)
        else:
            labels = inputs.pop("labels")
            logits = access.logits_of(model(**inputs))
            target = labels if soft is None else soft
            loss = objective.LOSSES[self.task](logits, target, self.class_weights, smoothing)
            shared = num_items_in_batch is not None and self.args.average_tokens_across_devices
            loss = loss * (self.processes.count if shared else 1)  # DDP divides by it again
            loss = loss / (labels.numel() if num_items_in_batch is None else num_items_in_batch)
            outputs = {"loss": loss, "logits": logits}
        if share is not None:  # a sum over all items of the step needs no weight
            loss = loss * (share if num_items_in_batch is None else float(share > 0))
        if spec and spec.l2_sp:
            named = access.bare_names(self.model, self.backbone.prefix)
            head = self.backbone.layout.head
            pull = spec.l2_sp * objective.distance_from_start(named, self._start, head)
            whole = num_items_in_batch is not None  # or else Trainer divides by the batches
            loss = loss + pull / (self.current_gradient_accumulation_steps if whole else 1)
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate as Trainer does; among several processes, too, count each image once.

        Trainer's mean covers the images that fill up the last batches a second time.
        """
        together = self.processes.count > 1 and self.compute_loss_func is None
        output = super().evaluation_loop(
            dataloader,
            description,
            None if together else prediction_loss_only,
            ignore_keys,
            metric_key_prefix,
        )
        key, logits = f"{metric_key_prefix}_loss", output.predictions
        if together and key in output.metrics and isinstance(logits, np.ndarray):
            labels = torch.from_numpy(output.label_ids)
            total = objective.LOSSES[self.task](
                torch.from_numpy(logits).float(), labels, self.class_weights
            )
            output.metrics[key] = total.item() / labels.numel()
        return output

    def floating_point_ops(self, inputs: dict[str, Any]) -> float:
        """Return 0: Trainer's estimate is for tokens and walks over all parameters each step."""
        return 0.0

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the folder that is published, for a model that `load_backbone` made.

        Any other model is saved as Trainer does; a checkpoint gets the weights by their own names.
        """
        if self._saving:
            tensors = sharding.whole(self.model.state_dict(), self.args.should_save)
            if self.args.should_save:
                checkpoints.save_tensors(tensors, Path(output_dir) / checkpoints.WEIGHTS)
        elif isinstance(getattr(self.model, "backbone", None), Backbone):
            if self.args.should_save:
                save_model(self.model, output_dir or self.args.output_dir)
            if self.args.push_to_hub and not _internal_call:
                self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)
        else:
            super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save what Trainer saves and what it forgets, whole or not at all."""
        self.watch.check_finite()
        seconds = time.monotonic() - self._began
        about = {**self._about, "processes": self.processes.count, "seconds": seconds}
        self._saving = True
        try:
            resuming.keep(
                self, about, lambda: super(TransferTrainer, self)._save_checkpoint(model, trial)
            )
        finally:
            self._saving = False

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load both, at the rates that the phase has come to since it went back."""
        if self.shards and checkpoint is not None:
            sharding.load_optimizer(self, Path(checkpoint))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self._slower:
            rollback.slow_down(self.optimizer, self.lr_scheduler, self._slower)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the weights of a checkpoint, every name of them."""
        checkpoints.load_weights(self.model, Path(resume_from_checkpoint))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save what Trainer does; where it is sharded, each process its part."""
        if self.shards:
            sharding.save_optimizer(self, Path(output_dir))
        else:
            super()._save_optimizer_and_scheduler(output_dir)

    # --- best weights, proof --------------------------------------------------------------------

    def keep_best(self) -> None:
        """Keep the weights there are now as the best of the phase so far."""
        self._best = {name: tensor.detach().clone() for name, tensor in self._moving().items()}

    @torch.no_grad()
    def _load_best(self) -> None:
        moving = self._moving() if self._best else {}
        for name, value in (self._best or {}).items():
            moving[name].copy_(value)
        self._best = None

    def _moving(self) -> dict[str, torch.Tensor]:
        """Return what may change in this phase: trained parameters, statistics not still."""
        if self.shards:
            sharding.gather_none(self.model)
        return freezing.moving(self.model, self.backbone.prefix, self._still_names)

    def share_statistics(self) -> None:
        """Give all processes the first one's statistics; DDP leaves each with its last batch's."""
        if self.processes.count > 1:
            self.processes.take_first(
                tensor for tensor in self._moving().values() if not isinstance(tensor, nn.Parameter)
            )

    def _prove(self, phase: Phase, before: proof_module.Fingerprints) -> proof_module.Proof:
        prefix = self.backbone.prefix
        after = proof_module.fingerprint(self.model, prefix)
        proof_module.check_agreement(self.processes.all(after))
        free = freezing.free_buffers(self.model, prefix, self._still_names)
        return proof_module.prove(
            before, after, phase.parameters, self.backbone.groups, free, self.processes.count
        )
