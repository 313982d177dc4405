"""What a file is by its content, and how much memory decoding it takes."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

KINDS = (  # where, how a file begins, what it is, what to do
    (0, b"%PDF", "a PDF document", "save its pages as PNG"),
    (0, b"<svg", "an SVG drawing", "save it as PNG"),
    (0, b"8BPS", "a Photoshop file", "save it as PNG"),
    (0, b"PK\x03\x04", "a ZIP archive", "unpack it"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it"),
    (0, b"\x00\x00\x01\x00", "an icon", "save it as PNG"),
    (0, b"\xff\x0a", "a JPEG XL image", "convert it to JPEG or PNG"),
    (4, b"JXL ", "a JPEG XL image", "convert it to JPEG or PNG"),
    (0, b"version https://git-lfs", "a pointer of Git LFS", "fetch the file with: git lfs pull"),
    (0, b"<!doctype html", "a web page", "download the image again"),
    (0, b"<html", "a web page", "download the image again"),
)
HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
VIDEO = (b"isom", b"iso2", b"mp41", b"mp42", b"avc1", b"qt  ", b"M4V ")
INSTALL = "to read it: pip install pillow-heif, or convert it to JPEG"

IMAGES = (  # how the formats that are read begin
    b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*", b"\xff\x4f\xff\x51",
    b"\0\0\0\x0cjP", b"\x93NUMPY", b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"\x0a\x05\x01\x08",
)  # fmt: skip

PNG = b"\x89PNG\r\n\x1a\n"
TEXT = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # of a PNG: says nothing of the pixels that we use


def is_heif(source: bytes) -> bool:
    """Return whether these bytes are a HEIC or HEIF picture, as phones take them."""
    brands = source[8:64]
    return source[4:8] == b"ftyp" and source[8:12] in HEIF and b"avif" not in brands


def is_dicom(source: bytes) -> bool:
    """Return whether a file that begins so (132 bytes) is a DICOM file."""
    return source[128:132] == b"DICM"


def begins_like_image(source: bytes) -> bool:
    """Return whether a file that begins so (132 bytes) is an image, perhaps one not read here."""
    return source.startswith(IMAGES) or source[4:8] == b"ftyp" or is_dicom(source)


def named(source: bytes) -> str:
    """Return what kind of file these bytes are and what to do about it, or that it is no image."""
    if is_heif(source):
        return f"a HEIC picture; {INSTALL}"
    if source[4:8] == b"ftyp" and source[8:12] in VIDEO:
        return "a video; save its frames as images"
    lower = source[:256].lstrip().lower()
    for place, magic, what, remedy in KINDS:
        if source[place : place + len(magic)] == magic or (not place and lower.startswith(magic)):
            return f"{what}; {remedy}"
    if b"<svg" in lower:
        return "an SVG drawing; save it as PNG"
    return "not an image, or one of a kind that is not read"


def without_text(source: bytes) -> bytes:
    """Return a PNG file without its texts and colour profile, which Pillow refuses where long."""
    parts, at = [PNG], len(PNG)
    while at + 8 <= len(source):
        (size,) = struct.unpack_from(">I", source, at)
        if source[at + 4 : at + 8] not in TEXT:
            parts.append(source[at : at + 12 + size])
        at += 12 + size
    return b"".join(parts)


# --- memory ----------------------------------------------------------------------------------


def bytes_of_mode(mode: str) -> int:
    """Return the bytes of memory in which Pillow keeps a pixel of a mode."""
    if mode.startswith("I;16"):
        return 2
    return 1 if mode in ("1", "L", "P") else 4


def bytes_to_decode(image: Image.Image, mode: str, whole: tuple[int, int]) -> int:
    """Return about how many bytes an opened file takes while it is decoded into a mode.

    `whole` is its width and height before any reduced decoding. As measured with Pillow 12.3;
    headers alone are read.
    """
    full, bands = whole[0] * whole[1], len(image.getbands())
    own = bytes_of_mode(image.mode)
    size = image.width * image.height * own
    if image.format == "JPEG2000":  # 32 bits and 8 bits a band, then Pillow's own
        size += full * 5 * bands
    elif image.format == "WEBP":
        size += full * 12
    elif image.format == "AVIF":
        size += full * 6
    elif image.format in ("JPEG", "MPO") and image.info.get("progressive"):
        size += full * 2 * bands  # all coefficients, however much it is reduced
    elif image.format == "GIF":
        size += full * 4
    elif image.format == "TIFF":
        size += _tile_bytes(image, own * bands)
    if image.mode != mode:
        size += image.width * image.height * bytes_of_mode(mode)
    return size


def _tile_bytes(image: Any, pixel: int) -> int:
    """Return the bytes of one tile of a TIFF file, however small the picture that it belongs to."""
    tags = image.tag_v2
    wide, high = tags.get(322), tags.get(323)
    if not isinstance(wide, int) or not isinstance(high, int):
        return 0
    return 2 * wide * high * pixel
