"""How exact: every kind of schedule in 1, 2 and 4 processes, unbroken and killed again and again.

    python tests/benchmarks/exactness.py [--kinds NAME …] [--processes 1 2 4] [--kills 20]

Small networks on 22 images in memory. A row's first difference is that of several processes to one
with as many times their batch; its second that of the same processes killed (SIGKILL, all of them
or one) at random moments and resumed, to the unbroken ones: weights, metrics and history. For each
kill a phase is drawn, then a moment in what it takes: drawn from the whole run, nearly all would
fall into the first. After five kills, or where it ends before, a run begins anew. What is killed
has workers, a checkpoint at each step and features of its own; what is not has none of these. Exit
status 1 where a bar is not met.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from children import ended, free_port, start, train
from small import CONVNEXT, RESNET, VIT

TOGETHER = 1e-5  # relative difference of all weights that several processes may have to one
BATCH, IMAGES = 8, 22  # of all processes together; the last batch of an epoch has 6
KILLS_IN_A_RUN = 5
GRACE_SECONDS = 3.0  # in which processes end by themselves when another one was killed


@dataclass(frozen=True)
class Kind:
    """A schedule, and the network that it trains; `together` is its bar against one process."""

    phases: Sequence[dict[str, Any]]
    backbone: str = CONVNEXT
    together: float | None = TOGETHER
    options: dict[str, Any] = field(default_factory=dict)


HEAD = {"train": "head", "epochs": 2, "lr": 1e-2}
VARIED = {"augment": "light", "best": "last"}
SGD = {"optimizer": "sgd", "momentum": 0.9}
KINDS = {
    "lp_ft": Kind([HEAD, {"train": "all", "epochs": 2, "lr": 1e-3, "layer_decay": 0.75, **VARIED}]),
    "gradual": Kind([{"gradual": "2 stages", "epochs": 1, "lr": 2e-3, "lr_drop": 0.5, **VARIED}]),
    "discriminative": Kind(
        [{"train": "all", "epochs": 3, "lr": [1e-4, 1e-3], "cold_head": True, **VARIED}]
    ),
    "freeze_bottom": Kind(
        [HEAD, {"train": ["all", "not first 2 stages"], "epochs": 2, "lr": 1e-3, **VARIED}], VIT
    ),
    "feature_extraction": Kind(
        [{**HEAD, "epochs": 5, "best": "accuracy", "stop": {"patience": 2}}], VIT
    ),
    "feature_extraction_augmented": Kind([{**HEAD, **VARIED, "epochs": 4, "views": 2}]),
    "exact head": Kind([{"train": "head", "solve": "lbfgs"}, {**HEAD, "train": "last 1 stage"}]),
    "mixed images": Kind(
        [
            HEAD,
            {
                "train": "all", "epochs": 2, "lr": 1e-3, "mixup": 0.3, "label_smoothing": 0.1,
                "l2_sp": 0.1, "accumulate": 2, **VARIED,
            },
        ]
    ),
    # By AdamW a weight that only shifts what BatchNorm centres again, whose gradient is nothing but
    # rounding, moves as fast as any: 2e-4 in float32, 2e-14 in float64. By SGD it stays.
    "lp_ft, BatchNorm": Kind(
        [
            {**HEAD, **SGD},
            {"train": "all", "epochs": 2, "lr": 1e-2, **SGD, **VARIED},
        ],
        RESNET, options={"sync_batchnorm": True},
    ),
    # bf16 rounds what is near equal.
    "lp_ft, bf16": Kind(
        [HEAD, {"train": "all", "epochs": 2, "lr": 1e-3, **VARIED}], together=None,
        options={"bf16": True},
    ),
    "lp_ft, sharded": Kind(
        [HEAD, {"train": "all", "epochs": 2, "lr": 1e-3, "layer_decay": 0.75, **VARIED}],
        options={"shard": True},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What was measured of a kind in some processes; None where there is nothing to compare."""

    kind: str
    processes: int
    together: float | None  # relative difference of all weights to one process
    bar: float | None
    kills: int
    phases: str  # in which the kills fell, as counts; a number above all: after the last
    resumed: float | None  # largest difference of a weight to the unbroken run
    facts: bool  # whether metrics and history of the resumed run are the unbroken one's
    seconds: float

    @property
    def holds(self) -> bool:
        """Return whether the row is within its bars."""
        near = self.together is None or self.bar is None or self.together <= self.bar
        return near and not self.resumed and self.facts


