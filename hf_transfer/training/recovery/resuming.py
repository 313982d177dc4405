"""Where an interrupted run continues: its finished phases, and the one in progress."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerState

from hf_transfer.base.errors import UserError
from hf_transfer.base.locks import only_writer
from hf_transfer.base.processes import Processes
from hf_transfer.planning.phase import Phase
from hf_transfer.results.report import PhaseReport
from hf_transfer.training.machine import sharding
from hf_transfer.training.phase_state import PhaseState
from hf_transfer.training.recovery import checkpoints, divergence, rollback
from hf_transfer.training.recovery.checkpoints import Checkpoint, CheckpointError
from hf_transfer.training.seam import Seam

logger = logging.getLogger(__name__)

DIGESTS = {  # records that say nothing to a reader, and what it means that they differ
    "backbone": "other weights of the backbone",
    "training images": "other training images or labels",
    "validation images": "other validation images or labels",
}


def about_phase(phase: Phase, start: str, run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint of a phase records: the phase, the weights that it starts from
    (`start`, a digest), and the facts of the whole run."""
    plain = json.loads(json.dumps(phase.to_dict()))
    return {**run, "phase": plain, "start": start}


def finished(folder: Path, model: nn.Module, about: Mapping[str, Any]) -> PhaseReport | None:
    """Load the end of a phase into the model and return its report; None where it is not done."""
    found = checkpoints.read_phase(folder)
    if found is None or not _continues(found[0], about):
        return None
    checkpoints.load_weights(model, found[0].folder)
    return found[1]


def check_shared(folder: Path, found: bool, processes: Processes) -> None:
    """Raise CheckpointError unless all processes found the same in a phase's folder, or nothing."""
    everyone = processes.all(found)
    if len(set(everyone)) > 1:
        blind = [i for i, one in enumerate(everyone) if not one]
        names = sorted({processes.hosts[i] for i in blind}) if processes.hosts else []
        raise CheckpointError(
            f"{folder} is not the same for all processes: on {', '.join(names) or blind} it lacks "
            "what others find; --out must be a folder that all machines share"
        )


def interrupted(folder: Path, about: Mapping[str, Any], processes: Processes) -> Checkpoint | None:
    """Return the newest complete checkpoint of a phase, or None if the phase starts over.

    Raises CheckpointError if it belongs to another run, or to another number of processes.
    """
    checkpoint = checkpoints.newest(folder)
    check_shared(folder, checkpoint is not None, processes)
    if checkpoint is None or not _continues(checkpoint, about):
        return None
    there, here = checkpoint.about["processes"], processes.count
    if there != here:
        raise CheckpointError(
            f"{checkpoint.folder} was written by {there} processes and this is a run of {here}; "
            f"start {there}, or remove {folder} to begin this phase again"
        )
    logger.info("going on from %s", checkpoint.folder)
    return checkpoint


@contextmanager
def alone(folder: Path, processes: Processes, saves: bool) -> Iterator[None]:
    """Keep other runs from writing to the folder of a phase, if this one `saves` anything.

    Raises UserError, in all processes, that says who is writing there.
    """
    with ExitStack() as stack:
        problem: UserError | None = None
        if saves and processes.main:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(only_writer(folder))
            except UserError as error:
                problem = error
        if processes.most(int(problem is not None)):
            raise problem or UserError(f"{folder} is in use by another run")
        yield


def take_up(state: PhaseState, processes: Processes) -> Checkpoint | None:
    """Return the checkpoint that a phase continues from, or None where it starts over.

    The best weights so far and the loss since the last log are restored.
    """
    checkpoint = interrupted(state.folder, state.about, processes)
    if checkpoint is not None:
        state.best = checkpoints.load_best(checkpoint.folder, state.args.device)
        loss = checkpoint.folder / f"loss_{processes.rank}.json"
        state.running = json.loads(loss.read_text())
        state.slower = state.rollbacks - checkpoint.about["rollbacks"]
    return checkpoint


def save_optimizer(trainer: Seam, folder: str, own: Callable[[str], None]) -> None:
    """Save optimizer and schedule by Trainer's `own` way; where they are sharded, in parts."""
    if trainer.sharded:
        place, here = Path(folder), trainer.processes
        sharding.save_optimizer(trainer.optimizer, trainer.lr_scheduler, place, here)
    else:
        own(folder)


def load_optimizer(trainer: Seam, checkpoint: str | None, own: Callable[[str], None]) -> None:
    """Load both, with the rates that the phase has after its rollbacks."""
    if checkpoint is None:
        return
    optimizer, scheduler = trainer.optimizer, trainer.lr_scheduler
    if trainer.sharded:
        sharding.load_optimizer(optimizer, scheduler, Path(checkpoint), trainer.processes)
    else:
        own(checkpoint)
    if trainer.now and trainer.now.slower:
        rollback.slow_down(optimizer, scheduler, trainer.now.slower)


def keep(
    state: PhaseState,
    done: TrainerState,
    running: Mapping[str, float],
    processes: Processes,
    save: Callable[[], None],
) -> None:
    """Write a checkpoint within a phase: what Trainer's own `save` writes, and what it forgets, as
    the loss since the last log (`running`). `done` is Trainer's own state."""
    args, place, step = state.args, state.folder, done.global_step
    about = {
        **state.about,
        "processes": processes.count,
        "seconds": time.monotonic() - state.began,
        "step": step,
        "rollbacks": state.rollbacks,
        "good": divergence.good(done),
    }

    def fill(aside: Path) -> None:
        args.output_dir = str(aside.parent)
        save()
        (aside / f"loss_{processes.rank}.json").write_text(json.dumps(running))
        if state.best is not None:
            best = sharding.whole(state.best, processes.main)
            if processes.main:
                checkpoints.save_tensors(best, aside / checkpoints.BEST)

    state.saving = True
    try:
        checkpoints.write(place, f"checkpoint-{step}", fill, about, processes)
    finally:
        args.output_dir, state.saving = str(place), False
    limit = args.save_total_limit if args.save_strategy != "no" else checkpoints.KEPT
    if processes.main and limit:
        again = state.phase.spec.on_nan == "rollback"
        checkpoints.drop(place, keep=limit, good=checkpoints.KEPT if again else 0)


def _continues(checkpoint: Checkpoint, about: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint belongs to this run and starts from the present weights.

    The first phase may start from another head: the checkpoint holds the values that count. Raises
    CheckpointError, naming what differs, where it is of another run.
    """
    was = {key: checkpoint.about.get(key) for key in about}
    same_start = was["start"] == about["start"] or about["phase"]["index"] == 1
    differs = difference({**was, "start": None}, {**about, "start": None})
    if differs:
        raise CheckpointError(
            f"{checkpoint.folder} is of another run ({differs}); choose another folder"
        )
    if not same_start:
        logger.warning("%s is not used: the phase before it has changed", checkpoint.folder)
    return same_start


def difference(was: Mapping[str, Any], now: Mapping[str, Any], place: str = "") -> str | None:
    """Return the first thing that differs between two records, as `lr was 0.1, is 0.2`."""
    for key in [*now, *(key for key in was if key not in now)]:
        old, new = was.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found = difference(old, new, f"{place}{key}.")
            if found:
                return found
        elif old != new and key in DIGESTS and old and new:
            return DIGESTS[key]
        elif old != new:
            return f"{place}{key} was {_short(old)}, is {_short(new)}"
    return None


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
