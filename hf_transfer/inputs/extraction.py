"""Feature extraction: images through the frozen prefix, a batch at a time, to arrays to store."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hf_transfer.backbones.access import evaluating
from hf_transfer.backbones.blueprint import Backbone
from hf_transfer.base.bars import bar
from hf_transfer.base.errors import UserError
from hf_transfer.base.shards import Column, Write
from hf_transfer.data.image_set import ImageSet
from hf_transfer.data.pixels import LivePixels
from hf_transfer.inputs.augmentation import augment
from hf_transfer.inputs.cut import Context, Cut, check_same, crossing_values, settle
from hf_transfer.inputs.model_input import collate, to_model_input
from hf_transfer.inputs.workers import Attached
from hf_transfer.planning.phase import Phase

logger = logging.getLogger(__name__)

# Images computed at once. On a CPU more gain nothing: features of 1,000 images of 96 px, and a head
# on them, took ResNet-10-T 4.5, 4.5 and 4.4 s with 31, 64 and 128 MiB for the largest tensor.
BATCH, DEVICE_BATCH = 64, 256
BATCH_BYTES, DEVICE_BATCH_BYTES = 31 * 2**20, 2**30  # of the largest tensor in the prefix
DECODED = 4  # times smaller where images are decoded first: the network begins earlier
CHECKED = 64  # of so many images, one is computed a second time, in another batch
CHECK_TOLERANCE = 1e-4  # between its two results: large batches are summed in another order


class FeaturesError(UserError):
    """Features that cannot be cached, although a recipe asks for it."""


class TooLargeError(FeaturesError):
    """Features too large for the number format that a phase stores them in."""

    def __init__(self, phase: str) -> None:
        super().__init__(
            f"phase {phase}: feature_precision: fp16 holds numbers up to 65,504, and there are "
            "features beyond; write feature_precision: fp32"
        )


class Extraction:
    """What leaves the prefix below a cut, for sets of images as a phase sees them.

    `workers` decode images that are not stored while the network computes; `working` is called
    after each batch.
    """

    def __init__(
        self,
        model: nn.Module,
        backbone: Backbone,
        cut: Cut,
        phase: Phase,
        seed: int,
        context: Context,
        workers: int,
        working: Callable[[], None],
    ) -> None:
        self.model, self.cut, self.image, self.context = model, cut, backbone.image, context
        self.augment, self.seed, self.phase = phase.spec.augment, seed, phase.name
        self.half = phase.spec.feature_precision == "fp16"
        self.workers, self.working = workers, working
        self.device = next(model.parameters()).device

    @property
    def columns(self) -> list[Column]:
        """The arrays in which the values at the cut are stored."""
        found = []
        for crossing in self.cut.stored:
            dtype = str(crossing.dtype).removeprefix("torch.")
            if self.half and dtype == "float32":
                dtype = "float16"
            found.append(Column(crossing.shape, "int16" if dtype == "bfloat16" else dtype))
        return found

    @property
    def precision(self) -> str:
        """The type that operations are cast to, if they are."""
        kind = self.device.type
        with self.context():
            return str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else ""

    def variation(self, view: int | None) -> tuple[Any, ...]:
        """Return everything that a view's augmentation depends on; None augments nothing."""
        return (repr(self.augment), self.seed, view) if view is not None else ()

    def run(self, images: ImageSet, view: int | None, spans: Iterable[range], write: Write) -> None:
        """Write the features of these rows of a set, a batch at a time, and none across two spans.

        Raises CutError where an image's features depend on its batch, and TooLargeError.
        """
        live = isinstance(images.pixels, LivePixels)
        at_once, done = max(1, self._at_once() // (DECODED if live else 1)), 0
        started = time.monotonic()
        rows = (
            list(span[first : first + at_once])
            for span in spans
            for first in range(0, len(span), at_once)
        )
        batches = DataLoader(
            images,
            batch_sampler=rows,
            num_workers=self.workers if live else 0,
            collate_fn=collate,
            worker_init_fn=Attached(),
            generator=torch.Generator(),  # the phase's own random numbers stay what they are
        )
        alone = None
        with (
            evaluating(self.model),
            torch.no_grad(),
            self.context(),
            bar(len(images), "features") as progress,
        ):
            for batch in batches:
                values, index = self._input(batch, view), batch["index"]
                if alone is None:
                    settle(self.model, values)
                    alone = values[:1], self._features(values[:1])
                # By the place of its rows: what is computed after an interruption is the same.
                checked = -int(index[0]) % CHECKED < len(index)
                found = self._checked(values, *alone) if checked else self._features(values)
                write([*map(self._array, found)])
                self.working()
                done += len(index)
                progress.update(len(index))
        logger.info("computed features of %d images in %.1f s", done, time.monotonic() - started)

    def _features(self, values: Tensor) -> tuple[Tensor, ...]:
        return crossing_values(self.model, self.cut, values)

    def _checked(
        self, values: Tensor, image: Tensor, alone: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Return a batch's features, checked against those of one more image in the batch."""
        found = self._features(torch.cat([values, image]))
        check_same([each[-1:] for each in found], alone, CHECK_TOLERANCE)
        return tuple(each[:-1] for each in found)

    def _input(self, batch: dict[str, Tensor], view: int | None) -> Tensor:
        pixels = batch["pixels"].to(self.device)
        if view is None:
            return to_model_input(pixels, self.image)
        index = batch["index"].to(self.device)
        return augment(pixels, index, view, self.seed, self.augment, self.image)

    def _at_once(self) -> int:
        """Return how many images go through the prefix together."""
        on_cpu = self.device.type == "cpu"
        most, fit = (BATCH, BATCH_BYTES) if on_cpu else (DEVICE_BATCH, DEVICE_BATCH_BYTES)
        return max(1, min(most, fit // self.cut.largest))

    def _array(self, value: Tensor) -> np.ndarray:
        """Return values as they are stored; numpy has no bfloat16, so its bits are stored as
        integers."""
        if value.dtype == torch.bfloat16:
            return value.view(torch.int16).cpu().numpy()
        if self.half and value.dtype == torch.float32:
            value = value.half()
            if not torch.isfinite(value).all():
                raise TooLargeError(self.phase)
        return value.cpu().numpy()
