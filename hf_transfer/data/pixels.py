"""Pixels: images decoded once and kept on disk, handed out by the row; never stale or torn.

What an image's pixels depend on is the content of its file and the decoder, so both name an entry
of the store. A file whose size, times and inode are as they were is not read again to know its
content.
"""

from __future__ import annotations

import hashlib
import logging
import time
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hf_transfer.base import bars
from hf_transfer.base.cache import READ_ONLY, NoRoomError, StoreError, cache_folder
from hf_transfer.base.errors import DataError
from hf_transfer.base.shards import Column, Write
from hf_transfer.base.store import StoredRows, open_rows
from hf_transfer.data.decoding import Picture, decode, decode_noted, depends_on
from hf_transfer.data.digests import (
    AT_ONCE,
    Reading,
    digest,
    opened_same,
    parts,
    share,
    threads,
)
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.data.near_duplicates import HASH_BYTES, picture_hashes
from hf_transfer.data.sources import Scan
from hf_transfer.data.upright import ImageError

logger = logging.getLogger(__name__)

VERSION = 4  # of what an entry holds
WAVE_BYTES = 64 * 2**20  # decoded, then written; what building holds in memory
SEEN = (
    Column((16,), "uint8"),
    Column((2,), "int32"),
    Column((), "S256"),
    Column((HASH_BYTES,), "uint8"),
)
ERROR = "!"  # how a text begins that says why an image has no pixels; others are its notes
NAME = "\x01"  # in such a text: files of the same content have different names


One = tuple[np.ndarray, bytes, tuple[int, int], bytes]


@dataclass(frozen=True)
class Seen:
    """What was seen while decoding, a row per file: digests of the pixels and of the file (N, 16),
    `sizes` (N, 2) width and height, perceptual `hashes` (N, HASH_BYTES), `notes` and `errors`
    (kind, message) by row."""

    pixels: np.ndarray
    files: np.ndarray
    sizes: np.ndarray
    hashes: np.ndarray
    notes: dict[int, tuple[str, ...]]
    errors: dict[int, tuple[str, str]]


