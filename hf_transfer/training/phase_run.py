"""`PhaseRunner`: the order of work of a run's phases, from what a phase trains to its proof."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, set_seed
from transformers.trainer_utils import PredictionOutput, TrainOutput

from hf_transfer.base.machine import kept_memory
from hf_transfer.inputs import extraction
from hf_transfer.planning.phase import Phase
from hf_transfer.results.report import PhaseReport
from hf_transfer.training import (
    adapter_layers,
    best_weights,
    checks,
    exact_head,
    freezing,
    later,
    norm_statistics,
    proof,
    rate_test,
)
from hf_transfer.training.arguments import phase_arguments
from hf_transfer.training.beginning import Beginning
from hf_transfer.training.best_phase import BestPhase
from hf_transfer.training.cached_features import CachedFeatures
from hf_transfer.training.judging import Judging
from hf_transfer.training.machine import sharding
from hf_transfer.training.machine.cheap_steps import light_steps
from hf_transfer.training.machine.single_images import check_single_images
from hf_transfer.training.machine.sync_batchnorm import SharedStatistics
from hf_transfer.training.outcome import announced, joined, phase_report
from hf_transfer.training.phase_state import Part, PhaseState
from hf_transfer.training.recovery import checkpoints, failures, resuming, rollback
from hf_transfer.training.recovery.divergence import DivergedError, Divergence, check_finite
from hf_transfer.training.recovery.identity import content, made_of
from hf_transfer.training.recovery.interruption import Interruption
from hf_transfer.training.seam import Seam, unwrap
from hf_transfer.training.trackers import joined_trackers

logger = logging.getLogger(__name__)


class PhaseRunner:
    """Runs the phases of a Trainer, each from the best weights of the one before."""

    def __init__(
        self,
        trainer: Seam,
        sync_batchnorm: bool,
        checkpoint_seconds: float | None,
        ends_with: str,
    ) -> None:
        self.trainer, self.args = trainer, trainer.args  # the run's; a phase has a copy
        self.processes, self.described = trainer.processes, trainer.backbone
        self.optimizer = trainer.optimizer_cls_and_kwargs  # a user's, for every phase
        self.planned = later.planned_by(trainer)
        freezing.tell_of_thawed(trainer.model, self.described.prefix, trainer.phases)
        self.own_forward = trainer.model.__dict__.get("forward")
        self.sync_batchnorm = sync_batchnorm
        self.sharded = sharding.asked(
            trainer.accelerator,
            trainer.is_deepspeed_enabled,
            self.args,
            trainer.model,
            self.described,
        )
        self.interruption = Interruption(checkpoint_seconds, self.args, self.processes)
        self.features = CachedFeatures(self.processes, self.sharded)
        self.trackers = joined_trackers(trainer)
        checks.check_end(ends_with)
        self.best = BestPhase(trainer.phases, self.described.task, ends_with == "best")
        self.parts: Sequence[Part] = (  # in this order, while a phase trains by steps
            sharding.Sharding(self.sharded),
            SharedStatistics(sync_batchnorm, self.processes),
            norm_statistics.CountedOnce(),
        )

    # --- all phases ---------------------------------------------------------------------------

    def run(self, resume: bool, **kwargs: Any) -> TrainOutput:
        """Run every phase and return the last one's output.

        Raises UserError for what cannot be trained, before anything is.
        """
        trainer = self.trainer
        self.check()
        trainer.reports, output = [], TrainOutput(0, 0.0, {})
        self.best = BestPhase(trainer.phases, self.described.task, self.best.best)
        if any(phase.spec.l2_sp for phase in trainer.phases):
            trainer.loss.remember_start(trainer.model, self.described.prefix)
        run: dict[str, Any] = {"sync_batchnorm": self.sync_batchnorm}
        if self.interruption.saves or resume:
            run |= made_of(
                trainer.model,
                self.described,
                self.args,
                trainer.train_dataset,
                trainer.eval_dataset,
                trainer.loss.objective,
                read_all=resume,
            )
            if trainer.unlabelled is not None:
                run["images without labels"] = content(trainer.unlabelled, read_all=resume)
        try:
            with kept_memory():
                for phase in trainer.phases:
                    output = self.run_phase(phase, run, resume, **kwargs)
                    self.best.after(trainer.model, trainer.reports)
            self._end_with_best()
            if len(trainer.reports) > 1:
                trainer.state = joined(trainer.state, trainer.reports)
        except (RuntimeError, OSError, LookupError, ValueError) as error:
            phase = trainer.now.phase if trainer.now else None
            known = failures.in_one_line(error, phase, self.processes)
            if known is None:
                raise
            raise known from error
        finally:
            adapter_layers.remove(trainer.model)
            self.trackers.leave()
            trainer.args, trainer.now, trainer.is_in_train = self.args, None, False
            trainer.optimizer = trainer.lr_scheduler = None
        return output

    def check(self) -> None:
        """Raise UserError for what cannot be trained."""
        if not self.sharded:  # then the modules of the network are made anew
            later.check_unchanged(self.trainer, self.planned)
        checks.check_run(self.trainer)
        for part in (*self.parts, self.features):
            part.check(self.trainer, self.trainer.phases)
        check_single_images(self.trainer, self.trainer.phases, self.sync_batchnorm)

    def predict_validation(self) -> PredictionOutput:
        """Return what `predict` gives for the validation images when all phases are done."""
        return self._predicted(self.best.index)

    def _end_with_best(self) -> None:
        """Give the model the weights of the phase that the run ends with."""
        trainer = self.trainer
        groups = getattr(trainer.eval_dataset, "groups", None)

        def predict(index: int) -> tuple[Any, Any]:
            found = self._predicted(index)
            return found.predictions, found.label_ids

        self.best.bring_back(trainer.model, trainer.reports, predict, groups)

    def _predicted(self, end: int) -> PredictionOutput:
        """Return what `predict` gives for the validation images with the weights that a phase ended
        with: from its features, where it was judged by them."""
        trainer = self.trainer
        phase = trainer.phases[end]
        if trainer.reports[end].features != "cached" or phase.adapters:
            return trainer.predict(trainer.eval_dataset)
        try:
            state = self.apply(phase)
            with kept_memory(), self.features.during(trainer, state):
                return trainer.predict(trainer.eval_dataset)
        except extraction.FeaturesError as error:  # there is no room for them any more
            logger.info("%s", error)
            return trainer.predict(trainer.eval_dataset)
        finally:
            self.unwrap()
            trainer.args, trainer.now = self.args, None

    # --- one phase ----------------------------------------------------------------------------

    def run_phase(
        self, phase: Phase, run: Mapping[str, Any], resume: bool, **kwargs: Any
    ) -> TrainOutput:
        """Read a finished phase back, or train it, as the only run that writes to its folder.

        `run` is what holds for the whole run, as for `resuming.about_phase`. Raises DivergedError.
        """
        trainer, here, saves = self.trainer, self.processes, self.interruption.saves
        folder = Path(self.args.output_dir) / phase.folder
        before = proof.fingerprint(trainer.model, self.described.prefix)
        about = resuming.about_phase(phase, before.digest(), run)
        done = resuming.finished(folder, trainer.model, about) if resume else None
        resuming.check_shared(folder, done is not None, here)
        if done is not None:
            trainer.reports.append(done)
            return TrainOutput(0, 0.0, {})
        with resuming.alone(folder, here, saves):
            return self._until_done(phase, before, about, resume, **kwargs)

    def _until_done(
        self,
        phase: Phase,
        before: proof.Fingerprints,
        about: Mapping[str, Any],
        resume: bool,
        **kwargs: Any,
    ) -> TrainOutput:
        """Train a phase, again from its last good checkpoint where it diverges and may go back."""
        trainer, here, saves = self.trainer, self.processes, self.interruption.saves
        folder = Path(self.args.output_dir) / phase.folder
        again = phase.spec.on_nan == "rollback"
        start = copy.deepcopy(trainer.model.state_dict()) if again else {}
        past = rollback.went_back_to(folder) if resume else ()
        phase = rate_test.rated(trainer, phase, self.apply, folder if saves else None, resume)
        while True:
            if saves and here.main:
                rollback.forget(folder, past)
            here.wait()
            slower = rollback.slowed(phase, len(past))
            try:
                state = self.apply(slower, about, len(past))
                return self.train_phase(state, before, resume, **kwargs)
            except DivergedError as error:
                if not again or len(past) == rollback.TIMES:
                    raise
                past, resume = (*past, rollback.last_good(folder, past, saves, here)), saves
                logger.warning("%s", rollback.said(error, slower, past[-1]))
                if saves and here.main:
                    rollback.note(folder, past)
                self.unwrap()
                adapter_layers.remove(trainer.model)
                trainer.model.load_state_dict(start)

    def apply(
        self, phase: Phase, about: Mapping[str, Any] | None = None, rollbacks: int = 0
    ) -> PhaseState:
        """Make the network and the Trainer ready for a phase; idempotent."""
        trainer, began = self.trainer, time.monotonic()
        args = phase_arguments(self.args, phase, trainer.train_dataset, trainer.eval_dataset)
        trainer.begin(args)
        self.unwrap()
        model = trainer.model
        backbone = adapter_layers.inject(model, self.described, phase, args.seed)
        freezing.freeze_all_but(model, backbone.prefix, phase.parameters)
        trains = phase.parameters, phase.spec.still_norms
        still = freezing.still_modules(model, backbone.prefix, backbone.groups, *trains)
        modules = [model.get_submodule(name) for name in still]
        trainer.now = PhaseState(
            phase, args, backbone, still, modules, dict(about or {}), rollbacks, began=began
        )
        set_seed(args.seed)
        if trainer.accelerator.state.dynamo_plugin.backend.value != "NO":  # by args or a launcher
            torch._dynamo.reset()  # a frame compiled for other requires_grad may be reused
        return trainer.now

    def unwrap(self) -> None:
        """Make the model plain, and the Trainer as if it had not trained yet."""
        unwrap(self.trainer, self.own_forward)
        self.trainer.forget_loaders()

    def train_phase(
        self, state: PhaseState, before: proof.Fingerprints, resume: bool, **kwargs: Any
    ) -> TrainOutput:
        """Train a phase, end with its best weights, prove it and write it down."""
        trainer, here, saves = self.trainer, self.processes, self.interruption.saves
        logger.info("%s", announced(state.phase))
        self.trackers.enter(state.phase, trainer.reports)
        checkpoint = resuming.take_up(state, here) if resume else None
        weights = checkpoints.weights(checkpoint.folder) if checkpoint else None
        before = norm_statistics.begin(trainer, state, before, weights, trainer.model_inputs, here)
        listening = self.interruption.listening(state.phase)
        with self.features.during(trainer, state), listening, light_steps():
            if checkpoint is None and saves and here.main:
                rollback.begin_anew(state.folder, state.rollbacks)
            state.began -= checkpoint.about["seconds"] if checkpoint else 0.0
            if state.phase.spec.solve:
                output = exact_head.solve_phase(trainer, state, here)
            else:
                place = str(checkpoint.folder) if checkpoint else None
                output = self._step(state, place, **kwargs)
            self.unwrap()
            best_weights.bring_back(trainer.model, state)
            found = self.prove(state, before)
            seconds, cached = time.monotonic() - state.began, state.replay is not None
            now = state.phase, trainer.state
            auto = state.about["phase"]["spec"]["lr"] == "auto"
            report = phase_report(*now, found, seconds, cached, state.rollbacks, auto)
            trainer.reports.append(report)
            self._end(state, report)
        return output

    def _step(self, state: PhaseState, checkpoint: str | None, **kwargs: Any) -> TrainOutput:
        """Train by steps, with what holds and what watches while it does."""
        trainer, here = self.trainer, self.processes
        several = isinstance(trainer.eval_dataset, dict)
        watching: tuple[TrainerCallback, ...] = (
            Beginning(trainer, state),
            Judging(state, here, several),
            self.interruption,
            Divergence(state.phase, trainer.reports[-1] if trainer.reports else None),
        )
        with ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.during(trainer, state))
            for callback in watching:
                trainer.add_callback(callback)
                stack.callback(trainer.remove_callback, callback)
            return trainer.train_steps(checkpoint, **kwargs)

    def save(self, state: PhaseState, save: Any) -> None:
        """Write a checkpoint within a phase by Trainer's own `save`, whole or not at all."""
        trainer, running = self.trainer, self.trainer.running
        check_finite(
            state.phase,
            trainer.state,
            running["loss"],
            trainer.model,
            trainer.optimizer,
            self.processes,
        )
        resuming.keep(state, trainer.state, running, self.processes, save)

    def prove(self, state: PhaseState, before: proof.Fingerprints) -> proof.Proof:
        """Return the proof that the phase did what it should; raises FreezingError."""
        model, prefix = self.trainer.model, state.backbone.prefix
        after = proof.fingerprint(model, prefix)
        proof.check_agreement(self.processes.all(after))
        free = freezing.free_buffers(model, prefix, state.still)
        return proof.prove(
            before,
            after,
            state.phase.parameters,
            state.backbone.groups,
            free,
            self.processes.count,
        )

    def _end(self, state: PhaseState, report: PhaseReport) -> None:
        """Merge the phase's adapters, write down what it came to, and leave if that was asked."""
        model, here, saves = self.trainer.model, self.processes, self.interruption.saves
        folder = state.folder
        if state.phase.spec.keep_adapters and saves and here.main:
            adapter_layers.keep(model, self.described, state.phase, folder.with_name("adapter"))
        adapter_layers.merge(model)
        if not saves:
            return
        checkpoints.write_phase(folder, model, report, state.about, here)
        if here.main and state.args.save_strategy == "no":
            checkpoints.drop(folder)  # those written by time; a user's own are kept
        here.wait()
        if self.interruption.left():
            self.interruption.leave("the phase is done")
