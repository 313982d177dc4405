"""`ImageSettings`: the size, channels and normalisation that a network takes images in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image

from hf_transfer.base.errors import UserError

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class ImageSettings:
    """What a backbone wants to see; the same in training, prediction and the Space.

    `crop_mode` "center" resizes the shortest side and cuts the middle out; "squash" resizes both
    sides to the square, as most processors of transformers' vision transformers do; "border"
    resizes the longest side and fills up with the mean colour. Where half a pixel is left over,
    `crop_offset` "nearest" moves the cut to the nearest even place, as torchvision and timm do, and
    "down" rounds it down, as transformers' processors do. Of DICOM files `window` is (centre,
    width), None the file's own, and `frame` the one of several that is taken, from 1 on.
    """

    size: int
    channels: int = 3
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: Literal["center", "squash", "border"] = "center"
    crop_offset: Literal["nearest", "down"] = "nearest"
    window: tuple[float, float] | None = None
    frame: int | None = None

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise UserError(f"an image has 1 or more channels, not {self.channels}")
        if not len(self.mean) == len(self.std) == self.channels:
            raise UserError(
                f"mean and std need one number per channel: {self.channels}, "
                f"not {len(self.mean)} and {len(self.std)}"
            )
        if self.interpolation not in FILTERS:
            raise UserError(f"interpolation {self.interpolation!r} is none of {', '.join(FILTERS)}")
        if self.size < 1:
            raise UserError(f"size must be at least 1 pixel, got {self.size}")
        if not 0 < self.crop_pct <= 1:
            raise UserError(f"crop_pct must be above 0 and at most 1, got {self.crop_pct}")

    @property
    def stored(self) -> int:
        """Side in pixels of the square that is decoded and stored: `floor(size / crop_pct)`.

        The margin undoes the rounding of a `crop_pct` that was itself computed as size / side.
        """
        return math.floor(self.size / self.crop_pct + 1e-6)

    def middle(self, side: int) -> int:
        """Return where the centred cut of `size` begins in `side` pixels."""
        left_over = (side - self.size) / 2
        return math.floor(left_over) if self.crop_offset == "down" else round(left_over)


def fitted(settings: ImageSettings, fit: str | None) -> ImageSettings:
    """Return settings by which a picture is cropped, squashed or padded to the square; None leaves
    it to the checkpoint. Squashed and padded ones are seen whole."""
    if fit is None:
        return settings
    if fit == "crop":
        return replace(settings, crop_mode="center")
    return replace(settings, crop_mode="squash" if fit == "squash" else "border", crop_pct=1.0)


def with_dicom(
    settings: ImageSettings, window: Sequence[float] | None, frame: int | None
) -> ImageSettings:
    """Return settings with the window and the frame that DICOM files are read with; None leaves
    what there is."""
    if window is not None:
        if len(window) != 2:
            raise UserError(f"window is (centre, width), two numbers, not {len(window)}")
        settings = replace(settings, window=(float(window[0]), float(window[1])))
    return settings if frame is None else replace(settings, frame=frame)


def share_lost(settings: ImageSettings, sizes: np.ndarray) -> float:
    """Return the mean share of pictures that evaluation does not see; sizes (N, 2) in pixels."""
    if not len(sizes):
        return 0.0
    seen = settings.size / settings.stored
    sides = sizes.astype(np.float64)
    short, long = sides.min(axis=1), sides.max(axis=1)
    if settings.crop_mode == "squash":
        kept = np.full(len(sides), seen**2)
    elif settings.crop_mode == "center":
        kept = seen**2 * short / long
    else:
        kept = np.minimum(1, seen) * np.minimum(1, seen * long / short)
    return float(1 - kept.mean())
