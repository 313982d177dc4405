"""The choice between the exact head and what comes after it, by the gain on the same images, which
neither was trained on: above its standard error, or weighed with what is known of other tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from hf_transfer.deciding.folds import pairs
from hf_transfer.deciding.probes import interval
from hf_transfer.deciding.truth import losses, scores, task_of, temperature
from hf_transfer.recipe.tasks import CLASSIFICATION, REGRESSION, Task
from hf_transfer.results.metrics.resampling import exceeds, standard_error
from hf_transfer.results.words import metric_phrase, show_score

FEWEST = 10  # images of each class, below which nothing is chosen


@dataclass(frozen=True)
class Prior:
    """What a way gains in accuracy on other tasks: mean and standard deviation over tasks."""

    mean: float
    spread: float


NONE: Mapping[str, Prior] = MappingProxyType({})
ROUNDING = 1e-9


@dataclass(frozen=True)
class Gain:
    """What one way gains on another, on the same images: mean and standard error of each.

    `accuracy` is of several labels their mean average precision, and of numbers R².
    """

    accuracy: float
    accuracy_error: float
    loss: float  # by how much the loss is lower, each way at its own temperature
    loss_error: float
    images: int
    task: Task = CLASSIFICATION

    @property
    def is_real(self) -> bool:
        """Whether it exceeds its error: in accuracy, or in loss at no lower accuracy."""
        by_loss = self.accuracy >= 0 and exceeds(self.loss, self.loss_error)
        return exceeds(self.accuracy, self.accuracy_error) or by_loss

    @property
    def is_worse(self) -> bool:
        """Whether accuracy falls beyond what chance explains: by twice the error, and one image
        more, since few images that differ make an error that is too small."""
        return exceeds(-self.accuracy, 2 * self.accuracy_error + 1 / self.images)

    def expected(self, prior: Prior) -> float:
        """Return the gain in accuracy to expect on new images: the mean of what was seen here and
        of the prior, each with the weight of its inverse variance. Few images say little."""
        seen = 1 / max(self.accuracy_error, ROUNDING) ** 2
        before = 1 / prior.spread**2
        return (seen * self.accuracy + before * prior.mean) / (seen + before)

    def __str__(self) -> str:
        if self.task is CLASSIFICATION:
            points = round(100 * self.accuracy, 1) + 0.0  # never -0.0
            score = f"{points:+.1f} ± {100 * self.accuracy_error:.1f} points"
        else:
            leads, error = self.task.headline, self.accuracy_error
            score = (
                f"{metric_phrase(leads)} {show_score(leads, self.accuracy, 3, '+')} ± {error:.3f}"
            )
        if self.task is REGRESSION:
            return score
        return f"{score}, log loss {-self.loss:+.3f} ± {self.loss_error:.3f}"


def gain(
    logits: np.ndarray,
    base: np.ndarray,
    truth: np.ndarray,
    groups: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> Gain:
    """Return what outputs (N, C) gain on the base's, on the images that both have predicted; rows
    of others are NaN. Errors are by group where there are. `weights` (N,) say how much each image
    counts."""
    both = predicted(logits) & predicted(base)
    logits, base, truth = logits[both], base[both], truth[both]
    groups = None if groups is None else groups[both]
    share = 1.0 if weights is None else weights[both] / weights[both].mean()
    right = share * (scores(logits, truth) - scores(base, truth))
    less = share * (cooled_losses(base, truth) - cooled_losses(logits, truth))
    return Gain(
        float(right.mean()),
        standard_error(right, groups),
        float(less.mean()),
        standard_error(less, groups),
        len(truth),
        task_of(truth),
    )


def predicted(logits: np.ndarray) -> np.ndarray:
    """Return which rows of outputs (N, C) there are: bool (N,)."""
    return np.isfinite(logits[:, 0])


def cooled_losses(logits: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the loss of each image at the temperature that suits all of them best."""
    return losses(logits / temperature(logits, truth), truth)


def best_of(
    ways: Mapping[str, np.ndarray],
    truth: np.ndarray,
    groups: np.ndarray | None = None,
    stages: Sequence[Sequence[str]] = (),
    priors: Mapping[str, Prior] = NONE,
    weights: np.ndarray | None = None,
) -> str:
    """Return the way to take: the first, left only for a gain.

    Of each stage (without `stages`: of all others) the way that gains most on the one taken so far
    is taken, each on the images that it has predicted: by what is expected of it where it has a
    prior, unless it is worse here beyond chance, else if its gain is real. Of equals that with the
    least loss; loss alone would favour what moved little.
    """
    taken, *others = ways
    for stage in stages or (others,):
        worth = {taken: (0.0, 0.0)}
        for way in stage:
            if not predicted(ways[way]).any():
                continue
            found = gain(ways[way], ways[taken], truth, groups, weights)
            real = max(found.accuracy, ROUNDING) if found.is_real else 0.0
            known = way in priors and not found.is_worse
            gained = found.expected(priors[way]) if known else real
            if gained > 0:
                worth[way] = gained, found.loss
        taken = max(worth, key=lambda way: worth[way])
    return taken


def chosen_blindly(
    ways: Mapping[str, np.ndarray],
    truth: np.ndarray,
    fold: np.ndarray,
    groups: np.ndarray | None = None,
    stages: Sequence[Sequence[str]] = (),
    priors: Mapping[str, Prior] = NONE,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Return the logits (N, classes) of the way that the other folds' images would choose, as
    `best_of` does: each image is scored by a choice in which it had no part, or NaN where the way
    of that choice has not predicted it."""
    found = np.empty_like(next(iter(ways.values())))
    for others, mine in pairs(fold):
        there = {way: logits[others] for way, logits in ways.items()}
        some, count = (None if of is None else of[others] for of in (groups, weights))
        way = best_of(there, truth[others], some, stages, priors, count)
        found[mine] = ways[way][mine]
    return found


def expected_accuracy(
    logits: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None, parts: int = 1
) -> tuple[float, tuple[float, float]]:
    """Return the share of images that are right, and its 95% interval.

    Images of a group count as fewer than as many others, and so do those of a cross-validation in
    so many `parts`: what predicts them was trained on each other's images (Nadeau and Bengio 2003).
    """
    right = (logits.argmax(1) == labels).astype(float)
    return float(right.mean()), interval(right, groups, parts)
