"""Files read within limits: regular files only, of a limited size, with a limit on memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_transfer.base.files import regular

GIB = 2**30
FILE_BYTES = GIB  # an image's file is at most as large


class Budget:
    """Memory that threads share: who needs more than is left waits for the others.

    A budget is held only while nothing but a later one (file, then pixels) is asked for, so that
    no two threads wait for each other.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._reset()
        if hasattr(os, "register_at_fork"):  # the threads that hold some of it are gone in a child
            os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._used, self._changed = 0, threading.Condition()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Hold `size` bytes; one that needs more than the whole budget gets it alone."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + size <= self.limit)
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()


FILES = Budget(GIB)  # bytes of files that are being decoded
PIXELS = Budget(2 * GIB)  # of pixels, and of what decoders need in addition


@contextmanager
def opened(path: str | Path, limit: int | None = None) -> Iterator[bytes]:
    """Yield a regular file's bytes, `FILE_BYTES` at most, within the memory that threads share.

    Raises OSError for what is no regular file (a device or a pipe could be read without end) and
    for what is larger.
    """
    limit = FILE_BYTES if limit is None else limit
    with regular(path, limit) as (file, size), FILES.hold(size):
        yield file.read(size)  # to read `limit` bytes would first take as much memory


def identity_of(path: str | Path) -> str:
    """Return what changes when a file does, or that it is missing.

    Size and time of modification are what `tar` and `rsync -a` set; the time of the inode's change
    and the inode are not.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # no file's name holds a NUL
        return "missing"
    return f"{found.st_size}\0{found.st_mtime_ns}\0{found.st_ctime_ns}\0{found.st_ino}"
