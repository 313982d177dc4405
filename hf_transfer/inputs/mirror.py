"""Test-time augmentation: an image and its mirror image, and the mean of what a model says of both.

Classes and labels are averaged as probabilities (Krizhevsky et al. 2012, section 4.1), numbers as
they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hf_transfer.data.image_set import ImageSet

TINY = 1e-12


@dataclass(frozen=True)
class MirroredPixels:
    """Pixels uint8 (N, S', S', C) whose left and right change places when they are read."""

    pixels: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, S', S', C)."""
        return tuple(self.pixels.shape)

    def __getitem__(self, rows: Any) -> np.ndarray[Any, Any]:
        return np.ascontiguousarray(self.pixels[rows][..., ::-1, :])

    def take(self, rows: np.ndarray[Any, Any]) -> MirroredPixels:
        """Return the images in these places."""
        pixels = self.pixels
        return MirroredPixels(pixels[rows] if isinstance(pixels, np.ndarray) else pixels.take(rows))


def mirrored(images: ImageSet) -> ImageSet:
    """Return the set of the same images, mirrored left to right."""
    pixels: Any = MirroredPixels(images.pixels)
    return ImageSet(pixels, images.labels, images.names, images.files, images.scale, images.groups)


def mean_of_views(task: str, views: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the logits float64 (B, C) of the mean probabilities of several views of the same
    images; of a regression the mean."""
    each = torch.stack([view.double() for view in views])
    if task == "regression":
        return each.mean(dim=0)
    if task == "multi_label":
        return each.sigmoid().mean(dim=0).logit(eps=TINY)
    return each.log_softmax(-1).logsumexp(dim=0) - float(np.log(len(views)))