class Run:
    """A run of a kind in a folder of its own, with features of its own."""

    def __init__(self, kind: Kind, count: int, out: Path, **options: Any) -> None:
        self.kind, self.count, self.out = kind, count, out
        self.options = {"backbone": kind.backbone, "dropout": 0.0, "images": IMAGES}
        self.options |= {"cache": str(out / "cache"), **kind.options, **options}
        self.phases = [{"batch_size": BATCH // count, **phase} for phase in kind.phases]
        self.out.mkdir(parents=True)

    def start(self) -> list[Any]:
        """Start the processes, which go on from what the folder holds."""
        (self.out / "begun").unlink(missing_ok=True)
        port, own = free_port(), dict(self.options)
        return [
            start(train, self.out / f"log-{rank}", self.out, self.phases,
                  own if self.count == 1 else {**own, "processes": (rank, self.count, port)})
            for rank in range(self.count)
        ]  # fmt: skip

    def finish(self, children: Sequence[Any]) -> None:
        """Wait for the processes. Raises RuntimeError with the log where one fails."""
        statuses = [ended(child) for child in children]
        if any(statuses):
            log = "\n".join(path.read_text()[-3000:] for path in sorted(self.out.glob("log-*")))
            raise RuntimeError(f"{self.out.name} ended with {statuses}\n{log}")

    def kill(self, children: Sequence[Any], only: int | None) -> None:
        """Kill all processes, or one, and the others where they do not follow by themselves.

        Those that had not found each other yet wait for it; a launcher ends them.
        """
        for child in children if only is None else [children[only]]:
            child.kill()
        until = time.monotonic() + GRACE_SECONDS
        for child in children:
            child.join(max(0.0, until - time.monotonic()))
            child.kill()
            child.join()

    def under_way(self) -> int:
        """Return the number of the phase that is being trained, from 1 on."""
        return 1 + len(list(self.out.glob("phase-*/checkpoint-end")))

    def await_moment(self, children: Sequence[Any], phase: int, seconds: float) -> None:
        """Wait until so many seconds have passed in a phase, or here; or the run has ended."""

        def wait_until(there: Callable[[], bool]) -> None:
            while not there() and any(child.exitcode is None for child in children):
                time.sleep(0.005)

        wait_until((self.out / "begun").exists)
        wait_until(lambda: self.under_way() >= phase)
        until = time.monotonic() + seconds
        wait_until(lambda: time.monotonic() >= until)

    def phase_seconds(self) -> list[float]:
        """Return the time that each phase took."""
        return list(json.loads((self.out / "seconds.json").read_text()))

    def results(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the end weights, and metrics and history."""
        return torch.load(self.out / "end.pt"), json.loads((self.out / "end.json").read_text())


def relative(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """Return the norm of the difference of all weights, as a share of their norm."""
    apart = torch.stack([(one[name].double() - two[name].double()).norm() for name in two])
    return float(
        apart.norm() / torch.stack([value.double().norm() for value in two.values()]).norm()
    )


def largest(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of a weight; infinite where bits differ that compare equal."""
    found = max(float((one[name].double() - two[name].double()).abs().max()) for name in two)
    same = all(torch.equal(one[name], two[name]) for name in two)
    return found if found or same else float("inf")


def killed(
    kind: Kind,
    count: int,
    folder: Path,
    kills: int,
    seconds: Sequence[float],
    chance: random.Random,
) -> tuple[list[Run], list[int]]:
    """Kill runs at random moments until there are `kills`; return the runs, all ended, and the
    phases in which they were killed. `seconds` is what each phase takes of an unbroken run."""
    runs: list[Run] = []
    phases: list[int] = []
    while len(phases) < kills or not runs:
        run = Run(
            kind, count, folder / f"killed-{len(runs)}", checkpoint_seconds=0,
            dataloader_num_workers=1,
        )  # fmt: skip
        runs.append(run)
        number = min(KILLS_IN_A_RUN, kills - len(phases))
        for phase in sorted(chance.choices(range(len(seconds)), k=number)):
            children = run.start()
            run.await_moment(children, phase + 1, chance.uniform(0.0, seconds[phase]))
            if all(child.exitcode is not None for child in children):
                break
            phases.append(run.under_way())
            run.kill(children, chance.choice([None, chance.randrange(count)]))
        else:
            children = run.start()
        run.finish(children)
    return runs, phases


def measured(
    names: Sequence[str], counts: Sequence[int], kills: int, seed: int, folder: Path
) -> Iterator[Row]:
    """Yield a row for each kind and number of processes."""
    ended(start(time.sleep, folder / "log", 0))  # the server that all children come from is up
    for name in names:
        kind, chance = KINDS[name], random.Random(f"{seed} {name}")
        alone: dict[str, torch.Tensor] | None = None
        for count in counts:
            began, here = time.monotonic(), folder / f"{name}-{count}".replace(" ", "_")
            unbroken = Run(kind, count, here / "unbroken", save_strategy="no")
            unbroken.finish(unbroken.start())
            seconds = unbroken.phase_seconds()
            weights, facts = unbroken.results()
            alone = weights if count == 1 else alone
            together = None if alone is None or count == 1 else relative(weights, alone)
            runs, phases = killed(kind, count, here, kills, seconds, chance)
            ends = [run.results() for run in runs]
            yield Row(
                kind=name,
                processes=count,
                together=together,
                bar=kind.together,
                kills=len(phases),
                phases=" ".join(f"{n}:{phases.count(n)}" for n in sorted(set(phases))),
                resumed=max(largest(weights, end) for end, _ in ends),
                facts=all(own == facts for _, own in ends),
                seconds=time.monotonic() - began,
            )
            shutil.rmtree(here)


HEADINGS = (
    "| schedule | processes | difference to one | kills, by phase | resumed: largest difference "
    "| metrics and history | seconds |\n| --- | --- | --- | --- | --- | --- | --- |"
)


def line(row: Row) -> str:
    """Return a row of the table."""
    together = "" if row.together is None else f"{row.together:.1e}"
    if row.together is not None and row.bar is None:
        together += " (no bar)"
    cells = (
        row.kind, str(row.processes), together, f"{row.kills} ({row.phases})",
        f"{row.resumed:.1e}" if row.resumed else "0", "the same" if row.facts else "OTHERS",
        f"{row.seconds:.0f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |{'' if row.holds else ' FAILED'}"


def main() -> int:
    """Print the table as it is measured; return 1 where a bar is not met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(HEADINGS, flush=True)
    holds = True
    with tempfile.TemporaryDirectory() as folder:
        for row in measured(args.kinds, args.processes, args.kills, args.seed, Path(folder)):
            print(line(row), flush=True)
            holds = holds and row.holds
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
