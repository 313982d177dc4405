"""A phase whose loss is no longer a number goes back to its last good checkpoint, at lower rates.

Good is the end of an epoch at which the weights, the optimizer and the loss were finite, and the
loss not above the first that was logged. If the phase diverges again before there is another, it
continues from the one before; without any, from the weights that it started with. The steps that it
went back to are stored in its folder before anything is removed: so a run that is killed and
resumed goes back to where an uninterrupted one does.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_transfer.base.boundary import untrusted
from hf_transfer.base.files import read_limited, write_text
from hf_transfer.base.processes import Processes
from hf_transfer.planning.phase import Phase
from hf_transfer.training.recovery import checkpoints

FACTOR = 10.0  # by which all rates of the phase are lower each time
TIMES = 3  # that a phase goes back at most
NOTE = "rollbacks.json"


def went_back_to(folder: Path) -> tuple[int, ...]:
    """Return the steps that the phase of a folder went back to so far; 0 is its start."""
    try:
        text = read_limited(folder / NOTE)
    except FileNotFoundError:
        return ()
    with untrusted(str(folder / NOTE), "remove it to begin the phase again"):
        return tuple(map(int, json.loads(text)["went back to"]))


def begin_anew(folder: Path, rollbacks: int) -> None:
    """Remove what an earlier run left in the folder of a phase that begins from its start."""
    checkpoints.drop(folder, end=True)
    if not rollbacks:
        (folder / NOTE).unlink(missing_ok=True)


def last_good(folder: Path, past: Sequence[int], saves: bool, processes: Processes) -> int:
    """Return the step that a phase goes back to now; 0 is its start."""
    step = 0
    if saves and processes.main:
        good = (each.about["step"] for each in checkpoints.whole(folder) if each.about.get("good"))
        step = next((each for each in good if each not in past[-1:]), 0)
    return int(processes.all(step)[0])


def note(folder: Path, past: Sequence[int]) -> None:
    """Store the steps that a phase went back to so far."""
    write_text(folder / NOTE, json.dumps({"went back to": past}) + "\n")


def forget(folder: Path, past: Sequence[int]) -> None:
    """Remove the checkpoints from which a phase went back; repeated if it was killed meanwhile."""
    if past:
        said = {path: checkpoints.about_of(path) for path in checkpoints.numbered(folder)}
        left = [
            path
            for path, about in said.items()
            if about and about["step"] > past[-1] and about["rollbacks"] < len(past)
        ]
        checkpoints.remove(folder, left)


def slowed(phase: Phase, times: int) -> Phase:
    """Return a phase with all its rates divided by FACTOR as often as it went back."""
    if not times:
        return phase
    return dataclasses.replace(phase, spec=phase.spec.scaled(FACTOR**-times))


def slow_down(optimizer: Any, scheduler: Any, times: int) -> None:
    """Divide the rates that come from a checkpoint, once for each rollback since."""
    scale = FACTOR**-times
    for group in optimizer.param_groups:
        group.update({key: group[key] * scale for key in ("lr", "initial_lr") if key in group})
    for rates in ("base_lrs", "_last_lr"):
        if hasattr(scheduler, rates):
            setattr(scheduler, rates, [rate * scale for rate in getattr(scheduler, rates)])


def said(error: Exception, phase: Phase, step: int) -> str:
    """Return the line about a phase that goes back."""
    what = str(error).partition(";")[0]
    to = f"goes on from step {step}" if step else "begins again from the weights it started with"
    rate = phase.spec.head_lr / FACTOR
    return f"{what}; the phase {to}, at {1 / FACTOR:g} of its rates (lr: {rate:g})"
