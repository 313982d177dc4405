"""Closed-form probes: how well features tell the labels, each image judged by others' labels.

A probe is ridge regression on pooled features (to one-hot classes, to labels of 0 and 1, or to
numbers); one decomposition serves every strength. What is true of the images is as `truth` has it.
Means, deviations and strength come from the images that a fold fits on, never from those it tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from hf_transfer.deciding.folds import pairs
from hf_transfer.deciding.truth import scores
from hf_transfer.results.metrics.resampling import (
    NORMAL,
    cross_validated,
    share_interval,
    standard_error,
)
from hf_transfer.training.solver import standard_scale

Floats = np.ndarray
STRENGTHS = 10.0 ** np.arange(-3, 3.1, 0.5)  # penalties, by the mean square of an image
NEIGHBOURS = 5


def targets_of(truth: np.ndarray, classes: int) -> Floats:
    """Return what a probe is fitted to, (N, T): one-hot classes of (N,), else what is true as
    numbers."""
    return np.eye(classes)[truth] if truth.ndim == 1 else np.asarray(truth, np.float64)


def probe(features: Sequence[Floats], targets: Floats, folds: Floats) -> Floats:
    """Return what ridge regression on features, (N, D) each, tells of images left out: estimates
    of the targets, (repeats, N, T).

    Several features count alike, whatever their width. `folds` are (repeats, N). For each fold the
    strength is the one that did best on the other folds.
    """
    answers = np.zeros((len(folds), *targets.shape))
    with threadpool_limits(1, "blas"):
        for repeat, fold in enumerate(folds):
            every = np.zeros((len(STRENGTHS), *targets.shape))
            for inside, outside in pairs(fold):
                every[:, outside] = ridge(*standardised(features, inside, outside), targets[inside])
            answers[repeat] = honest(every, targets, fold)
    return answers


def probe_scores(
    features: Sequence[Floats], truth: np.ndarray, targets: Floats, folds: Floats
) -> Floats:
    """Return what each image adds to the score of probes that were fitted without it, (N,)."""
    answers = probe(features, targets, folds)
    return np.mean([scores(each, truth) for each in answers], axis=0)


def honest(every: Floats, targets: Floats, fold: Floats) -> Floats:
    """Return answers (N, T) out of (strengths, N, T): for each fold of the strength that did best
    on the other folds."""
    lost = ((every - targets) ** 2).mean(-1)  # (strengths, N)
    answers = np.zeros(targets.shape)
    for others, mine in pairs(fold):
        answers[mine] = every[int(lost[:, others].mean(1).argmin()), mine]
    return answers


def standardised(
    features: Sequence[Floats], inside: Floats, outside: Floats
) -> tuple[Floats, Floats]:
    """Return images to fit on (M, D) and to tell (K, D): all features side by side, standardised by
    those to fit on, and each divided by the root of its width."""
    near, far = [], []
    for x in features:
        middle = x[inside].mean(0)
        scale = standard_scale(x[inside]) * np.sqrt(np.float32(x.shape[1]))
        near.append(((x[inside] - middle) / scale).astype(np.float32))
        far.append(((x[outside] - middle) / scale).astype(np.float32))
    return np.concatenate(near, axis=1), np.concatenate(far, axis=1)


def ridge(near: Floats, far: Floats, targets: Floats) -> Floats:
    """Return (strengths, K, T): the answers to rows `far` (K, D) of ridge regression on `near`
    (M, D), with each strength; solved in whichever of M and D is smaller."""
    mean, count = targets.mean(0), len(near)
    if near.shape[1] <= count:
        values, vectors = np.linalg.eigh(near.T @ near)
        inner = vectors.T @ (near.T @ (targets - mean))
        turned = far @ vectors
    else:
        values, vectors = np.linalg.eigh(near @ near.T)
        inner = vectors.T @ (targets - mean)
        turned = (far @ near.T) @ vectors
    whole = max(float((near**2).sum()) / count, 1e-12)
    return np.stack([mean + (turned / (values.clip(0) + p)) @ inner for p in STRENGTHS * whole])


# --- second opinions -------------------------------------------------------------------------


def nearest(features: Floats, targets: Floats, fold: Floats) -> Floats:
    """Return the mean target of the nearest images of other folds, (N, T): of classes their vote.

    Nearest by the cosine of standardised features; nearer ones break ties.
    """
    found = np.zeros(targets.shape)
    for inside, outside in pairs(fold):
        middle, scale = features[inside].mean(0), standard_scale(features[inside])
        rows = (features - middle) / scale
        rows /= np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
        similar = rows[outside] @ rows[inside].T
        near = np.argsort(-similar, axis=1)[:, :NEIGHBOURS]
        weights = 1 + np.take_along_axis(similar, near, 1) / 100
        weights /= weights.sum(1, keepdims=True)
        found[outside] = (weights[..., None] * targets[inside][near]).sum(1)
    return found


def log_evidence(features: Floats, targets: Floats, rounds: int = 20) -> float:
    """Return LogME: the mean log evidence of an image under Bayesian linear regression, for the
    targets (N, T); higher is better. Source: You et al. 2021, arXiv:2102.11005, algorithm 1.
    """
    x = np.asarray(features, np.float64)
    count, width = x.shape
    with threadpool_limits(1, "blas"):
        left, sizes, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    power = sizes**2
    found = []
    for target in (targets - targets.mean(0)).T:
        shadow = (left.T @ target) ** 2
        rest = max(float(target @ target - shadow.sum()), 0.0)
        alpha = beta = 1.0
        for _ in range(rounds):
            gamma = float((beta * power / (alpha + beta * power)).sum())
            size = float((beta**2 * power * shadow / (alpha + beta * power) ** 2).sum())
            error = float((shadow * (alpha / (alpha + beta * power)) ** 2).sum()) + rest
            alpha = gamma / max(size, 1e-12)
            beta = (count - gamma) / max(error, 1e-12)
        size = float((beta**2 * power * shadow / (alpha + beta * power) ** 2).sum())
        error = float((shadow * (alpha / (alpha + beta * power)) ** 2).sum()) + rest
        evidence = (
            width * np.log(alpha) + count * np.log(beta) - count * np.log(2 * np.pi)
            - beta * error - alpha * size - np.log(alpha + beta * power).sum()
            - max(0, width - len(power)) * np.log(alpha)
        ) / 2  # fmt: skip
        found.append(evidence / count)
    return float(np.mean(found))


# --- scores ----------------------------------------------------------------------------------


def interval(values: Floats, groups: Floats | None = None, parts: int = 1) -> tuple[float, float]:
    """Return the 95% interval of the mean of values (N,), by the normal approximation; images of a
    group (N,) count as one draw, and those of a cross-validation in so many `parts` as fewer. Of
    shares it is Wilson's, so that it stays within 0 and 1."""
    mean, count = float(values.mean()), float(len(values))
    error, wider = standard_error(values, groups), cross_validated(parts) if parts > 1 else 1.0
    if values.min() < 0 or values.max() > 1:
        half = NORMAL * error * wider**0.5
        return mean - half, min(1.0, mean + half)
    if groups is not None:
        spread = mean * (1 - mean)
        known = spread > 0 and 1e-9 < error < np.inf  # else all images are alike, or of one group
        count = min(count, spread / error**2) if known else float(len(np.unique(groups)))
    return share_interval(mean, count / wider)


