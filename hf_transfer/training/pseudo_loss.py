"""The loss of images without labels by the network's own confident answers (`pseudo`)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def pseudo_sum(outputs: Tensor, classes: int, confidence: float) -> tuple[Tensor, Tensor]:
    """Return the loss of images without labels, a sum over the B labelled ones that they stand
    beside, and the share of them that counts.

    `outputs` (B, 2 K * classes) are those of K images, varied a little, then of the same, varied
    strongly. What the network answers to the first is the label of the second, where it is at least
    so sure. No gradient passes through the answers.

    Source: FixMatch, Sohn et al. 2020, arXiv:2001.07685, equation 4.
    """
    weak, strong = (part.unflatten(1, (-1, classes)) for part in outputs.float().chunk(2, 1))
    sure, answers = weak.detach().softmax(-1).max(-1)
    counts = sure >= confidence
    losses = F.cross_entropy(strong.flatten(0, 1), answers.flatten(), reduction="none")
    return (losses * counts.flatten()).sum() / counts.shape[1], counts.float().mean()
