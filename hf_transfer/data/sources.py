"""Where labelled images come from: a folder, a table or a `datasets` source becomes one list.

Names, labels and splits only: nothing is decoded here, and torch is not imported.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from hf_transfer.base.errors import DataError
from hf_transfer.data import reading
from hf_transfer.data.columns import Codes
from hf_transfer.data.splits import (
    by_strata,
    draw_order,
    drawn_first,
    grouped,
    iterative,
    tenths,
)
from hf_transfer.data.tables import (
    SPLIT_NAMES,
    SUFFIXES,
    ImageTable,
    Row,
    identity_of,
    is_datasets,
    read_datasets,
    read_table,
)
from hf_transfer.data.targets import BETWEEN, Target, is_text
from hf_transfer.recipe.specs import DataSpec

__all__ = ["SPLITS", "DataError", "Scan", "limited", "scan"]

SPLITS = ("train", "validation", "test")
IMAGE_SUFFIXES = frozenset(
    (
        *(".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe"),
        *(".jpeg", ".jpg", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff"),
        *(".npy", ".webp"),
    )
)


@dataclass(frozen=True)
class Scan:
    """The list of labelled images: `files` (relative to `root`, sorted), and for each its target
    and its split ("train", "validation" or "test").

    A target is a place in `labels`; of several labels a tuple of places; of a regression a tuple
    of numbers, one for each of `labels`. `ignored` names what lies there and is no labelled image.
    `table` is set for `datasets`.
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
        return f"{name}\0{identity_of(os.path.join(self.root, name))}"

    def take(self, rows: np.ndarray) -> Scan:
        """Return the scan of these rows alone, with the same labels."""
        return replace(
            self,
            files=tuple(self.files[row] for row in rows.tolist()),
            targets=self.targets.take(rows),
            splits=self.splits.take(rows),
        )


def scan(spec: DataSpec, seed: int = 0, task: str = "classification") -> Scan:
    """Return the labelled images of a source with their splits; nothing is decoded.

    The source is a folder of class folders, one of train/validation/test folders of such, a .csv,
    .tsv or .jsonl table, a folder or file of `datasets`, or a data set on the Hub (owner/name).
    Splits that it lacks are drawn from train, class by class (several labels: so that each has its
    share; numbers: tenth by tenth of the first): a pure function of names, labels and seed; the
    order in which a disk lists files changes nothing. Raises DataError, one line.
    """
    if not spec.path:
        raise DataError("no data: name a folder of class folders with --data or data.path")
    path = Path(spec.path).expanduser()
    try:
        found = _read(path, spec, task)
    except OSError as error:
        raise DataError(f"{error.filename or path}: {error.strerror or error}") from error
    if "train" not in found.splits and "" not in found.splits:
        raise DataError(
            f"{path}: no training images; splits: {', '.join(sorted(set(found.splits)))}"
        )
    found = _split(found, spec, seed)
    return found.take(limited(found, spec, seed))


def _read(path: Path, spec: DataSpec, task: str) -> Scan:
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        rows, order = read_table(path, spec, task)
        return _listed(path, path.parent, sorted(rows), order=order, task=task)
    if is_datasets(path):
        table, rows, order, ignored = read_datasets(path, spec, task)
        return replace(_listed(path, path, sorted(rows), ignored, order, task), table=table)
    if not path.is_dir():
        raise DataError(_not_there(path))
    if task != "classification":
        raise DataError(
            f"{path}: a folder of class folders is for task: classification; for task: {task} name "
            f"a {', '.join(SUFFIXES)} table that lists the images{_table_in(path)}"
        )
    return _scan_folder(path)


