"""Files to pixels: any image that Pillow reads becomes a square of 8-bit pixels, or is refused."""

from __future__ import annotations

import struct
import warnings
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import PIL.features
from PIL import Image, ImageOps, UnidentifiedImageError

from hf_transfer.base.errors import UserError
from hf_transfer.data.array_images import MAGIC, read_array, read_pages, to_8_bit
from hf_transfer.data.image_settings import FILTERS, ImageSettings, middle

VERSION = 1  # of the pixels that `decode` returns; a stored pixel depends on it
ENORMOUS = 50_000_000  # pixels; beyond, a file is named in the audit
REFUSED = 2 * 89_478_485  # pixels; beyond, a file is taken for a decompression bomb
DRAFT_MARGIN = 2  # a JPEG is decoded reduced only while it stays this many times the wanted side
LONGEST = 8  # sides' ratio beyond which only the middle of a picture is resized
FORMATS = (  # what a photograph or a scan comes in; no format that starts another program
    "AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP",
)  # fmt: skip
TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
BROKEN = (  # what Pillow's decoders raise on damaged files
    OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError, AttributeError,
    OverflowError, ZeroDivisionError, NotImplementedError, struct.error, zlib.error,
)  # fmt: skip
ORIENTATION = 0x0112  # the EXIF tag that says how a camera was held
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class ImageError(UserError):
    """A file that gives no pixels; `kind` is the audit's word for why."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Picture:
    """A decoded image: `pixels` uint8 (S', S', C), the file's own `width` and `height` (as shown),
    and `notes`: the audit's words for what was unusual and has been handled."""

    pixels: np.ndarray
    width: int
    height: int
    notes: tuple[str, ...] = ()


def depends_on(settings: ImageSettings) -> tuple[Any, ...]:
    """Return all that decoded pixels depend on besides the file: the decoder and its settings."""
    versions = (VERSION, PIL.__version__, PIL.features.version("jpg"))
    how = (settings.size, settings.stored, settings.channels, settings.interpolation)
    return *versions, *how, settings.crop_mode


def decode(source: str | Path | bytes | Image.Image, settings: ImageSettings) -> np.ndarray:
    """Return uint8 pixels (S', S', C) of a file, its bytes or a PIL image; S' = settings.stored.

    Turned as its EXIF says, in the wanted colour mode (transparency on white), resized and cut as
    the settings say. Raises ImageError, one line that says why the file gives no pixels.
    """
    with warnings.catch_warnings():  # Pillow warns about what the notes already say
        warnings.simplefilter("ignore")
        return decode_noted(source, settings).pixels


def decode_noted(
    source: str | Path | bytes | Image.Image, settings: ImageSettings, name: str = "image"
) -> Picture:
    """Return the decoded image with notes; as `decode`, but Pillow's warnings come through.

    `name` is what an ImageError calls bytes that were read elsewhere.
    """
    if isinstance(source, (str, Path)):
        name, source = str(source), read(source)
    try:
        if isinstance(source, Image.Image):
            return _picture(source, settings, name)
        if not source:
            raise ImageError("zero-byte", f"{name}: the file is empty")
        if source.startswith(MAGIC):
            return _of_bands(read_array(source, settings.channels), settings, name)
        with Image.open(BytesIO(source), formats=FORMATS) as image:
            return _picture(image, settings, name)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("too-large", f"{name}: more than {REFUSED:,} pixels") from error
    except UnidentifiedImageError as error:
        if name.lower().endswith((".heic", ".heif")):
            message = f"{name}: HEIC is not read; convert it to JPEG or PNG"
            raise ImageError("unreadable", message) from error
        raise ImageError("not-an-image", f"{name}: not an image that Pillow reads") from error
    except BROKEN as error:
        kind = "truncated" if "truncated" in str(error).lower() else "unreadable"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(kind, f"{name}: {reason}") from error


