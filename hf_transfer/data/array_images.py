"""Pictures of any number of channels: arrays in .npy files, and files with a page for each."""

from __future__ import annotations

import math
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

MAGIC = b"\x93NUMPY"  # how a .npy file begins


def read_array(source: bytes, channels: int) -> np.ndarray[Any, Any]:
    """Return the array in a .npy file as uint8 (H, W, C): stored so, or (C, H, W), or (H, W).

    8 bits are kept, 16 bits and numbers in 0..1 scaled. Raises ValueError for anything else.
    """
    values = _array(source)
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or channels not in (values.shape[2], values.shape[0]):
        shape = " x ".join(map(str, values.shape))
        raise ValueError(f"an array of {shape} has no side of {channels} channels")
    if values.shape[2] != channels:
        values = values.transpose(1, 2, 0)
    return to_8_bit(values)


def _array(source: bytes) -> np.ndarray[Any, Any]:
    """Return the array in a .npy file, as a view of its bytes: a header that claims more is false.

    `np.load` would ask for all that is claimed before it reads.
    """
    file = BytesIO(source)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read_header = np.lib.format.read_array_header_2_0
    shape, by_column, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("an array of Python objects, not of numbers")
    count = math.prod(shape)
    if len(source) - file.tell() != count * dtype.itemsize:
        raise ValueError("the array in it is truncated, or longer than its header says")
    values = np.frombuffer(source, dtype, count, file.tell())
    return values.reshape(shape, order="F" if by_column else "C")


def read_pages(image: Image.Image, channels: int) -> np.ndarray[Any, Any]:
    """Return the pages of a file as uint8 (H, W, C). Raises ValueError unless there are C of one
    size, each with a single channel."""
    count, size, pages = getattr(image, "n_frames", 1), image.size, []
    for page in range(count) if count == channels and len(image.getbands()) == 1 else ():
        image.seek(page)
        if image.size == size:
            pages.append(np.asarray(image))
    if len(pages) != channels or len({page.dtype for page in pages}) > 1 or pages[0].ndim != 2:
        raise ValueError(
            f"a picture of mode {image.mode} with {count} pages, and the model sees {channels} "
            f"channels: give .npy arrays (H, W, {channels}), or a gray page of one size for each"
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
