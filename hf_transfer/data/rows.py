"""Decoded images by the row, from the disk or from their files, as if from an array in memory."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np

from hf_transfer.base.cache import Hold
from hf_transfer.data.decoding import decode
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.data.sources import Scan

MAPPED_BYTES = 64 * 2**20  # read through the map before its pages are given back


def row_shape(settings: ImageSettings) -> tuple[int, int, int]:
    """Return the shape of one decoded image: (S', S', C)."""
    return settings.stored, settings.stored, settings.channels


class StoredPixels:
    """Decoded images on disk: `[rows]` gives uint8 (B, S', S', C), `[row]` one; picklable.

    Memory stays flat: the file is mapped, and its pages are given back as reading goes on. `hold`
    keeps the file from being removed as long as these pixels live.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        rows: np.ndarray | None = None,
        hold: Hold | None = None,
    ) -> None:
        self.path, self.stored, self.hold = path, tuple(shape), hold
        self.rows = np.arange(shape[0]) if rows is None else rows
        self._map: mmap.mmap | None = None
        self._all: np.ndarray | None = None
        self._read = 0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, S', S', C)."""
        return (len(self.rows), *self.stored[1:])

    def __getitem__(self, rows: Any) -> np.ndarray:
        if self._map is None or self._all is None:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            start = len(self._map) - int(np.prod(self.stored))
            self._all = np.frombuffer(self._map, np.uint8, offset=start).reshape(self.stored)
        found = np.array(self._all[self.rows[rows]])
        self._read += found.nbytes
        if self._read > MAPPED_BYTES and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
            self._read = 0
        return found

    def take(self, rows: np.ndarray) -> StoredPixels:
        """Return the images in these places, without reading any."""
        return StoredPixels(self.path, self.stored, self.rows[rows], self.hold)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None, "_all": None, "hold": None}


class LivePixels:
    """The same, decoded from the files whenever asked: for sets too large to store."""

    def __init__(
        self, found: Scan, settings: ImageSettings, rows: np.ndarray | None = None
    ) -> None:
        self.found, self.settings = found, settings
        self.rows = np.arange(len(found.files)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, S', S', C)."""
        return (len(self.rows), *row_shape(self.settings))

    def __getitem__(self, rows: Any) -> np.ndarray:
        places = self.rows[rows]
        if np.ndim(places) == 0:
            return self._decoded(int(places))
        images = [self._decoded(int(place)) for place in places]
        return np.stack(images) if images else np.zeros((0, *row_shape(self.settings)), np.uint8)

    def _decoded(self, row: int) -> np.ndarray:
        with self.found.opened(row) as data:
            return decode(data, self.settings)

    def take(self, rows: np.ndarray) -> LivePixels:
        """Return the images in these places, without decoding any."""
        return LivePixels(self.found, self.settings, self.rows[rows])
