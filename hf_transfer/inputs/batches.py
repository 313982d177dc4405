"""From a batch of stored pixels to what the model takes: normalised, or varied while training."""

from __future__ import annotations

from typing import Any

import torch

from hf_transfer.data.image_set import ImageSet
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.inputs.augmentation import augment, mix
from hf_transfer.inputs.model_input import to_model_input
from hf_transfer.recipe.specs import PhaseSpec

Batch = dict[str, Any]


def evaluation_inputs(batch: Batch, image: ImageSettings) -> Batch:
    """Return {"pixel_values", "labels"} of a batch {"pixels", "labels", "index"}."""
    return {"pixel_values": to_model_input(batch["pixels"], image), "labels": batch["labels"]}


def training_inputs(
    batch: Batch, spec: PhaseSpec, image: ImageSettings, images: ImageSet, epoch: int, seed: int
) -> Batch:
    """Return the same, varied as the phase says: a pure function of (seed, epoch, index).

    With mixup or cutmix also "soft_labels" (B, classes); partners come from all of `images`.
    """

    def varied(pixels: torch.Tensor, index: torch.Tensor, epoch: int) -> torch.Tensor:
        return augment(pixels, index, epoch, seed, spec.augment, image)

    def partner(index: torch.Tensor, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        found = images.__getitems__(index.tolist())
        return varied(found["pixels"].to(device), index, epoch), found["labels"].to(device)

    device, index, labels = batch["pixels"].device, batch["index"], batch["labels"]
    pixels = varied(batch["pixels"], index, epoch)
    if not spec.mixup and not spec.cutmix:
        return {"pixel_values": pixels, "labels": labels}
    pixels, soft = mix(
        pixels,
        labels,
        index,
        epoch,
        seed,
        mixup=spec.mixup,
        cutmix=spec.cutmix,
        classes=len(images.names),
        images=len(images),
        partner=partner,
    )
    return {"pixel_values": pixels, "labels": labels, "soft_labels": soft}
