"""Trainings: one process each, a queue in which everyone knows their place, and a stop that works.

Each is a fork of one process that has imported everything. It ends with its visitor or with this
server.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from hf_transfer.base.files import write_text
from hf_transfer.space.limits import Limits, Refused
from hf_transfer.space.nursery import ASKED, EVENTS

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.2
END_SECONDS = 10.0  # within which a killed process is gone
SWEEP_SECONDS = 15.0
ENDED = ("done", "stopped", "failed")


@dataclass
class Job:
    """One training: what is asked (plain JSON values), in a folder, and what became of it.

    `events` are what the process told so far, in order.
    """

    asked: dict[str, Any]
    folder: Path
    state: str = "waiting"  # running, then one of ENDED
    why: str = ""  # it ended so
    events: list[dict[str, Any]] = field(default_factory=list)
    leased: bool = True  # whether it stops when nobody reads its progress
    advice: str = ""  # what advice saw before it, as HTML
    created: float = field(default_factory=time.monotonic)
    started: float = 0.0
    ended: float = 0.0
    read: float = field(default_factory=time.monotonic)  # when somebody last asked for progress
    has_begun: bool = False
    process: psutil.Process | None = None  # of one that has begun; None: it ended at once
    _told: int = 0  # bytes of the events that were read

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.state in ENDED

    def stop(self, why: str = "stopped") -> None:
        """Ask for the end; the queue ends the process within a moment."""
        if not self.is_over:
            self.why = self.why or why
            if self.state == "waiting":
                self.end("stopped")

    def end(self, state: str) -> None:
        """Note how it ended."""
        self.state, self.ended = state, time.monotonic()

    def collect(self) -> None:
        """Read what the process told since the last time."""
        with contextlib.suppress(OSError), (self.folder / EVENTS).open("rb") as file:
            file.seek(self._told)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._told += len(line)
                event = json.loads(line)
                if event["kind"] == "began":
                    self._began(event["pid"])
                else:
                    self.events.append(event)

    def _began(self, pid: int) -> None:
        self.has_begun = True
        with contextlib.suppress(psutil.NoSuchProcess):
            self.process = psutil.Process(pid)


class Jobs:
    """The queue; a thread of it starts, watches and ends the processes."""

    def __init__(self, limits: Limits, log: Path) -> None:
        self.limits, self.log = limits, log
        self._waiting: list[Job] = []
        self._running: list[Job] = []
        self._nursery: subprocess.Popen[bytes] | None = None
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self.every: Callable[[], None] = lambda: None  # called now and then by the thread
        self._thread = threading.Thread(target=self._watch, name="trainings", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> Job:
        """Put a training into the queue. Raises Refused where the queue is full."""
        with self._lock:
            waiting = [one for one in self._waiting if not one.is_over]
            if len(waiting) >= self.limits.waiting:
                raise Refused(
                    f"{len(waiting)} trainings are waiting, the most that this page queues. Try "
                    "again in a few minutes."
                )
            job.folder.mkdir(parents=True, exist_ok=True)
            write_text(job.folder / ASKED, json.dumps(job.asked))
            self._waiting.append(job)
            return job

    def place(self, job: Job) -> int:
        """Return how many trainings come before this one; 0: it is next, or runs."""
        with self._lock:
            waiting = [one for one in self._waiting if not one.is_over]
            if job not in waiting:
                return 0
            return waiting.index(job) + len(self._running)

    @property
    def processes(self) -> list[int]:
        """The processes that train now."""
        with self._lock:
            return [job.process.pid for job in self._running if job.process is not None]

    def warm_up(self) -> None:
        """Start the process that trainings are forks of, where it does not run yet."""
        with self._lock:
            if not self._is_warm():
                self._end_nursery()
                self._nursery = self._process()

    def close(self) -> None:
        """End all processes."""
        self._closed.set()
        self._thread.join(10)
        with self._lock:
            self._end_nursery()
            for job in self._running:
                self._take_back(job)
                job.end("stopped")
            self._running.clear()

    def _is_warm(self) -> bool:
        return self._nursery is not None and self._nursery.poll() is None

    def _end_nursery(self) -> None:
        if self._nursery is not None:
            self._nursery.kill()
            self._nursery.communicate()

    def _process(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "hf_transfer.space.worker"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=_environment(),
                start_new_session=True,
            )

    def _watch(self) -> None:
        swept = time.monotonic()
        while not self._closed.wait(TICK_SECONDS):
            with self._lock:
                for job in list(self._running):
                    self._look(job)
                self._waiting = [job for job in self._waiting if not job.is_over]
                for job in self._waiting:
                    if job.leased and self._is_forgotten(job):
                        job.stop("nobody waited for it")
                if self._waiting and self._has_room():
                    self._start(self._waiting.pop(0))
            if time.monotonic() - swept > SWEEP_SECONDS:
                swept = time.monotonic()
                self.every()

    def _has_room(self) -> bool:
        begun = all(job.has_begun for job in self._running)
        return begun and len(self._running) < self.limits.trainings

    def _start(self, job: Job) -> None:
        if job.is_over:
            return
        self.warm_up()
        job.state, job.started = "running", time.monotonic()
        assert self._nursery is not None
        assert self._nursery.stdin is not None
        with contextlib.suppress(OSError):  # it has died this moment, which is seen
            self._nursery.stdin.write(f"{job.folder}\n".encode())
            self._nursery.stdin.flush()
        self._running.append(job)

    def _look(self, job: Job) -> None:
        """End a process that is done, or that must not go on."""
        over = not is_alive(job.process) if job.has_begun else not self._is_warm()
        job.collect()
        if not over and not job.why:
            if time.monotonic() - job.started > self.limits.training_seconds:
                job.why = f"it took longer than {self.limits.training_seconds:g} seconds"
            elif job.leased and self._is_forgotten(job):
                job.why = "nobody read its progress"
        if over or job.why:
            self._take_back(job)
            self._running.remove(job)
            last = job.events[-1] if job.events else {}
            if last.get("kind") == "done":
                job.end("done")
            elif last.get("kind") == "failed":
                job.why = last["why"]
                job.end("failed")
            else:
                stopped = bool(job.why)
                job.why = job.why or "its process ended early; perhaps memory ran out"
                job.end("stopped" if stopped else "failed")
            logger.info("a training ended: %s %s", job.state, job.why)

    def _take_back(self, job: Job) -> None:
        """End a training, whether it has begun or not."""
        if not job.has_begun:
            (job.folder / ASKED).unlink(missing_ok=True)  # it never will, unless it just has
            job.collect()
        if job.process is not None:
            end_process(job.process)
            job.collect()

    def _is_forgotten(self, job: Job) -> bool:
        return time.monotonic() - job.read > self.limits.lease_seconds


def is_alive(process: psutil.Process | None) -> bool:
    """Return whether a process goes on."""
    if process is None:
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def end_process(process: psutil.Process) -> None:
    """Kill a process with all that it started, and wait for its end."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        elif is_alive(process):
            process.kill()
    until = time.monotonic() + END_SECONDS
    while is_alive(process) and time.monotonic() < until:
        time.sleep(0.01)


def _environment() -> dict[str, str]:
    """Return this process's environment without its secrets: a training needs none."""
    secret = ("TOKEN", "SECRET", "PASSWORD", "API_KEY")
    return {name: v for name, v in os.environ.items() if not any(w in name for w in secret)}


def events_of(job: Job, kind: str) -> Iterator[dict[str, Any]]:
    """Yield what a training told of one kind."""
    return (event for event in list(job.events) if event["kind"] == kind)
