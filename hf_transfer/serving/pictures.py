"""What a user gives as images, one after the other: a name, and what `decode` takes.

Paths, folders (links followed), patterns, bytes, open files, PIL images, arrays, tensors, rows of
`datasets`, or any number of these. What cannot be an image is an error of its own, and the others
go on.
"""

from __future__ import annotations

import glob
import io
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from hf_transfer.base.boundary import printable, said, untrusted
from hf_transfer.base.errors import UserError
from hf_transfer.base.threads import allowed_cores
from hf_transfer.data.decoding import decode_noted
from hf_transfer.data.folders import images_below
from hf_transfer.data.image_settings import ImageSettings

KINDS = "paths, folders, patterns, bytes, files, PIL images, arrays, tensors, or lists of these"
USUAL = (1, 3, 4)  # channels: gray, RGB, RGBA
ADDRESS = re.compile(r"(?i)(https?|s3|gs|hf|ftp):/")
_NO_COLUMN = (
    "a row with {names} has no column 'image' or 'path'; give the column of images itself, such as "
    "data['photo']"
)
Decodable = str | Path | bytes | Image.Image


@dataclass(frozen=True)
class Failed:
    """What was given in an image's place, and in one line why it is none."""

    name: str
    error: str


@dataclass(frozen=True)
class Batch:
    """Some images: their `names`, and for each an error or, in `pixels` (k, S', S', C), a row."""

    names: tuple[str, ...]
    errors: tuple[str | None, ...]
    pixels: torch.Tensor


def batches(
    images: Any,
    settings: ImageSettings,
    size: int = 32,
    threads: int | None = None,
    workers: int = 0,
) -> Iterator[Batch]:
    """Yield decoded images in their order, `size` at a time; no image is read before its turn.

    `threads` decode at once (default: one for each core), or so many `workers`, which are
    processes, while the network computes; these take paths only. Raises UserError.
    """
    if size < 1 or (threads is not None and threads < 1):
        raise UserError(f"batch_size and threads must be at least 1, got {size} and {threads}")
    if workers:
        files = files_of(images)
        if files is None or workers < 0:
            raise UserError(
                f"{workers} workers cannot decode these images: they take paths of files, folders "
                "and patterns that are there; leave workers out"
            )
        yield from _by_workers(files, settings, size, workers)
        return
    stream = named(images, settings.channels)
    with _pool(threads or max(1, int(allowed_cores()))) as mapped:
        while some := list(islice(stream, size)):
            with warnings.catch_warnings():  # in this thread alone: the filters are of all threads
                warnings.simplefilter("ignore")
                found = list(mapped(lambda one: _decoded(*one, settings), some))
            names = [name for name, _ in some]
            yield _batch(list(zip(names, found, strict=True)), settings)


def _batch(found: list[tuple[str, np.ndarray[Any, Any] | str]], settings: ImageSettings) -> Batch:
    """Return images with these names, each with its pixels or in one line why there are none."""
    pixels = [one for _, one in found if not isinstance(one, str)]
    empty = torch.empty((0, settings.stored, settings.stored, settings.channels), dtype=torch.uint8)
    return Batch(
        tuple(name for name, _ in found),
        tuple(one if isinstance(one, str) else None for _, one in found),
        torch.from_numpy(np.stack(pixels)) if pixels else empty,
    )


class _FilesToDecode(Dataset[tuple[str, Any]]):
    """Files as a DataLoader's workers decode them: names, each with pixels or why it has none."""

    def __init__(self, files: Sequence[str], settings: ImageSettings) -> None:
        self.files, self.settings = files, settings

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.files[row], _decoded(self.files[row], self.files[row], self.settings)


def _by_workers(
    files: Sequence[str], settings: ImageSettings, size: int, workers: int
) -> Iterator[Batch]:
    """Yield batches that so many processes decode, as those of training do."""
    collate = partial(_batch, settings=settings)
    yield from DataLoader(
        _FilesToDecode(files, settings), size, num_workers=workers, collate_fn=collate
    )


@contextmanager
def _pool(threads: int) -> Iterator[Any]:
    if threads == 1:
        yield map
        return
    with ThreadPoolExecutor(threads) as pool:
        yield pool.map


def _decoded(
    name: str, source: Decodable | Failed, settings: ImageSettings
) -> np.ndarray[Any, Any] | str:
    """Return pixels uint8 (S', S', C), or in one line why there are none."""
    if isinstance(source, Failed):
        return printable(source.error)
    try:
        with untrusted(name):
            return decode_noted(source, settings, name, reduced=False).pixels
    except UserError as error:
        return printable(str(error))


# --- what is given -----------------------------------------------------------------------------


def named(images: Any, channels: int = 3) -> Iterator[tuple[str, Decodable | Failed]]:
    """Yield each image with its name: its path, or its place among all, from "image 1" on.

    `channels` is what the model sees: arrays of so many are taken, too.
    """
    for number, item in enumerate(_flat(images), 1):
        name = f"image {number}"
        if isinstance(item, (str, Path)):
            yield str(item), item
        elif isinstance(item, Failed):
            yield item.name, item
        elif isinstance(item, Image.Image):
            yield str(getattr(item, "filename", "") or name), item
        elif isinstance(item, (bytes, bytearray, memoryview)):
            yield name, bytes(item)
        elif hasattr(item, "read"):
            own = getattr(item, "name", None)
            name = own if isinstance(own, str) else name
            yield name, _content(item, name)
        else:
            yield name, _picture(item, name, channels)


