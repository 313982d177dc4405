"""Heads in closed form or to convergence on fixed features: exact, ridge and discriminant ones.

A head is one linear layer, so what is done to it folds into it: standardisation, the mean of
several heads on the same features, a temperature. Which strength of regularisation predicts best is
seen out of fold, on images that the head was not fitted on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from threadpoolctl import threadpool_limits

from hf_transfer.deciding.folds import pairs
from hf_transfer.training.solver import half_scale, standard_scale

Kind = Literal["exact", "ridge", "lda"]
STRENGTHS: dict[Kind, tuple[float, ...]] = {  # from the most regularised head to the least
    "exact": tuple(10.0 ** (power / 2) for power in range(-10, 3)),  # C of logistic regression
    "ridge": tuple(10.0 ** (power / 2) for power in range(-8, 5)),  # 1 / penalty, per image
    "lda": (0.9, 0.5, 0.3, 0.1, 0.03, 0.01),  # share of the covariance that becomes spherical
}
STEPS, PRECISION = 500, 1e-4  # of the solver, and its largest gradient entry
ABSENT = 1.0  # images that a class without any counts as, for its bias

Floats = np.ndarray


@dataclass(frozen=True)
class Head:
    """A linear layer: `weight` (classes, features) and `bias` (classes,), float64."""

    weight: Floats
    bias: Floats

    def logits(self, features: Floats) -> Floats:
        """Return (N, classes) of features (N, D)."""
        return np.asarray(features, np.float64) @ self.weight.T + self.bias

    def cooled(self, temperature: float) -> Head:
        """Return the head whose logits are divided by a temperature above 0."""
        return Head(self.weight / temperature, self.bias / temperature)


def mean_head(heads: Sequence[Head]) -> Head:
    """Return the one head whose logits are the mean of several heads' on the same features."""
    return Head(
        np.mean([head.weight for head in heads], axis=0),
        np.mean([head.bias for head in heads], axis=0),
    )


def fit_heads(
    features: Floats,
    labels: Floats,
    classes: int,
    strengths: Sequence[float] | None = None,
    kind: Kind = "exact",
    weights: Floats | None = None,
) -> list[Head]:
    """Return a head for each strength, fitted on features (N, D) and labels (N,).

    `weights` (N,) says how much each image counts (exact only). Logistic regression is solved in
    the space that the images span, which changes nothing but the time. Raises ValueError with fewer
    than two classes.
    """
    strengths = STRENGTHS[kind] if strengths is None else strengths
    features, labels = np.asarray(features, np.float64), np.asarray(labels)
    present, codes = np.unique(labels, return_inverse=True)
    if len(present) < 2:
        raise ValueError("one class has no boundary to another")
    middle = features.mean(0)
    scale = half_scale(features) if kind == "exact" else standard_scale(features)
    with threadpool_limits(1, "blas"):
        rows, basis = _spanned((features - middle) / scale)
        solve = {"exact": _exact, "ridge": _ridge, "lda": _discriminant}[kind]
        found = solve(rows, codes, len(present), strengths, features.shape[1], weights)
        return [
            _whole(coef @ basis / scale, bias, middle, present, classes, len(labels))
            for coef, bias in found
        ]


def _spanned(standard: Floats) -> tuple[Floats, Floats]:
    """Return rows (N, R) and a basis (R, D) of which they are made, R = min(N, D)."""
    count, width = standard.shape
    if width <= count:
        return standard, np.eye(width)
    values, vectors = np.linalg.eigh(standard @ standard.T)
    kept = values > values[-1] * 1e-10
    sizes = np.sqrt(values[kept])
    left = vectors[:, kept]
    return left * sizes, (left / sizes).T @ standard


def _whole(
    coef: Floats, bias: Floats, middle: Floats, present: Floats, classes: int, count: int
) -> Head:
    """Return a head for features as they are; a class without images gets a probability near 0."""
    weight = np.zeros((classes, coef.shape[1]))
    weight[present] = coef
    offset = np.full(classes, bias.min() - np.log(count + ABSENT))
    offset[present] = bias - coef @ middle
    absent = np.setdiff1d(np.arange(classes), present)
    offset[absent] -= np.abs(coef @ middle).max() if len(absent) else 0.0
    return Head(weight, offset)


Solved = list[tuple[Floats, Floats]]  # (coef (classes, R), bias) for each strength


