"""Files to pixels: any image that Pillow reads becomes a square of 8-bit pixels, or is refused."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL
import PIL.features
from PIL import Image, UnidentifiedImageError

from hf_transfer.base.boundary import untrusted
from hf_transfer.base.errors import UserError
from hf_transfer.base.signatures import checked
from hf_transfer.data import reading
from hf_transfer.data.array_images import MAGIC, read_array, read_pages
from hf_transfer.data.contents import (
    bytes_of_mode,
    bytes_to_decode,
    is_dicom,
    is_heif,
    named,
    without_text,
)
from hf_transfer.data.dicom import BYTES_A_PIXEL, Window, read_dicom, size_of
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.data.squares import fill_of, square
from hf_transfer.data.upright import ImageError, noted, upright

VERSION = 3  # of the pixels that `decode` returns; a stored pixel depends on it
MOST_PIXELS = 2 * 89_478_485  # Pillow's own limit, beyond which a file may be a decompression bomb
DRAFT_MARGIN = 2  # a JPEG is decoded reduced only while it stays this many times the wanted side
FORMATS = (  # what a photograph or a scan comes in; no format that starts another program
    "AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP",
)  # fmt: skip
MODES = {1: "L", 3: "RGB", 4: "RGBA"}

Source = str | Path | bytes | Image.Image
Dicom = tuple[Window | None, int | None]  # how DICOM files are read: window and frame
Made = TypeVar("Made")


@dataclass(frozen=True)
class Picture:
    """A decoded image: `pixels` uint8 (S', S', C), the file's own `width` and `height` (as shown),
    and `notes`: the audit's words for what was unusual and has been handled."""

    pixels: np.ndarray
    width: int
    height: int
    notes: tuple[str, ...] = ()


@checked
def load_image(
    source: Source,
    channels: int = 3,
    *,
    window: tuple[float, float] | None = None,
    frame: int | None = None,
) -> Image.Image:
    """Return a picture, upright, in mode "L", "RGB" or "RGBA": what training sees, at full size.

    `source` is a path, bytes or a PIL image; `channels` are 1, 3 or 4. These are the pixels that
    `transformers.image_utils.load_image` and `Image.convert` give, so
    transparency is dropped, too. Only gray pixels of more than 8 bits differ: 0..65535, and
    floating-point 0..1, are scaled to 0..255, where the others clip them to white or leave black.
    Of a DICOM file `window` is (centre, width), by default the file's, and `frame` one of several.
    Raises ImageError, one line that says why there are no pixels.
    """
    if channels not in MODES:
        raise UserError(f"a picture has 1, 3 or 4 channels, not {channels}; read it with `decode`")

    def whole(opened: Image.Image | np.ndarray, name: str) -> Image.Image:
        if isinstance(opened, np.ndarray):
            return Image.fromarray(opened[..., 0] if channels == 1 else opened)
        with _memory(opened, MODES[channels], opened.size, name):
            seen, _ = upright(opened, MODES[channels], [], name)
            return seen.copy()  # no file, and never the picture that was given

    with warnings.catch_warnings():  # Pillow warns about what is handled
        warnings.simplefilter("ignore")
        return _read(source, "image", channels, whole, (window, frame))


def decode(source: Source, settings: ImageSettings) -> np.ndarray:
    """Return uint8 pixels (S', S', C) of a file, its bytes or a PIL image; S' = settings.stored.

    As `load_image` gives them, then resized and cut as the settings say. Raises ImageError, one
    line that says why the file gives no pixels.
    """
    with warnings.catch_warnings():  # Pillow warns about what the notes already say
        warnings.simplefilter("ignore")
        return decode_noted(source, settings).pixels


def decode_noted(
    source: Source, settings: ImageSettings, name: str = "image", reduced: bool = True
) -> Picture:
    """Return the decoded image with notes; as `decode`, but Pillow's warnings come through.

    `name` is what an ImageError calls bytes that were read elsewhere. Large JPEGs are decoded
    `reduced`, which is fast, or exactly as other libraries decode them.
    """

    def decoded(opened: Image.Image | np.ndarray, name: str) -> Picture:
        if isinstance(opened, np.ndarray):
            return _of_bands(opened, settings)
        return _picture(opened, settings, name, reduced)

    dicom = settings.window, settings.frame
    return _read(source, name, settings.channels, decoded, dicom)


def depends_on(settings: ImageSettings) -> tuple[Any, ...]:
    """Return all that decoded pixels depend on besides the file: the decoder and its settings."""
    versions = (VERSION, PIL.__version__, PIL.features.version("jpg"))
    how = (settings.size, settings.stored, settings.channels, settings.interpolation)
    fill = settings.mean if settings.crop_mode == "border" else ()
    more = [*fill, *_readers()]
    if settings.window or settings.frame:
        more.append(("dicom", settings.window, settings.frame))
    return *versions, *how, settings.crop_mode, settings.crop_offset, *more


@functools.cache
def _readers() -> tuple[str, ...]:
    """Return the packages here that read more formats, with versions: pixels depend on them."""
    found = []
    for name in ("pydicom", "pillow-heif"):
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return tuple(found)


# --- files -----------------------------------------------------------------------------------


