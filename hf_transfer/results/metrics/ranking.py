"""Ranking: how well scores put what is there above what is not; under weights, for resampling."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


def auroc(scores: Floats, positive: Flags, weights: Floats) -> Floats:
    """The area under the ROC curve of scores (N,) under each of B row weightings (B, N).

    A tie counts half. NaN where a weighting leaves no positive row, or no other.
    """
    order = np.argsort(scores, kind="stable")
    positive = positive[order]
    weights = weights[:, order]
    rivals = np.cumsum(np.where(positive, 0.0, weights), axis=1)
    # First and last place among the rows that tie with each positive row.
    level = scores[order]
    first = np.searchsorted(level, level[positive], side="left")
    last = np.searchsorted(level, level[positive], side="right") - 1
    below = np.where(first > 0, rivals[:, np.maximum(first - 1, 0)], 0.0)
    wins = (weights[:, positive] * (below + rivals[:, last]) / 2).sum(axis=1)
    pairs = weights[:, positive].sum(axis=1) * rivals[:, -1]
    result: Floats = np.where(pairs > 0, wins / np.maximum(pairs, 1), np.nan)
    return result


def average_precision(scores: Floats, positive: Flags, weights: Floats) -> Floats:
    """The area under the precision-recall steps of scores (N,) under B row weightings (B, N).

    Rows that tie share one threshold. NaN where a weighting leaves no positive row.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    weights = weights[:, order]
    hits = np.cumsum(np.where(positive[order], weights, 0.0), axis=1)[:, ends]
    seen = np.cumsum(weights, axis=1)[:, ends]
    steps = hits / np.maximum(seen, 1) * np.diff(hits, axis=1, prepend=0.0)
    result: Floats = np.where(
        hits[:, -1] > 0, steps.sum(axis=1) / np.maximum(hits[:, -1], 1), np.nan
    )
    return result


def average_precision_parts(scores: Floats, positive: Flags) -> Floats:
    """What each row adds to the average precision, (N,); needs a positive row.

    Their mean is the average precision, and their standard error its own, to the first order.
    Source: the infinitesimal jackknife, Efron 1982, chapter 6.
    """
    _, place, count = np.unique(-scores, return_inverse=True, return_counts=True)
    new = np.bincount(place, positive)
    hits, seen = np.cumsum(new), np.cumsum(count)
    area = (hits / seen * new).sum() / hits[-1]

    def from_here_on(values: Floats) -> Floats:
        return np.cumsum(values[::-1])[::-1]

    gained = (hits / seen + from_here_on(new / seen) - area)[place]
    lost = from_here_on(new * hits / seen**2)[place]
    result: Floats = area + len(scores) / hits[-1] * (np.where(positive, gained, 0.0) - lost)
    return result
