"""What `auto` keeps of what it tries: its clock, a line for each thing, and training under way."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_transfer.deciding.tuning import Candidate, Work
from hf_transfer.recipe.tasks import CLASSIFICATION
from hf_transfer.results.words import metric_phrase, show_seconds

RESERVE = 0.1  # of the budget, for writing, and for work that takes longer than it should


@dataclass(frozen=True)
class Clock:
    """A budget of seconds, and what of it is left."""

    seconds: float
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds until the budget is used up, but for a reserve."""
        return self.began + self.seconds * (1 - RESERVE) - time.monotonic()

    @property
    def end(self) -> float:
        """When training stops at the latest, by the monotonic clock."""
        return self.began + self.seconds * (1 + RESERVE)


@dataclass(frozen=True)
class Tried:
    """One thing that was tried, and why it was kept or not; `kept` is what the model has."""

    what: str
    why: str
    value: float | None = None  # of the metric that leads
    seconds: float = 0.0
    kept: bool = False
    metric: str = CLASSIFICATION.headline

    def __str__(self) -> str:
        said = "" if self.value is None else f" {metric_phrase(self.metric)} {self.value:.3f},"
        took = f" {show_seconds(self.seconds)}" if self.seconds >= 0.1 else ""
        return f"{self.what}:{said}{took}: {self.why}".replace("::", ":").replace(",:", ":")


@dataclass
class Trial:
    """A candidate under way: `logits` (N, classes) by the points of it that are judged, of the
    images in the parts that were held out so far."""

    candidate: Candidate
    work: Work
    logits: dict[str, np.ndarray]
    parts: list[tuple[np.ndarray, np.ndarray]]  # all that may be held out: others, and the part
    done: int = 0
    took: float = 0.0  # seconds of the last one
    seconds: float = 0.0  # of all

    @property
    def told(self) -> str:
        """How much of the images its figures are of, in words."""
        if self.done == 1:
            return "one part held out"
        whole = self.done == len(self.parts)
        return f"{self.done} folds" if whole else f"{self.done} of {len(self.parts)} folds"


def facts_of(tried: Sequence[Tried]) -> list[dict[str, Any]]:
    """Return what was tried as plain values for a report."""
    return [
        {
            "what": one.what,
            "why": one.why,
            one.metric: one.value,
            "seconds": one.seconds,
            "kept": one.kept,
        }
        for one in tried
    ]
