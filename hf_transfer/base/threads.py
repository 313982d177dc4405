"""How many threads compute: as many as there are cores free, and one where the work is small.

Threads that compute together wait for each other after every operation. On a core that is shared
with another process one of them is late each time, and the others wait for it by spinning: with one
of two cores taken, two threads take several times as long as one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# What a user or a launcher says of threads counts, and nothing here changes it.
ASKED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
# How long threads wait by spinning before they sleep: GNU's in turns, LLVM's in milliseconds, and
# one thread for numpy's own matrix products, which are small here. Read when torch is imported.
WAITING = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1", "OPENBLAS_NUM_THREADS": "1"}
SMALL_WORK = 2e7  # multiply-adds of a batch, below which waking a second thread costs more
LOOK_SECONDS = 0.25  # the shortest time over which what others compute is measured
PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Look:
    """The cores' time up to a moment, in seconds: all, idle, and this process's."""

    total: float
    idle: float
    own: float
    when: float


_first: Look | None = None
_fitted = False


def prepare() -> None:
    """Set how threads wait, and start watching other load; before torch is imported."""
    global _first
    if "OMP_WAIT_POLICY" not in os.environ:
        for name, value in WAITING.items():
            os.environ.setdefault(name, value)
    _first = _look()


@contextmanager
def fitting(count: int | None = None) -> Iterator[None]:
    """Until the block ends, compute with `count` threads, or with as many as there are free cores.

    Threads that OMP_NUM_THREADS or MKL_NUM_THREADS asks for are left as they are. The last bit of a
    sum depends on the number of threads: a resumed run takes the number that it began with.
    """
    global _fitted
    import torch

    before = torch.get_num_threads()
    if _fitted or (before == 1 and count is None) or any(name in os.environ for name in ASKED):
        yield
        return
    torch.set_num_threads(count or min(before, free_cores()))
    _fitted = True
    try:
        yield
    finally:
        _fitted = False
        torch.set_num_threads(before)


@contextmanager
def fitting_work(multiply_adds: float) -> Iterator[None]:
    """Compute with one thread if a batch has few multiply-adds; 0: not known."""
    import torch

    before = torch.get_num_threads()
    alone = 0 < multiply_adds < SMALL_WORK and before > 1
    if alone:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if alone:
            torch.set_num_threads(before)


def free_cores() -> int:
    """Return how many cores nobody else computes on, at least 1: of those that this process may
    use, since `prepare` was called or over a quarter of a second."""
    cores = allowed_cores()
    first, now = _first, _look()
    if first is None or now is None or now.when - first.when < LOOK_SECONDS:
        first = now
        time.sleep(LOOK_SECONDS)
        now = _look()
    if first is None or now is None or now.total <= first.total:  # not Linux, or /proc is masked
        others = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    else:
        others = (now.total - first.total) - (now.idle - first.idle) - (now.own - first.own)
        others *= len(_places()) / (now.total - first.total)
    found = min(cores, len(_places()) - others)
    return max(1, int(found + 0.5))


def allowed_cores() -> float:
    """Return how many cores this process may use: its affinity, within the limits of its control
    groups, of which containers are made."""
    return min([float(len(_places())), *_quotas()])


def _places() -> list[int]:
    """Return the indices of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _quotas() -> Iterator[float]:
    """Yield the limits of this process's control groups, in cores; of version 1 and of 2."""
    for folder in _groups():
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if not quota:
            quota = _text(folder / "cpu.cfs_quota_us")
            period = _text(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period):  # "max" or -1: no limit
            yield max(int(quota) / int(period), 0.01)


def _groups() -> Iterator[Path]:
    """Yield the folders that may hold a limit: this process's groups and all that they lie in."""
    mounts = [CGROUPS, CGROUPS / "cpu", CGROUPS / "cpu,cpuacct"]
    yield from mounts
    for line in _text(PROC / "self" / "cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers == "" or "cpu" in controllers.split(","):
            inner = Path(path.lstrip("/"))
            for place in (inner, *inner.parents):
                if place != Path():
                    yield from (mount / place for mount in mounts)


def _look() -> Look | None:
    """Return what the cores have done until now; None where the system does not say."""
    wanted = {f"cpu{number}" for number in _places()}
    lines = [line.split() for line in _text(PROC / "stat").splitlines()]
    each = [[int(value) for value in line[1:9]] for line in lines if line and line[0] in wanted]
    if not each:
        return None
    tick = os.sysconf("SC_CLK_TCK")
    idle = sum(sum(values[3:5]) for values in each)  # idle, or waiting for a disk
    own = sum(os.times()[:4])  # and of children that have ended
    return Look(sum(map(sum, each)) / tick, idle / tick, own, time.monotonic())


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