def _listed(
    path: Path,
    root: Path,
    rows: Iterable[Row],
    ignored: tuple[str, ...] = (),
    order: tuple[str, ...] = (),
    task: str = "classification",
) -> Scan:
    """Return the scan of rows that come in the order of their names."""
    files: list[str] = []
    told_of: list[Target] = []
    named_splits: list[str] = []
    for name, target, split in rows:
        files.append(name)
        told_of.append(target)
        named_splits.append(split)
    targets = Codes(told_of)
    told = {"classification": lambda target: (target,), "multi_label": tuple}.get(task)
    present = {label for target in targets.table for label in told(target)} if told else set()
    named = tuple(label for label in order if label in present or task != "classification")
    labels = named or in_order(present)
    if not labels:
        raise DataError(f"{path}: no images; expected one folder per class with images in each")
    if odd := next((label for label in labels if not is_text(label)), None):
        raise DataError(
            f"{path}: the label {odd!r} is not UTF-8, as a saved model's labels must be; rename "
            "its folder, or write it otherwise in the table"
        )
    if len(labels) < 2 and task == "classification":
        raise DataError(f"{path}: only one class, {labels[0]!r}{_nested(root / labels[0])}")
    place = {label: at for at, label in enumerate(labels)}
    return Scan(
        path=str(path),
        root=root,
        labels=labels,
        files=tuple(files),
        targets=targets.map(lambda target: _placed(target, place)),
        splits=Codes(named_splits),
        ignored=ignored,
        task=task,
    )


def _placed(target: Target, place: dict[str, int]) -> Any:
    """Return a target with labels as their places; numbers stay as they are."""
    if isinstance(target, str):
        return place[target]
    return tuple(place[part] if isinstance(part, str) else part for part in target)


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Return labels sorted, as numbers where all are whole numbers."""
    labels = list(labels)
    if all(label.isdecimal() for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))


# --- class folders ---------------------------------------------------------------------------


def _scan_folder(root: Path) -> Scan:
    ignored: list[str] = []
    found = _listed(root, root, _labelled(root, ignored))
    return replace(found, ignored=tuple(sorted(ignored)))


def _labelled(root: Path, ignored: list[str]) -> Iterator[Row]:
    """Yield the images in class folders, in the order of their names; note all else."""
    tops = _split_folders(root)
    images = loose = 0
    for top, split in tops.items():
        classes = set(_folders(root / top))
        for name in _walk(root, top):
            parts = name.split("/")[1 if top else 0 :]
            if len(parts) > 1 and looks_like_image(parts[-1]):
                images += 1
                classes.discard(parts[0])
                yield name, parts[0], split
            else:
                ignored.append(name)
                loose += looks_like_image(parts[-1]) and len(parts) == 1
        ignored += [f"{top}/{name}/" if top else f"{name}/" for name in classes]  # no image there
    if tops != {"": ""}:
        ignored += [f"{name}/" for name in _folders(root) if name not in tops]
    if loose and not images:
        raise DataError(
            f"{root}: {loose:,} images lie in the folder itself; put each in a folder named after "
            f"its class, or name the table that lists them{_table_in(root)}"
        )


def _split_folders(root: Path) -> dict[str, str]:
    """Return {folder: split} where the data comes in split folders, else {"": ""}.

    A folder is a split's if its name says so and it holds folders: `train` may be a class too.
    """
    folders = _folders(root)
    named = {name: SPLIT_NAMES[name.lower()] for name in folders if name.lower() in SPLIT_NAMES}
    found = {name: split for name, split in named.items() if _folders(root / name)}
    if "train" in found.values():
        return found
    if named and len(named) == len(folders):
        raise DataError(
            f"{root}: expected train with one folder per class, and perhaps validation and test; "
            f"found {', '.join(folders)}" + ("" if found else ", which hold no folders")
        )
    return {"": ""}


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if shown(entry.name) and entry.is_dir())


def _walk(root: Path, top: str) -> Iterator[str]:
    """Yield all files below a folder of the root, by name in order, "/" between parts."""
    begun, seen = [iter([f"{top}/" if top else ""])], set()
    while begun:
        name = next(begun[-1], None)
        if name is None:
            begun.pop()
            continue
        if name and not name.endswith("/"):
            yield name
            continue
        here = os.path.join(root, name)
        real = os.path.realpath(here)
        if real in seen:  # a link to a folder above, or a second link to one
            continue
        seen.add(real)
        begun.append(map(name.__add__, _listing(here)))


def _listing(folder: str) -> list[str]:
    """Return the names in a folder, in order; those of folders end with "/"."""
    with os.scandir(folder) as entries:
        return sorted(
            f"{entry.name}/" if entry.is_dir() else entry.name
            for entry in entries
            if shown(entry.name)
        )


def shown(name: str) -> bool:
    """Return whether a name is neither hidden nor left behind by an archiver or a file server."""
    return not name.startswith(".") and name not in ("__MACOSX", "@eaDir", "Thumbs.db")


def looks_like_image(name: str) -> bool:
    """Return whether a file is to be decoded: it has an image's suffix, or none."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix in IMAGE_SUFFIXES or not suffix


