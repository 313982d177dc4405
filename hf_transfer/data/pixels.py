"""Pixels decoded once and kept on disk, keyed by everything they depend on; never stale or torn.

An entry is a folder, `<key>/pixels.npy` and `<key>/facts.npz`, written aside and renamed into
place as a whole. Reading checks it; what does not hold is built again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import secrets
import shutil
import time
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_transfer.base.cache import (
    READ_ONLY,
    Hold,
    StoreError,
    cache_root,
    make_room,
    touch,
    write_about,
)
from hf_transfer.base.errors import DataError
from hf_transfer.data.decoding import ImageError, decode_noted, depends_on
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.data.rows import LivePixels, StoredPixels, row_shape
from hf_transfer.data.sources import Scan

logger = logging.getLogger(__name__)

VERSION = 1  # of an entry's layout
CHECKED_BYTES = 256 * 10**6  # of pixels whose digests are all checked on opening
SAMPLED = 64  # images that are, of more pixels
WAVE_BYTES = 64 * 2**20  # decoded, then written; what building holds in memory
AT_ONCE = 16  # images that a thread decodes before it looks up


@dataclass(frozen=True)
class Facts:
    """What decoding found out, a row per file: digests of the pixels and of the file (N, 16),
    `sizes` (N, 2) width and height, `notes` and `errors` (kind, message) by row."""

    pixels: np.ndarray
    files: np.ndarray
    sizes: np.ndarray
    notes: dict[int, tuple[str, ...]]
    errors: dict[int, tuple[str, str]]


def open_pixels(
    found: Scan,
    settings: ImageSettings,
    cache_dir: Path | None = None,
    limit_bytes: int | None = None,
) -> tuple[StoredPixels | LivePixels, Facts]:
    """Return the pixels of all files of a scan, a row each, and what decoding found out.

    Taken from the store under `cache_dir` where it holds them, else decoded into it; what was not
    used for longest makes room. A set larger than `limit_bytes` (the cache's limit, and nine tenths
    of the free disk), or one that is not in a store that cannot be written, is looked through once
    and decoded live.
    Files that give no pixels have an entry in `Facts.errors`. Raises DataError, one line.
    """
    root = cache_dir or default_cache_dir()
    shape = (len(found.files), *row_shape(settings))
    key = _key(found, settings)
    try:
        held = _opened(root / key, shape)
        if held is not None:
            return held
        stored = _room(root, key, int(np.prod(shape)), limit_bytes, f"{found.path}: {shape[0]}")
        if not stored:
            key += "-live"
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f"{key}.lock"):
            facts = _open(root / key, shape, say=True)
            facts = facts or _build(root, key, found, settings, stored)
            held = _opened(root / key, shape) if stored else None
    except OSError as error:
        if error.errno in READ_ONLY:
            why = error.strerror or error
            logger.warning("%s: %d images are decoded live: %s", found.path, shape[0], why)
            return LivePixels(found, settings), _decode_all(found, settings, None)
        raise DataError(
            f"{root}: {error.strerror or error}; decoded pixels are kept there: make room, or name "
            "another place in HF_TRANSFER_CACHE"
        ) from error
    return held or (LivePixels(found, settings), facts)


def _opened(folder: Path, shape: tuple[int, ...]) -> tuple[StoredPixels, Facts] | None:
    """Return an entry's pixels, kept from being removed while they are used, and its facts."""
    if not folder.is_dir():
        return None
    hold = Hold(folder)
    facts = _open(folder, shape)
    if facts is None:
        return None
    touch(folder)
    return StoredPixels(folder / "pixels.npy", shape, hold=hold), facts


def _room(root: Path, key: str, size: int, limit_bytes: int | None, what: str) -> bool:
    """Make room for pixels; return whether there is any."""
    try:
        make_room(root, [key], size, limit_bytes)
    except StoreError as error:
        if error.errno != errno.ENOSPC:
            raise
        logger.warning("%s images are decoded live: %s", what, error.strerror)
        return False
    return True


def default_cache_dir() -> Path:
    """Return where decoded pixels are kept."""
    return cache_root() / "pixels"


def _key(found: Scan, settings: ImageSettings) -> str:
    """Return the name of an entry: a digest of all that its pixels depend on."""
    digest = hashlib.sha256(repr((VERSION, *depends_on(settings))).encode())
    digest.update(os.fsencode(found.root.resolve()))
    for row in range(len(found.files)):
        digest.update(found.identity(row).encode(errors="surrogateescape") + b"\n")
    return digest.hexdigest()[:32]


# --- reading ---------------------------------------------------------------------------------


def _open(folder: Path, shape: tuple[int, ...], say: bool = False) -> Facts | None:
    """Return the facts of an entry if all of it holds, else None, and `say` so."""
    try:
        arrays = _arrays(folder / "facts.npz")
        about = json.loads(arrays["about"].tobytes())
        facts = Facts(
            pixels=arrays["pixels"],
            files=arrays["files"],
            sizes=arrays["sizes"],
            notes={int(row): tuple(notes) for row, notes in about["notes"].items()},
            errors={int(row): tuple(error) for row, error in about["errors"].items()},
        )
        if about["shape"] != list(shape) or len(facts.pixels) != shape[0]:
            raise ValueError("another shape")
        if about["file"] is not None:
            _check(folder / "pixels.npy", about["file"], facts, shape)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        if say:
            logger.warning("%s is not what was written and is built again: %s", folder, error)
        return None
    return facts


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Return a .npz file's arrays; zipfile checks their CRC, and says what is wrong."""
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        return dict(file)


