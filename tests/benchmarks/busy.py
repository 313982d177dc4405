"""How a busy machine slows the quickstart: quiet, and with one core taken by another process.

    python tests/benchmarks/busy.py [--rounds 3] [--recipe quickstart] [--cores 2]

Both run in turns, in the same minutes, on the same cores; a round's ratio is that of its two runs,
and the last line is the median and the range of the ratios. The bar is 2.2. What else computes on
these cores before each run is measured and shown: it should be near 0, or the figures say nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

BAR = 2.2
BUSY = "while True: pass"
LOOK_SECONDS = 2.0


@dataclass(frozen=True)
class Run:
    """One run of the recipe: seconds by the clock and of processors, threads, switches."""

    wall: float
    user: float
    system: float
    waited: int  # context switches because a thread waited
    preempted: int  # because another was to run
    others: float  # cores that others computed on just before

    def __str__(self) -> str:
        return (
            f"{self.wall:6.1f} s, {self.user:6.1f} s user, {self.system:5.1f} s system, "
            f"{self.waited:,} waits, {self.preempted:,} preempted, others {self.others:.2f} cores"
        )


def taken(cores: list[int]) -> float:
    """Return how many of the cores others compute on now; NaN where the system does not say."""

    def look() -> tuple[float, float]:
        lines = Path("/proc/stat").read_text().splitlines()
        rows = [line.split() for line in lines if line.split()[0] in {f"cpu{c}" for c in cores}]
        values = [[int(value) for value in row[1:9]] for row in rows]
        return sum(map(sum, values)), sum(sum(row[3:5]) for row in values)

    if not Path("/proc/stat").exists():
        return float("nan")
    before = look()
    time.sleep(LOOK_SECONDS)
    total, idle = (after - first for after, first in zip(look(), before, strict=True))
    return len(cores) * (1 - idle / total) if total else float("nan")


def train(recipe: str, cores: list[int]) -> Run:
    """Run the recipe as a user does, on these cores."""
    others = taken(cores)
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "HF_TRANSFER_CACHE": f"{folder}/cache"}
        environment.pop("OMP_NUM_THREADS", None)  # the number of threads is what is tried
        command = [sys.executable, "-m", "hf_transfer", "train", recipe, "--out", f"{folder}/run"]
        began = time.perf_counter()
        child = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        error = child.stderr.read() if child.stderr else ""
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - began
    if child.returncode:
        sys.exit(f"{' '.join(command)} ended with {child.returncode}: {error.strip()[-500:]}")
    return Run(wall, used.ru_utime, used.ru_stime, used.ru_nvcsw, used.ru_nivcsw, others)


def busy(recipe: str, cores: list[int], pinned: bool) -> Run:
    """Run the recipe beside a process that computes without end."""
    other = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        if pinned:
            os.sched_setaffinity(other.pid, {cores[-1]})
        return train(recipe, cores)
    finally:
        other.kill()
        other.wait()


def main() -> int:
    """Print a line a run and the ratios; return 1 if their median is above the bar."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--cores", type=int, default=2, help="that this benchmark keeps to")
    parser.add_argument("--pinned", action="store_true", help="hold the other on the last core")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[: options.cores]
    os.sched_setaffinity(0, cores)  # of children, too
    print(f"{options.recipe} on {len(cores)} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    ratios = []
    for number in range(options.rounds):
        quiet = train(options.recipe, cores)
        print(f"round {number + 1}, quiet: {quiet}", flush=True)
        beside = busy(options.recipe, cores, options.pinned)
        print(f"round {number + 1}, busy:  {beside}", flush=True)
        ratios.append(beside.wall / quiet.wall)
        print(f"round {number + 1}, ratio: {ratios[-1]:.2f}", flush=True)
    middle = statistics.median(ratios)
    print(f"ratio {middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f}), bar {BAR}")
    return int(middle > BAR)


if __name__ == "__main__":
    sys.exit(main())
