"""A phase whose loss is no number any more: begun again where it started, at lower rates.

What is good for certain are the weights that the phase started from; a checkpoint within it may
already be on the way out. How often it was begun again is kept in its folder, so that resuming
goes on at the rates that it came to.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from hf_transfer.phases import Phase
from hf_transfer.report import write_text

FACTOR = 10.0  # by which all rates of the phase are lower each time
TIMES = 3  # that a phase is begun again at most
NOTE = "rollbacks.json"


def slowed(phase: Phase, times: int) -> Phase:
    """Return a phase with all its rates divided by FACTOR as often as it was begun again."""
    if not times:
        return phase
    spec, scale = phase.spec, FACTOR**-times
    pair = spec.lr_geometric
    slower = dataclasses.replace(
        spec,
        lr=spec.lr * scale,
        lrs=tuple((selector, rate * scale) for selector, rate in spec.lrs),
        lr_geometric=None if pair is None else (pair[0] * scale, pair[1] * scale),
    )
    return dataclasses.replace(phase, spec=slower)


def times_of(folder: Path) -> int:
    """Return how often the phase of a folder was begun again."""
    try:
        return int(json.loads((folder / NOTE).read_text(encoding="utf-8"))["times"])
    except FileNotFoundError:
        return 0


def note(folder: Path, times: int) -> None:
    """Keep how often the phase of a folder was begun again; 0 forgets what was kept before."""
    if times:
        write_text(folder / NOTE, json.dumps({"times": times}) + "\n")
    else:
        (folder / NOTE).unlink(missing_ok=True)


def rolled_back(error: Exception, phase: Phase) -> str:
    """Return what to say of a phase that is begun again."""
    said = str(error).partition(";")[0]
    return (
        f"{said}; the phase begins again from the weights it started with, at {1 / FACTOR:g} of "
        f"its rates (lr: {phase.spec.lr / FACTOR:g})"
    )