def _exact(
    rows: Floats,
    codes: Floats,
    classes: int,
    strengths: Sequence[float],
    width: int,
    weights: Floats | None,
) -> Solved:
    """Multinomial logistic regression, each strength from the solution before."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=STEPS, tol=PRECISION, warm_start=True)
    found = []
    for strength in strengths:
        model.set_params(C=strength)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # near enough: what predicts best is seen out of fold
            model.fit(rows, codes, sample_weight=weights)
        coef, bias = model.coef_.copy(), model.intercept_.copy()
        if classes == 2:  # one row for two classes: the same as two that are opposite
            coef, bias = np.concatenate([-coef, coef]) / 2, np.concatenate([-bias, bias]) / 2
        found.append((coef, bias))
    return found


def _ridge(
    rows: Floats,
    codes: Floats,
    classes: int,
    strengths: Sequence[float],
    width: int,
    weights: Floats | None,
) -> Solved:
    """Least squares towards 1 for an image's class and 0 for the others; times 1 / 0.25, so that
    logits are of a usable size."""
    targets = np.eye(classes)[codes]
    shares = targets.mean(0)
    values, vectors = np.linalg.eigh(rows.T @ rows)
    inner = vectors.T @ (rows.T @ (targets - shares))
    return [
        (4 * (vectors @ (inner / (values + len(rows) / strength)[:, None])).T, 4 * shares)
        for strength in strengths
    ]


def _discriminant(
    rows: Floats,
    codes: Floats,
    classes: int,
    strengths: Sequence[float],
    width: int,
    weights: Floats | None,
) -> Solved:
    """Linear discriminant analysis with a shrunken covariance (Friedman 1989)."""
    counts = np.bincount(codes, minlength=classes)
    middles = np.stack([rows[codes == code].mean(0) for code in range(classes)])
    apart = rows - middles[codes]
    covariance = apart.T @ apart / max(1, len(rows) - classes)
    sphere = max(float(np.trace(covariance)) / width, 1e-12)  # over all features, spanned or not
    values, vectors = np.linalg.eigh(covariance)
    turned = middles @ vectors
    found = []
    for share in strengths:
        coef = turned / ((1 - share) * values.clip(0) + share * sphere)
        bias = np.log(counts / len(rows)) - 0.5 * (coef * turned).sum(1)
        found.append((coef @ vectors.T, bias))
    return found


# --- out of fold -----------------------------------------------------------------------------

Features = Callable[[int], tuple[Floats, Floats]]


def out_of_fold(
    features: Floats | Features,
    labels: Floats,
    classes: int,
    fold: Floats,
    strengths: Sequence[float] | None = None,
    kind: Kind = "exact",
    weights: Floats | None = None,
) -> Floats:
    """Return logits (strengths, N, classes) of each image from heads that were fitted without it.

    `features` are (N, D); or a function of the fold's number that returns those to fit on, (N, D)
    or (views, N, D), and those to predict, (N, D): so statistics can be of the fold's images alone.
    """
    strengths = STRENGTHS[kind] if strengths is None else strengths
    logits = np.zeros((len(strengths), len(labels), classes))
    for inside, outside in pairs(fold):
        given = features(int(fold[outside[0]])) if callable(features) else (features, features)
        if len(np.unique(labels[inside])) < 2:
            continue  # all classes stay as likely as each other
        rows, told, counted = stacked(given[0], labels, inside, weights)
        heads = fit_heads(rows, told, classes, strengths, kind, counted)
        for at, head in enumerate(heads):
            logits[at, outside] = head.logits(given[1][outside])
    return logits


def stacked(
    features: Floats, labels: Floats, rows: Floats, weights: Floats | None = None
) -> tuple[Floats, Floats, Floats | None]:
    """Return features, labels and weights of some rows; of several views each view's rows, which
    together count as much as one view's would."""
    if features.ndim == 2:
        return features[rows], labels[rows], None if weights is None else weights[rows]
    views = len(features)
    counted = np.ones(len(labels)) if weights is None else weights
    return (
        features[:, rows].reshape(views * len(rows), -1),
        np.tile(labels[rows], views),
        np.tile(counted[rows], views) / views,
    )


def losses(logits: Floats, labels: Floats) -> Floats:
    """Return the log loss of each image, (..., N), of logits (..., N, classes)."""
    logits = logits - logits.max(-1, keepdims=True)
    told = np.broadcast_to(labels[:, None], (*logits.shape[:-1], 1))
    lost: Floats = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, told, -1)[..., 0]
    return lost


def near_best(logits: Floats, labels: Floats) -> Floats:
    """Return the places of the strengths within one standard error of the one of least log loss,
    paired over the same images; logits are (strengths, N, classes)."""
    lost = losses(logits, labels)
    best = int(lost.mean(1).argmin())
    behind = lost - lost[best]
    error = behind.std(1, ddof=1) / np.sqrt(len(labels)) if len(labels) > 1 else np.zeros(len(lost))
    return np.flatnonzero(behind.mean(1) <= error)


def honest(logits: Floats, labels: Floats, fold: Floats) -> Floats:
    """Return (N, classes): the mean logits of the strengths near the best, which for each fold are
    chosen by the images of the other folds alone."""
    found = np.empty(logits.shape[1:])
    for others, mine in pairs(fold):
        found[mine] = logits[near_best(logits[:, others], labels[others])][:, mine].mean(0)
    return found


def temperature(logits: Floats, labels: Floats) -> float:
    """Return what to divide logits (N, classes) by for the least log loss, in 0.05..20.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """
    from scipy.optimize import minimize_scalar

    def lost(power: float) -> float:
        return float(losses(logits / np.exp(power), labels).mean())

    found = minimize_scalar(lost, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(found.x))
