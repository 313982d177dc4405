"""Drawn images whose labels or numbers a small network can learn: shapes in colours, one blob."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

SHAPES = ("red square", "green square", "blue square")


def _noise(random: np.random.Generator, side: int) -> np.ndarray:
    return random.integers(0, 60, (side, side, 3)).astype(np.uint8)


def _square(pixels: np.ndarray, x: int, y: int, width: int, colour: int) -> None:
    pixels[y : y + width, x : x + width] = 30
    pixels[y : y + width, x : x + width, colour] = 230


def shapes(folder: Path, count: int = 240, side: int = 32, seed: int = 0) -> Path:
    """Write images with none to three coloured squares and a table: image, labels; return it."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        pixels = _noise(random, side)
        there = [label for label in range(len(SHAPES)) if random.random() < 0.45]
        for label in there:
            x, y = random.integers(0, side - 10, 2)
            _square(pixels, x, y, 10, label)
        # What was drawn first may be covered: what is told is what is seen.
        seen = [c for c in there if (pixels[..., c].astype(int) - pixels.min(-1) > 150).sum() > 25]
        name = f"{number:04d}.png"
        Image.fromarray(pixels).save(folder / name)
        rows.append((name, "|".join(SHAPES[label] for label in seen)))
    return _csv(folder / "labels.csv", ("image", "label"), rows)


def blobs(folder: Path, count: int = 240, side: int = 32, seed: int = 0) -> Path:
    """Write images with one bright square and a table of where it is: x in metres of some
    thousands, y in shares of the side; return the table."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        pixels = _noise(random, side)
        x, y = random.integers(0, side - 10, 2)
        pixels[y : y + 10, x : x + 10] = 230
        Image.fromarray(pixels).save(folder / f"{number:04d}.png")
        rows.append((f"{number:04d}.png", 5000 + 100 * int(x), int(y) / side))
    return _csv(folder / "where.csv", ("image", "x", "y"), rows)


def json_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _csv(path: Path, head: tuple[str, ...], rows: list[tuple]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)
    return path


def photos(folder: Path, classes=("cat", "dog"), count: int = 8, size: int = 40) -> Path:
    """Write `count` random images for each class, and return the folder."""
    random = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def picture(seed: int, width: int = 90, height: int = 70) -> Image.Image:
    """Return a colourful picture, a function of the seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
