"""What is minimised: the loss of each task, and the pull towards the pretrained weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from hf_transfer.training import pretext_loss
from hf_transfer.training.machine import sharding

GAMMA = 2.0  # of the focal loss, the paper's choice


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


def focal_sum(
    logits: torch.Tensor,
    target: torch.Tensor,
    class_weights: torch.Tensor | None = None,
    smoothing: float = 0.0,
) -> torch.Tensor:
    """Return the cross-entropy of each image times (1 - p)^2, p being what the model gives the
    right class: what is easy counts little. Arguments as for `cross_entropy_sum`.

    Source: focal loss, arXiv:1708.02002, equation 4, without alpha; here class weights are that.
    """
    logits = logits.float()
    classes = logits.shape[1]
    if not target.is_floating_point():
        target = F.one_hot(target, classes).to(logits)
    target = target * (1 - smoothing) + smoothing / classes
    chances = F.log_softmax(logits, dim=1)
    lost = -target * (1 - chances.exp()) ** GAMMA * chances
    return (lost if class_weights is None else lost * class_weights.to(lost)).sum()


def binary_focal_sum(
    logits: torch.Tensor,
    target: torch.Tensor,
    presence_weights: torch.Tensor | None = None,
    smoothing: float = 0.0,
) -> torch.Tensor:
    """Return the same for several labels; arguments as for `binary_cross_entropy_sum`.

    A target between 0 and 1 counts by its distance from p, which is 1 - p where the target is 1.
    """
    weights = None if presence_weights is None else presence_weights.to(logits)
    target = target.to(logits) * (1 - smoothing) + smoothing / 2
    far = (target - logits.sigmoid()).abs() ** GAMMA
    lost = F.binary_cross_entropy_with_logits(logits, target, pos_weight=weights, reduction="none")
    return (far * lost).sum()


# All sums are over the entries of a batch's labels, and divided by their number: so batches of any
# size, accumulated or in several processes, add up to the mean over all.
LOSSES = {
    "classification": cross_entropy_sum,
    "multi_label": binary_cross_entropy_sum,
    "regression": squared_error_sum,
    "rotation": cross_entropy_sum,
    "contrastive": pretext_loss.contrastive_sum,
    "redundancy": pretext_loss.redundancy_sum,
    "exemplar": pretext_loss.exemplar_sum,
    "slow": pretext_loss.slow_sum,
    "motion": pretext_loss.motion_sum,
}
FOCAL = {"classification": focal_sum, "multi_label": binary_focal_sum}


@dataclass(frozen=True)
class Objective:
    """The loss of a task, and what makes up for uneven classes.

    `weights` (C,) are those of classes, or of the presence of labels. `log_prior` (C,) are the
    logarithms of the classes' shares of the training images: they are added to the logits while a
    loss is computed, so that the logits themselves answer as if all classes were as frequent.
    Source: logit adjustment, arXiv:2007.07314, equation 10 with tau = 1.
    """

    task: str
    weights: torch.Tensor | None = None
    focal: bool = False
    log_prior: torch.Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """Whether this is the task's own loss and nothing more."""
        return self.weights is None and not self.focal and self.log_prior is None

    def total(
        self, logits: torch.Tensor, target: torch.Tensor, smoothing: float = 0.0
    ) -> torch.Tensor:
        """Return the sum of the loss over a batch."""
        if self.log_prior is not None:
            logits = logits + self.log_prior.to(logits)
        losses = FOCAL if self.focal else LOSSES
        return losses[self.task](logits, target, self.weights, smoothing)


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
