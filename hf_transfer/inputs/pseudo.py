"""Images without labels beside labelled ones: which, and how they vary.

As all that is random, a pure function of (seed, epoch, index).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_transfer.data.image_set import ImageSet
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.inputs.augmentation import augment, uniforms
from hf_transfer.recipe.phase_parts import Pseudo
from hf_transfer.recipe.specs import Augment

Batch = dict[str, Any]

_STREAM = 4  # of the uniform numbers; 0 varies images, 1 mixes them, 2 and 3 are for pretexts
FIRST = 2**21  # the first epoch of the variations of images without labels


def with_unlabelled(
    made: Batch,
    index: Tensor,
    epoch: int,
    seed: int,
    pseudo: Pseudo,
    weak: Augment,
    unlabelled: ImageSet,
    image: ImageSettings,
) -> Batch:
    """Return a batch {"pixel_values" (B, C, H, W), "labels", ...} with images without labels after
    its own: K for each of its images, varied as `weak`, then the same, varied as `pseudo` says.

    "pixel_values" are ((1 + 2 K) * B, C, H, W): first all first ones, as `step_loss.by_image` sorts
    them. `index` (B,) are the places of the labelled images.
    """
    count = pseudo.per_image
    drawn = (uniforms(index.cpu(), epoch, seed, count, _STREAM) * len(unlabelled)).to(torch.int64)
    pixels = unlabelled.__getitems__(drawn.T.flatten().tolist())["pixels"]
    pixels = pixels.to(made["pixel_values"].device)
    own = (index.cpu()[None] * count + torch.arange(count)[:, None]).flatten()
    varied = [
        augment(pixels, own, FIRST + 2 * epoch + view, seed, how, image)
        for view, how in enumerate((weak, pseudo.augment))
    ]
    return {**made, "pixel_values": torch.cat([made["pixel_values"], *varied])}
