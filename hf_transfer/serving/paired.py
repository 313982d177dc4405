"""Two models on the same images: which is better, and whether chance explains it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer.base.errors import UserError
from hf_transfer.recipe.tasks import TASKS
from hf_transfer.results.metrics.by_name import measure
from hf_transfer.results.metrics.resampling import accuracy_interval, intervals

if TYPE_CHECKING:
    from hf_transfer.serving.evaluate import Scored

RESAMPLES = 1000


def by_group(
    task: str, outputs: np.ndarray[Any, Any], truth: np.ndarray[Any, Any], groups: Sequence[Any]
) -> list[dict[str, Any]]:
    """Return {group, n, value} of each group of rows, `value` the task's headline metric; of
    classes with its 95% interval."""
    names = np.array([str(group) for group in groups])
    rows = []
    for name in sorted(set(names.tolist())):
        mine = np.flatnonzero(names == name)
        if task == "classification":
            right = int((outputs[mine].argmax(axis=1) == truth[mine]).sum())
            value: float | None = right / len(mine)
            bounds = {"interval": accuracy_interval(right, len(mine))}
        else:
            found = measure(task, outputs[mine], truth[mine], bootstrap=0, tables=False)
            value, bounds = found[TASKS[task].headline], {}
        rows.append({"group": name, "n": len(mine), "value": value, **bounds})
    return rows


def compared(
    task: str, ours: Scored, theirs: Scored, groups: Sequence[Any] | None = None
) -> dict[str, Any]:
    """Return both models' headline metric on the images that both can score, the difference
    (ours minus theirs) with its 95% interval by the paired bootstrap, of whole `groups` where
    given (one for each of our rows), and, of classes, the p value of McNemar's exact test (McNemar
    1947; the binomial form), of whole groups that of a permutation test, which swaps both models'
    answers in all images of a group. Raises UserError where they share no image."""
    _, one, other = np.intersect1d(ours.rows, theirs.rows, return_indices=True)
    if not len(one):
        raise UserError("the two models know different labels: there is no image to compare on")
    drawn_by = None if groups is None else [groups[row] for row in one]
    if task == "classification":
        first = _right(ours, one)
        return _of_classes(first, _right(theirs, other), drawn_by)
    if ours.names != theirs.names:
        both = [name for name in ours.names if name in theirs.names]
        if not both:
            raise UserError("the two models have no label in common")
        ours, theirs = _Some(ours, both), _Some(theirs, both)
    metric = TASKS[task].headline
    truth, pair = ours.truth[one], (ours.logits[one], theirs.logits[other])

    def headline(rows: Any) -> list[float]:
        values = [
            measure(task, logits[rows], truth[rows], bootstrap=0, tables=False)[metric]
            for logits in pair
        ]
        return [math.nan if value is None else value for value in values]

    def differences(drawn: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        pairs = np.array([headline(rows) for rows in drawn])
        return {"difference": pairs[:, 0] - pairs[:, 1]}

    first, second = headline(slice(None))
    bounds, _ = intervals(len(truth), RESAMPLES // 4, 0, differences, groups=drawn_by)
    return {
        "metric": metric,
        "n": len(truth),
        "ours": first,
        "theirs": second,
        "difference": first - second,
        "interval": bounds.get("difference"),
    }


class _Some:
    """The outputs for some labels alone."""

    def __init__(self, scored: Scored, names: list[str]) -> None:
        columns = [scored.names.index(name) for name in names]
        self.logits, self.truth = scored.logits[:, columns], scored.truth[:, columns]
        self.rows, self.names = scored.rows, tuple(names)


def _right(scored: Scored, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return scored.logits[rows].argmax(axis=1) == scored.truth[rows]


def _of_classes(
    ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any], groups: Sequence[Any] | None
) -> dict[str, Any]:
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    gains = ours.astype(np.float64) - theirs
    bounds, _ = intervals(
        len(gains),
        RESAMPLES,
        0,
        lambda drawn: {"difference": gains[drawn].mean(axis=1)},
        groups=groups,
    )
    return {
        "metric": "accuracy",
        "n": len(gains),
        "ours": float(ours.mean()),
        "theirs": float(theirs.mean()),
        "difference": float(gains.mean()),
        "interval": bounds.get("difference"),
        "only_ours_right": only_ours,
        "only_theirs_right": only_theirs,
        "p_value": _p_value(gains, groups),
        "by_group": groups is not None,
    }


def _p_value(gains: np.ndarray[Any, Any], groups: Sequence[Any] | None) -> float:
    """Return how often models that are equally good differ so much; gains (N,) are -1, 0 or 1."""
    from scipy.stats import binomtest, permutation_test

    if not gains.any():
        return 1.0
    if groups is None:
        return float(binomtest(int((gains > 0).sum()), int((gains != 0).sum())).pvalue)
    _, group = np.unique([str(one) for one in groups], return_inverse=True)
    sums = np.bincount(group, weights=gains)
    sums = sums[sums != 0]
    if len(sums) < 2:  # which the test needs: of one group both signs are as likely
        return 1.0
    found = permutation_test(
        (sums, np.zeros_like(sums)),
        lambda x, y, axis: (x - y).sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        batch=100,
        random_state=0,
    )
    return float(found.pvalue)
