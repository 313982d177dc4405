"""Scratch: numbers for each of many images; beyond a size they lie on disk, in nameless files.

Such a file is mapped, so that its pages are the system's to write out and drop, and not memory of
the process. It has no name from the start: it goes with the numbers, or with the process, however
that ends. It lies where the cache is: /tmp may be memory.
"""

from __future__ import annotations

import mmap
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any
from weakref import WeakSet

import numpy as np

from hf_transfer.base.cache import cache_root
from hf_transfer.base.errors import UserError
from hf_transfer.base.machine import trim

LARGE_BYTES = 2**20  # from here on numbers lie on disk
WRITTEN_AT_ONCE = 2**16  # bytes
AT_ONCE = 2**14  # rows that are looked at together


_maps: WeakSet[mmap.mmap] = WeakSet()


class ScratchError(UserError):
    """A list of all images that finds no room on disk."""


class Grown:
    """Numbers of one type of `array`'s, added at the end; `view` is all of them, writable."""

    def __init__(self, typecode: str, data: bytes = b"") -> None:
        self._file: IO[bytes] | None = None
        self._tail, self._written = array(typecode), 0
        self._view: memoryview | None = None
        self._most = max(1, LARGE_BYTES // self._tail.itemsize)  # in memory
        self.extend(data)

    def __len__(self) -> int:
        return self._written + len(self._tail)

    def append(self, number: int) -> None:
        """Add a number."""
        self._view = None
        self._tail.append(number)
        if len(self._tail) >= self._most:
            self._spill()

    def extend(self, data: bytes) -> None:
        """Add the numbers of which these are the bytes."""
        self._view = None
        self._tail.frombytes(data)
        if len(self._tail) >= self._most:
            self._spill()

    @property
    def view(self) -> memoryview:
        """All numbers; what is added later is not in it."""
        if self._view is None and self._file is None:
            self._view = memoryview(self._tail)
        elif self._view is None:
            self._spill()
            whole = _mapped(self._file, self._written * self._tail.itemsize)
            self._view = whole.cast(self._tail.typecode)
        return self._view

    def _spill(self) -> None:
        """Write what is in memory to disk."""
        with _told(len(self._tail) * self._tail.itemsize):
            self._file = self._file or _file()
            self._file.write(self._tail)
            self._file.flush()
        self._written += len(self._tail)
        self._tail = array(self._tail.typecode)

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Grown, (self._tail.typecode, self.view.tobytes())


def zeros(shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return zeros to be filled, in memory or on disk. Raises ScratchError, one line."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if size < max(1, LARGE_BYTES):
        return np.zeros(shape, dtype)
    with _told(size), _file() as file:
        # Written, not only lengthened: a full disk is told here, and not by a signal later on.
        for first in range(0, size, WRITTEN_AT_ONCE):
            file.write(bytes(min(WRITTEN_AT_ONCE, size - first)))
        file.flush()
        return np.frombuffer(_mapped(file, size), dtype).reshape(shape)


def arange(count: int) -> np.ndarray:
    """Return the rows from 0 on: int64 (count,)."""
    found = zeros(count, np.int64)
    for span in spans(count):
        found[span] = np.arange(span.start, span.stop)
    return found


def take(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the values in these rows."""
    found = zeros((len(rows), *values.shape[1:]), values.dtype)
    for span in spans(len(rows)):
        found[span] = values[rows[span]]
    return found


def where(chosen: np.ndarray) -> np.ndarray:
    """Return the rows that are chosen, in order: bool (N,) to int64."""
    found, end = zeros(int(np.count_nonzero(chosen)), np.int64), 0
    for span in spans(len(chosen)):
        rows = np.flatnonzero(chosen[span]) + span.start
        found[end : end + len(rows)] = rows
        end += len(rows)
    return found


def grouped(codes: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of each code that they have, in order; codes (N,) are small whole numbers."""
    counts = np.zeros(1, np.int64)
    for span in spans(len(rows)):
        more = np.bincount(codes[rows[span]], minlength=len(counts))
        more[: len(counts)] += counts
        counts = more
    ends = np.cumsum(counts)
    free = ends - counts  # of each code's places the first that is not taken yet
    found = zeros(len(rows), np.int64)
    for span in spans(len(rows)):
        some = rows[span]
        mine = codes[some]
        order = np.argsort(mine, kind="stable")
        here = np.bincount(mine, minlength=len(counts))
        within = np.arange(len(mine)) - (np.cumsum(here) - here)[mine[order]]
        found[free[mine[order]] + within] = some[order]
        free += here
    for end, count in zip(ends.tolist(), counts.tolist(), strict=True):
        if count:
            yield found[end - count : end]


def spans(count: int) -> Iterator[slice]:
    """Yield slices that make up `count` rows, few enough each to work on in memory."""
    for first in range(0, count, AT_ONCE):
        yield slice(first, min(first + AT_ONCE, count))


def give_back() -> None:
    """Return to the system what was freed, where glibc would keep it, and pages of scratch."""
    trim()
    for one in _maps if hasattr(mmap, "MADV_DONTNEED") else ():
        one.madvise(mmap.MADV_DONTNEED)


# --- files -----------------------------------------------------------------------------------


def _file() -> IO[bytes]:
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=root)


def _mapped(file: IO[bytes], size: int) -> memoryview:
    mapped = mmap.mmap(file.fileno(), size)
    _maps.add(mapped)
    return memoryview(mapped)


@contextmanager
def _told(size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ScratchError(
            f"{cache_root()}: {error.strerror or error}; lists of all images are kept there "
            f"({size / 1e6:.1f} MB more): make room, or name another place in HF_TRANSFER_CACHE"
        ) from error
