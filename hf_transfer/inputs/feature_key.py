"""The name of an entry of features: a digest of everything that they depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_transfer.base.shards import Column
from hf_transfer.base.version import version_of
from hf_transfer.data.image_set import ImageSet
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.data.pixels import LivePixels, StoredPixels

VERSION = 3  # of what a key means, and of how an entry is laid out
LIBRARIES = ("torch", "transformers", "timm", "torchvision")
ROWS = 64  # images in memory that are looked at together


def feature_key(
    images: ImageSet,
    *,
    program: str,
    weights: str,
    image: ImageSettings,
    variation: tuple[Any, ...],
    device: str,
    precision: str,
    columns: Sequence[Column],
) -> str:
    """Return 32 hexadecimal digits.

    `program` is the prefix's operations, `weights` a digest of its parameters and buffers,
    `variation` how images are varied, with seed and view; empty where they are not.
    """
    how = (
        VERSION, [version_of(name) for name in LIBRARIES], program, weights, repr(image), variation,
        device, str(list(columns)), precision,
    )  # fmt: skip
    key = hashlib.blake2b(repr(how).encode(), digest_size=16)
    key.update(pixels_identity(images))
    return key.hexdigest()


def pixels_identity(images: ImageSet, read_all: bool = False) -> bytes:
    """Return a digest of the pixels that a set shows; of decoded ones by their files' content,
    which is read again with `read_all`."""
    found = hashlib.blake2b(digest_size=16)
    pixels = images.pixels
    if isinstance(pixels, (StoredPixels, LivePixels)):
        found.update(pixels.identity(read_all))
    else:
        found.update(repr(pixels.shape).encode())
        for first in range(0, len(pixels), ROWS):
            found.update(np.ascontiguousarray(pixels[first : first + ROWS]).data)
    return found.digest()
