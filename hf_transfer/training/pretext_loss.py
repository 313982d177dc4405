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

TEMPERATURE = 0.2  # of `contrastive`
STEADY, SPREAD, APART = 25.0, 25.0, 1.0  # weights of the three terms of `redundancy`
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
