"""Starts: a backbone with an exact head, measured on images that the head was not fitted on.

The head is the mean of the exact heads whose strength is within one standard error of the best. Its
features have the checkpoint's statistics of BatchNorm, or a share of the images' own; then one head
is fitted on the features of several shares, and used at one: so it stays one plain model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_transfer.backbones.access import bare_names, evaluating, logits_of
from hf_transfer.base.errors import UserError
from hf_transfer.data.image_set import ImageSet
from hf_transfer.deciding.boundaries import (
    Statistics,
    at_once,
    boundary_features,
    statistics_of,
    using,
)
from hf_transfer.deciding.heads import (
    STRENGTHS,
    Features,
    Head,
    fit_heads,
    honest,
    mean_head,
    near_best,
    out_of_fold,
    stacked,
)
from hf_transfer.deciding.truth import truth_of
from hf_transfer.deciding.uneven import log_prior, weights_to_fit
from hf_transfer.inputs.model_input import to_model_input
from hf_transfer.training.loss import Objective
from hf_transfer.training.norm_statistics import layers

SHARES = (0.0, 0.1, 0.25, 0.5, 1.0)  # of the images' own statistics, in what a head is fitted on
USED = 0.25  # the share that it is used at
TOLERANCE = 1e-3  # of the logits' scale, between the model's and the head's own


@dataclass(frozen=True)
class Start:
    """A backbone's statistics and head before anything is fine-tuned.

    `logits` (N, classes), or numbers, of each image are from heads, strengths and statistics that
    never saw it.
    """

    what: str
    head: Head
    strengths: tuple[float, ...]
    logits: np.ndarray
    statistics: Statistics
    objective: Objective
    blended: bool = False

    def put(self, model: PreTrainedModel) -> None:
        """Write the statistics and the head into the model."""
        put_statistics(model, self.statistics)
        put_head(model, self.head)


def head_start(
    model: PreTrainedModel, images: ImageSet, folds: np.ndarray, objective: Objective
) -> Start:
    """Return the exact head on the features of the checkpoint as it is; folds are (repeats, N)."""
    features = boundary_features(model, images).head
    return _start("exact head", features, features, images, folds, objective)


def blended_start(
    model: PreTrainedModel,
    images: ImageSet,
    folds: np.ndarray,
    own: Statistics,
    objective: Objective,
) -> Start:
    """Return the exact head on features with a share of the images' own statistics, which in each
    fold are of its own images alone; `own` are those of all images.

    Takes `blended_passes` over the images, besides the one for `own`.
    """
    plain = boundary_features(model, images).head

    def of_fold(number: int) -> tuple[np.ndarray, np.ndarray]:
        inside = np.flatnonzero(folds[0] != number)
        views = _views(model, images, plain, statistics_of(model, images, inside))
        return views, views[SHARES.index(USED)]

    views = _views(model, images, plain, own)
    start = _start("exact head, blended statistics", of_fold, views, images, folds[:1], objective)
    return replace(start, statistics=_mixed(model, own), blended=True)


def blended_passes(folds: np.ndarray) -> int:
    """Return how many passes over the images `blended_start` takes: per fold one for statistics,
    and one for each share of them."""
    return len(np.unique(folds[0])) * len(SHARES) + len(SHARES) - 1


def start_of(model: PreTrainedModel, images: ImageSet, start: Start, rows: np.ndarray) -> Start:
    """Return what a start would be, had there been these images alone; its logits are left out."""
    some = images.subset(rows)
    statistics: Statistics = {}
    features = boundary_features(model, some, keep=False).head
    if start.blended:
        own = statistics_of(model, some)
        features = _views(model, some, features, own)
        statistics = _mixed(model, own)
    head = fitted(features, some, start.strengths, start.objective)
    return replace(start, head=head, logits=np.empty(0), statistics=statistics)


def fitted(
    features: np.ndarray, images: ImageSet, strengths: Sequence[float], objective: Objective
) -> Head:
    """Return the mean of the exact heads of these strengths on features (N, D) or (views, N, D) of
    images."""
    truth = truth_of(images)
    of_images = weights_to_fit(truth, objective)
    rows, told, weights = stacked(features, truth, np.arange(len(images)), of_images)
    head = mean_head(fit_heads(rows, told, len(images.names), strengths, weights))
    return replace(head, bias=head.bias - log_prior(objective))


def _start(
    what: str,
    features: np.ndarray | Features,
    of_all: np.ndarray,
    images: ImageSet,
    folds: np.ndarray,
    objective: Objective,
) -> Start:
    truth, classes = truth_of(images), len(images.names)
    weights = weights_to_fit(truth, objective)
    repeats = [out_of_fold(features, truth, classes, fold, STRENGTHS, weights) for fold in folds]
    count = weights if truth.ndim == 1 else None  # several labels choose by all of them alike
    told = [honest(x, truth, f, count) for x, f in zip(repeats, folds, strict=True)]
    logits = np.mean(told, axis=0) - log_prior(objective)
    near = near_best(np.mean(repeats, axis=0), truth, count)
    strengths = tuple(STRENGTHS[at] for at in near)
    head = fitted(of_all, images, strengths, objective)
    return Start(what, head, strengths, logits, {}, objective)


def _views(
    model: PreTrainedModel, images: ImageSet, plain: np.ndarray, own: Statistics
) -> np.ndarray:
    """Return features (shares, N, D), each with its share of these statistics; `plain` (N, D) have
    none of them."""

    def at(share: float) -> np.ndarray:
        return boundary_features(model, images, statistics=own, weight=share, keep=False).head

    return np.stack([at(share) if share else plain for share in SHARES])


def _mixed(model: PreTrainedModel, own: Statistics) -> Statistics:
    """Return the statistics that a model is used with: so much of these, the rest its own."""
    with using(model, own, USED):
        return {
            name: (layer.running_mean.clone(), layer.running_var.clone())
            for name, layer in layers(model).items()
        }


@torch.no_grad()
def put_statistics(model: PreTrainedModel, statistics: Statistics) -> None:
    """Write means and variances into the BatchNorm layers that they name."""
    found = layers(model)
    for name, (mean, variance) in statistics.items():
        found[name].running_mean.copy_(mean)
        found[name].running_var.copy_(variance)


@torch.no_grad()
def put_head(model: PreTrainedModel, head: Head) -> None:
    """Write a head into the model's."""
    weight, bias = head_parameters(model)
    weight.copy_(torch.from_numpy(head.weight).reshape(weight.shape))
    bias.copy_(torch.from_numpy(head.bias))