def _flat(images: Any) -> Iterator[Any]:
    """Yield single images; of paths the files that they stand for."""
    if isinstance(images, np.ndarray) and images.ndim == 1 and images.dtype.kind in "OU":
        images = images.tolist()  # paths
    elif hasattr(images, "iloc") and hasattr(images, "columns"):
        images = images.to_dict("records")  # rows of pandas
    if isinstance(images, (str, Path)):
        yield from _files(images)
    elif isinstance(images, Mapping):
        yield from _in_row(images)
    elif isinstance(images, (np.ndarray, torch.Tensor)):
        yield from images if images.ndim == 4 else (images,)
    elif isinstance(images, (bytes, bytearray, memoryview, Image.Image)) or hasattr(images, "read"):
        yield images
    elif isinstance(images, Iterable):
        for item in images:
            yield from _flat(item)
    else:
        yield images


def _in_row(row: Mapping[Any, Any]) -> Iterator[Any]:
    """Yield the image of a row of `datasets` or pandas, or of an undecoded {"bytes", "path"}."""
    if row.get("bytes") is not None:
        yield row["bytes"]
    elif not {"image", "path"} & set(row):
        yield Failed("row", _NO_COLUMN.format(names=", ".join(map(str, row)) or "nothing"))
    else:
        inner = row.get("image", row.get("path"))
        yield from _flat(inner) if isinstance(inner, (str, Path, Mapping)) else (inner,)


def _files(place: str | Path) -> Iterator[Path | Failed]:
    """Yield what a path stands for: a file, the images below a folder, the matches of a pattern."""
    found = False
    if ADDRESS.match(str(place)):
        yield Failed(str(place), f"{place}: an address is no file; download the image first")
        return
    try:
        path = Path(place).expanduser()
        is_pattern = glob.has_magic(str(path)) and not path.exists()
        matches = sorted(glob.glob(str(path), recursive=True)) if is_pattern else [path]
        for match in map(Path, matches):
            for file in images_below(match) if match.is_dir() else (match,):
                found = True
                yield file
        if not found:
            why = "no file matches" if is_pattern else "the folder holds no images"
            yield Failed(str(place), f"{place}: {why}")
    except (OSError, RuntimeError, ValueError) as error:  # "~nobody", NUL, a folder of others
        yield Failed(str(place), f"{place}: {said(error)}")


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """Return the files that paths, folders and patterns stand for, named by hand.

    Raises UserError for one that is not there or stands for no image.
    """
    found = []
    for place in paths:
        for file in _files(place):
            if isinstance(file, Failed):
                raise UserError(file.error)
            if not os.path.lexists(file):
                raise UserError(f"there is no image or folder {file}")
            found.append(file)
    return found


def files_of(images: Any) -> tuple[str, ...] | None:
    """Return the files that a path, or a list of paths, stands for; None for anything else, and
    where a path stands for none."""
    given = [images] if isinstance(images, (str, Path)) else images
    if not isinstance(given, (list, tuple)) or not all(isinstance(x, (str, Path)) for x in given):
        return None
    found = [file for place in given for file in _files(place)]
    if any(isinstance(file, Failed) for file in found):
        return None
    return tuple(map(str, found))


def _content(file: Any, name: str) -> bytes | Failed:
    try:
        with untrusted(name):
            content = "" if isinstance(file, io.TextIOBase) else file.read()
    except UserError as error:
        return Failed(name, str(error))
    if isinstance(content, bytes):
        return content
    return Failed(name, f"{name}: the file is open as text; open it with mode 'rb'")


# --- arrays ------------------------------------------------------------------------------------


def _picture(item: Any, name: str, channels: int) -> Decodable | Failed:
    """Return an array or tensor as a picture: (H, W), (H, W, C) or, of tensors first, (C, H, W)."""
    first = isinstance(item, torch.Tensor)
    if isinstance(item, torch.Tensor):
        item = item.detach().cpu()
        item = (item.float() if item.is_floating_point() else item).numpy()
    if not isinstance(item, np.ndarray):
        what = "nothing (None)" if item is None else f"a {type(item).__name__}"
        return Failed(name, f"{name}: {what} is no image; give {KINDS}")
    known = {*USUAL, channels}
    if item.ndim == 3:
        sides = (0, 2) if first else (2, 0)
        side = next((side for side in sides if item.shape[side] in known), None)
        item = np.moveaxis(item, 0, 2) if side == 0 else item
        known = known if side is not None else set()
    elif item.ndim == 2:
        item = item[:, :, None]
    if item.ndim != 3 or not known or not item.size:
        shape = " x ".join(map(str, item.shape)) or "no sides"
        return Failed(
            name,
            f"{name}: an array of {shape} is no image; give (H, W) or (H, W, C) with C of "
            f"{', '.join(map(str, sorted({*USUAL, channels})))}",
        )
    try:
        values = _as_bytes(item)
    except ValueError as error:
        return Failed(name, f"{name}: {error}")
    if values.shape[2] in USUAL:
        return Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values)
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


def _as_bytes(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return pixels as uint8: whole numbers in 0..255 or floats in 0..1. Raises ValueError."""
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255)
    least, most = (values.min(), values.max()) if values.dtype.kind in "uif" else (np.nan, np.nan)
    if values.dtype.kind in "ui" and least >= 0 and most <= 255:
        return values.astype(np.uint8)
    if values.dtype.kind == "f" and least >= 0 and most <= 1:
        return (values * 255 + 0.5).astype(np.uint8)
    raise ValueError(
        f"{values.dtype} from {least:g} to {most:g} are no pixels; give uint8, or floats in 0..1 "
        "(not normalised: the model does that)"
    )
