"""When a phase is saved: as time passes, and when SIGTERM or Ctrl-C asks for the end."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from hf_transfer.base.processes import Processes
from hf_transfer.planning.phase import Phase

logger = logging.getLogger(__name__)

STOPPED = 143  # exit status of a process that SIGTERM ended
DUE, CALLED, INTERRUPTED = 1, 2, 3  # reasons to save: time has passed, SIGTERM or Ctrl-C came
SIGNALS = {signal.SIGTERM: CALLED, signal.SIGINT: INTERRUPTED}
NAMES = {CALLED: "SIGTERM", INTERRUPTED: "Ctrl-C"}


class Interruption(TrainerCallback):
    """Requests checkpoints, and ends the process after SIGTERM or Ctrl-C; one for all phases.

    A second Ctrl-C, or one while no steps are taken, ends the process at once.

    No checkpoint is requested between the last step of an epoch and its evaluation, nor at the end
    of a phase: so training that resumes from it sees what an uninterrupted one sees.
    """

    def __init__(
        self, every_seconds: float | None, args: TrainingArguments, processes: Processes
    ) -> None:
        self.every_seconds, self.args, self.processes = every_seconds, args, processes
        self.phase: Phase | None = None
        self.saved_at = time.monotonic()
        self.called = 0  # SIGTERM (CALLED) or Ctrl-C (INTERRUPTED) has come to this process
        self.leaving = 0  # and all processes know it
        self.stepping = False  # steps are taken, and a checkpoint can be written soon
        self.postponed = False  # a checkpoint that was asked for at the last step of an epoch

    @property
    def saves(self) -> bool:
        """Whether this run writes to its folder at all."""
        return self.every_seconds is not None or self.args.save_strategy != "no"

    @contextlib.contextmanager
    def listening(self, phase: Phase) -> Iterator[None]:
        """Record a signal instead of ending, if there is a checkpoint to write first."""
        self.phase, self.saved_at, self.postponed = phase, time.monotonic(), False
        if not self.saves or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        except KeyboardInterrupt:
            self.called = self.leaving = 0  # it was heard; the next train() begins anew
            raise
        finally:
            self.stepping = False
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)

    def _note(self, number: int, *_: Any) -> None:
        again = self.called == INTERRUPTED
        self.called = max(self.called, SIGNALS[signal.Signals(number)])  # also where raising fails
        if number == signal.SIGINT:
            if not self.stepping or again:
                raise KeyboardInterrupt  # which Python drops inside a __del__ or a weak reference
            if self.processes.main:
                logger.warning("saving; press Ctrl-C again to stop at once")

    # --- what Trainer calls -------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the workers leave signals to this process."""
        self.stepping = True
        loader = kwargs.get("train_dataloader")
        if loader is not None and getattr(loader, "num_workers", None):
            loader.worker_init_fn = _Deaf(loader.worker_init_fn)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Request a checkpoint, unless one follows later in this epoch."""
        if state.global_step >= state.max_steps:
            control.should_save = False
        elif float(state.epoch).is_integer():  # the epoch's log and evaluation are to come
            self.postponed, control.should_save = control.should_save, False
        elif self._reason():
            control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Request a checkpoint at the end of the epoch."""
        if state.global_step >= state.max_steps:
            control.should_save = False
        elif self._reason() or self.postponed or self._goes_back():
            control.should_save, self.postponed = True, False

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Request a checkpoint if a signal came during the evaluation."""
        if control.should_training_stop or state.global_step >= state.max_steps:
            control.should_save = False
        elif not control.should_save and self._reason() >= CALLED:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the process, if the checkpoint was written for that."""
        self.saved_at = time.monotonic()
        if self.leaving:
            self.leave(f"saved checkpoint-{state.global_step} of {args.output_dir}")

    # --- decisions ----------------------------------------------------------------------------

    def _reason(self) -> int:
        """Return why to save now, if at all; the same in all processes."""
        due = self.every_seconds is not None and (
            time.monotonic() - self.saved_at >= self.every_seconds
        )
        reason = self.called or (DUE if due and self.processes.main else 0)
        reason = self.processes.most(reason) if self.saves else 0
        if reason >= CALLED:
            self.leaving = max(self.leaving, reason)
        return reason

    def _goes_back(self) -> bool:
        return self.saves and self.phase is not None and self.phase.spec.on_nan == "rollback"

    def leave(self, done: str) -> None:
        """End the process as the signal asked, and say what was saved.

        Raises KeyboardInterrupt after Ctrl-C, SystemExit after SIGTERM.
        """
        why = max(self.leaving, self.called)
        if self.processes.main and self.phase is not None:
            logger.warning(
                "stopped by %s in phase %s; %s; --resume continues from there",
                NAMES[why],
                self.phase.name,
                done,
            )
        if why == INTERRUPTED:
            raise KeyboardInterrupt
        raise SystemExit(STOPPED)

    def left(self) -> bool:
        """Return whether any process was told to stop; all processes call this together."""
        self.leaving = self.processes.most(max(self.called, self.leaving)) if self.saves else 0
        return self.leaving > 0


class _Deaf:
    """Makes a worker ignore signals, which often go to all processes of a job at once: the training
    process needs its workers until the checkpoint is written, and then ends them itself."""

    def __init__(self, start: Any) -> None:
        self.start = start

    def __call__(self, worker: int) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if self.start is not None:
            self.start(worker)
