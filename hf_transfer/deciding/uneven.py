"""Uneven classes in `auto`: what a recipe's loss and class weights mean for a head that is solved
for, and for the choice between ways."""

from __future__ import annotations

import json

import numpy as np

from hf_transfer.data.image_set import ImageSet
from hf_transfer.recipe.specs import Recipe
from hf_transfer.recipe.tasks import CLASSIFICATION, TASKS
from hf_transfer.training import measuring, skew
from hf_transfer.training.loss import Objective

EVEN = ("balanced", "logit_adjusted")  # losses by which all classes count the same


def objective_of(recipe: Recipe, images: ImageSet) -> Objective:
    """Return what a recipe minimises on these images. Raises UserError for weights of no label."""
    given = recipe.loss, measuring.class_weights(recipe), recipe.task, images.names
    return skew.objective(*given, images, own_loss=False)


def setting_of(recipe: Recipe) -> str:
    """Return the setting by which classes count as they do; "" where all images count alike."""
    if recipe.loss in EVEN:
        return f"loss: {recipe.loss}"
    weights = measuring.class_weights(recipe)
    shown = weights if isinstance(weights, str) else json.dumps(weights, ensure_ascii=False)
    return f"class_weights: {shown}" if weights else ""


def metric_of(recipe: Recipe) -> str:
    """Return the metric that ways to train are shown by."""
    task = TASKS[recipe.task]
    even = task is CLASSIFICATION and recipe.loss in EVEN
    return "balanced_accuracy" if even else task.headline


def weights_to_fit(truth: np.ndarray, objective: Objective) -> np.ndarray | None:
    """Return how much each image counts while a head is solved for, (N,), or each of its labels,
    (N, L); None where all count alike."""
    if objective.weights is None:
        return None
    of = objective.weights.double().numpy()
    return of[truth] if truth.ndim == 1 else np.where(truth, of, 1.0)


def weights_to_judge(truth: np.ndarray, objective: Objective) -> np.ndarray | None:
    """Return how much each image counts, (N,), where ways are compared; None where all count alike,
    as those of several labels do."""
    if truth.ndim == 1 and objective.log_prior is not None:  # answers as if classes were even
        return np.exp(-objective.log_prior.double().numpy())[truth]
    return weights_to_fit(truth, objective) if truth.ndim == 1 else None


def log_prior(objective: Objective) -> np.ndarray | float:
    """Return by how much logits are lower than those of the plain loss, (C,), for which heads are
    solved."""
    return 0.0 if objective.log_prior is None else objective.log_prior.double().numpy()
