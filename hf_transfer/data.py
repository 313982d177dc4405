"""Labelled images, ready to train on: decoded once, checked once, handed out a batch at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from hf_transfer.audit import Audit
from hf_transfer.decoding import ImageSettings, decode
from hf_transfer.recipe import DataSpec
from hf_transfer.sources import scan


class ImageSet(Dataset):
    """Labelled images in memory or on disk: `pixels` uint8 (N, S', S', C), `labels` int64 (N,).

    An item is {"pixels", "labels", "index"}; a list of indices gives one batch of the same, which
    `collate` hands on unchanged. `index` is the place in this set.
    """

    def __init__(
        self, pixels: Any, labels: np.ndarray, names: Sequence[str], files: Sequence[str] = ()
    ) -> None:
        self.pixels, self.labels = pixels, np.asarray(labels, dtype=np.int64)
        self.names, self.files = tuple(names), tuple(files)

    @classmethod
    def from_arrays(
        cls, pixels: np.ndarray, labels: Sequence[int] | np.ndarray, names: Sequence[str] = ()
    ) -> ImageSet:
        """Return a set of images in memory: uint8 (N, S, S, C) or (N, S, S), and N labels."""
        labels = np.asarray(labels, dtype=np.int64)
        return cls(pixels, labels, names or [str(n) for n in range(int(labels.max()) + 1)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one image: uint8 (S', S', C), its label and its index."""
        batch = self.__getitems__([index])
        return {
            "pixels": batch["pixels"][0],
            "labels": int(batch["labels"][0]),
            "index": int(batch["index"][0]),
        }

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return one batch: uint8 (B, S', S', C), labels and indices int64 (B,)."""
        rows = np.asarray(indices, dtype=np.int64)
        return {
            "pixels": torch.from_numpy(np.ascontiguousarray(self.pixels[rows])),
            "labels": torch.from_numpy(self.labels[rows]),
            "index": torch.from_numpy(rows),
        }

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Images per class, in the order of the class names."""
        return tuple(np.bincount(self.labels, minlength=len(self.names)).tolist())


def collate(batch: dict[str, torch.Tensor] | list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return a batch as it came from `__getitems__`, or one made of single items."""
    if isinstance(batch, dict):
        return batch
    return {
        "pixels": torch.stack([item["pixels"] for item in batch]),
        "labels": torch.tensor([item["labels"] for item in batch]),
        "index": torch.tensor([item["index"] for item in batch]),
    }


@dataclass(frozen=True)
class ImageData:
    """A data set in its splits, with what the audit found and a fingerprint of its content."""

    labels: tuple[str, ...]
    train: ImageSet
    validation: ImageSet
    test: ImageSet | None
    audit: Audit
    fingerprint: str
    path: str


def load_data(
    spec: DataSpec, settings: ImageSettings, seed: int = 0, cache_dir: Path | None = None
) -> ImageData:
    """Return the images of a recipe's data, decoded and split. Raises DataError, one line."""
    found = scan(spec, seed)
    pixels = np.stack([decode(found.root / name, settings) for name in found.files])
    targets, splits = np.array(found.targets), np.array(found.splits)
    sets = {}
    for split in ("train", "validation", "test"):
        rows = np.flatnonzero(splits == split)
        files = [found.files[row] for row in rows]
        sets[split] = ImageSet(pixels[rows], targets[rows], found.labels, files)
    fingerprint = hashlib.sha256("\0".join(found.files).encode()).hexdigest()
    test = sets["test"] if len(sets["test"]) else None
    return ImageData(
        found.labels, sets["train"], sets["validation"], test, Audit(), fingerprint, str(spec.path)
    )
