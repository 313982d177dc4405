"""Shards: one span of an entry's rows, a .npy file for each column with its checksum in its name.

A file is written aside and renamed into place, so it is there whole or not at all.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hf_transfer.base.files import aside, put_bytes, read_limited

logger = logging.getLogger(__name__)

SHARD_BYTES = 64 * 2**20  # of one file, at most
SHARDS, SHARD_ROWS = 64, 128  # so many of a large entry, and no smaller: what an interruption costs
CHECKED = "checked.json"  # in an entry: what its files were when they were found to hold
CHECKED_BYTES = 2**26  # of that list, at most

Write = Callable[[Sequence[np.ndarray]], None]
Compute = Callable[[Iterable[range], Write], None]


@dataclass(frozen=True)
class Column:
    """One of an entry's arrays: `shape` of a row, and its dtype in numpy's words."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


def row_bytes(columns: Sequence[Column]) -> int:
    """Return the bytes of one row of all columns."""
    return sum(column.row_bytes for column in columns)


def spans_of(columns: Sequence[Column], rows: int) -> list[range]:
    """Return the rows of each shard; they depend on the entry alone, not on who computes it."""
    step = max(SHARD_ROWS, -(-rows // SHARDS))
    step = max(1, min(step, SHARD_BYTES // max(1, row_bytes(columns))))
    return [range(first, min(first + step, rows)) for first in range(0, rows, step)]


def missing_rows(folder: Path, columns: Sequence[Column], rows: int) -> int:
    """Return how many rows of an entry have no file yet, whatever is in those that there are."""
    there = _files(folder)
    numbers = range(len(columns))
    return sum(
        len(span)
        for span in spans_of(columns, rows)
        if not all(_stem(number, span) in there for number in numbers)
    )


def _stem(column: int, span: range) -> str:
    return f"{column}-{span.start:010d}-{len(span)}"


def _files(folder: Path) -> dict[str, list[Path]]:
    """Return the shards' files in an entry, by column and span."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.npy")):
        found.setdefault(path.stem.rpartition("-")[0], []).append(path)
    return found


def rows_of(path: Path) -> int:
    """Return how many rows a shard's file has, by its name."""
    return int(path.stem.split("-")[2])


def read_shard(path: Path, column: Column) -> np.ndarray:
    """Return one column of a shard in memory."""
    count = rows_of(path) * int(np.prod(column.shape, dtype=np.int64))
    start = path.stat().st_size - rows_of(path) * column.row_bytes
    return np.fromfile(path, column.dtype, count, offset=start).reshape(-1, *column.shape)


def _holds(path: Path, column: Column, span: range) -> bool:
    """Return whether a file is what was written, to the last bit; remove it if not."""
    sound = False
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        like = array.shape == (len(span), *column.shape) and array.dtype == np.dtype(column.dtype)
        sound = like and path.stem.rpartition("-")[2] == _checksum(array)
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
    if not sound:
        logger.warning("%s is not what was written and is built again", path)
        path.unlink(missing_ok=True)
    return sound


def _checked(folder: Path) -> dict[str, list[int]]:
    """Return the state of an entry's files when they were last read and verified."""
    try:
        found = json.loads(read_limited(folder / CHECKED, CHECKED_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def note_checked(folder: Path, paths: Iterable[Path]) -> None:
    """Record that files are verified, so that the next to open them need not read them whole."""
    found = {path.name: _state(path) for path in paths}
    if found == _checked(folder):
        return
    with suppress(OSError):  # they are read once more, no less right
        put_bytes(folder / CHECKED, json.dumps(found).encode())


def _state(path: Path) -> list[int]:
    """Return what changes when a file does: size, both times and the inode.

    The time of modification can be set to any; that of the inode's change cannot.
    """
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _checksum(array: np.ndarray) -> str:
    return f"{zlib.crc32(array.reshape(-1).view(np.uint8).data):08x}"


class Builder:
    """The shards of an entry: those that are there, and those that are written as rows come."""

    def __init__(self, folder: Path, columns: Sequence[Column]) -> None:
        self.folder, self.columns = folder, columns
        self.files: dict[range, list[Path]] = {}
        self._checked, self._there = _checked(folder), _files(folder)
        self._due: deque[range] = deque()  # asked for, and not yet whole
        self._parts: list[_Part] = []

    def missing(self, spans: Iterable[range]) -> Iterator[range]:
        """Yield the spans whose rows are to be written; looked for as late as possible, for another
        run may be writing them."""
        for span in spans:
            files = self._held(span)
            if files:
                self.files[span] = files
            else:
                self._due.append(span)
                yield span

    def _held(self, span: range) -> list[Path]:
        """Return a shard's files, one for each column, if all are there and valid; else none."""
        stems = [_stem(number, span) for number in range(len(self.columns))]
        if not self._there.keys() >= set(stems):
            self._there = _files(self.folder)
        found = []
        for stem, column in zip(stems, self.columns, strict=True):
            for path in self._there.get(stem, ()):
                if self._checked.get(path.name) == _state(path) or _holds(path, column, span):
                    found.append(path)
                    break
            else:
                return []
        return found

    def write(self, arrays: Sequence[np.ndarray]) -> None:
        """Add the next rows, an array for each column; a shard that is whole is put in place."""
        span = self._due[0]
        for column in self.columns if not self._parts else ():
            self._parts.append(_Part(self.folder, column, len(span)))
        for part, array in zip(self._parts, arrays, strict=True):
            part.add(array)
        if not self._parts[0].missing:
            stems = [_stem(number, span) for number in range(len(self.columns))]
            self.files[span] = [p.publish(s) for p, s in zip(self._parts, stems, strict=True)]
            self._parts.clear()
            self._due.popleft()

    def close(self) -> None:
        """Remove what has not become a shard."""
        for part in self._parts:
            part.discard()


class _Part:
    """A shard's file while it is written aside."""

    def __init__(self, folder: Path, column: Column, rows: int) -> None:
        self.column, self.missing, self.checksum = column, rows, 0
        self.path = aside(folder, ".part")
        self.file: BinaryIO = self.path.open("xb")
        descr = np.lib.format.dtype_to_descr(np.dtype(column.dtype))
        layout = {"descr": descr, "fortran_order": False, "shape": (rows, *column.shape)}
        np.lib.format.write_array_header_1_0(self.file, layout)

    def add(self, array: np.ndarray) -> None:
        column = self.column
        if array.shape[1:] != column.shape or array.dtype != np.dtype(column.dtype):
            raise ValueError(f"rows are {array.dtype} {array.shape}, expected {column}")
        if len(array) > self.missing:
            raise ValueError(f"{len(array)} rows where {self.missing} are missing")
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        self.file.write(flat)
        self.checksum = zlib.crc32(flat, self.checksum)
        self.missing -= len(array)

    def publish(self, stem: str) -> Path:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        place = self.path.parent / f"{stem}-{self.checksum:08x}.npy"
        os.replace(self.path, place)
        return place

    def discard(self) -> None:
        self.file.close()
        self.path.unlink(missing_ok=True)
