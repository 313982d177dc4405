"""A picture as it was seen: turned as its EXIF says, in 8 bits, and what was unusual about it."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from hf_transfer.base.boundary import untrusted
from hf_transfer.base.errors import UserError
from hf_transfer.data.array_images import to_8_bit

ENORMOUS = 50_000_000  # pixels; beyond, a file is named in the audit
TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
ORIENTATION = 0x0112  # the EXIF tag that says how a camera was held
ROWS_AT_ONCE = 256  # of 16-bit pixels that are scaled together


class ImageError(UserError):
    """A file that gives no pixels; `kind` is the audit's word for why."""

    def __init__(self, message: str, kind: str = "unreadable") -> None:
        super().__init__(message)
        self.kind = kind


def upright(image: Image.Image, mode: str, notes: list[str], name: str) -> tuple[Image.Image, int]:
    """Return the picture as it was seen, in a mode of 8 bits, and how its EXIF says it is turned,
    1..8; what is unusual is noted."""
    image.load()
    turned = _orientation(image, notes)
    if turned > 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bit(image, notes, name)
    return (image if image.mode == mode else image.convert(mode)), turned


def noted(image: Image.Image) -> list[str]:
    rawmodes = [str(tile[3]) for tile in getattr(image, "tile", [])]
    found = {
        "animated": image.format != "MPO" and getattr(image, "is_animated", False),
        "16-bit": image.mode.startswith("I") or any(";16" in mode for mode in rawmodes),
        "grayscale": image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I"),
        "palette": image.mode in ("P", "PA"),
        "alpha": image.mode in TRANSPARENT or "transparency" in image.info,
        "cmyk": image.mode == "CMYK",
        "enormous": image.width * image.height > ENORMOUS,
    }
    return [*image.info.get("notes", ()), *(word for word, holds in found.items() if holds)]


def _orientation(image: Image.Image, notes: list[str]) -> int:
    """Return how the EXIF says that the image is turned, 1..8; 1 where that cannot be read."""
    try:
        with untrusted("its EXIF"):
            turned = image.getexif().get(ORIENTATION, 1)
    except UserError:
        notes.append("broken-exif")
        return 1
    if turned not in range(2, 9):
        return 1
    notes.append("rotated")
    return int(turned)


def _to_8_bit(image: Image.Image, notes: list[str], name: str) -> Image.Image:
    """Return a gray picture of more than 8 bits in 8; up to 255, whole numbers stay as they are."""
    values = np.asarray(image)
    least, most = float(values.min()), float(values.max())
    if image.mode == "F" and 0 <= least <= most <= 1:
        scaled = [to_8_bit(rows) for rows in _parts(values)]
    elif 0 <= least <= most <= 255:
        scaled = [rows.astype(np.uint8) for rows in _parts(values)]
    elif image.mode != "F" and 0 <= least <= most <= 65535:
        scaled = [to_8_bit(rows.astype(np.uint32)) for rows in _parts(values)]
        if most < 65536 // 8:
            notes.append("dark-16-bit")
    else:
        raise ImageError(
            f"{name}: its pixels are numbers of {least:g} to {most:g}, a range that is not known; "
            "save it as 8 or 16 bits"
        )
    return Image.fromarray(np.concatenate(scaled))


def _parts(values: np.ndarray) -> list[np.ndarray]:
    return [values[row : row + ROWS_AT_ONCE] for row in range(0, len(values), ROWS_AT_ONCE)]
