"""The best dense layer on features for several labels and for numbers.

Several labels are as many logistic regressions, numbers as many ridge regressions. Cross-validation
on the training images finds one strength of regularisation for all outputs together: of a rare
label, or a single number, it would know too little.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from hf_transfer.training.solver import (
    PRECISION,
    SEARCH_PRECISION,
    SEARCH_STEPS,
    STEPS,
    STRENGTHS,
    Solution,
    best_strength,
    fold_pairs,
    half_scale,
)

logger = logging.getLogger(__name__)

Layer = tuple[np.ndarray, np.ndarray]  # weight (outputs, D), bias (outputs,)
ALL = slice(None)


def solve_labels(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    images: np.ndarray | None = None,
    presence_weights: np.ndarray | None = None,
    seed: int = 0,
) -> Solution:
    """Return the layer that minimises the regularised binary cross-entropy of features (N, D) and
    labels (N, L), 0 or 1.

    `presence_weights` (L,) multiply the loss where a label is there. `images` (N,) says which rows
    show one image: they stay in one fold. A label that all rows have, or none, gets the same
    answer for every image.
    """
    labels = np.asarray(labels, np.float64)
    presence = 1.0 if presence_weights is None else np.asarray(presence_weights, np.float64)
    weights = np.where(labels > 0, presence, 1.0)
    standard, mean, scale = _standardised(features)

    def lost(layer: Layer, rows: np.ndarray | slice = ALL) -> float:
        found = _cross_entropy(_answers(standard[rows], layer), labels[rows])
        return float((weights[rows] * found).mean())

    def along(inside: np.ndarray) -> Iterator[Layer]:
        some = standard[inside], labels[inside], weights[inside]
        return logistic_path(*some, STRENGTHS, (SEARCH_STEPS, SEARCH_PRECISION))

    with threadpool_limits(1, "blas"):  # as in solve_head
        strength, validated = _search(along, lost, fold_pairs(len(labels), images, seed))
        found, steps = _logistic(standard, labels, weights, strength, (STEPS, PRECISION))
    if steps >= STEPS:
        logger.warning("logistic regression did not converge in %d steps", STEPS)
    weight = found[0] / scale
    layer = weight, found[1] - weight @ mean
    return Solution(*layer, strength, validated, steps, steps < STEPS, lost(found))


def solve_numbers(
    features: np.ndarray,
    numbers: np.ndarray,
    *,
    images: np.ndarray | None = None,
    seed: int = 0,
) -> Solution:
    """Return the layer that minimises the regularised squared error of features (N, D) and numbers
    (N, T), which are best standardised. `images` as for `solve_labels`."""
    numbers = np.asarray(numbers, np.float64)
    standard, mean, scale = _standardised(features)

    def lost(layer: Layer, rows: np.ndarray | slice = ALL) -> float:
        return float(((_answers(standard[rows], layer) - numbers[rows]) ** 2).mean())

    def along(inside: np.ndarray) -> Iterator[Layer]:
        return ridge_path(standard[inside], numbers[inside], STRENGTHS)

    with threadpool_limits(1, "blas"):
        strength, validated = _search(along, lost, fold_pairs(len(numbers), images, seed))
        found = next(ridge_path(standard, numbers, (strength,)))
    weight = found[0] / scale
    layer = weight, found[1] - weight @ mean
    return Solution(*layer, strength, validated, 1, True, lost(found))


def _search(
    along: Callable[[np.ndarray], Iterator[Layer]],
    lost: Callable[[Layer, np.ndarray], float],
    pairs: list[tuple[np.ndarray, np.ndarray]],
) -> tuple[float, float]:
    """Return the strength whose answers to left-out folds have the least loss, and that loss.

    `along` yields the solutions for rows at STRENGTHS, in their order.
    """
    if not pairs:
        return 1.0, float("nan")
    at_each = zip(*(along(inside) for inside, _ in pairs), strict=True)
    return best_strength(
        float(np.mean([lost(layer, rows) for layer, (_, rows) in zip(layers, pairs, strict=True)]))
        for layers in at_each
    )


def _standardised(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features as a solver sees them, and what was taken off and divided by."""
    features = np.asarray(features, np.float64)
    mean, scale = features.mean(0), half_scale(features)
    return (features - mean) / scale, mean, scale


def _answers(features: np.ndarray, layer: Layer) -> np.ndarray:
    return features @ layer[0].T + layer[1]


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, logits) - labels * logits


def logistic_path(
    features: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    strengths: Sequence[float],
    limits: tuple[int, float],
) -> Iterator[Layer]:
    """Yield the logistic regressions of labels (N, L), 0 or 1, at several strengths, each from the
    last solution on; `weights` (N, L) say how much each answer counts, and `limits` are the
    solver's steps and the largest entry of the gradient."""
    layer = None
    for strength in strengths:
        layer, _ = _logistic(features, labels, weights, strength, limits, layer)
        yield layer


def _logistic(
    features: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    strength: float,
    limits: tuple[int, float],
    start: Layer | None = None,
) -> tuple[Layer, int]:
    """Return the logistic regression of each label, and the steps of the solver.

    `limits` are its steps, and the largest entry of the gradient. All labels are solved for at
    once: a product of matrices takes a fraction of the time of as many with vectors.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    rows, sides = features.shape
    steps, precision = limits
    there = labels.sum(0)
    told = (there > 0) & (there < rows)
    never = np.log(rows + 1.0)  # a label without a boundary: as sure as so many rows make one
    weight = np.zeros((labels.shape[1], sides))
    bias = np.where(there > 0, never, -never)
    if not told.any():
        return (weight, bias), 0
    labels, weights = labels[:, told], weights[:, told]
    scale = told.sum() / weights.sum()  # the gradient is that of each label's mean

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        layer = flat.reshape(-1, sides + 1)
        logits = _answers(features, (layer[:, :-1], layer[:, -1]))
        loss = (weights * _cross_entropy(logits, labels)).sum()
        wrong = weights * (expit(logits) - labels)
        slopes = np.empty_like(layer)
        slopes[:, :-1] = wrong.T @ features + layer[:, :-1] / strength
        slopes[:, -1] = wrong.sum(0)
        loss += (layer[:, :-1] ** 2).sum() / (2 * strength)
        return loss * scale, (slopes * scale).ravel()

    first = np.zeros((int(told.sum()), sides + 1))
    if start is not None:
        first[:, :-1], first[:, -1] = start[0][told], start[1][told]
    options = {"maxiter": steps, "maxfun": 4 * steps, "gtol": precision, "ftol": 0.0}
    found = minimize(objective, first.ravel(), jac=True, method="L-BFGS-B", options=options)
    layer = found.x.reshape(first.shape)
    weight[told], bias[told] = layer[:, :-1], layer[:, -1]
    return (weight, bias), int(found.nit)


def ridge_path(
    features: np.ndarray, numbers: np.ndarray, strengths: Sequence[float]
) -> Iterator[Layer]:
    """Yield the ridge regressions at several strengths, by one decomposition for all of them."""
    mean, middle = features.mean(0), numbers.mean(0)
    features, numbers = features - mean, numbers - middle
    wide = features.shape[1] > len(features)
    values, vectors = np.linalg.eigh(features @ features.T if wide else features.T @ features)
    turned = vectors.T @ (numbers if wide else features.T @ numbers)
    for strength in strengths:
        solution = vectors @ (turned / (values.clip(0) + 1 / strength)[:, None])
        weight = (features.T @ solution if wide else solution).T
        yield weight, middle - weight @ mean