def head_parameters(model: PreTrainedModel) -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    """Return weight and bias of the head. Raises UserError for one of several layers."""
    backbone = model.backbone
    named = bare_names(model, backbone.prefix)
    found = sorted((named[name] for name in backbone.layout.head), key=lambda p: -p.ndim)
    if len(found) != 2 or found[0].ndim < 2 or found[1].ndim != 1:
        raise UserError(
            f"{backbone.id}: auto needs a head of one layer with a bias; train a recipe instead, "
            "such as feature_extraction"
        )
    return found[0], found[1]


def check_head(model: PreTrainedModel, images: ImageSet, start: Start) -> None:
    """Raise UserError unless the model's logits, with the start put in, are its head's own."""
    some = images.subset(np.arange(min(16, len(images))))
    expected = start.head.logits(boundary_features(model, some, keep=False).head)
    scale = max(np.abs(expected).max(), np.finfo(np.float32).eps)  # numbers may all be alike
    apart = np.abs(model_logits(model, some) - expected).max() / scale
    if apart > TOLERANCE:
        raise UserError(
            f"{model.backbone.id}: its logits are not those of its last layer on pooled features "
            f"(they differ by {apart:.0e}), so auto cannot solve for its head; train a recipe, "
            "such as lp_ft"
        )


@torch.no_grad()
def model_logits(model: PreTrainedModel, images: ImageSet) -> np.ndarray:
    """Return logits float64 (N, classes) of images, in evaluation mode."""
    parts, size = [], at_once(model)
    with evaluating(model):
        for first in range(0, len(images), size):
            rows = list(range(first, min(first + size, len(images))))
            pixels = images.__getitems__(rows)["pixels"].to(model.device)
            values = to_model_input(pixels, model.backbone.image).to(model.dtype)
            parts.append(logits_of(model(pixel_values=values)).double().cpu().numpy())
    return np.concatenate(parts) if parts else np.zeros((0, len(images.names)))
