"""From which probability a label of several counts as there: chosen on images with known labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hf_transfer.base.boundary import printable
from hf_transfer.base.errors import UserError
from hf_transfer.base.nearest import nearest

LEAST, MOST = 1e-4, 1 - 1e-4  # probabilities that a threshold may be

Rule = str | Mapping[str, float]  # "f1", or what missing a label costs, in false alarms


def check_rule(rule: Rule, names: Sequence[str]) -> None:
    """Raise UserError for the cost of a label that there is not."""
    for name in rule if isinstance(rule, Mapping) else ():
        if name not in names:
            near = nearest(name, names) or f"; there are {printable(', '.join(names[:9]))}"
            raise UserError(f"thresholds: there is no label {printable(name)!r}{near}")


def best_thresholds(
    logits: ArrayLike, labels: ArrayLike, names: Sequence[str], rule: Rule
) -> tuple[float, ...]:
    """Return a probability for each label, from which it counts as there, by logits (N, L) and
    labels (N, L) of 0 and 1.

    By "f1" the one with the largest F1. By a mapping the one with the least cost: that of each
    image in which the label was missed, and 1 for each false alarm; a label without a cost has 1.
    Of several that are as good it is in the middle of the widest gap; without any image of a label
    it is one half.
    """
    scores, truth = np.asarray(logits, np.float64), np.asarray(labels) > 0
    costs = None if isinstance(rule, str) else [float(rule.get(name, 1.0)) for name in names]
    return tuple(
        _best(scores[:, i], truth[:, i], None if costs is None else costs[i])
        for i in range(len(names))
    )


def shifted(logits: Any, thresholds: Sequence[float]) -> Any:
    """Return logits (N, L) that are above 0 where a label counts as there."""
    limits = np.asarray(thresholds, np.float64)
    return np.asarray(logits) - np.log(limits / (1 - limits))


def _best(scores: np.ndarray, truth: np.ndarray, cost: float | None) -> float:
    if not truth.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    ranked, right = scores[order], truth[order]
    found = np.concatenate([[0], np.cumsum(right)])  # of the label, among the first so many
    count = np.arange(len(ranked) + 1)
    alarms, missed = count - found, truth.sum() - found
    value = 2 * found / (count + truth.sum()) if cost is None else -(cost * missed + alarms)
    ends = np.concatenate([[np.inf], ranked, [-np.inf]])  # the cut lies between two of these
    gap = ends[:-1] - ends[1:]
    best = np.flatnonzero((value >= value.max() - 1e-12) & (gap > 0))
    if not len(best):
        return 0.5
    chances = 1 / (1 + np.exp(-np.clip(ends, -50, 50)))
    widest = best[np.argmax((chances[:-1] - chances[1:])[best])]
    middle = (chances[widest] + chances[widest + 1]) / 2
    return float(np.clip(middle, LEAST, MOST))