def read(path: str | Path) -> bytes:
    """Return a file's bytes. Raises ImageError ("missing" or "unreadable")."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise ImageError("missing", f"{path}: no such file") from error
    except OSError as error:
        raise ImageError("unreadable", f"{path}: {error.strerror or error}") from error


def _picture(image: Image.Image, settings: ImageSettings, name: str) -> Picture:
    if image.width * image.height > REFUSED:
        raise ImageError("too-large", f"{name}: more than {REFUSED:,} pixels")
    notes, size = _notes(image), image.size
    if settings.channels not in MODES:
        return _of_bands(read_pages(image, settings.channels), settings, name)
    if image.format in ("JPEG", "MPO"):
        # libjpeg reduces by 2, 4 or 8 while it decodes: 4 to 8 times as fast for photographs. With
        # the margin the result stays within half a level of 255 on average; smaller ones are exact.
        image.draft(None, (settings.stored * DRAFT_MARGIN,) * 2)
    image.load()
    turned = _orientation(image, notes)
    if turned > 1:
        image = ImageOps.exif_transpose(image)
        size = (size[1], size[0]) if turned >= 5 else size
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bit(image, notes, name)
    image = _square(_in_mode(image, MODES[settings.channels]), size, settings)
    pixels = np.array(image).reshape(settings.stored, settings.stored, settings.channels)
    return Picture(pixels, *size, tuple(notes))


def _of_bands(values: np.ndarray, settings: ImageSettings, name: str) -> Picture:
    """Return a picture of any number of channels (H, W, C), each resized and cut by itself."""
    size = (values.shape[1], values.shape[0])
    if size[0] * size[1] > REFUSED:
        raise ImageError("too-large", f"{name}: more than {REFUSED:,} pixels")
    bands = [Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(values, 2, 0)]
    squares = [np.asarray(_square(band, size, settings)) for band in bands]
    return Picture(np.stack(squares, axis=-1), *size)


def _notes(image: Image.Image) -> list[str]:
    rawmodes = [str(tile[3]) for tile in getattr(image, "tile", [])]
    transparent = image.mode in TRANSPARENT or "transparency" in image.info
    found = {
        "animated": image.format != "MPO" and getattr(image, "n_frames", 1) > 1,
        "16-bit": image.mode.startswith("I") or any(";16" in mode for mode in rawmodes),
        "grayscale": image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I"),
        "palette": image.mode in ("P", "PA"),
        "alpha": transparent,
        "cmyk": image.mode == "CMYK",
        "enormous": image.width * image.height > ENORMOUS,
    }
    return [word for word, holds in found.items() if holds]


def _orientation(image: Image.Image, notes: list[str]) -> int:
    """Return how the EXIF says that the image is turned, 1..8; 1 where that cannot be read."""
    try:
        turned = image.getexif().get(ORIENTATION, 1)
    except BROKEN:
        notes.append("broken-exif")
        return 1
    if turned not in range(2, 9):
        return 1
    notes.append("rotated")
    return int(turned)


def _to_8_bit(image: Image.Image, notes: list[str], name: str) -> Image.Image:
    values = np.asarray(image)
    if image.mode == "F" or (values.size and (values.min() < 0 or values.max() > 65535)):
        raise ImageError(
            "unreadable",
            f"{name}: pixels of mode {image.mode} have no known range; save it as 8 or 16 bits",
        )
    if values.size and values.max() < 65536 // 8:
        notes.append("dark-16-bit")
    return Image.fromarray(to_8_bit(values.astype(np.uint32)))


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Return the image as L, RGB or RGBA; transparency becomes white, but in RGBA."""
    transparent = image.mode in TRANSPARENT or "transparency" in image.info
    if transparent and mode != "RGBA":
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        image.alpha_composite(layer)
    elif image.mode in ("P", "CMYK", "YCbCr", "HSV") and not transparent:
        image = image.convert("RGB")
    return image if image.mode == mode and not transparent else image.convert(mode)


def _square(image: Image.Image, shown: tuple[int, int], settings: ImageSettings) -> Image.Image:
    """Return the square of `settings.stored` pixels from which evaluation cuts its middle.

    `shown` is the picture's own width and height, before any reduced decoding. Resizing and
    rounding are those of torchvision's `Resize` and `CenterCrop`, bit for bit.
    """
    side, kind = settings.stored, FILTERS[settings.interpolation]
    if settings.crop_mode == "squash":
        return image if image.size == (side, side) else image.resize((side, side), kind)
    width, height = shown
    short = min(width, height)
    if max(width, height) > LONGEST * short:
        width, height = image.size
        short = min(width, height)
        left, top = max(0, width - LONGEST * short) // 2, max(0, height - LONGEST * short) // 2
        image = image.crop((left, top, width - left, height - top))
        width, height = image.size
    wide = side if width <= height else int(side * width / height)
    high = side if height <= width else int(side * height / width)
    if image.size != (wide, high):
        image = image.resize((wide, high), kind)
    if wide == high:
        return image
    inner = middle(side, settings.size)
    left, top = middle(wide, settings.size) - inner, middle(high, settings.size) - inner
    return image.crop((left, top, left + side, top + side))
