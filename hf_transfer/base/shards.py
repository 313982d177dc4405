"""Features on disk, keyed by everything they depend on; computed once, never stale or torn.

An entry is a folder of .npy files, each a span of rows (a shard) with its checksum in its name.
A file is written aside and renamed into place, so it is there whole or not at all: an interrupted
build goes on where it stopped, several processes may each build a part, and two runs that build
the same entry write the same files.
"""

from __future__ import annotations

import itertools
import logging
import mmap
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_transfer.base.cache import (
    Hold,
    StoreError,
    aside,
    cache_root,
    make_room,
    touch,
    write_about,
)

logger = logging.getLogger(__name__)

SHARD_BYTES = 64 * 2**20  # of one file, at most
SHARDS, SHARD_ROWS = 64, 128  # so many of a large entry, and no smaller: what an interruption costs
FEW = 4  # rows from each shard, up to which they are taken one by one
MAPPED_BYTES = 64 * 2**20  # read through a map before its pages are given back

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
        _allow_files(sum(map(len, shards)))
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
        if len(rows) <= FEW * len(arrays):
            for at, (shard, place) in enumerate(zip(shards.tolist(), places.tolist(), strict=True)):
                found[at] = arrays[shard][place]
            return found
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


def reserve(
    rows: Mapping[str, int],
    columns: Sequence[Column],
    *,
    root: Path | None = None,
    limit_bytes: int | None = None,
) -> list[Hold]:
    """Make room for what is missing of all these entries (rows by key), and keep what is there.

    Nothing of theirs is removed as long as what this returns lives. Raises StoreError where they do
    not fit together; then nothing has changed.
    """
    root = root or default_folder()
    with _told(root):
        missing = sum(_missing_rows(root / key, columns, count) for key, count in rows.items())
        if missing:
            make_room(root, rows, missing * _row_bytes(columns), limit_bytes)
        return [Hold(root / key) for key in rows]


def _allow_files(more: int) -> None:
    """Let this process have so many more files open: each map takes one, and 1,024 are usual."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        wanted = soft + more if hard == resource.RLIM_INFINITY else min(soft + more, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def build_features(
    key: str,
    columns: Sequence[Column],
    rows: int,
    compute: Compute,
    *,
    about: str = "",
    root: Path | None = None,
    share: tuple[int, int] = (0, 1),
) -> list[list[Path]]:
    """Compute those shards of an entry that are not there or do not hold; return their files.

    `compute(spans, write)` hands on the rows of these spans in order, some of one span at a time:
    `write` takes one array (some, …) for each column. `share` is (i, n): only every n-th shard,
    from the i-th on, is looked at. Room has been reserved. Raises StoreError where the disk is full
    all the same, or the folder cannot be written.
    """
    root = root or default_folder()
    spans = _spans(columns, rows)[share[0] :: share[1]]
    builder = _Builder(root / key, columns)
    with _told(root), closing(builder):
        missing = builder.missing(spans)
        first = next(missing, None)
        if first is not None:
            (root / key).mkdir(parents=True, exist_ok=True)
            write_about(root / key, about, rows)
            compute(itertools.chain([first], missing), builder.write)
        return [builder.files[span] for span in spans]


def open_features(
    key: str,
    columns: Sequence[Column],
    rows: int,
    compute: Compute,
    *,
    about: str = "",
    root: Path | None = None,
    limit_bytes: int | None = None,
) -> StoredFeatures:
    """Return an entry's rows, building what is missing. Raises StoreError as those above."""
    root = root or default_folder()
    while True:
        held = reserve({key: rows}, columns, root=root, limit_bytes=limit_bytes)
        files = build_features(key, columns, rows, compute, about=about, root=root)
        with _told(root):
            held = [Hold(root / key)]
            if not all(path.exists() for paths in files for path in paths):
                continue  # removed where nothing can be held
            touch(root / key)
            step = len(_spans(columns, rows)[0]) if rows else 1
            return StoredFeatures(list(zip(*files, strict=True)), columns, step, held[0])


@contextmanager
def _told(root: Path) -> Iterator[None]:
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(error.errno, f"{root}: {error.strerror or error}") from error


def _row_bytes(columns: Sequence[Column]) -> int:
    return sum(column.row_bytes for column in columns)


def _spans(columns: Sequence[Column], rows: int) -> list[range]:
    """Return the rows of each shard: a matter of the entry alone, not of who computes it."""
    step = max(SHARD_ROWS, -(-rows // SHARDS))
    step = max(1, min(step, SHARD_BYTES // max(1, _row_bytes(columns))))
    return [range(first, min(first + step, rows)) for first in range(0, rows, step)]


def _missing_rows(folder: Path, columns: Sequence[Column], rows: int) -> int:
    """Return how many rows have no file yet, whatever is in those that there are."""
    there = {path.stem.rpartition("-")[0] for path in folder.glob("*.npy")}
    numbers = range(len(columns))
    return sum(
        len(span)
        for span in _spans(columns, rows)
        if not all(_stem(number, span) in there for number in numbers)
    )


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


class _Builder:
    """The shards of an entry: those that are there, and those that are written as rows come."""

    def __init__(self, folder: Path, columns: Sequence[Column]) -> None:
        self.folder, self.columns = folder, columns
        self.files: dict[range, list[Path]] = {}
        self._due: deque[range] = deque()  # asked for, and not yet whole
        self._parts: list[_Part] = []

    def missing(self, spans: Iterable[range]) -> Iterator[range]:
        """Yield the spans whose rows are to be written; looked for as late as possible, for another
        run may be writing them."""
        for span in spans:
            files = _held(self.folder, self.columns, span)
            if files:
                self.files[span] = files
            else:
                self._due.append(span)
                yield span

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
        self.file = self.path.open("xb")
        descr = np.lib.format.dtype_to_descr(np.dtype(column.dtype))
        layout = {"descr": descr, "fortran_order": False, "shape": (rows, *column.shape)}
        np.lib.format.write_array_header_1_0(self.file, layout)

    def add(self, array: np.ndarray) -> None:
        column = self.column
        if array.shape[1:] != column.shape or array.dtype != np.dtype(column.dtype):
            raise ValueError(f"features are {array.dtype} {array.shape}, expected {column}")
        if len(array) > self.missing:
            raise ValueError(f"{len(array)} rows of features where {self.missing} are missing")
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
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
