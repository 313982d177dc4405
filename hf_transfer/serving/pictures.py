"""What a user gives as images, one after the other: a name, and what `decode` takes.

Paths, folders (links followed), patterns, tables, bytes, open files, PIL images, arrays, tensors,
rows of `datasets`, or any number of these. What cannot be an image is an error of its own, and the
others go on.
"""

from __future__ import annotations

import glob
import io
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
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
from hf_transfer.base.machine import kept_memory
from hf_transfer.base.threads import allowed_cores
from hf_transfer.data.datasets_loading import FILES
from hf_transfer.data.datasets_tables import ImageTable, is_datasets, read_images
from hf_transfer.data.decoding import decode_noted
from hf_transfer.data.folders import images_below
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.data.tables import SUFFIXES, listed_images
from hf_transfer.inputs.workers import Attached
from hf_transfer.serving.array_pictures import picture_of

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
class InTable:
    """An image that a Parquet or Arrow file holds itself, in the `row` of this name."""

    path: Path
    table: ImageTable
    row: str

    @property
    def name(self) -> str:
        """The file and the row, as in "photos.parquet/train/00000007"."""
        return f"{self.path}/{self.row}"

    def content(self) -> bytes | Failed:
        """Return the file of the image."""
        try:
            with untrusted(self.name), self.table.opened(self.row) as content:
                return content
        except UserError as error:
            return Failed(self.name, str(error))


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
    processes, while the network computes; these read two batches each ahead. Raises UserError.
    """
    if size < 1 or (threads is not None and threads < 1):
        raise UserError(f"batch_size and threads must be at least 1, got {size} and {threads}")
    if workers < 0:
        raise UserError(f"workers must be at least 0, got {workers}")
    stream = named(images, settings.channels)
    with kept_memory():  # of a batch's way through the network, for the next one
        if workers:
            yield from _by_workers(stream, settings, size, workers)
        else:
            yield from _by_threads(stream, settings, size, threads or int(allowed_cores()) or 1)


def _batch(found: list[tuple[str, np.ndarray[Any, Any] | str]], settings: ImageSettings) -> Batch:
    """Return images with these names, each with its pixels or in one line why there are none."""
    pixels = [one for _, one in found if not isinstance(one, str)]
    empty = torch.empty((0, settings.stored, settings.stored, settings.channels), dtype=torch.uint8)
    return Batch(
        tuple(name for name, _ in found),
        tuple(one if isinstance(one, str) else None for _, one in found),
        torch.from_numpy(np.stack(pixels)) if pixels else empty,
    )


class _ToDecode(Dataset[tuple[str, Any]]):
    """Images as a DataLoader's workers decode them: an "index" is an image with its name."""

    def __init__(self, settings: ImageSettings) -> None:
        self.settings = settings

    def __getitem__(self, one: tuple[str, Decodable | Failed]) -> tuple[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return one[0], _decoded(*one, self.settings)


def _by_threads(
    stream: Iterator[tuple[str, Decodable | Failed]],
    settings: ImageSettings,
    size: int,
    threads: int,
) -> Iterator[Batch]:
    """Yield batches that so many threads decode."""
    with _pool(threads) as mapped:
        while some := list(islice(stream, size)):
            with warnings.catch_warnings():  # in this thread alone: the filters are of all threads
                warnings.simplefilter("ignore")
                found = list(mapped(lambda one: _decoded(one[0], one[1], settings), some))
            names = [name for name, _ in some]
            yield _batch(list(zip(names, found, strict=True)), settings)


def _by_workers(
    stream: Iterator[tuple[str, Decodable | Failed]],
    settings: ImageSettings,
    size: int,
    workers: int,
) -> Iterator[Batch]:
    """Yield batches that so many processes decode, as those of training do."""
    at_once: Any = iter(lambda: list(islice(stream, size)), [])
    yield from DataLoader(
        _ToDecode(settings),
        batch_sampler=at_once,
        num_workers=workers,
        worker_init_fn=Attached(),
        collate_fn=partial(_batch, settings=settings),
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
        elif isinstance(item, InTable):
            yield item.name, item.content()
        elif isinstance(item, Image.Image):
            yield str(getattr(item, "filename", "") or name), item
        elif isinstance(item, (bytes, bytearray, memoryview)):
            yield name, bytes(item)
        elif hasattr(item, "read"):
            own = getattr(item, "name", None)
            name = own if isinstance(own, str) else name
            yield name, _content(item, name)
        else:
            try:
                yield name, picture_of(item, channels)
            except UserError as error:
                yield name, Failed(name, f"{name}: {error}")


def _flat(images: Any) -> Iterator[Any]:
    """Yield single images; of paths the files that they stand for."""
    if isinstance(images, np.ndarray) and images.ndim == 1 and images.dtype.kind in "OU":
        images = images.tolist()  # paths
    elif hasattr(images, "iloc") and hasattr(images, "columns"):
        images = images.to_dict("records")  # rows of pandas
    elif hasattr(images, "iloc") and any(name in images.index for name in ("image", "path")):
        images = images.to_dict()  # one row
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
    """Yield the image of a row of `datasets` or pandas, or of an undecoded {"bytes", "path"}; of
    several rows, which `datasets` gives as a row of lists, all."""
    if row.get("bytes") is not None:
        yield row["bytes"]
    elif not {"image", "path"} & set(row):
        yield Failed("row", _NO_COLUMN.format(names=", ".join(map(str, row)) or "nothing"))
    else:
        inner = row.get("image", row.get("path"))
        several = isinstance(inner, list) and not any(
            isinstance(x, (list, int, float)) for x in inner
        )
        yield from _flat(inner) if several or isinstance(inner, (str, Path, Mapping)) else (inner,)


def _files(place: str | Path) -> Iterator[Path | InTable | Failed]:
    """Yield what a path stands for: a file, the images below a folder or in a table, the matches
    of a pattern."""
    found = False
    if ADDRESS.match(str(place)):
        yield Failed(str(place), f"{place}: an address is no file; download the image first")
        return
    try:
        path = Path(place).expanduser()
        is_pattern = glob.has_magic(str(path)) and not path.exists()
        matches = sorted(glob.glob(str(path), recursive=True)) if is_pattern else [path]
        for match in map(Path, matches):
            for file in _at(match):
                found = True
                yield file
        if not found:
            why = "no file matches" if is_pattern else f"the {_kind(path)} holds no images"
            yield Failed(str(place), f"{place}: {why}")
    except UserError as error:  # of a table, which it names
        yield Failed(str(place), str(error))
    except (OSError, RuntimeError, ValueError) as error:  # "~nobody", NUL, a folder of others
        yield Failed(str(place), f"{place}: {said(error)}")


def _at(place: Path) -> Iterable[Path | InTable]:
    """Return the images at a path: below a folder, in the rows of a table, or the one file."""
    if place.is_dir():
        return images_below(place)
    if not _is_table(place):
        return (place,)
    if not is_datasets(place):
        return listed_images(place)
    table = read_images(place)
    return (one if isinstance(one, Path) else InTable(place, table, one) for one in table.rows())


def _is_table(place: Path) -> bool:
    return place.suffix.lower() in (*SUFFIXES, *FILES) and place.is_file()


def _kind(place: Path) -> str:
    return "table" if _is_table(place) else "folder"


def find_images(paths: Iterable[str | Path]) -> list[Path | InTable]:
    """Return the images that paths, folders, tables and patterns stand for, named by hand.

    Raises UserError for a path that is not there or stands for no image.
    """
    found: list[Path | InTable] = []
    for place in paths:
        for file in _files(place):
            if isinstance(file, Failed):
                raise UserError(file.error)
            if file == Path(place).expanduser() and not os.path.lexists(file):
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
    if not all(isinstance(file, Path) for file in found):
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
