"""The built-in example: what drawn letters teach a network helps it to read handwritten digits.

Nothing is fetched: the letters are drawn, the digits are scikit-learn's.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from hf_transfer.data.digits import DIGITS
from hf_transfer.recipe.load import dump_recipe, load_recipe
from hf_transfer.recipe.specs import DataSpec, Recipe
from hf_transfer.space.uploads import Pictures

LETTERS = 8_000  # images that the backbone learns first; the quickstart takes three times as many
TRAIN, VALIDATION = 2, 20  # digits of each class
DIGIT_PX = 64  # side of the files; the digits are 8 x 8
IMAGE_PX = 32  # that the network sees
SCRATCH, FROZEN, TUNED = "From scratch", "Frozen", "Fine-tuned"


def add_digits(pictures: Pictures) -> str:
    """Fill a visitor's pictures with digits to train on and to validate on; say so."""
    from sklearn import datasets

    found = datasets.load_digits()
    rng = np.random.default_rng(0)
    pictures.clear()
    for digit, label in enumerate(DIGITS):
        rows = rng.permutation(np.flatnonzero(np.asarray(found.target) == digit))
        parts = {"train": rows[:TRAIN], "validation": rows[TRAIN : TRAIN + VALIDATION]}
        for split, own in parts.items():
            for row in own:
                pixels = (np.asarray(found.images)[row] * (255 / 16)).round().astype(np.uint8)
                pictures.keep_image(_enlarged(pixels), f"digit-{row}.png", label, split)
    counts = f"{TRAIN * len(DIGITS)} to train on, {VALIDATION * len(DIGITS)} to validate on"
    return f"Handwritten digits, {counts}: so few that it matters what the network knew before."


def unseen_digits(folder: Path, count: int = 6) -> list[Path]:
    """Write digits that no example trains or validates on, to try the models with."""
    from sklearn import datasets

    found = datasets.load_digits()
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for digit in range(count):
        rows = np.flatnonzero(np.asarray(found.target) == digit)
        row = np.random.default_rng(0).permutation(rows)[-1]
        pixels = (np.asarray(found.images)[row] * (255 / 16)).round().astype(np.uint8)
        files.append(folder / f"a-handwritten-{digit}.png")
        _enlarged(pixels).save(files[-1])
    return files


def _enlarged(pixels: np.ndarray) -> Image.Image:
    size = (DIGIT_PX, DIGIT_PX)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert("RGB")


def example_ways(data: Path, letters: Path) -> dict[str, str]:
    """Return the example's recipes as YAML by title: the quickstart's three ways."""
    recipe = load_recipe("quickstart")
    head, whole = recipe.phases
    plain = dataclasses.replace(
        recipe,
        source=None,
        compare=None,
        data=DataSpec(path=str(data), image_size=IMAGE_PX),
        ends_with="last",
    )
    alone = dataclasses.replace(
        whole, cold_head=True, lr=whole.head_lr, layer_decay=None, still_norms=False
    )
    assert recipe.source is not None  # the quickstart learns letters first
    scratch = dataclasses.replace(plain, backbone=recipe.source.backbone, pretrained=False)
    ways = {
        FROZEN: dataclasses.replace(plain, backbone=str(letters), phases=(head,)),
        TUNED: dataclasses.replace(plain, backbone=str(letters), phases=(head, whole)),
        SCRATCH: dataclasses.replace(scratch, phases=(alone,)),
    }
    return {title: dump_recipe(_named(way, title)) for title, way in ways.items()}


def _named(recipe: Recipe, title: str) -> Recipe:
    return dataclasses.replace(recipe, name=title)
