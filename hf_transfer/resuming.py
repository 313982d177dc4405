"""Where a run that was interrupted goes on: its finished phases, and the one under way."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from hf_transfer import checkpoints
from hf_transfer.checkpoints import Checkpoint, CheckpointError
from hf_transfer.phases import Phase
from hf_transfer.processes import Processes
from hf_transfer.report import PhaseReport

logger = logging.getLogger(__name__)


def about_phase(phase: Phase, start: str, run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint of a phase says of itself: the phase, the weights that it starts
    from (`start`, a digest), and what holds for the whole run."""
    plain = json.loads(json.dumps(asdict(phase)))
    del plain["spec"]["place"]
    return {**run, "phase": plain, "start": start}


def finished(folder: Path, model: nn.Module, about: Mapping[str, Any]) -> PhaseReport | None:
    """Load the end of a phase into the model and return its report; None where it is not done."""
    found = checkpoints.read_phase(folder)
    if found is None or not _continues(found[0], about):
        return None
    checkpoints.load_weights(model, found[0].folder)
    return found[1]


def interrupted(folder: Path, about: Mapping[str, Any], processes: Processes) -> Checkpoint | None:
    """Return the newest whole checkpoint of a phase, None where it is to begin anew.

    Raises CheckpointError where it is of another run, or of another number of processes.
    """
    checkpoint = checkpoints.newest(folder)
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


def _continues(checkpoint: Checkpoint, about: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint is of this run and starts from the weights that there are.

    The first phase may start from another head: the values of its own are in the checkpoint.
    Raises CheckpointError, naming what differs, where it is of another run.
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
        elif old != new:
            return f"{place}{key} was {_short(old)}, is {_short(new)}"
    return None


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
