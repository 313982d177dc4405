"""Arrays and tensors as pictures."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_transfer.base.errors import UserError

KINDS = (
    "paths, folders, patterns, tables, bytes, files, PIL images, arrays, tensors, or lists of these"
)
USUAL = (1, 3, 4)  # channels: gray, RGB, RGBA


def picture_of(item: Any, channels: int) -> Image.Image | bytes:
    """Return an array or tensor as a picture: (H, W), (H, W, C) or, of tensors first, (C, H, W).

    Of as many `channels` as the model sees, where Pillow has none, it is the content of a .npy
    file. Raises UserError, one line that says why it is no picture.
    """
    first = isinstance(item, torch.Tensor)
    if isinstance(item, torch.Tensor):
        item = item.detach().cpu()
        item = (item.float() if item.is_floating_point() else item).numpy()
    if not isinstance(item, np.ndarray):
        what = "nothing (None)" if item is None else f"what is of type {type(item).__name__}"
        raise UserError(f"{what} is no image; give {KINDS}")
    known = {*USUAL, channels}
    if item.ndim == 3:
        sides = (0, 2) if first else (2, 0)
        side = next((side for side in sides if item.shape[side] in known), None)
        item = np.moveaxis(item, 0, 2) if side == 0 else item
        known = known if side is not None else set()
    elif item.ndim == 2:
        item = item[:, :, None]
    if item.ndim != 3 or not known or not item.size:
        shape = " x ".join(map(str, item.shape)) or "no sides"
        raise UserError(
            f"an array of {shape} is no image; give (H, W) or (H, W, C) with C of "
            f"{', '.join(map(str, sorted({*USUAL, channels})))}"
        )
    values = _as_bytes(item)
    if values.shape[2] in USUAL:
        return Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values)
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


def _as_bytes(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return pixels as uint8: whole numbers in 0..255 or floats in 0..1. Raises UserError."""
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255)
    least, most = (values.min(), values.max()) if values.dtype.kind in "uif" else (np.nan, np.nan)
    if values.dtype.kind in "ui" and least >= 0 and most <= 255:
        return values.astype(np.uint8)
    if values.dtype.kind == "f" and least >= 0 and most <= 1:
        return (values * 255 + 0.5).astype(np.uint8)
    raise UserError(
        f"{values.dtype} from {least:g} to {most:g} are no pixels; give uint8, or floats in 0..1 "
        "(not normalised: the model does that)"
    )
