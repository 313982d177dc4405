"""Pictures of any number of channels: arrays in .npy files, and files with a page for each."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

MAGIC = b"\x93NUMPY"  # how a .npy file begins


def read_array(source: bytes, channels: int) -> np.ndarray[Any, Any]:
    """Return the array in a .npy file as uint8 (H, W, C): stored so, or (C, H, W), or (H, W).

    8 bits are kept, 16 bits and numbers in 0..1 scaled. Raises ValueError for anything else.
    """
    values = np.load(BytesIO(source), allow_pickle=False)
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or channels not in (values.shape[2], values.shape[0]):
        shape = " x ".join(map(str, values.shape))
        raise ValueError(f"an array of {shape} has no side of {channels} channels")
    if values.shape[2] != channels:
        values = values.transpose(1, 2, 0)
    return to_8_bit(values)


def read_pages(image: Image.Image, channels: int) -> np.ndarray[Any, Any]:
    """Return the pages of a file as uint8 (H, W, C). Raises ValueError unless there are C of one
    size, each with a single channel."""
    pages = []
    for page in range(getattr(image, "n_frames", 1)):
        image.seek(page)
        pages.append(np.asarray(image))
    if len(pages) != channels or len({page.shape for page in pages}) > 1 or pages[0].ndim != 2:
        raise ValueError(
            f"a picture of mode {image.mode} with {len(pages)} pages, and the model sees "
            f"{channels} channels: give .npy arrays (H, W, {channels}), or a gray page for each"
        )
    return to_8_bit(np.stack(pages, axis=-1))


def to_8_bit(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return pixels as uint8: 8 bits as they are, 16 bits by their full range, floats by 0..1.

    Raises ValueError for other values.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind in "ui" and values.size and values.min() >= 0 and values.max() <= 65535:
        return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if values.dtype.kind == "f" and values.size and 0 <= values.min() <= values.max() <= 1:
        return (values * 255 + 0.5).astype(np.uint8)
    raise ValueError(
        f"pixels of kind {values.dtype} have no known range; save 8 or 16 bits, or numbers in 0..1"
    )
