"""Pretexts: what a network sees of an image without labels, and what it is to answer.

As all that is random, a pure function of (seed, epoch, index).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.inputs.augmentation import augment, uniforms
from hf_transfer.recipe.specs import Augment, PhaseSpec
from hf_transfer.recipe.tasks import TASKS

Batch = dict[str, Any]

_TURN_STREAM = 2  # of the uniform numbers; 0 varies images, 1 mixes them


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
        return self._made(batch, image, 0, self.seed, self.variation, TASKS[self.task].views)

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

        make: Callable[..., tuple[Tensor, Tensor]] = _turned if views == 1 else _viewed
        pictures, labels = make(batch, varied, uniforms(index, epoch, seed, 1, _TURN_STREAM))
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
    """Return two variations of each image, and which image each is (B,)."""
    pictures = [varied(batch["pixels"], view) for view in (0, 1)]
    return torch.cat(pictures), batch["index"].to(pictures[0].device)
