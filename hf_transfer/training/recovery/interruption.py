"""What is watched while a phase trains: the best epoch, the time, a sick loss, a call to stop."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from hf_transfer.recipe import stopping
from hf_transfer.training.machine.cheap_steps import light_order, settle_sums
from hf_transfer.training.machine.image_weights import count_rows
from hf_transfer.training.outcome import check_metric, metric_values
from hf_transfer.training.recovery.divergence import EXPLODED, DivergedError, _finite

if TYPE_CHECKING:
    from hf_transfer.training.trainer import TransferTrainer

logger = logging.getLogger(__name__)

STOPPED = 143  # exit status of a process that SIGTERM ended
DUE, CALLED = 1, 2  # reasons to save: enough time has passed, SIGTERM has come


class PhaseWatch(TrainerCallback):
    """Judges each evaluation, asks for checkpoints, and ends the process after SIGTERM.

    A checkpoint is never asked for between the last step of an epoch and its evaluation, nor at
    the end of a phase: training that goes on from it sees what the unbroken one saw.
    """

    def __init__(self, trainer: TransferTrainer, every_seconds: float | None) -> None:
        self.trainer, self.every_seconds = trainer, every_seconds
        self.saved_at = time.monotonic()
        self.called = False  # SIGTERM has come to this process
        self.leaving = False  # and all processes know it
        self.postponed = False  # a checkpoint that was asked for at the last step of an epoch
        self.running: dict[str, float] | None = None  # loss since the last log, to take up again

    @property
    def saves(self) -> bool:
        """Whether this run writes to its folder at all."""
        return self.every_seconds is not None or self.trainer.args.save_strategy != "no"

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Note SIGTERM instead of dying of it, where there is a checkpoint to write."""
        self.saved_at, self.postponed = time.monotonic(), False
        if not self.saves or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)

    def _note(self, *_: Any) -> None:
        self.called = True

    # --- what Trainer calls -------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        settle_sums(self.trainer.model_wrapped)
        loader = kwargs.get("train_dataloader")
        light_order(loader)
        count_rows(loader)
        if loader is not None and getattr(loader, "num_workers", 0):
            loader.worker_init_fn = _Deaf(loader.worker_init_fn)
        if self.running is not None:
            self.trainer._tr_loss.fill_(self.running["loss"])
            self.trainer._globalstep_last_logged = int(self.running["logged"])
            self.running = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_evaluate:
            self.trainer.share_statistics()
        if state.global_step >= state.max_steps:
            control.should_save = False
        elif float(state.epoch).is_integer():  # the epoch's log and evaluation are to come
            self.postponed, control.should_save = control.should_save, False
        elif self._reason():
            control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.share_statistics()
        if state.global_step >= state.max_steps:
            control.should_save = False
        elif self._reason() or self.postponed or self._goes_back():
            control.should_save, self.postponed = True, False

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any
    ) -> None:
        if not self.trainer.is_in_train or self.trainer.phase is None:
            return
        if self.judge(metrics, state):
            control.should_training_stop = True
        if control.should_training_stop or state.global_step >= state.max_steps:
            control.should_save = False
        elif not control.should_save and self._reason() == CALLED:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved_at = time.monotonic()
        if self.leaving:
            self.leave(f"saved checkpoint-{state.global_step} of {args.output_dir}")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        for key in ("loss", "grad_norm"):
            value = (logs or {}).get(key)
            if value is not None and not math.isfinite(value) and not (key != "loss" and args.fp16):
                self.diverged("loss" if key == "loss" else "gradient", value)
        first = next((row["loss"] for row in state.log_history if "loss" in row), None)
        if first is not None and (logs or {}).get("loss", 0.0) > EXPLODED * max(first, 1.0):
            self.diverged("loss", logs["loss"])

    # --- decisions ----------------------------------------------------------------------------

    def judge(self, metrics: dict[str, Any], state: Any) -> bool:
        """Keep the weights if this evaluation is the best of the phase; return whether to stop."""
        trainer, phase = self.trainer, self.trainer.phase
        best, stop = phase.spec.best, phase.spec.stop
        if not isinstance(trainer.eval_dataset, dict):
            for metric in {best, stop.metric if stop else "last"} - {"last"}:
                check_metric(metric, metrics, phase.name)
        values = metric_values(best, state.log_history)
        if values and stopping.best_index(best, values) == len(values) - 1:
            trainer.keep_best()
        if stop is None:
            return False
        values = metric_values(stop.metric, state.log_history)
        return stopping.should_stop(stop.metric, values, stop.patience, stop.min_change)

    def _reason(self) -> int:
        """Return why to save now, if at all; the same in all processes."""
        due = self.every_seconds is not None and (
            time.monotonic() - self.saved_at >= self.every_seconds
        )
        reason = CALLED if self.called else DUE if due and self.trainer.processes.main else 0
        reason = self.trainer.processes.most(reason) if self.saves else 0
        self.leaving = self.leaving or reason == CALLED
        return reason

    def _goes_back(self) -> bool:
        return self.saves and self.trainer.phase.spec.on_nan == "rollback"

    def check_finite(self) -> None:
        """Raise DivergedError, in all processes, unless the loss since the last log, what trains
        and the optimizer's state are finite."""
        trainer = self.trainer
        states = trainer.optimizer.state.values()
        numbers = {
            "loss": [trainer._tr_loss],
            "largest weight": [p for p in trainer.model.parameters() if p.requires_grad],
            "optimizer's state": [v for state in states for v in state.values()],
        }
        for what, values in numbers.items():
            if trainer.processes.most(int(not all(map(_finite, values)))):
                self.diverged(what, "not finite")

    def good(self) -> bool:
        """Return whether a phase that diverges later may go back to where it is now: to the end of
        an epoch, as the clock has no part in where those are, with a loss not above the first."""
        state = self.trainer.state
        losses = [row["loss"] for row in state.log_history if "loss" in row]
        return float(state.epoch).is_integer() and losses[-1:] <= losses[:1]

    def diverged(self, what: str, value: float | str) -> None:
        """Raise DivergedError with the place in the run."""
        trainer, state = self.trainer, self.trainer.state
        phase, step = trainer.phase, state.global_step
        raise DivergedError(
            f"phase {phase.name}, epoch {math.ceil(state.epoch or 0)}, by step {step}: the {what} "
            f"is {value}; lower the rate (lr: {phase.spec.lr / 10:g}) or look for bad images"
        )

    def leave(self, done: str) -> None:
        """End the process as SIGTERM asked, saying where it stands."""
        if self.trainer.processes.main:
            logger.warning(
                "stopped by SIGTERM in phase %s; %s; --resume goes on from there",
                self.trainer.phase.name,
                done,
            )
        raise SystemExit(STOPPED)

    def left(self) -> bool:
        """Return whether any process was called to stop; all of them call this together."""
        return self.saves and bool(self.trainer.processes.most(int(self.called or self.leaving)))


class _Deaf:
    """Makes a worker ignore SIGTERM, which often comes to all processes of a job at once: the
    training process needs its workers until the checkpoint is written, and ends them itself."""

    def __init__(self, start: Any) -> None:
        self.start = start

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self.start is not None:
            self.start(worker)
