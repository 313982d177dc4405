"""What is minimised: cross-entropy in its variants, and the pull towards the pretrained weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


def logits_of(outputs: Any) -> torch.Tensor:
    """Return the logits (B, C) in a model's output: the tensor itself, or what is called so."""
    return outputs if isinstance(outputs, torch.Tensor) else outputs["logits"]


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


def distance_from_start(
    named: Mapping[str, nn.Parameter], start: Mapping[str, torch.Tensor], head: Collection[str]
) -> torch.Tensor | float:
    """Return half the squared distance of what trains of the backbone from its weights in `start`.

    Source: L2-SP, arXiv:1802.01483, equation 3; the head is new and has no start to keep to.
    """
    terms = [
        (parameter - start[name].to(parameter)).pow(2).sum()
        for name, parameter in named.items()
        if parameter.requires_grad and name not in head
    ]
    return 0.5 * torch.stack(terms).sum() if terms else 0.0
