"""Pretexts: what a network sees of an image without labels, and what it is to answer.

As all that is random, a pure function of (seed, epoch, index).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.inputs.augmentation import augment, uniforms
from hf_transfer.inputs.model_input import check_pixels, normalised
from hf_transfer.recipe.specs import Augment, PhaseSpec
from hf_transfer.recipe.tasks import SHIFTS, TASKS

Batch = dict[str, Any]

_STREAM = 2  # of the uniform numbers; 0 varies images, 1 mixes them
EVALUATION = 2**20  # the epoch of an evaluation's variations: none that trains
CROP, STEP = 0.7, 0.07  # of an image's side: what `motion` shows, and the unit of its shifts


@dataclass(frozen=True)
class Pretext:
    """Makes a pretext's inputs and targets.

    While a phase trains, its images vary as it says and from epoch to epoch; for an evaluation
    they vary as in the last phase, always in the same way.
    """

    task: str
    variation: Augment
    seed: int

    def inputs(self, batch: Batch, image: ImageSettings) -> Batch:
        """Return what a batch {"pixels", "labels", "index"} is for an evaluation."""
        return self._made(
            batch, image, EVALUATION, self.seed, self.variation, TASKS[self.task].views
        )

    def training_inputs(
        self, batch: Batch, image: ImageSettings, epoch: int, seed: int, spec: PhaseSpec
    ) -> Batch:
        """Return {"pixel_values" (V * B, C, H, W), "labels" (B,)} of a batch: first the first
        pictures that are made of its images, then the second ones."""
        return self._made(batch, image, epoch, seed, spec.augment, TASKS[self.task].views)

    def _made(
        self,
        batch: Batch,
        image: ImageSettings,
        epoch: int,
        seed: int,
        variation: Augment,
        views: int,
    ) -> Batch:
        index = batch["index"]

        def varied(pixels: Tensor, view: int) -> Tensor:
            return augment(pixels, index, views * epoch + view, seed, variation, image)

        u = uniforms(index, epoch, seed, 4, _STREAM)
        if self.task == "motion":
            pictures, labels = _moved(batch["pixels"], u, image)
        else:
            make: Callable[..., tuple[Tensor, Tensor]] = _turned if views == 1 else _viewed
            pictures, labels = make(batch, varied, u)
        return {"pixel_values": pictures, "labels": labels}


def pretext_of(task: str, last: PhaseSpec, seed: int) -> Pretext | None:
    """Return what makes the inputs of a task; None for one whose labels come with the images."""
    return Pretext(task, last.augment, seed) if TASKS[task].is_pretext else None


def _turned(
    batch: Batch, varied: Callable[[Tensor, int], Tensor], u: Tensor
) -> tuple[Tensor, Tensor]:
    """Return images turned by 0, 90, 180 or 270 degrees, and which (B,).

    Source: Gidaris et al. 2018, arXiv:1803.07728.
    """
    turns = (u[:, 0] * 4).to(torch.int64)
    upright = varied(batch["pixels"], 0)
    pictures = upright.clone()
    for turn in (1, 2, 3):
        mine = (turns == turn).to(upright.device)
        pictures[mine] = torch.rot90(upright[mine], turn, (2, 3))
    return pictures, turns.to(upright.device)


def _viewed(
    batch: Batch, varied: Callable[[Tensor, int], Tensor], u: Tensor
) -> tuple[Tensor, Tensor]:
    """Return two variations of each image, and which image each is (B,). Of frames the second is
    one of the frame that comes next."""
    pictures = [varied(batch["pixels"], 0), varied(batch.get("next", batch["pixels"]), 1)]
    return torch.cat(pictures), batch["index"].to(pictures[0].device)


def _moved(pixels: Tensor, u: Tensor, image: ImageSettings) -> tuple[Tensor, Tensor]:
    """Return two crops of each image, and how far the second lies to the right and below the first
    (B,): SHIFTS * x + y, in steps from the most to the left.

    Source: Agrawal et al. 2015, arXiv:1505.01596: the motion between two pictures as two classes.
    """
    check_pixels(pixels, image)
    steps = (u[:, :2] * SHIFTS).to(torch.int64)
    shift = (steps - SHIFTS // 2) * STEP
    room = (1 - CROP) / 2 - shift.abs() / 2  # for the middle between both, on each side
    middle = (u[:, 2:] * 2 - 1) * room
    x = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    crops = [_crop(x, middle - shift / 2, image.size), _crop(x, middle + shift / 2, image.size)]
    labels = steps[:, 0] * SHIFTS + steps[:, 1]
    return normalised(torch.cat(crops).div_(255), image), labels.to(pixels.device)


def _crop(x: Tensor, middle: Tensor, size: int) -> Tensor:
    """Return crops (B, C, size, size) of images around middles (B, 2), in sides from the centre."""
    steps = (torch.arange(size, device=x.device, dtype=torch.float32) * 2 + 1) / size - 1
    places = (2 * middle).to(x)[:, :, None] + CROP * steps
    across, down = places[:, 0, None, :], places[:, 1, :, None]
    grid = torch.stack(torch.broadcast_tensors(across, down), -1)
    return F.grid_sample(x, grid, "bilinear", "border", align_corners=False)
