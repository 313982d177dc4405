"""How deep to unfreeze: candidates, what features of each depth say of it, and the choice.

To the first order, training a layer gently adds to the logits what is linear in the features that
arrive at it (Evci et al. 2022, arXiv:2201.03529, section 3). So a probe on the features of all
layers that would train, out of fold, stands for training them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_transfer.deciding.boundaries import Boundaries
from hf_transfer.deciding.probes import behind, interval, probe_scores
from hf_transfer.planning.groups import LayerGroups
from hf_transfer.planning.selection import parts
from hf_transfer.recipe.tasks import CLASSIFICATION, Task

CANDIDATES = 4  # depths below the head that are compared, the whole network among them
FEW = 10  # images of the smallest class, below which nothing is chosen
ENOUGH = 50  # images of each class, from which training the layers above pays where probes are even
SURE, OPEN = "sure", "open"  # how sure a choice is; open where the images do not make it
SOLVED = 0.99  # score from which nothing is left to gain


@dataclass(frozen=True)
class Depth:
    """One way to cut the network: which stages train, and how a probe on their features does.

    `gain` is how much better that is than the head alone, with its standard error (paired: the same
    images).
    """

    stages: int  # that train, from the top; 0 is the head alone
    train: tuple[str, ...]  # selectors, as a recipe has them
    first: str  # the first group that trains
    value: float
    interval: tuple[float, float]
    gain: tuple[float, float] = (0.0, 0.0)

    @property
    def words(self) -> str:
        """What trains, in words."""
        if self.train == ("all",):
            return "everything"
        if not self.stages:
            return "the head alone"
        return f"the {self.top} and the head"

    @property
    def top(self) -> str:
        """The stages that train, in words: "last stage", "last 2 stages"."""
        return "last stage" if self.stages == 1 else f"last {self.stages} stages"


@dataclass(frozen=True)
class Choice:
    """The depth that is advised, why, and how sure that is: "sure", "fairly sure" or "open"."""

    depth: Depth
    why: str
    sure: str


def candidates(groups: LayerGroups) -> list[tuple[int, tuple[str, ...], str]]:
    """Return (stages that train, selectors, first group that trains), the head alone first."""
    stages = parts("stages", groups)
    numbers = sorted({int(n + 0.5) for n in np.linspace(1, len(stages), CANDIDATES)})
    found: list[tuple[int, tuple[str, ...], str]] = [(0, ("head",), groups.names[-1])]
    for number in numbers:
        first = groups.of(stages[-number][0]).name
        last = f"last {number} stage{'s' * (number > 1)}"
        found.append((number, ("all",) if number == len(stages) else (last, "head"), first))
    return found


def depths_of(
    groups: LayerGroups,
    found: Boundaries,
    truth: np.ndarray,
    targets: np.ndarray,
    folds: np.ndarray,
    kept: np.ndarray | None = None,
) -> tuple[Depth, ...]:
    """Return the candidates with their probes' scores; images of a group in `kept` (N,) count as
    one."""
    names, depths, alone = list(groups.names), [], None
    first_of_stage = [groups.of(stage[0]).name for stage in parts("stages", groups)]
    for number, train, first in candidates(groups):
        start = names.index(first)
        taken = [
            name
            for name in found.groups
            if name == found.groups[-1] or (names.index(name) >= start and name in first_of_stage)
        ]
        features = [found.features[name] for name in taken]
        values = probe_scores(features, truth, targets, folds)
        alone = values if alone is None else alone
        gain = behind(values, alone, kept)
        value = float(values.mean())
        depths.append(
            Depth(number, train, first, value, interval(values, kept, int(folds.max()) + 1), gain)
        )
    return tuple(depths)


def enough(task: Task, count: int) -> str:
    """Return so many images of each class in words; without classes twice as many images."""
    if task is CLASSIFICATION:
        return f"{count:,} images of each class"
    return f"{2 * count:,} images"


def choose(
    depths: Sequence[Depth], smallest: int, early: bool = False, task: Task = CLASSIFICATION
) -> Choice:
    """Return the depth to train, by the probes and by the images of the smallest class.

    Of depths that are even with the best the deepest is taken where the gain over the head is clear
    (two standard errors) or images are many, since small rates keep what need not move; else the
    least deep. Without a gain above its standard error it is the last stage: trained gently it
    gained on the head in most of what was measured (docs/results.md); of classes, so that for
    other tasks it is the head alone. `early` says that the images look different to the network
    from its first layers on.
    """
    head = depths[0]
    if smallest < FEW:
        why = f"there are too few images to choose by: it takes {enough(task, FEW)}"
        return Choice(head, why, OPEN)
    if head.value >= SOLVED:
        return Choice(head, "the head alone makes next to no mistakes", SURE)
    best = max(depths, key=lambda depth: depth.value)
    gain, error = best.gain
    if best.stages and gain > error:
        even = [d for d in depths if d.stages and d.value >= best.value - error]
        clear = gain > 2 * error
        deep = clear or early or smallest >= ENOUGH
        why = "features of the layers below the head tell more than the head's alone"
        return Choice(even[-1 if deep else 0], why, SURE if clear else "fairly sure")
    no_more = "features of lower layers tell no more than what the head reads"
    if task is not CLASSIFICATION:
        return Choice(head, no_more, OPEN)
    if early:
        why = "the images differ from the backbone's own from the first layers on"
        return Choice(depths[-1], why, "fairly sure")
    if smallest >= ENOUGH:
        middle = depths[(len(depths) + 1) // 2]
        why = f"{enough(task, ENOUGH)} are enough to train more than the head gently"
        return Choice(middle, why, "fairly sure")
    why = (
        f"{no_more}, and images are few, but gentle training of the last stage gains a little on "
        "most tasks"
    )
    return Choice(depths[1], why, OPEN)
