"""The store of rows, pixels and features, on disk: computed once, never stale or torn.

An entry is a folder of shards, named by a digest of everything that its rows depend on. An
interrupted build continues where it stopped, several processes may each build a part, and two runs
that build the same entry write the same files.
"""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from hf_transfer.base.cache import StoreError, claim, make_room, touch
from hf_transfer.base.files import kind_of
from hf_transfer.base.locks import Hold, alone
from hf_transfer.base.shards import (
    Builder,
    Column,
    Compute,
    missing_rows,
    note_checked,
    read_shard,
    row_bytes,
    rows_of,
    spans_of,
)

FEW = 4  # rows from each shard, up to which they are taken one by one
MAPPED_BYTES = 64 * 2**20  # read through a map before its pages are given back


class StoredRows:
    """Rows on disk: `[rows]` gives an array (B, …) for each column; picklable. Memory stays flat.

    As long as it lives, `hold` keeps the entry from being removed.
    """

    def __init__(
        self,
        folder: Path,
        shards: Sequence[Sequence[Path]],
        columns: Sequence[Column],
        step: int,
        hold: Hold | None = None,
    ) -> None:
        self.folder, self.columns, self.hold = folder, tuple(columns), hold
        self.step = step  # rows in each shard but the last
        self._shards = [list(paths) for paths in shards]  # of each column
        self._count = sum(rows_of(path) for path in self._shards[0])
        self._read = 0
        self._maps: list[mmap.mmap] = []
        self._arrays: dict[int, list[np.ndarray]] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, rows: Any) -> tuple[np.ndarray, ...]:
        return tuple(self.column(number, rows) for number in range(len(self.columns)))

    def column(self, number: int, rows: Any) -> np.ndarray:
        """Return these rows of one column, (B, …), in memory of its own."""
        found = self._taken(self._mapped(number), np.asarray(rows))
        self._read += found.nbytes
        if self._read > MAPPED_BYTES and hasattr(mmap, "MADV_DONTNEED"):
            for one in self._maps:
                one.madvise(mmap.MADV_DONTNEED)
            self._read = 0
        return found

    def whole(self, number: int) -> np.ndarray:
        """Return all of one column in memory."""
        column = self.columns[number]
        parts = [read_shard(path, column) for path in self._shards[number]]
        return np.concatenate([np.empty((0, *column.shape), column.dtype), *parts])

    def _taken(self, arrays: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
        if len(arrays) == 1:
            return np.asarray(arrays[0][rows])
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

    def _mapped(self, number: int) -> list[np.ndarray]:
        """Return a column's shards, mapped when they are first asked for."""
        if number not in self._arrays:
            paths, column = self._shards[number], self.columns[number]
            _allow_files(len(paths))
            found = []
            for path in paths:
                with path.open("rb") as file:
                    self._maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                start = len(self._maps[-1]) - rows_of(path) * column.row_bytes
                flat = np.frombuffer(self._maps[-1], np.dtype(column.dtype), offset=start)
                found.append(flat.reshape(-1, *column.shape))
            self._arrays[number] = found or [np.empty((0, *column.shape), column.dtype)]
        return self._arrays[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": [], "_arrays": {}, "hold": None}


def reserve(
    rows: Mapping[str, int],
    columns: Sequence[Column],
    *,
    root: Path,
    limit_bytes: int | None = None,
) -> list[Hold]:
    """Make room for the missing rows of all these entries (rows by key), and keep what is there.

    None of them is removed while what this returns is alive. Raises StoreError if they do not fit
    together; then nothing has changed.
    """
    with _told(root):
        missing = sum(missing_rows(root / key, columns, count) for key, count in rows.items())
        if missing:
            make_room(root, rows, missing * row_bytes(columns), limit_bytes)
        held = [Hold(root / key) for key in rows]
        for key, count in rows.items():
            if missing and kind_of(root / key) is None:
                with suppress(OSError):  # who has to write a shard is told then
                    claim(root / key, "", count)
        return held


def _allow_files(more: int) -> None:
    """Let this process open this many more files: each map takes one, 1,024 is the usual limit."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        wanted = soft + more if hard == resource.RLIM_INFINITY else min(soft + more, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def build_rows(
    key: str,
    columns: Sequence[Column],
    rows: int,
    compute: Compute,
    *,
    root: Path,
    about: str = "",
    share: tuple[int, int] = (0, 1),
    first: float = 0.0,
) -> list[list[Path]]:
    """Compute those shards of an entry that are missing or damaged; return their files.

    `compute(spans, write)` hands on the rows of these spans in order, some of one span at a time:
    `write` takes one array (some, …) for each column. `share` is (i, n): only every n-th shard,
    from the i-th on, is looked at. `first`, in [0, 1), says at which shard to begin; what another
    process has written meanwhile is not computed. Room has been reserved. Raises StoreError if the
    disk is full all the same, or the folder cannot be written.
    """
    spans = spans_of(columns, rows)[share[0] :: share[1]]
    begin = int(first * len(spans))
    builder = Builder(root / key, columns)
    with _told(root), closing(builder):
        missing = builder.missing([*spans[begin:], *spans[:begin]])
        one = next(missing, None)
        if one is not None:
            claim(root / key, about, rows)
            compute(itertools.chain([one], missing), builder.write)
        return [builder.files[span] for span in spans]


def open_rows(
    key: str,
    columns: Sequence[Column],
    rows: int,
    compute: Compute,
    *,
    root: Path,
    about: str = "",
    limit_bytes: int | None = None,
    first: float = 0.0,
) -> StoredRows:
    """Return an entry's rows, building what is missing. Raises StoreError as those above."""
    while True:
        held = reserve({key: rows}, columns, root=root, limit_bytes=limit_bytes)
        files = build_rows(key, columns, rows, compute, root=root, about=about, first=first)
        with _told(root):
            held = [Hold(root / key)]
            if not all(path.exists() for paths in files for path in paths):
                continue  # removed where nothing can be held
            note_checked(root / key, itertools.chain(*files))
            touch(root / key)
            step = len(spans_of(columns, rows)[0]) if rows else 1
            shards = list(zip(*files, strict=True)) or [()] * len(columns)
            return StoredRows(root / key, shards, columns, step, held[0])


def is_used(folder: Path) -> bool:
    """Return whether another process holds an entry: reads it, or is building it."""
    with alone(folder) as nobody:
        return nobody is False


@contextmanager
def _told(root: Path) -> Iterator[None]:
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(error.errno, f"{root}: {error.strerror or error}") from error
