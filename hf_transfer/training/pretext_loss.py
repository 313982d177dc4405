"""The losses of pretexts. All are sums over images, of outputs (B, V * K): K for each of the V
pictures that are made of an image.

Batch statistics are those of the batch of one process: the others' images are no negatives here,
and add nothing to variances. Larger batches change these losses, accumulated ones do not.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_transfer.inputs.augmentation import uniforms
from hf_transfer.recipe.tasks import SHIFTS

TEMPERATURE = 0.2  # of `contrastive`
STEADY, SPREAD, APART = 25.0, 25.0, 1.0  # weights of the three terms of `redundancy`
CODE_STREAM = 3  # of the uniform numbers, for the classes of `exemplar`
TINY = 1e-4  # under the square root of a variance


def contrastive_sum(outputs: Tensor, *_: Any) -> Tensor:
    """Return NT-Xent: each of the two pictures of an image is to find the other among all pictures
    of the batch, by cosine over TEMPERATURE; the mean of both directions.

    Source: SimCLR, Chen et al. 2020, arXiv:2002.05709, equation 1.
    """
    both = F.normalize(torch.cat(outputs.float().chunk(2, 1)), dim=1)
    alike = both @ both.T / TEMPERATURE
    alike.fill_diagonal_(-torch.inf)
    places = torch.arange(len(both), device=both.device)
    return F.cross_entropy(alike, places.roll(len(outputs)), reduction="sum") / 2


def redundancy_sum(outputs: Tensor, *_: Any) -> Tensor:
    """Return VICReg: the two pictures of an image are to agree, every output is to vary over the
    batch, and no two outputs are to say the same. No negatives, so small batches do.

    Source: Bardes et al. 2022, arXiv:2105.04906, equations 1 to 6.
    """
    one, two = outputs.float().chunk(2, 1)
    loss = STEADY * F.mse_loss(one, two)
    for each in (one, two):
        centred = each - each.mean(0)
        spread = (centred.pow(2).mean(0) + TINY).sqrt()
        covariance = centred.T @ centred / max(1, len(each) - 1)
        between = covariance.pow(2).sum() - covariance.diagonal().pow(2).sum()
        loss = loss + SPREAD * F.relu(1 - spread).mean() / 2 + APART * between / each.shape[1]
    return loss * len(outputs)


def slow_sum(outputs: Tensor, *_: Any) -> Tensor:
    """Return the loss of slow features: a frame and the next one are to agree, while every output
    varies over the batch and none says what another does. These are the terms of `redundancy`, with
    time in the place of variation; far frames are kept apart by the second one.

    Sources: Wiskott and Sejnowski 2002, doi 10.1162/089976602317318938, section 2; for networks
    Mobahi et al. 2009, doi 10.1145/1553374.1553469.
    """
    return redundancy_sum(outputs)


def exemplar_sum(outputs: Tensor, images: Tensor, *_: Any) -> Tensor:
    """Return the cross-entropy of each image's own class, told from its varied pictures. The class
    is a word of as many random bits as there are outputs: the head does not grow with the images.

    Sources: Dosovitskiy et al. 2014, arXiv:1406.6909; classes as codes: Dietterich and Bakiri 1995,
    arXiv:cs/9501101.
    """
    bits = (uniforms(images, 0, 0, outputs.shape[1] // 2, CODE_STREAM) < 0.5).to(outputs.dtype)
    loss = F.binary_cross_entropy_with_logits(outputs, bits.repeat(1, 2), reduction="none")
    return loss.mean(1).sum()


def motion_sum(outputs: Tensor, shift: Tensor, *_: Any) -> Tensor:
    """Return the cross-entropy of how far the second picture is from the first, to the right and
    below, the mean of both. A linear head reads both pictures, with weights of its own for each.

    Source: Agrawal et al. 2015, arXiv:1505.01596, section 3.
    """
    across, down = shift_logits(outputs)
    losses = (
        F.cross_entropy(across, shift // SHIFTS, reduction="sum"),
        F.cross_entropy(down, shift % SHIFTS, reduction="sum"),
    )
    return sum(losses[1:], losses[0]) / 2


def shift_logits(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits (B, SHIFTS) of both directions: half of a picture's outputs are for the
    first picture, half for the second."""
    one, two = outputs.chunk(2, 1)
    across, down = (one.chunk(2, 1)[0] + two.chunk(2, 1)[1]).chunk(2, 1)
    return across, down