def _nested(folder: Path) -> str:
    inner = _folders(folder) if folder.is_dir() else []
    if len(inner) < 2:
        return "; a classifier needs two at least"
    few = ", ".join(inner[:3]) + (", ..." if len(inner) > 3 else "")
    return f"; it holds folders itself ({few}): did you mean {folder}?"


def _table_in(root: Path) -> str:
    tables = [name for name in sorted(os.listdir(root)) if name.lower().endswith(SUFFIXES)]
    return f": {root / tables[0]}" if tables else ""


def _not_there(path: Path) -> str:
    if path.exists():
        unpack = (
            "; unpack it first" if path.suffix in (".zip", ".tar", ".gz", ".tgz", ".7z") else ""
        )
        return (
            f"data {str(path)!r}: a file, not a folder of class folders or a "
            f"{', '.join(SUFFIXES)} table{unpack}"
        )
    near = sorted(os.listdir(path.parent)) if path.parent.is_dir() else []
    close = get_close_matches(path.name, near, 3)
    hint = f"; nearest: {', '.join(str(path.parent / name) for name in close)}" if close else ""
    return f"data {str(path)!r}: no such folder{hint}"


# --- splits ----------------------------------------------------------------------------------


def _split(found: Scan, spec: DataSpec, seed: int) -> Scan:
    """Return the scan with validation and test drawn from train where the source has none.

    Of every class (numbers: of every tenth) each gets its share, at least one image, and train
    keeps at least one. Of several labels each gets its share as nearly as whole images allow, which
    may be none.
    """
    splits = found.splits.map(lambda split: split or "train")
    shares = {"test": spec.test, "validation": spec.validation}
    shares = {s: share for s, share in shares.items() if share and s not in splits.table}
    rows = splits.where("train")
    order = draw_order(found.files, seed)
    if found.task == "multi_label":
        drawn = iterative(rows, found.targets, order, shares)
    else:
        numbers = found.task == "regression"
        strata = tenths(rows, found.targets) if numbers else found.targets.codes
        drawn = by_strata(rows, strata, order, shares)
    for split, mine in drawn.items():
        splits = splits.put(mine, split)
    return replace(found, splits=splits)


def limited(found: Scan, spec: DataSpec, seed: int) -> np.ndarray:
    """Return the rows left when no class has more images than the recipe says, int64, in order.

    They are drawn in an order that the seed decides, so a smaller limit gives a subset.
    """
    limits = {"train": spec.train_per_class, "validation": spec.validation_per_class}
    if limits == {"train": None, "validation": None}:
        return np.arange(len(found.files))
    order, codes = draw_order(found.files, seed), found.targets.codes
    kept = np.ones(len(found.files), bool)
    for split, limit in limits.items():
        if limit is not None:
            for mine in grouped(codes, found.splits.where(split)):
                kept[drawn_first(mine, order)[limit:]] = False
    return np.flatnonzero(kept)