@dataclass(frozen=True)
class _Pixels:
    """Images that are decoded as `settings` say; `contents` (N, 16) are their files' digests, and
    `rows` those of them that are taken. `is_read` says that the digests are of the files' content
    as it was just read, and not as it was known."""

    settings: ImageSettings
    contents: np.ndarray
    rows: np.ndarray
    found: Scan
    is_read: bool

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, S', S', C)."""
        return (len(self.rows), *row_shape(self.settings))

    def identity(self, read_all: bool = False) -> bytes:
        """Return a digest of all that these pixels depend on, the same wherever the files lie.

        With `read_all` every file is read, unless it was just read to get these pixels.
        """
        found = hashlib.blake2b(repr(depends_on(self.settings)).encode(), digest_size=16)
        contents = self.contents[self.rows]
        if read_all and not self.is_read:
            contents = Reading(self.found).read_again(self.rows.tolist())
        found.update(contents.tobytes())
        return found.digest()


@dataclass(frozen=True)
class StoredPixels(_Pixels):
    """Decoded images on disk: `[rows]` gives uint8 (B, S', S', C), `[row]` one; picklable."""

    stored: StoredRows

    def __getitem__(self, rows: Any) -> np.ndarray:
        places = self.rows[rows]
        found = self.stored.column(0, np.atleast_1d(places))
        return found[0] if np.ndim(places) == 0 else found

    def take(self, rows: np.ndarray) -> StoredPixels:
        """Return the images in these places, without reading any."""
        return replace(self, rows=self.rows[rows])


@dataclass(frozen=True)
class LivePixels(_Pixels):
    """The same, decoded from the files whenever asked: for sets too large to store."""

    def __getitem__(self, rows: Any) -> np.ndarray:
        places = self.rows[rows]
        if np.ndim(places) == 0:
            return self._decoded(int(places))
        images = [self._decoded(place) for place in places.tolist()]
        return np.stack(images) if images else np.zeros((0, *row_shape(self.settings)), np.uint8)

    def take(self, rows: np.ndarray) -> LivePixels:
        """Return the images in these places, without decoding any."""
        return replace(self, rows=self.rows[rows])

    def _decoded(self, row: int) -> np.ndarray:
        with opened_same(self.found, row, self.contents) as data:
            return decode(data, self.settings)


def row_shape(settings: ImageSettings) -> tuple[int, int, int]:
    """Return the shape of one decoded image: (S', S', C)."""
    return settings.stored, settings.stored, settings.channels


def open_pixels(
    found: Scan,
    settings: ImageSettings,
    cache_dir: Path | None = None,
    limit_bytes: int | None = None,
    *,
    read_all: bool = False,
) -> tuple[StoredPixels | LivePixels, Seen]:
    """Return the pixels of all files of a scan, a row each, and what decoding found out.

    Taken from the store under `cache_dir` where it holds them, else decoded into it; what was not
    used for longest makes room. A set larger than `limit_bytes` (the cache's limit, and nine tenths
    of the free disk), or one that is not in a store that cannot be written, is looked through once
    and decoded live. With `read_all` every file is read, whatever is known of its content.
    Files that give no pixels have an entry in `Seen.errors`. Raises DataError, one line.
    """
    root = cache_dir or cache_folder("pixels")
    reading = Reading(found)
    contents = reading.contents(cache_dir or cache_folder("contents"), read_all)
    work = _Decoding(found, settings, contents)
    rows = np.arange(len(found.files))
    try:
        stored = _stored(work, root, limit_bytes)
    except OSError as error:
        raise DataError(
            f"{root}: {error.strerror or error}; decoded pixels are kept there: make room, or name "
            "another place in HF_TRANSFER_CACHE"
        ) from error
    if stored is not None and len(stored.columns) > len(SEEN):
        seen = work.seen([stored.whole(number) for number in (1, 2, 3, 4)], reading.unread)
        return StoredPixels(settings, contents, rows, found, read_all, stored), seen
    columns = _in_memory(work) if stored is None else [stored.whole(n) for n in (0, 1, 2, 3)]
    return LivePixels(settings, contents, rows, found, read_all), work.seen(columns, reading.unread)


def _stored(work: _Decoding, root: Path, limit_bytes: int | None) -> StoredRows | None:
    """Return the entry that holds the pixels and what was seen, or that alone where pixels find no
    room; None where that finds none either, or nothing can be written."""
    what, count = work.found.path, len(work.found.files)
    sizes = f"{count:,} images of {work.settings.stored} px"
    pixels = Column(row_shape(work.settings), "uint8")
    for columns, limit in (((pixels, *SEEN), limit_bytes), (SEEN, None)):
        live, key = columns is SEEN, work.key(columns)
        try:
            return open_rows(
                key,
                columns,
                count,
                partial(work.run, keep=not live),
                root=root,
                about=f"{what}, {sizes}{', decoded live' * live}",
                limit_bytes=limit,
                first=share(root / key),
            )
        except NoRoomError as error:
            reason = error.strerror
        except StoreError as error:
            if error.errno not in READ_ONLY:
                raise
            logger.warning("%s: %d images are decoded live: %s", what, count, error.strerror)
            return None
        if not live:
            logger.warning("%s: %d images are decoded live: %s", what, count, reason)
    return None


def _in_memory(work: _Decoding) -> list[np.ndarray]:
    parts: list[Sequence[np.ndarray]] = []
    work.run([range(len(work.found.files))], parts.append, keep=False)
    if not parts:
        return [np.empty((0, *column.shape), column.dtype) for column in SEEN]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


# --- decoding --------------------------------------------------------------------------------


class _Decoding:
    """The decoding of a scan's files."""

    def __init__(self, found: Scan, settings: ImageSettings, contents: np.ndarray) -> None:
        self.found, self.settings, self.contents = found, settings, contents
        self.black = np.zeros(row_shape(settings), np.uint8)

    def key(self, columns: Sequence[Column]) -> str:
        """Return the name of an entry: a digest of all that it depends on."""
        how = (VERSION, *depends_on(self.settings), list(columns))
        digest = hashlib.sha256(repr(how).encode())
        digest.update(self.contents.tobytes())
        return digest.hexdigest()[:32]

    def run(self, spans: Iterable[range], write: Write, keep: bool) -> None:
        """Decode these rows in threads and write them in order, with their pixels or without."""
        size = int(np.prod(self.black.shape))
        wave = min(4096, max(64, WAVE_BYTES // size))
        start, done = time.monotonic(), 0
        with (
            warnings.catch_warnings(),
            bars.bar(len(self.contents), "Decoding") as bar,
            ThreadPoolExecutor(threads()) as pool,
        ):
            warnings.simplefilter("ignore")  # once for all threads; the notes say what Pillow would
            for rows in (rows for span in spans for rows in parts(span, wave)):
                some = list(pool.map(self._some, parts(rows, AT_ONCE)))
                found = [one for ones, _ in some for one in ones]
                images, digests, sizes, told = zip(*found, strict=True)
                seen = (
                    np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16),
                    np.array(sizes, np.int32),
                    np.array(told, SEEN[2].dtype),
                    np.concatenate([hashes for _, hashes in some]),
                )
                write([np.stack(images), *seen] if keep else seen)
                bar.update(len(rows))
                done += len(rows)
        logger.info("decoded %d images in %.1f s", done, time.monotonic() - start)

    def seen(self, columns: Sequence[np.ndarray], unread: dict[int, tuple[str, str]]) -> Seen:
        """Return what is known of all rows, from the columns of SEEN."""
        digests, sizes, told, hashes = columns
        notes, errors = {}, dict(unread)
        for row in np.flatnonzero(told != b"").tolist():
            text = told[row].decode()
            if text.startswith(ERROR):
                kind, _, why = text[len(ERROR) :].partition(" ")
                errors[row] = kind, why.replace(NAME, self.found.files[row])
            else:
                notes[row] = tuple(text.split(" "))
        return Seen(digests, self.contents, sizes, hashes, notes, errors)

    def _some(self, rows: range) -> tuple[list[One], np.ndarray]:
        found = [self._one(row) for row in rows]
        return found, picture_hashes(np.stack([pixels for pixels, *_ in found]))

    def _one(self, row: int) -> One:
        """Return a row's pixels, their digest, the picture's size, what is told of it."""
        if not self.contents[row].any():  # the file cannot be read
            return self.black, bytes(16), (0, 0), b""
        name = self.found.files[row]
        try:
            with opened_same(self.found, row, self.contents) as data:
                picture: Picture = decode_noted(data, self.settings, name)
        except ImageError as error:
            why = str(error).replace(name, NAME)
            told = _cut(f"{ERROR}{error.kind} {why}")
            return self.black, bytes(16), (0, 0), told
        size = picture.width, picture.height
        told, pixels = " ".join(picture.notes).encode(), picture.pixels
        return pixels, digest(pixels), size, told


def _cut(text: str) -> bytes:
    """Return a text in UTF-8, no longer than its column holds."""
    most = np.dtype(SEEN[2].dtype).itemsize
    return text.encode(errors="replace")[:most].decode(errors="ignore").encode()
