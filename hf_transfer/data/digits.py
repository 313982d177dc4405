"""Real handwritten digits, the quickstart's target: scikit-learn carries them, nothing to fetch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from hf_transfer.base.errors import UserError
from hf_transfer.data.decoding import decode
from hf_transfer.data.image_set import ImageSet
from hf_transfer.data.image_settings import ImageSettings

DIGITS = tuple("0123456789")
TEST_PER_CLASS = 70  # of about 180 digits per class; the others are what training draws from
EXAMPLES, EXAMPLE_PX = 2, 128  # example images per class, and their side; the digits are 8 x 8


@dataclass(frozen=True)
class Digits:
    """Handwritten digits: those to draw from, class by class, and the same test images for all."""

    pool: ImageSet
    test: ImageSet
    originals: np.ndarray  # uint8 (N, 8, 8), of the test images
    fingerprint: str

    def draw(self, count: int, seed: int) -> ImageSet:
        """Return `count` digits of each class; a larger count has the smaller one's among them.

        Raises UserError where the pool of a class is smaller.
        """
        smallest = min(self.pool.class_counts)
        if count > smallest:
            raise UserError(
                f"compare.per_class: {count} is too many; {TEST_PER_CLASS} digits per class are "
                f"for testing, which leaves 1 to {smallest}"
            )
        rng = np.random.default_rng(seed)
        drawn = [
            rng.permutation(np.flatnonzero(self.pool.labels == label))[:count]
            for label in range(len(DIGITS))
        ]
        rows = np.concatenate(drawn)
        return ImageSet.from_arrays(self.pool.pixels[rows], self.pool.labels[rows], DIGITS)


def load_digits(settings: ImageSettings) -> Digits:
    """Return scikit-learn's 1,797 digits, decoded as any image for this model: white on black."""
    from sklearn import datasets

    found = datasets.load_digits()
    labels = np.asarray(found.target)
    originals = (np.asarray(found.images) * (255 / 16)).round().astype(np.uint8)
    pixels = np.stack([decode(Image.fromarray(digit), settings) for digit in originals])
    rng = np.random.default_rng(0)  # not the recipe's seed: the test images are the same for all
    orders = [rng.permutation(np.flatnonzero(labels == k)) for k in range(len(DIGITS))]
    # The recipe's settings were chosen on the first 100 of each class: never test on those.
    test = np.concatenate([order[-TEST_PER_CLASS:] for order in orders])
    pool = np.concatenate([order[:-TEST_PER_CLASS] for order in orders])
    return Digits(
        pool=ImageSet.from_arrays(pixels[pool], labels[pool], DIGITS),
        test=ImageSet.from_arrays(pixels[test], labels[test], DIGITS),
        originals=originals[test],
        fingerprint=hashlib.sha256(originals.tobytes() + labels.tobytes()).hexdigest(),
    )


def write_examples(digits: Digits, out: Path) -> tuple[Path, ...]:
    """Write a few test digits of each class as PNG files named by their label; return the paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for label in range(len(DIGITS)):
        for i, row in enumerate(np.flatnonzero(digits.test.labels == label)[:EXAMPLES]):
            path = out / f"digit-{label}-{i + 1}.png"
            image = Image.fromarray(digits.originals[row])
            image.resize((EXAMPLE_PX, EXAMPLE_PX), Image.Resampling.BICUBIC).save(path)
            paths.append(path)
    return tuple(paths)
