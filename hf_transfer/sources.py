"""Where labelled images come from: a folder, a table or a `datasets` source becomes one list.

Names, labels and splits only: nothing is decoded here, and torch is not imported.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hf_transfer.recipe import DataSpec, UserError

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev", "eval"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
SUFFIXES = frozenset(
    [
        ".avif",
        ".bmp",
        ".dib",
        ".gif",
        ".heic",
        ".heif",
        ".j2k",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pcx",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tga",
        ".tif",
        ".tiff",
        ".webp",
    ]
)


class DataError(UserError):
    """A data set that cannot be used as it is."""


@dataclass(frozen=True)
class Scan:
    """The list of labelled images: `files` (relative to `root`, sorted), and for each its place in
    `labels` (`targets`) and its split ("train", "validation" or "test").

    `ignored` are files without an image's suffix. `table` is the `datasets` source, if it is one.
    """

    path: str
    root: Path
    labels: tuple[str, ...]
    files: tuple[str, ...]
    targets: tuple[int, ...]
    splits: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    table: Any = None

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Images per class of each split that has any, classes in the order of `labels`."""
        found = Counter(zip(self.splits, self.targets, strict=True))
        return {
            split: {label: found[split, place] for place, label in enumerate(self.labels)}
            for split in SPLITS
            if split in self.splits
        }

    def read(self, place: int) -> bytes:
        """Return the bytes of one file. Raises OSError."""
        return (self.root / self.files[place]).read_bytes()

    def identity(self, place: int) -> str:
        """Return what changes when the file does: its name, size and time of change."""
        name = self.files[place]
        try:
            found = os.stat(os.path.join(self.root, name))
        except OSError:
            return f"{name}\0missing"
        return f"{name}\0{found.st_size}\0{found.st_mtime_ns}"


def scan(spec: DataSpec, seed: int = 0) -> Scan:
    """Return the labelled images of a source with their splits; nothing is decoded.

    A pure function of the names, the labels and the seed: the order in which a disk lists its
    files changes nothing. Raises DataError, one line.
    """
    if not spec.path:
        raise DataError("no data: name a folder of class folders with --data or data.path")
    path = Path(spec.path).expanduser()
    found = _scan_folder(path, spec)
    return _limit(_split(found, spec, seed), spec, seed)


# --- class folders ---------------------------------------------------------------------------


def _scan_folder(root: Path, spec: DataSpec) -> Scan:
    if not root.is_dir():
        raise DataError(_not_there(root))
    folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and _shown(entry))
    named = {name: SPLIT_NAMES.get(name.lower()) for name in folders}
    rows: list[tuple[str, str, str]] = []
    ignored: list[str] = []
    tops = (
        [(name, named[name] or "") for name in folders] if "train" in named.values() else [("", "")]
    )
    for top, split in tops:
        for name in _walk(root / top if top else root, top):
            parts = name.split("/")[1 if top else 0 :]
            if not _looks_like_image(parts[-1]):
                ignored.append(name)
            elif len(parts) > 1:
                rows.append((name, parts[0], split))
    return _listed(str(spec.path), root, rows, tuple(sorted(ignored)))


def _listed(
    path: str, root: Path, rows: Iterable[tuple[str, str, str]], ignored: tuple[str, ...] = ()
) -> Scan:
    rows = sorted(rows)
    if not rows:
        raise DataError(f"{path}: no images; expected one folder per class, with images in each")
    labels = in_order({label for _, label, _ in rows})
    if len(labels) < 2:
        raise DataError(f"{path}: only one class, {labels[0]!r}; a classifier needs two at least")
    place = {label: at for at, label in enumerate(labels)}
    return Scan(
        path=path,
        root=root,
        labels=labels,
        files=tuple(name for name, _, _ in rows),
        targets=tuple(place[label] for _, label, _ in rows),
        splits=tuple(split for _, _, split in rows),
        ignored=ignored,
    )


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Return labels sorted, as numbers where all are whole numbers."""
    labels = list(labels)
    numbers = all(label.isdecimal() for label in labels)
    return tuple(sorted(labels, key=(lambda label: (int(label), label)) if numbers else None))


def _walk(folder: Path, prefix: str) -> Iterator[str]:
    """Yield the names of all files below, relative to the data's root, "/" between the parts."""
    pending, seen = [(str(folder), prefix)], set()
    while pending:
        here, name = pending.pop()
        real = os.path.realpath(here)
        if real in seen:  # a link to a folder above
            continue
        seen.add(real)
        with os.scandir(here) as entries:
            for entry in entries:
                if not _shown(entry):
                    continue
                below = f"{name}/{entry.name}" if name else entry.name
                if entry.is_dir():
                    pending.append((entry.path, below))
                else:
                    yield below


def _shown(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith((".", "__MACOSX", "@eaDir"))


def _looks_like_image(name: str) -> bool:
    suffix = os.path.splitext(name)[1].lower()
    return suffix in SUFFIXES or not suffix


def _not_there(path: Path) -> str:
    if path.exists():
        return f"{path}: a file, not a folder of class folders"
    near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = get_close_matches(path.name, near, 3)
    hint = f"; nearest: {', '.join(str(path.parent / name) for name in close)}" if close else ""
    return f"data {str(path)!r}: no such folder{hint}"


# --- splits ----------------------------------------------------------------------------------


def _rank(seed: int, name: str) -> bytes:
    """Return the key by which images are drawn: random by seed and name, and nothing else."""
    return hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest()


def _split(found: Scan, spec: DataSpec, seed: int) -> Scan:
    """Return the scan with validation and test drawn from train where the source has none."""
    splits = [split or "train" for split in found.splits]
    missing = [
        (split, share)
        for split, share in (("test", spec.test), ("validation", spec.validation))
        if share and split not in splits
    ]
    for rows in _drawn(found, splits, "train", seed).values():
        total, start = len(rows), 0
        for split, share in missing:
            take = min(max(1, round(total * share)), total - start - 1)
            for row in rows[start : start + max(0, take)]:
                splits[row] = split
            start += max(0, take)
    return replace(found, splits=tuple(splits))


def _limit(found: Scan, spec: DataSpec, seed: int) -> Scan:
    """Return the scan with at most so many images per class as the recipe says."""
    dropped: set[int] = set()
    limits = (("train", spec.train_per_class), ("validation", spec.validation_per_class))
    for split, limit in limits:
        if limit is not None:
            for rows in _drawn(found, found.splits, split, seed).values():
                dropped.update(rows[limit:])
    if not dropped:
        return found
    kept = [row for row in range(len(found.files)) if row not in dropped]
    return replace(
        found,
        files=tuple(found.files[row] for row in kept),
        targets=tuple(found.targets[row] for row in kept),
        splits=tuple(found.splits[row] for row in kept),
    )


def _drawn(found: Scan, splits: Iterable[str], split: str, seed: int) -> dict[int, list[int]]:
    """Return per class the rows of a split in the order in which they are drawn."""
    rows: dict[int, list[int]] = {}
    for row, (target, here) in enumerate(zip(found.targets, splits, strict=True)):
        if here == split:
            rows.setdefault(target, []).append(row)
    for members in rows.values():
        members.sort(key=lambda row: (_rank(seed, found.files[row]), found.files[row]))
    return rows
