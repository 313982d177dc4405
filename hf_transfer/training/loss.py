"""What is minimised: the loss of each task, and the pull towards the pretrained weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import nn
from torch.nn import functional as F

from hf_transfer.training.machine import sharding


def cross_entropy_sum(
    logits: torch.Tensor,
    target: torch.Tensor,
    class_weights: torch.Tensor | None = None,
    smoothing: float = 0.0,
) -> torch.Tensor:
    """Return the sum over a batch; `target` is labels (B,) or probabilities (B, C).

    To be divided by the number of images, with class weights too: then batches of any size add up
    to the same, which dividing by the weights in each batch would not do.
    """
    weights = None if class_weights is None else class_weights.to(logits)
    return F.cross_entropy(logits, target, weights, reduction="sum", label_smoothing=smoothing)


def binary_cross_entropy_sum(
    logits: torch.Tensor,
    target: torch.Tensor,
    presence_weights: torch.Tensor | None = None,
    smoothing: float = 0.0,
) -> torch.Tensor:
    """Return the sum over images and labels; `target` (B, L) is 0, 1, or between where mixed.

    `presence_weights` (L,) multiply the loss where a label is there. Smoothing moves targets
    towards one half.
    """
    weights = None if presence_weights is None else presence_weights.to(logits)
    target = target.to(logits) * (1 - smoothing) + smoothing / 2
    return F.binary_cross_entropy_with_logits(logits, target, pos_weight=weights, reduction="sum")


def squared_error_sum(
    logits: torch.Tensor, target: torch.Tensor, weights: None = None, smoothing: float = 0.0
) -> torch.Tensor:
    """Return the sum over images and targets of the squared error; `target` is (B, T) or (B,)."""
    return F.mse_loss(logits, target.to(logits).reshape(logits.shape), reduction="sum")


# All sums are over the entries of a batch's labels, and divided by their number: so batches of any
# size, accumulated or in several processes, add up to the mean over all.
LOSSES = {
    "classification": cross_entropy_sum,
    "multi_label": binary_cross_entropy_sum,
    "regression": squared_error_sum,
}


def distance_from_start(
    named: Mapping[str, nn.Parameter], start: Mapping[str, torch.Tensor], head: Collection[str]
) -> torch.Tensor | float:
    """Return half the squared distance of what trains of the backbone from its weights in `start`.

    Source: L2-SP, arXiv:1802.01483, equation 3; the head is new and has no start to keep to.
    """
    terms = [
        (sharding.one_whole(parameter) - start[name].to(parameter.device, parameter.dtype))
        .pow(2)
        .sum()
        for name, parameter in named.items()
        if parameter.requires_grad and name not in head
    ]
    return 0.5 * torch.stack(terms).sum() if terms else 0.0
