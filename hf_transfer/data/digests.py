"""The content of files: digests that name what is made of them, kept while the files stay as they
are.

A file whose name, size, times and inode are as they were is not read again to know its content.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from hf_transfer.base import bars, launch
from hf_transfer.base.cache import StoreError
from hf_transfer.base.errors import DataError
from hf_transfer.base.shards import Column, Write
from hf_transfer.base.store import is_used, open_rows
from hf_transfer.base.threads import allowed_cores
from hf_transfer.data.sources import Scan

VERSION = 1  # of what a key means
AT_ONCE = 16  # images that a thread reads before it looks up
CONTENT = Column((16,), "uint8")  # a digest of a file
Rows = TypeVar("Rows", bound=Sequence[int])


class Reading:
    """The content of a scan's files; `unread` says by row why some cannot be read."""

    def __init__(self, found: Scan) -> None:
        self.found = found
        self.unread: dict[int, tuple[str, str]] = {}

    def key(self) -> str:
        """Return the name of the entry of these files as they are now, none of them read."""
        key = hashlib.sha256(repr((VERSION, "contents")).encode())
        key.update(os.fsencode(self.found.root.resolve()))
        for row in range(len(self.found.files)):
            key.update(self.found.identity(row).encode(errors="surrogateescape") + b"\n")
        return key.hexdigest()[:32]

    def contents(self, root: Path, read_all: bool) -> np.ndarray:
        """Return a digest of each file, uint8 (N, 16); zeros where it cannot be read."""
        count = len(self.found.files)
        if not read_all:
            key, about = self.key(), f"{self.found.path}, digests of {count:,} files"
            with contextlib.suppress(StoreError):  # told of the pixels, which come next
                first = share(root / key)
                kept = open_rows(
                    key, [CONTENT], count, self.run, root=root, about=about, first=first
                )
                return self._tried_again(kept.whole(0))
        return self.read_again(range(count))

    def read_again(self, rows: Sequence[int]) -> np.ndarray:
        """Return a digest of each of these files as it is now, uint8 (N, 16)."""
        found: list[np.ndarray] = []
        self.run([rows], lambda arrays: found.append(arrays[0]))
        return np.concatenate(found or [np.empty((0, 16), np.uint8)])

    def run(self, spans: Iterable[Sequence[int]], write: Write) -> None:
        """Read these files in threads and write the digests in order."""
        spans = list(spans)
        total = sum(map(len, spans))
        with bars.bar(total, "Reading files") as bar, ThreadPoolExecutor(threads()) as pool:
            for span in spans:
                for part in pool.map(self._some, parts(span, AT_ONCE)):
                    write([np.stack(part)])
                    bar.update(len(part))

    def _tried_again(self, contents: np.ndarray) -> np.ndarray:
        """Return digests with those of files that once could not be read, and now can."""
        for row in np.flatnonzero(~contents.any(axis=1)).tolist():
            if row not in self.unread:
                contents[row] = self._one(row)
        return contents

    def _some(self, rows: Sequence[int]) -> list[np.ndarray]:
        return [self._one(row) for row in rows]

    def _one(self, row: int) -> np.ndarray:
        try:
            with self.found.opened(row) as data:
                return np.frombuffer(digest(data), np.uint8)
        except OSError as error:
            kinds = {errno.ENOENT: "missing", errno.EFBIG: "too-large"}
            kind = kinds.get(error.errno or 0, "unreadable")
            self.unread[row] = kind, f"{self.found.files[row]}: {error.strerror or error}"
            return np.zeros(16, np.uint8)


@contextlib.contextmanager
def opened_same(found: Scan, row: int, contents: np.ndarray) -> Iterator[bytes]:
    """Yield a file's bytes. Raises DataError where they are not those that are known."""
    try:
        with found.opened(row) as data:
            if digest(data) == contents[row].tobytes():
                yield data
                return
            why = "it has changed since the run began"
    except OSError as error:
        why = error.strerror or str(error)
    raise DataError(f"{found.files[row]}: {why}; leave images as they are while a run reads them")


def digest(data: np.ndarray | bytes) -> bytes:
    """Return 16 bytes that stand for the data."""
    whole = data if isinstance(data, bytes) else np.ascontiguousarray(data).data
    return hashlib.blake2b(whole, digest_size=16).digest()


def share(folder: Path) -> float:
    """Return where this process begins with an entry: several begin in different places, and leave
    each other what is there when they come to it."""
    if launch.count() > 1:
        return launch.rank() / launch.count()
    return 0.5 if is_used(folder) else 0.0


def parts(rows: Rows, count: int) -> list[Rows]:
    """Return rows in parts of so many."""
    return [rows[i : i + count] for i in range(0, len(rows), count)]  # type: ignore[misc]


def threads() -> int:
    """Return how many threads read and decode images."""
    return max(1, min(16, int(allowed_cores() + 0.5)))
