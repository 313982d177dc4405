"""What labels are, and how far answers are from them: of one class, several labels, or numbers.

The truth is int64 (N,) for one class an image, bool (N, L) for several labels, and float64 (N, T)
for standard numbers, so that folds, heads and choices take all three alike.
"""

from __future__ import annotations

import numpy as np

from hf_transfer.data.image_set import ImageSet
from hf_transfer.recipe.tasks import CLASSIFICATION, MULTI_LABEL, REGRESSION, Task
from hf_transfer.results.metrics.ranking import average_precision_parts
from hf_transfer.results.metrics.regression import r2_parts

Floats = np.ndarray


def truth_of(images: ImageSet) -> np.ndarray:
    """Return what is true of images, in the dtype that says which task it is of."""
    if images.labels.ndim == 1:
        return images.labels
    numbers = images.scale is not None
    return images.labels.astype(np.float64) if numbers else images.labels > 0


def task_of(truth: np.ndarray) -> Task:
    """Return the task that a truth is of."""
    if truth.ndim == 1:
        return CLASSIFICATION
    return MULTI_LABEL if truth.dtype == bool else REGRESSION


def losses(outputs: Floats, truth: np.ndarray) -> Floats:
    """Return the loss of each image, (..., N), of outputs (..., N, C): log loss, of several labels
    their mean, or the squared error of standard numbers."""
    if truth.ndim == 1:
        outputs = outputs - outputs.max(-1, keepdims=True)
        told = np.broadcast_to(truth[:, None], (*outputs.shape[:-1], 1))
        own = np.take_along_axis(outputs, told, -1)[..., 0]
        found: Floats = np.log(np.exp(outputs).sum(-1)) - own
    elif truth.dtype == bool:
        found = (np.logaddexp(0, outputs) - truth * outputs).mean(-1)
    else:
        found = ((outputs - truth) ** 2).mean(-1)
    return found


def scores(outputs: Floats, truth: np.ndarray) -> Floats:
    """Return what each image adds to the task's leading metric, (N,), of outputs (N, C): 1 where
    the class is right, or parts of the mean average precision or of R².

    Their mean is the metric, over the labels or numbers for which it is defined.
    """
    if truth.ndim == 1:
        return (outputs.argmax(1) == truth).astype(float)
    several = truth.dtype == bool
    defined = np.flatnonzero(truth.any(0) if several else truth.std(0) > 0)
    parts = average_precision_parts if several else r2_parts
    found = [parts(outputs[:, i], truth[:, i]) for i in defined]
    return np.mean(found, axis=0) if found else np.zeros(len(truth))


def least(truth: np.ndarray, classes: int) -> int:
    """Return how many images the smallest class has; without classes, half of all."""
    return int(np.bincount(truth, minlength=classes).min()) if truth.ndim == 1 else len(truth) // 2


def temperature(outputs: Floats, truth: np.ndarray) -> float:
    """Return what to divide logits (N, C) by for the least log loss, in 0.05..20; 1 for numbers.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """
    from scipy.optimize import minimize_scalar

    if task_of(truth) is REGRESSION:
        return 1.0

    def lost(power: float) -> float:
        return float(losses(outputs / np.exp(power), truth).mean())

    found = minimize_scalar(lost, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(found.x))
