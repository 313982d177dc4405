"""Features on disk, keyed by everything they depend on; computed once, never stale or torn.

An entry is a folder of .npy files, each a span of rows (a shard) with its checksum in its name.
A file is written aside and renamed into place, so it is there whole or not at all: an interrupted
build goes on where it stopped, several processes may each build a part, and two runs that build
the same entry write the same files.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from hf_transfer.cache import Hold, StoreError, cache_root, make_room, touch, write_about

logger = logging.getLogger(__name__)

SHARD_BYTES = 64 * 2**20  # of one file
MAPPED_BYTES = 64 * 2**20  # read through a map before its pages are given back
ABANDONED_SECONDS = 24 * 3600  # a build that was killed leaves its unfinished file behind

Write = Callable[[Sequence[np.ndarray]], None]
Compute = Callable[[range, Write], None]


@dataclass(frozen=True)
class Column:
    """One of an entry's arrays: `shape` of a row, and its dtype in numpy's words."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


class StoredFeatures:
    """Rows on disk: `[rows]` gives an array (B, …) for each column. Memory stays flat.

    As long as it lives, `hold` keeps the entry from being removed.
    """

    def __init__(
        self, shards: Sequence[Sequence[Path]], columns: Sequence[Column], step: int, hold: Hold
    ) -> None:
        self.step, self.hold = step, hold  # rows in each shard but the last
        self._read = 0
        self._maps: list[mmap.mmap] = []
        self._arrays: list[list[np.ndarray]] = [
            [self._mapped(path, column) for path in paths]
            for paths, column in zip(shards, columns, strict=True)
        ]

    def __len__(self) -> int:
        return sum(len(array) for array in self._arrays[0])

    def __getitem__(self, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        rows = np.asarray(rows)
        found = tuple(self._taken(arrays, rows) for arrays in self._arrays)
        self._read += sum(array.nbytes for array in found)
        if self._read > MAPPED_BYTES and hasattr(mmap, "MADV_DONTNEED"):
            for one in self._maps:
                one.madvise(mmap.MADV_DONTNEED)
            self._read = 0
        return found

    def _taken(self, arrays: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
        if len(arrays) == 1:
            return arrays[0][rows]
        found = np.empty((len(rows), *arrays[0].shape[1:]), arrays[0].dtype)
        shards, places = np.divmod(rows, self.step)
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            found[here] = arrays[shard][places[here]]
        return found

    def _mapped(self, path: Path, column: Column) -> np.ndarray:
        with path.open("rb") as file:
            found = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._maps.append(found)
        start = len(found) - _rows_of(path) * column.row_bytes
        flat = np.frombuffer(found, np.dtype(column.dtype), offset=start)
        return flat.reshape(-1, *column.shape)


def build_features(
    key: str,
    columns: Sequence[Column],
    rows: int,
    compute: Compute,
    *,
    about: str = "",
    root: Path | None = None,
    limit_bytes: int | None = None,
    share: tuple[int, int] = (0, 1),
) -> list[list[Path]]:
    """Compute those shards of an entry that are not there or do not hold; return their files.

    `compute(range, write)` hands on the rows in order, some at a time: `write` takes one array
    (some, …) for each column. `share` is (i, n): only every n-th shard, from the i-th on, is looked
    at. Raises StoreError where the features are larger than
    the limit, the disk is full, or the folder cannot be written.
    """
    root = root or default_folder()
    spans = _spans(columns, rows)
    folder = root / key
    found = []
    hold = None
    try:
        for number in range(share[0], len(spans), share[1]):
            files = _held(folder, columns, spans[number])
            if not files:
                if hold is None:
                    _sweep(root)
                    left = rows - spans[number].start
                    make_room(root, key, left * _row_bytes(columns), limit_bytes)
                    hold = Hold(folder)
                    write_about(folder, about, rows)
                files = _build(folder, columns, spans[number], compute)
            found.append(files)
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(error.errno, f"{root}: {error.strerror or error}") from error
    finally:
        if hold is not None:
            hold.close()
    return found


def open_features(
    key: str, columns: Sequence[Column], rows: int, compute: Compute, **options: Any
) -> StoredFeatures:
    """Return an entry's rows, building what is missing; `options` and errors: `build_features`."""
    folder = (options.get("root") or default_folder()) / key
    while True:
        files = build_features(key, columns, rows, compute, **options)
        try:
            hold = Hold(folder)
            if not all(path.exists() for paths in files for path in paths):
                continue  # removed before it was held
            touch(folder)
            step = len(_spans(columns, rows)[0]) if rows else 1
            return StoredFeatures(list(zip(*files, strict=True)), columns, step, hold)
        except OSError as error:
            raise StoreError(error.errno, f"features {key}: {error.strerror or error}") from error


def _row_bytes(columns: Sequence[Column]) -> int:
    return sum(column.row_bytes for column in columns)


def _spans(columns: Sequence[Column], rows: int) -> list[range]:
    """Return the rows of each shard."""
    step = max(1, SHARD_BYTES // max(1, _row_bytes(columns)))
    return [range(first, min(first + step, rows)) for first in range(0, rows, step)]


def default_folder() -> Path:
    """Return where features are kept."""
    return cache_root() / "features"


# --- shards ------------------------------------------------------------------------------------


def _stem(column: int, span: range) -> str:
    return f"{column}-{span.start:010d}-{len(span)}"


def _rows_of(path: Path) -> int:
    return int(path.stem.split("-")[2])


def _held(folder: Path, columns: Sequence[Column], span: range) -> list[Path]:
    """Return a shard's files, one for each column, if all are there and hold; else none."""
    found = []
    for number, column in enumerate(columns):
        held = [p for p in folder.glob(f"{_stem(number, span)}-*.npy") if _holds(p, column, span)]
        if not held:
            return []
        found.append(min(held))
    return found


def _holds(path: Path, column: Column, span: range) -> bool:
    """Return whether a file is what was written, to the last bit; remove it where it is not."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        sound = array.shape == (len(span), *column.shape) and array.dtype == np.dtype(column.dtype)
        sound = sound and path.stem.rpartition("-")[2] == _checksum(array)
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        sound = False
    if not sound:
        logger.warning("%s is not what was written and is built again", path)
        path.unlink(missing_ok=True)
    return sound


def _checksum(array: np.ndarray) -> str:
    return f"{zlib.crc32(array.reshape(-1).view(np.uint8)):08x}"


def _build(folder: Path, columns: Sequence[Column], span: range, compute: Compute) -> list[Path]:
    """Compute a shard, some rows at a time, and put its files in place."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as aside:
        parts = [aside.enter_context(_part(folder, column, len(span))) for column in columns]

        def write(arrays: Sequence[np.ndarray]) -> None:
            for part, array in zip(parts, arrays, strict=True):
                part.add(array)

        compute(span, write)
        return [part.publish(_stem(number, span)) for number, part in enumerate(parts)]


@dataclass
class _Part:
    """A shard's file while it is written aside."""

    file: IO[bytes]
    column: Column
    missing: int  # rows to come
    checksum: int = 0

    def add(self, array: np.ndarray) -> None:
        column = self.column
        if array.shape[1:] != column.shape or array.dtype != np.dtype(column.dtype):
            raise ValueError(f"features are {array.dtype} {array.shape}, expected {column}")
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.file.write(flat)
        self.checksum = zlib.crc32(flat, self.checksum)
        self.missing -= len(array)

    def publish(self, stem: str) -> Path:
        if self.missing:
            raise ValueError(f"{self.missing} rows of features are missing in {stem}")
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        aside = Path(self.file.name)
        place = aside.parent / f"{stem}-{self.checksum:08x}.npy"
        os.replace(aside, place)
        return place


@contextlib.contextmanager
def _part(folder: Path, column: Column, rows: int) -> Iterator[_Part]:
    """Begin a shard's file; remove it unless it has been put in place."""
    descriptor, aside = tempfile.mkstemp(prefix=".", suffix=".part", dir=folder)
    os.close(descriptor)
    try:
        with open(aside, "wb") as file:
            descr = np.lib.format.dtype_to_descr(np.dtype(column.dtype))
            layout = {"descr": descr, "fortran_order": False, "shape": (rows, *column.shape)}
            np.lib.format.write_array_header_1_0(file, layout)
            yield _Part(file, column, rows)
    finally:
        Path(aside).unlink(missing_ok=True)


def _sweep(root: Path) -> None:
    """Remove the unfinished files that builds left behind when they were killed."""
    for path in root.glob("*/.*.part"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()