def _read(
    source: Source,
    name: str,
    channels: int,
    use: Callable[[Image.Image | np.ndarray, str], Made],
    dicom: Dicom,
) -> Made:
    """Return what `use` makes of an opened picture, or of an array (H, W, channels) and its name.

    Any failure becomes an ImageError.
    """
    if isinstance(source, (str, Path)):
        with _refusals(str(source)), reading.opened(Path(source).expanduser()) as data:
            return _read(data, str(source), channels, use, dicom)
    with _refusals(name):
        if isinstance(source, Image.Image):
            return use(source, name)
        try:
            return _from_bytes(source, name, channels, use, dicom)
        except ValueError as error:  # Pillow's limit on a PNG's texts, which are not used
            if "MAX_TEXT" not in str(error):
                raise
            return _from_bytes(without_text(source), name, channels, use, dicom)


def _from_bytes(
    source: bytes,
    name: str,
    channels: int,
    use: Callable[[Image.Image | np.ndarray, str], Made],
    dicom: Dicom,
) -> Made:
    if not source:
        raise ImageError(f"{name}: the file is empty", "zero-byte")
    if source.startswith(MAGIC):
        with reading.PIXELS.hold(4 * len(source)):
            values = read_array(source, channels)
            _check_size(values.shape[1], values.shape[0], name)
            return use(values, name)
    if is_dicom(source):
        return _from_dicom(source, name, use, dicom)
    formats = [*FORMATS, "HEIF"] if is_heif(source) and _reads_heif() else FORMATS
    try:
        opened = Image.open(BytesIO(source), formats=formats)
    except UnidentifiedImageError as error:
        kind = "unreadable" if is_heif(source) else "not-an-image"
        raise ImageError(f"{name}: {named(source)}", kind) from error
    with opened as image:
        return use(image, name)


def _from_dicom(
    source: bytes, name: str, use: Callable[[Image.Image | np.ndarray, str], Made], dicom: Dicom
) -> Made:
    """Return what `use` makes of a DICOM file. Raises ImageError, with nothing of the file."""
    try:
        width, height = size_of(source)
        _check_size(width, height, name)
        with reading.PIXELS.hold(BYTES_A_PIXEL * width * height):
            image = read_dicom(source, *dicom)
    except ImageError:
        raise
    except UserError as error:
        raise ImageError(f"{name}: {error}") from error.__cause__
    return use(image, name)


def _reads_heif() -> bool:
    """Return whether pillow-heif is installed, and let Pillow know of it."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    """Turn any failure to read an image into an ImageError that says which kind it is."""
    try:
        with untrusted(name, kind=ImageError):
            yield
    except ImageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise ImageError(f"{name}: no such file", "missing") from error.__cause__
        if isinstance(error.__cause__, Image.DecompressionBombError):
            raise _too_large(name) from error.__cause__
        if "truncated" in str(error.__cause__).lower():
            error.kind = "truncated"
        raise


def _too_large(name: str) -> ImageError:
    return ImageError(f"{name}: more than {MOST_PIXELS:,} pixels", "too-large")


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MOST_PIXELS:
        raise _too_large(name)


@contextmanager
def _memory(
    image: Image.Image, mode: str, whole: tuple[int, int], name: str, copies: int = 0
) -> Iterator[None]:
    """Hold the memory for decoding, and for `copies` of the picture, of what threads share. Raises
    ImageError if it is more than one picture may have."""
    _check_size(*whole, name)
    size = bytes_to_decode(image, mode, whole)
    size += copies * whole[0] * whole[1] * bytes_of_mode(image.mode)
    if size > reading.PIXELS.limit:
        raise ImageError(
            f"{name}: decoding it takes {size / reading.GIB:.1f} GiB of memory, and an image may "
            f"take {reading.PIXELS.limit / reading.GIB:.3g}; save it smaller, or as JPEG",
            "too-large",
        )
    with reading.PIXELS.hold(size):
        yield


# --- pixels ----------------------------------------------------------------------------------


def _picture(image: Image.Image, settings: ImageSettings, name: str, reduced: bool) -> Picture:
    notes, size = noted(image), image.size
    _check_size(*size, name)
    if settings.channels not in MODES:
        with _memory(image, image.mode, size, name, 2 * settings.channels):
            return _of_bands(read_pages(image, settings.channels), settings)
    if reduced and image.format in ("JPEG", "MPO"):
        # libjpeg reduces by 2, 4 or 8 while it decodes: 4 to 8 times as fast for photographs. With
        # the margin the result stays within half a level of 255 on average; smaller ones are exact.
        image.draft(None, (settings.stored * DRAFT_MARGIN,) * 2)
    with _memory(image, MODES[settings.channels], size, name):
        image, turned = upright(image, MODES[settings.channels], notes, name)
        size = (size[1], size[0]) if turned >= 5 else size
        image = square(image, size, settings, fill_of(settings))
    pixels = np.array(image).reshape(settings.stored, settings.stored, settings.channels)
    return Picture(pixels, *size, tuple(notes))


def _of_bands(values: np.ndarray, settings: ImageSettings) -> Picture:
    """Return a picture of any number of channels (H, W, C), each resized and cut by itself."""
    size = (values.shape[1], values.shape[0])
    bands = [Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(values, 2, 0)]
    fills = [(value,) for value in fill_of(settings)]
    squares = [
        np.asarray(square(band, size, settings, fill))
        for band, fill in zip(bands, fills, strict=True)
    ]
    return Picture(np.stack(squares, axis=-1), *size)
