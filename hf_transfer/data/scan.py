"""The list of labelled images that a source becomes: names, targets and splits; nothing decoded."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_transfer.base.errors import DataError
from hf_transfer.data import reading
from hf_transfer.data.columns import Codes
from hf_transfer.data.datasets_tables import ImageTable
from hf_transfer.data.targets import BETWEEN
from hf_transfer.recipe.specs import DataSpec

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Scan:
    """The list of labelled images: `files` (relative to `root`, sorted), and for each its target
    and its split ("train", "validation" or "test").

    A target is a place in `labels`; of several labels a tuple of places; of a regression a tuple
    of numbers, one for each of `labels`. `ignored` names what lies there and is no labelled image.
    `table` is set for `datasets`, `groups` where images are to stay together.
    """

    path: str
    root: Path
    labels: tuple[str, ...]
    files: tuple[str, ...]
    targets: Codes
    splits: Codes
    ignored: tuple[str, ...] = ()
    table: ImageTable | None = None
    task: str = "classification"
    groups: Codes | None = None

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Images per class (or label, or target) of each split that has any, in `labels`' order."""
        found: Counter[tuple[str, int]] = Counter()
        for split, target in zip(self.splits, self.targets, strict=True):
            found.update((split, place) for place in self.places(target))
        return {
            split: {label: found[split, place] for place, label in enumerate(self.labels)}
            for split in SPLITS
            if split in self.splits
        }

    @property
    def images(self) -> dict[str, int]:
        """Images of each split that has any; one of several labels counts once."""
        found = Counter(self.splits)
        return {split: found[split] for split in SPLITS if found[split]}

    def places(self, target: Any) -> Iterable[int]:
        """Return the places in `labels` of which a target says something."""
        if self.task == "regression":
            return range(len(self.labels))
        return target if self.task == "multi_label" else (target,)

    def shown(self, target: Any) -> str:
        """Return a target in words: its label, its labels, or its numbers."""
        if self.task == "regression":
            return " ".join(map(repr, target))
        return BETWEEN.join(self.labels[place] for place in self.places(target))

    @contextmanager
    def opened(self, row: int) -> Iterator[bytes]:
        """Yield the bytes of one image's file, within `reading`'s limits. Raises OSError."""
        if self.table is not None:
            with self.table.opened(self.files[row]) as data:
                yield data
        else:
            with reading.opened(os.path.join(self.root, self.files[row])) as data:
                yield data

    def identity(self, row: int) -> str:
        """Return what changes when the image does: its name, size, times and inode."""
        name = self.files[row]
        if self.table is not None:
            return self.table.identity(name)
        return f"{name}\0{reading.identity_of(os.path.join(self.root, name))}"

    def take(self, rows: np.ndarray) -> Scan:
        """Return the scan of these rows alone, with the same labels."""
        return replace(
            self,
            files=tuple(self.files[row] for row in rows.tolist()),
            targets=self.targets.take(rows),
            splits=self.splits.take(rows),
            groups=self.groups and self.groups.take(rows),
        )


def check_validation(found: Scan, chosen: Scan, spec: DataSpec) -> None:
    """Raise DataError, why and what helps, where none of the `chosen` images can validate.

    A share of a class, or of a tenth of numbers, always leaves one to train on, however large.
    """
    rows = chosen.splits.where("validation")
    if any(chosen.targets[row] != () for row in rows):
        return
    if len(rows):
        why = f"the {len(rows):,} there show none of the labels; add images that do"
    elif given := found.images.get("validation"):
        why = f"all {given:,} cannot be read, or are copies of others; add others"
    elif not spec.validation:
        why = "set data.validation above 0, or add a split of that name"
    else:
        larger = " or make the share larger" if found.task == "multi_label" else ""
        why = f"a share of {spec.validation:g} of so few comes to none; add images{larger}"
    raise DataError(f"{found.path}: no validation images: {why}")
