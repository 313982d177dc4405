"""Failures of a run in one line: what died, ran out or is missing, and what to do."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hf_transfer.base import launch
from hf_transfer.base.errors import UserError
from hf_transfer.base.processes import Processes
from hf_transfer.planning.phase import Phase

# What gloo and torch say when another process does not answer any more.
LOST = re.compile(
    r"Connection (closed|reset|refused)|Timed out waiting|timed out|pair closure|Broken pipe|"
    r"No route to host|Read error|Write error|recvValue failed|wait timeout",
    re.IGNORECASE,
)
NO_MEMORY = re.compile(r"out of memory|can't allocate memory|Cannot allocate memory", re.IGNORECASE)
IN_WORKER = re.compile(r"Caught \w+ in DataLoader worker process")
BEYOND = re.compile(r"Target (\d+) is out of bounds")
ALONE = re.compile(r"Expected more than 1 value per channel when training")  # F.batch_norm
MISSING = re.compile(r"No such file or directory: '([^']*)'")


class LostError(UserError):
    """Another process of the run no longer answers."""


@contextmanager
def told() -> Iterator[None]:
    """Raise as UserError, by in_one_line, what fails around the phases: loading, measuring."""
    try:
        yield
    except RuntimeError as error:
        known = in_one_line(error, None, Processes(launch.count(), launch.rank()))
        if known is None:
            raise
        raise known from error


def in_one_line(error: BaseException, phase: Phase | None, here: Processes) -> UserError | None:
    """Return the line that a user should read about an error in a run; None if it is a defect."""
    text = str(error)
    if isinstance(error, UserError):  # torch puts a worker's traceback before what it said
        line = text.strip().splitlines()[-1].partition("Error: ")[2]
        return UserError(line) if IN_WORKER.match(text) and line else None
    place = f"phase {phase.name}" if phase else "the run"
    if phase and (isinstance(error, torch.OutOfMemoryError) or NO_MEMORY.search(text)):
        return UserError(f"{place}: {_no_memory(phase, here)}")
    if isinstance(error, IndexError) and (beyond := BEYOND.search(text)):
        return UserError(
            f"{place}: an image has the label {beyond[1]}, and the model has no output for it; "
            "labels are the places of the outputs, from 0 on"
        )
    if phase and ALONE.search(text):
        return UserError(
            f"{place}: a batch of one image has no batch statistics; choose a batch_size above 1 "
            "that does not leave a last batch of one image"
        )
    missing = MISSING.search(text)
    if missing or (isinstance(error, OSError) and error.errno == errno.ENOENT):
        name = missing[1] if missing else error.filename
        gone = os.path.dirname(name or "") or name
        return UserError(
            f"{place}: {name} is not there any more; bring {gone} back, then add --resume"
        )
    if isinstance(error, RuntimeError) and "DataLoader worker" in text:
        line = text.splitlines()[0].rstrip(". ")
        return UserError(
            f"{place}: a data worker died ({line}); where memory is short take fewer workers, or "
            "none (workers: 0)"
        )
    if here.count > 1 and isinstance(error, RuntimeError) and LOST.search(text):
        line = re.sub(r"^\[[^]]*\]\s*", "", text.splitlines()[0]).rstrip(". ")
        return LostError(
            f"{place}: {_others(here)} does not answer any more ({line}); see its own last lines, "
            "then start all processes again with --resume"
        )
    return None


def _no_memory(phase: Phase, here: Processes) -> str:
    spec = phase.spec
    who = f"process {here.rank} is out of memory" if here.count > 1 else "out of memory"
    if spec.batch_size == 1:
        return f"{who} with one image at a time; take smaller images or a smaller backbone"
    half, twice = -(-spec.batch_size // 2), 2 * spec.accumulate
    return (
        f"{who} at batch_size: {spec.batch_size}; batch_size: {half} with accumulate: {twice} "
        "trains the same with about half of it"
    )


def _others(here: Processes) -> str:
    """Return which processes it may be, by their machines where there are several."""
    mine = here.hosts[here.rank] if here.hosts else ""
    hosts = sorted(set(here.hosts) - {mine})
    if len(hosts) == 1:
        return f"machine {hosts[0]}"
    if hosts:
        return f"one of the machines {', '.join(hosts)}"
    ranks = [str(rank) for rank in range(here.count) if rank != here.rank]
    return f"process {ranks[0]}" if len(ranks) == 1 else f"one of the processes {', '.join(ranks)}"
