"""Exact heads on fixed features: logistic regression, or ridge regression for numbers.

A head is one linear layer, so what is done to it folds into it: standardisation, the mean of
several heads on the same features, a temperature. Which strength of regularisation predicts best is
seen out of fold, on images that the head was not fitted on.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from threadpoolctl import ThreadpoolController

from hf_transfer.deciding.folds import pairs
from hf_transfer.deciding.truth import losses, task_of
from hf_transfer.recipe.tasks import REGRESSION
from hf_transfer.training.solver import half_scale
from hf_transfer.training.solver_targets import logistic_path, ridge_path

# C of logistic regression, and 1 / penalty, from the most regularised head to the least.
STRENGTHS = tuple(10.0 ** (power / 2) for power in range(-10, 3))
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
    truth: np.ndarray,
    classes: int,
    strengths: Sequence[float] = STRENGTHS,
    weights: Floats | None = None,
) -> list[Head]:
    """Return a head for each strength, fitted on features (N, D) and what is true of the images.

    `weights` says how much each image counts, (N,), or each of its labels, (N, L). All are solved
    in the space that the images span, which changes nothing but the time. Raises ValueError with
    fewer than two classes.
    """
    features = np.asarray(features, np.float64)
    middle, scale = features.mean(0), half_scale(features)
    counted = np.ones(len(features)) if weights is None else weights
    with _libraries().limit(limits=1, user_api="blas"):
        rows, basis = _spanned((features - middle) / scale)
        if truth.ndim == 1:
            present, codes = np.unique(truth, return_inverse=True)
            if len(present) < 2:
                raise ValueError("one class has no boundary to another")
            return [
                _whole(coef @ basis / scale, bias, middle, present, classes, len(truth))
                for coef, bias in _exact(rows, codes, len(present), strengths, weights)
            ]
        if task_of(truth) is REGRESSION:  # several views of an image count alike
            found = ridge_path(rows, truth, [strength * counted.mean() for strength in strengths])
        else:
            each = np.broadcast_to(counted.reshape(len(truth), -1), truth.shape)
            found = logistic_path(rows, truth.astype(float), each, strengths, (STEPS, PRECISION))
        return [_moved(Head(coef @ basis / scale, bias), middle) for coef, bias in found]


@functools.cache
def _libraries() -> ThreadpoolController:
    """Return the libraries that compute with threads, found once: a fit may take as long."""
    import sklearn.linear_model  # noqa: F401, which loads all that a fit computes with

    return ThreadpoolController()


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


def _moved(head: Head, middle: Floats) -> Head:
    """Return the head for features as they are of one for features less their mean."""
    return Head(head.weight, head.bias - head.weight @ middle)


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


# --- out of fold -----------------------------------------------------------------------------

Features = Callable[[int], tuple[Floats, Floats]]


def out_of_fold(
    features: Floats | Features,
    truth: np.ndarray,
    classes: int,
    fold: Floats,
    strengths: Sequence[float] = STRENGTHS,
    weights: Floats | None = None,
) -> Floats:
    """Return outputs (strengths, N, classes) of each image from heads fitted without it.

    `features` are (N, D); or a function of the fold's number that returns those to fit on, (N, D)
    or (views, N, D), and those to predict, (N, D): so statistics can be of the fold's images alone.
    """
    logits = np.zeros((len(strengths), len(truth), classes))
    for inside, outside in pairs(fold):
        given = features(int(fold[outside[0]])) if callable(features) else (features, features)
        if truth.ndim == 1 and len(np.unique(truth[inside])) < 2:
            continue  # all classes stay as likely as each other
        rows, told, counted = stacked(given[0], truth, inside, weights)
        heads = fit_heads(rows, told, classes, strengths, counted)
        for at, head in enumerate(heads):
            logits[at, outside] = head.logits(given[1][outside])
    return logits


def stacked(
    features: Floats, truth: np.ndarray, rows: Floats, weights: Floats | None = None
) -> tuple[Floats, np.ndarray, Floats | None]:
    """Return features, truth and weights of some rows; of several views each view's rows, which
    together count as much as one view's would."""
    if features.ndim == 2:
        return features[rows], truth[rows], None if weights is None else weights[rows]
    views = len(features)
    counted = np.ones(len(truth)) if weights is None else weights
    return (
        features[:, rows].reshape(views * len(rows), -1),
        np.concatenate([truth[rows]] * views),
        np.concatenate([counted[rows]] * views) / views,
    )


def near_best(logits: Floats, truth: np.ndarray, weights: Floats | None = None) -> Floats:
    """Return the places of the strengths within one standard error of the one of least loss,
    paired over the same images; logits are (strengths, N, classes), `weights` those of images."""
    lost = losses(logits, truth) * (1.0 if weights is None else weights)
    best = int(lost.mean(1).argmin())
    behind = lost - lost[best]
    error = behind.std(1, ddof=1) / np.sqrt(len(truth)) if len(truth) > 1 else np.zeros(len(lost))
    return np.flatnonzero(behind.mean(1) <= error)


def honest(
    logits: Floats, truth: np.ndarray, fold: Floats, weights: Floats | None = None
) -> Floats:
    """Return (N, classes): the mean logits of the strengths near the best, which for each fold are
    chosen by the images of the other folds alone."""
    found = np.empty(logits.shape[1:])
    for others, mine in pairs(fold):
        some = None if weights is None else weights[others]
        found[mine] = logits[near_best(logits[:, others], truth[others], some)][:, mine].mean(0)
    return found
