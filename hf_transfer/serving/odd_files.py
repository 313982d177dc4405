"""Images of odd sizes and modes, by which two ways to answer are compared before one is trusted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hf_transfer.base.errors import UserError
from hf_transfer.serving.predict import Prediction


def apart(
    found: np.ndarray[Any, Any], rows: Sequence[Prediction], labels: tuple[str, ...]
) -> float:
    """Return by how much answers (N, labels) differ at most from predictions: probabilities as
    such, values by their size. Raises UserError for a prediction without an answer."""
    if failed := [row.error for row in rows if row.error]:
        raise UserError(f"answers cannot be compared: {failed[0]}")
    expected = np.array([in_order(row, labels) for row in rows])
    worst = np.abs(found - expected) / np.maximum(1.0, np.abs(expected))
    return float(worst.max())


def in_order(row: Prediction, labels: tuple[str, ...]) -> list[float]:
    """Return a prediction's probabilities or values in the order of the model's labels."""
    told = dict(row.values if row.values is not None else row.labels)
    return [told[label] for label in labels]


def odd_files(folder: Path, channels: int) -> list[Path]:
    """Write ten images of odd sizes and modes, noise under a gradient, and return their paths."""
    random = np.random.default_rng(0)

    def pixels(width: int, height: int, bands: int) -> np.ndarray[Any, Any]:
        ramp = np.linspace(0, 200, width)[None, :, None] * np.linspace(0, 1, height)[:, None, None]
        return (ramp + random.integers(0, 56, (height, width, bands))).astype(np.uint8)

    if channels not in (1, 3, 4):
        for i in range(10):
            np.save(folder / f"{i}.npy", pixels(31 + 40 * i, 300 - 20 * i, channels))
        return sorted(folder.iterdir())
    colour = Image.fromarray(pixels(301, 211, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    colour.save(folder / "turned.jpg", exif=exif)
    colour.convert("L").save(folder / "gray.png")
    colour.convert("1").save(folder / "bits.png")
    colour.convert("CMYK").save(folder / "cmyk.jpg")
    colour.quantize(32, Image.Quantize.FASTOCTREE).save(folder / "palette.png", transparency=1)
    Image.fromarray(pixels(33, 450, 4), "RGBA").save(folder / "alpha.png")
    Image.fromarray(pixels(17, 19, 2), "LA").save(folder / "small.png")
    Image.fromarray(pixels(1601, 1201, 3)).save(folder / "photo.jpg")
    deep = pixels(97, 89, 1)[..., 0].astype(np.uint16) * 255
    Image.fromarray(deep).save(folder / "deep.png")
    Image.fromarray(pixels(640, 479, 3)).save(folder / "web.webp")
    return sorted(folder.iterdir())
