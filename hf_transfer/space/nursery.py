"""One process that has imported everything, and each training a fork of it.

The imports take ten seconds of a core; a fork takes none of them, and shares their memory. Where a
process that has imported torch cannot be forked safely (macOS, Windows), each imports them.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONTEXT = (
    multiprocessing.get_context("fork")
    if sys.platform == "linux"
    else multiprocessing.get_context("spawn")
)
ASKED = "job.json"  # what is to be trained; a training that finds none was taken back
EVENTS = "events.jsonl"


class Told:
    """The file of a training that the server reads; one event a line."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / EVENTS

    def __call__(self, kind: str, **facts: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **facts}) + "\n")


def serve(work: Callable[[Path], None]) -> None:
    """Call `work` in a process for each folder that a line of standard input names.

    Each tells its number as `began` first. All of them end with whoever writes the lines.
    """
    gc.freeze()  # no training looks for garbage in what is imported: that would copy 100 MB of it
    while line := sys.stdin.readline():
        CONTEXT.Process(target=_begin, args=(Path(line.rstrip("\n")), work)).start()
    os._exit(0)  # at once, without waiting for those that train


def _begin(folder: Path, work: Callable[[Path], None]) -> None:
    if hasattr(os, "setsid"):
        os.setsid()  # killed with all that it starts
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asked = folder / ASKED
    if asked.is_file():
        Told(folder)("began", pid=os.getpid())
    if asked.is_file():  # still: whoever takes it back from here on knows the process to end
        work(folder)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