def _check(path: Path, recorded: list[int], facts: Facts, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless pixels are as they were written: size, time of change, digests."""
    stat = path.stat()
    if [stat.st_size, stat.st_mtime_ns] != recorded:
        raise ValueError("pixels.npy was changed")
    pixels = StoredPixels(path, shape)
    rows = np.linspace(0, shape[0] - 1, SAMPLED).astype(int).tolist()
    for row in range(shape[0]) if math.prod(shape) <= CHECKED_BYTES else rows:
        if row not in facts.errors and _digest(pixels[row]) != facts.pixels[row].tobytes():
            raise ValueError(f"pixels.npy has other pixels in row {row}")


def _digest(data: np.ndarray | bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


# --- building --------------------------------------------------------------------------------


def _build(root: Path, key: str, found: Scan, settings: ImageSettings, stored: bool) -> Facts:
    """Decode all files into a folder aside, put it in place and return its facts."""
    place = root / f".{key}.{secrets.token_hex(4)}"
    hold = Hold(place)  # what nobody holds any more is swept
    shape = (len(found.files), *row_shape(settings))
    try:
        recorded = None
        if stored:
            with (place / "pixels.npy").open("wb") as file:
                layout = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, layout)
                facts = _decode_all(found, settings, file)
                _to_disk(file)
            stat = (place / "pixels.npy").stat()
            recorded = [stat.st_size, stat.st_mtime_ns]
        else:
            facts = _decode_all(found, settings, None)
        about = {"shape": shape, "file": recorded, "notes": facts.notes, "errors": facts.errors}
        text = np.frombuffer(json.dumps(about).encode(), np.uint8)
        with (place / "facts.npz").open("wb") as file:
            arrays = {"pixels": facts.pixels, "files": facts.files, "sizes": facts.sizes}
            np.savez(file, about=text, **arrays)
            _to_disk(file)
        side = f"{settings.stored} px{'' if stored else ', decoded live'}"
        write_about(place, f"{found.path}, {shape[0]} images of {side}", shape[0])
        _publish(place, root / key, shape)
    finally:
        shutil.rmtree(place, ignore_errors=True)
        hold.close()
    return facts


def _decode_all(found: Scan, settings: ImageSettings, file: Any) -> Facts:
    """Decode in threads, wave by wave, writing pixels in order; return the facts of all rows."""
    count, shape = len(found.files), row_shape(settings)
    facts = Facts(
        *(np.zeros((count, 16), np.uint8) for _ in range(2)),
        np.zeros((count, 2), np.int32),
        {},
        {},
    )
    wave = min(4096, max(64, WAVE_BYTES // int(np.prod(shape))))
    black, start, said = np.zeros(shape, np.uint8), time.monotonic(), 0.0

    def decoded_some(rows: range) -> list[np.ndarray]:
        return [decoded(row) for row in rows]

    def decoded(row: int) -> np.ndarray:
        try:
            with found.opened(row) as data:
                facts.files[row] = np.frombuffer(_digest(data), np.uint8)
                picture = decode_noted(data, settings, found.files[row])
        except ImageError as error:
            facts.errors[row] = (error.kind, str(error))
            return black
        except OSError as error:
            kind = "missing" if error.errno == errno.ENOENT else "unreadable"
            facts.errors[row] = (kind, f"{found.files[row]}: {error.strerror or error}")
            return black
        facts.pixels[row] = np.frombuffer(_digest(picture.pixels), np.uint8)
        facts.sizes[row] = picture.width, picture.height
        if picture.notes:
            facts.notes[row] = picture.notes
        return picture.pixels

    with warnings.catch_warnings(), ThreadPoolExecutor(_threads()) as pool:
        warnings.simplefilter("ignore")  # once for all threads; the notes say what Pillow would
        for first in range(0, count, wave):
            last = min(first + wave, count)
            some = [range(row, min(row + AT_ONCE, last)) for row in range(first, last, AT_ONCE)]
            for images in pool.map(decoded_some, some):
                if file is not None:
                    file.writelines(images)
            elapsed = time.monotonic() - start
            if elapsed - said > 5:
                said = elapsed
                logger.info("decoded %d of %d images", last, count)
    logger.info("decoded %d images in %.1f s", count, time.monotonic() - start)
    return facts


def _threads() -> int:
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _publish(finished: Path, place: Path, shape: Sequence[int]) -> None:
    """Rename a finished entry into place; one that another process put there first stays."""
    for _ in range(5):
        try:
            os.rename(finished, place)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if _open(place, tuple(shape)) is not None:
            return
        broken = place.parent / f".{place.name}.{secrets.token_hex(4)}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(place, broken)
        shutil.rmtree(broken, ignore_errors=True)
    raise OSError(errno.EBUSY, "another process keeps writing there")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock while building, so that a second process waits and then reads.

    It only saves double work: entries are right without it, where a file system has no locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with path.open("w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
        path.unlink(missing_ok=True)
