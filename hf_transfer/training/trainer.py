"""`TransferTrainer`: a transformers Trainer that runs phases.

A phase is one `Trainer.train()`. Before each, `requires_grad` is set on all parameters, and Trainer
makes optimizer, scheduler and wrapped model for that fixed set. This module is the seam: overrides,
and what they need of Trainer's private parts. The order of work is `PhaseRunner`'s (phase_run.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_utils import BestRun, EvalLoopOutput, PredictionOutput, TrainOutput

from hf_transfer.backbones.blueprint import Backbone
from hf_transfer.backbones.from_object import describe
from hf_transfer.backbones.regression_units import take_scale
from hf_transfer.backbones.saving import unpublished
from hf_transfer.base.processes import Processes
from hf_transfer.data.image_set import ImageSet
from hf_transfer.inputs.workers import attached
from hf_transfer.planning.phase import Phase
from hf_transfer.planning.steps import warmup_steps
from hf_transfer.recipe.specs import GradualSpec, PhaseSpec
from hf_transfer.results.report import PhaseReport
from hf_transfer.training import arguments, given, search, skew, trainer_report
from hf_transfer.training.argument_table import check_arguments
from hf_transfer.training.checks import check_model
from hf_transfer.training.labels import check_labels
from hf_transfer.training.machine import image_weights
from hf_transfer.training.phase_run import PhaseRunner
from hf_transfer.training.phase_state import PhaseState
from hf_transfer.training.recovery import checkpoints, resuming
from hf_transfer.training.step_inputs import step_inputs
from hf_transfer.training.step_loss import StepLoss


class TransferTrainer(Trainer):
    """A Trainer whose `train()` runs phases: what trains, at which rates, for how long.

    `phases` are PhaseSpecs, Phases, or mappings with the keys of a recipe's phase (what is absent
    comes from `args`); or a recipe's name. The model is one that `load_backbone` made, or its name,
    or any transformers classifier, or a module that maps pixel_values to logits with `head`: names
    or patterns of its newly initialised parameters. `groups` are layers given by hand, from input
    to output: {"stem": ["conv1.*"], …}. `loss` and `class_weights` are those of a recipe, or one
    weight a class. Phases with `pseudo` also learn from the images of `unlabelled`; labels there
    are ignored. A checkpoint is written every `checkpoint_seconds`. `sync_batchnorm` takes batch
    statistics over all processes. `ends_with` is the best phase, or the last.
    """

    def __init__(
        self,
        model: nn.Module | str | Path | None = None,
        args: TrainingArguments | None = None,
        phases: Sequence[PhaseSpec | GradualSpec | Phase | dict[str, Any]] | str | Path = (),
        *,
        head: Sequence[str] | None = None,
        groups: Mapping[str, Sequence[str]] | None = None,
        class_weights: torch.Tensor | Sequence[float] | Mapping[str, float] | str | None = None,
        loss: str = "cross_entropy",
        unlabelled: ImageSet | None = None,
        checkpoint_seconds: float | None = None,
        sync_batchnorm: bool = False,
        ends_with: str = "best",
        **kwargs: Any,
    ) -> None:
        self.given = search.settings(locals())
        args = self.given["args"] = arguments.own_arguments(args)
        check_arguments(args, kwargs)
        images, own = kwargs.get("train_dataset"), given.own_loss(type(self), kwargs)
        model = given.given_model(model, images, kwargs.pop("model_init", None))
        check_model(model, args, sync_batchnorm, own)
        take_scale(model, images)
        layers = given.given_layers(head, groups)
        self.backbone = describe(model, *layers, given.seen(model, images))
        self.phases = arguments.resolved_phases(given.given_phases(phases), args, self.backbone)
        task, labels = self.backbone.task, self.backbone.labels
        minimised = skew.objective(loss, class_weights, task, labels, images, own)
        given.given_steps(args, self.phases, images)
        self.reports: list[PhaseReport] = []
        self.now: PhaseState | None = None
        kwargs["data_collator"] = given.given_collator(kwargs.get("data_collator"), args, images)
        kwargs["compute_metrics"] = given.given_metrics(kwargs, self.backbone)
        super().__init__(model=model, args=args, **kwargs)
        self.label_smoother = None  # smoothing is a phase's, and for training only
        self.model_accepts_loss_kwargs = False  # some do not pass them on; a mean, shared, is exact
        self.remove_callback(PrinterCallback)  # a library does not print
        self.processes = Processes.here(args.ddp_timeout)
        self.unlabelled = unlabelled
        self.loss = StepLoss(minimised, self.processes, self.compute_loss_func, args)
        self.loss.vary_as(self.phases)
        self.loss.of_logits = self.preprocess_logits_for_metrics is None
        self.runner = PhaseRunner(self, sync_batchnorm, checkpoint_seconds, ends_with)
        # Trainer's own FSDP would save shards, shard for an evaluation, and load too late.
        self.is_fsdp_enabled = self.is_fsdp_enabled and not self.sharded

    phase = property(lambda self: self.now.phase if self.now else None)  # the one under way
    sharded = property(lambda self: self.runner.sharded)
    notes = property(lambda self: self.runner.best.notes(self.reports))  # what made it worse

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> TrainOutput:
        """Run every phase in order, each from the best weights of the one before, and return the
        last one's output.

        With `resume_from_checkpoint=True`, or a path in `args.output_dir`, what is done is read
        from there. Raises UserError for what cannot be trained, before anything is.
        """
        resume = given.given_resume(resume_from_checkpoint, self.args.output_dir)
        return self.runner.run(resume, **kwargs)

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> BestRun:
        """Return the best of several runs, each with its own settings; see `search.best_run`."""
        return search.best_run(type(self), self.given, self.phases, *args, **kwargs)

    def predict_validation(self) -> PredictionOutput:
        """Return what `predict` gives for the validation images when all phases are done."""
        return self.runner.predict_validation()

    model_inputs = property(lambda self: self._prepare_inputs)
    train_steps = Trainer.train  # the phase under way, as Trainer does

    def begin(self, args: TrainingArguments) -> None:
        """Take the arguments of a phase."""
        self.args, self._train_batch_size = args, args.train_batch_size

    def forget_loaders(self) -> None:
        """Drop the loaders that Trainer keeps between evaluations, of other data perhaps."""
        self.__dict__.pop("_eval_dataloaders", None)

    @property
    def running(self) -> dict[str, float]:
        """The loss summed since the last log, and the step of that log."""
        return {"loss": self._tr_loss.item(), "logged": self._globalstep_last_logged}

    @running.setter
    def running(self, kept: dict[str, float]) -> None:
        self._tr_loss.fill_(kept["loss"])
        self._globalstep_last_logged = int(kept["logged"])

    # --- what Trainer calls ---------------------------------------------------------------------

    def _get_dataloader(self, dataset: Any, description: str, *args: Any, **kwargs: Any) -> Any:
        """Return a loader of a set whose labels are the model's."""
        check_labels(dataset, f"the set for {description.lower()}", self.backbone.labels)
        return attached(super()._get_dataloader(dataset, description, *args, **kwargs))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Return the order of an epoch, by the phase's `sampler`."""
        return skew.order(self.now, train_dataset, super()._get_train_sampler(train_dataset))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the phase's optimizer from named groups, the head's first."""
        model = model or self.model
        if self.now and self.optimizer is None:
            usual = self.get_optimizer_cls_and_kwargs(self.args, model)
            kind, options = self.runner.optimizer or usual
            named = {**options, "params": arguments.optimizer_groups(model, self.now)}
            self.optimizer_cls_and_kwargs = (kind, named)
        return super().create_optimizer(model)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """Build the phase's schedule; its warmup ends before its last step."""
        if self.now:
            self.args.warmup_steps = warmup_steps(self.now.phase.spec.warmup, num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Return the batches of the next step and their number of items; each image counts once."""
        own = self.accelerator.gradient_state, self.processes
        batches = image_weights.next_step(epoch_iterator, num_batches, *own)
        counted = image_weights.counted(batches)
        return batches, super().get_batch_samples(counted, num_batches, device)[1]

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Turn a batch of stored pixels into the model's input, varied while training."""
        epoch, images, own = int(self.state.epoch or 0), self.train_dataset, super()._prepare_inputs
        training, image = self.model.training, self.backbone.image
        now, beside = self.now, (self.loss.pretext, self.unlabelled)
        return step_inputs(inputs, epoch, image, images, now, training, own, *beside)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a batch, by the phase under way while training."""
        own, state = super().compute_loss, self.now if self.model.training else None
        items, steps = num_items_in_batch, self.current_gradient_accumulation_steps if state else 1
        trainers = partial(own, model, inputs, True, items)
        loss, outputs = self.loss(self.model, model, inputs, items, steps, state, trainers)
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate as Trainer does; among several processes, too, count each image once."""
        return self.loss.evaluated(super().evaluation_loop, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any) -> None:
        """Log, and beside a loss the rate of each group that trains."""
        if "loss" in logs and self.now and self.optimizer is not None:
            logs.update(arguments.group_rates(self.now, self.optimizer, logs))
            if self.now.confident is not None:
                logs["confident"] = self.now.confident.item()
        super().log(logs, *args)

    def floating_point_ops(self, inputs: dict[str, Any]) -> float:
        """Return 0: Trainer's estimate is for tokens and walks over all parameters each step."""
        return 0.0

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the published folder with its card; a checkpoint or a bare module as it is."""
        if self.now and self.now.saving:
            out = Path(output_dir or self.args.output_dir)
            checkpoints.save_whole(self.model, out, self.args.should_save)
        elif not isinstance(getattr(self.model, "backbone", None), Backbone):
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            trainer_report.save(self, output_dir or self.args.output_dir)

    push_to_hub = create_model_card = init_hf_repo = unpublished

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save what Trainer saves and what it forgets, whole or not at all."""
        assert self.now is not None
        self.runner.save(self.now, partial(super()._save_checkpoint, model, trial))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the weights of a checkpoint, every name of them."""
        checkpoints.load_weights(self.model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load both, with the rates that the phase has after its rollbacks."""
        resuming.load_optimizer(self, checkpoint, super()._load_optimizer_and_scheduler)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save what Trainer does; where it is sharded, each process its part."""
        resuming.save_optimizer(self, output_dir, super()._save_optimizer_and_scheduler)