def behind(best: Floats, other: Floats, groups: Floats | None = None) -> tuple[float, float]:
    """Return how much more `best` (N,) scores than `other` on the same images, and the standard
    error of that; images of a group (N,) count as one draw."""
    apart = best - other
    return float(apart.mean()), standard_error(apart, groups)


# --- more images -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """A learning curve: images fitted on and the score, and what twice as many would give."""

    images: tuple[int, ...]
    values: tuple[float, ...]
    twice: tuple[float, float, float] | None = None  # the score, and its 95% interval


SHARES = (0.25, 0.5, 1.0)  # of the images of a fold that a point of the curve is fitted on


def learning_curve(
    features: Floats, truth: np.ndarray, targets: Floats, folds: Floats, seed: int = 0
) -> Curve:
    """Return the score on left-out images by the number of images fitted on, and at twice of all.

    The error is taken to fall as a power of the images (Hestness et al. 2017, arXiv:1712.00409);
    the interval is of the power, over draws of the images that are told.
    """
    rng = np.random.default_rng(seed)
    told = np.zeros((len(SHARES), len(truth)))
    counts: list[list[int]] = [[] for _ in SHARES]
    with threadpool_limits(1, "blas"):
        for fold in folds:
            every = np.zeros((len(SHARES), len(STRENGTHS), *targets.shape))
            for inside, outside in pairs(fold):
                for at, some in enumerate(_shares(inside, truth, rng)):
                    near, far = standardised([features], some, outside)
                    every[at][:, outside] = ridge(near, far, targets[some])
                    counts[at].append(len(some))
            for at, answers in enumerate(every):
                told[at] += scores(honest(answers, targets, fold), truth) / len(folds)
    points = tuple(round(float(np.mean(count))) for count in counts)
    values = tuple(float(row.mean()) for row in told)
    return Curve(points, values, _extrapolated(points, told, rng))


def _shares(inside: Floats, truth: np.ndarray, rng: np.random.Generator) -> Iterator[Floats]:
    """Yield nested shares of the rows; of classes each its share, at least one image."""
    order = rng.permutation(inside)
    if truth.ndim > 1:
        for share in SHARES:
            yield order[: max(2, round(share * len(order)))]
        return
    own = [order[truth[order] == label] for label in np.unique(truth[order])]
    for share in SHARES:
        yield np.concatenate([rows[: max(1, round(share * len(rows)))] for rows in own])


def _extrapolated(
    images: Sequence[int], rows: Floats, rng: np.random.Generator, draws: int = 400
) -> tuple[float, float, float] | None:
    """Return the score at twice the images and its interval; None where errors do not fall."""
    if len(set(images)) < len(images):
        return None
    wide, log = rows.shape[1], np.log(np.array(images, float))
    weights = np.concatenate(
        [np.full((1, wide), 1 / wide), rng.multinomial(wide, np.full(wide, 1 / wide), draws) / wide]
    )
    errors = np.log((1 - weights @ rows.T).clip(1e-3))  # (draws + 1, shares)
    centred = log - log.mean()
    slopes = np.minimum(errors @ centred / (centred @ centred), 0.0)
    ahead = 1 - np.exp(errors[:, -1] + slopes * np.log(2))
    low, high = np.quantile(ahead[1:], (0.025, 0.975))
    return float(ahead[0]), float(min(low, ahead[0])), float(max(high, ahead[0]))
