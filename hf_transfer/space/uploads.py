"""What visitors send: single images and zip files of folders, into folders of classes.

Everything is hostile until it has been looked at: sizes are checked before anything is read, names
never become paths, and only what decodes as a picture is kept.
"""

from __future__ import annotations

import base64
import re
import shutil
import stat
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath

from PIL import Image

from hf_transfer.base.boundary import printable, untrusted
from hf_transfer.base.errors import UserError
from hf_transfer.data.contents import is_heif
from hf_transfer.data.decoding import FORMATS, decode_noted
from hf_transfer.data.folders import IMAGE_SUFFIXES
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.space import archives
from hf_transfer.space.limits import Limits, Refused, megabytes

SMALLER = "Try a smaller copy of the image."
THUMB_PX = 96
TOLD = 3  # files that were left out, which a message names
LONGEST_LABEL = 60


@dataclass(frozen=True)
class Kept:
    """One picture of a visitor: class, split ("" where none is given), file and thumbnail."""

    label: str
    split: str
    name: str  # as it was sent
    file: Path
    thumb: str  # as a data: address


@dataclass
class Pictures:
    """A visitor's labelled pictures: files in `folder`, [SPLIT/]CLASS/NAME; names that are odd or
    taken are numbered."""

    folder: Path
    limits: Limits = field(default_factory=Limits)
    kept: list[Kept] = field(default_factory=list)
    total_bytes: int = 0
    count: int = 0  # files ever kept, which numbers them

    @classmethod
    def none(cls) -> Pictures:
        """Return no pictures at all."""
        return cls(Path())

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order in which they came."""
        return tuple(dict.fromkeys(one.label for one in self.kept))

    def of(self, label: str) -> list[Kept]:
        """Return the pictures of a class."""
        return [one for one in self.kept if one.label == label]

    def add(self, label: str, files: Iterable[tuple[str, Path]]) -> str:
        """Add images to a class; return in a sentence what was added. Raises Refused."""
        label = class_name(label)
        rows = ((name, label, "", _read_file(path, self.limits)) for name, path in sorted(files))
        return self._take(rows)

    def add_zip(self, path: Path) -> str:
        """Add the folders of a zip file as classes; return in a sentence what was added.

        Raises Refused for an archive that is none, is too large, or is out to do harm; files in it
        that are no images are left out and told.
        """
        with archives.opened(path, self.limits) as archive:
            infos = sorted(archives.entries(archive, self.limits), key=lambda one: one.filename)
            rows = archives.class_folders(infos, class_name)
            return self._take(
                (info.filename, label, split, archives.unpacked(archive, info, self.limits))
                for info, label, split in rows
            )

    def keep_image(self, image: Image.Image, name: str, label: str, split: str = "") -> None:
        """Keep a picture that this program made. Raises Refused."""
        out = BytesIO()
        image.save(out, "PNG")
        self._keep(name, label, split, out.getvalue())

    def drop(self, label: str) -> None:
        """Remove a class."""
        gone = self.of(label)
        self.kept = [one for one in self.kept if one.label != label]
        for place in {one.file.parent for one in gone}:
            shutil.rmtree(place, ignore_errors=True)
        self.total_bytes = sum(one.file.stat().st_size for one in self.kept)

    def clear(self) -> None:
        """Remove all pictures."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.kept, self.total_bytes = [], 0

    def _take(self, rows: Iterator[tuple[str, str, str, bytes | str]]) -> str:
        """Keep pictures (name, class or "", split, content or why there is none)."""
        added, left = 0, []
        for name, label, split, content in rows:
            why = content if isinstance(content, str) else None
            if why is None and isinstance(content, bytes):
                try:
                    if label:
                        self._keep(name, label, split, content)
                        added += 1
                        continue
                    thumbnail(content, self.limits)
                    why = "it lies in no folder of a class"
                except Refused as error:
                    why = str(error)
            left.append(f"{_short(name)} ({(why or '').rstrip('.')})")
        if not added:
            raise Refused(f"No image was added: {'; '.join(left[:TOLD]) or 'none was sent'}.")
        return f"{_images(added)} added.{_left_out(left)}"

    def _keep(self, name: str, label: str, split: str, content: bytes) -> None:
        most = self.limits
        if len(self.kept) >= most.images:
            raise Refused(f"the page takes {most.images:,} images of a visitor")
        if self.total_bytes + len(content) > most.total_bytes:
            raise Refused(f"the page takes {megabytes(most.total_bytes)} of a visitor")
        if label not in self.labels and len(self.labels) >= most.classes:
            raise Refused(f"the page takes {most.classes} classes of a visitor")
        if self.kept and bool(split) != bool(self.kept[0].split):
            raise Refused(
                "some images come in folders train and validation, others do not; choose Start "
                "over, then add them all in one way"
            )
        thumb = thumbnail(content, most)
        place = self.folder / split / label if split else self.folder / label
        place.mkdir(parents=True, exist_ok=True)
        file = place / _plain(name)  # as it was sent: which images validate depends on names
        if not _plain(name) or file.exists():
            file = place / f"{self.count:05d}-{_safe(name)}"
        file.write_bytes(content)
        self.kept.append(Kept(label, split, _short(name), file, thumb))
        self.total_bytes += len(content)
        self.count += 1


# --- single images ---------------------------------------------------------------------------


def refusal(file: str | Path, limits: Limits) -> str | None:
    """Return in a sentence why an uploaded file is not decoded, None where nothing is against it.

    Only its size and the head that says how large the picture is are read.
    """
    path = Path(file)
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return "This is not a regular file."
        if path.stat().st_size > limits.image_bytes:
            most = megabytes(limits.image_bytes)
            return f"This file is larger than {most}, the most that this page reads. {SMALLER}"
        return _of_head(path.read_bytes(), limits)
    except OSError:
        return "This file is no longer on the server. Send it again."


def _of_head(content: bytes, limits: Limits) -> str | None:
    """Return why a picture is not decoded, by what its head says of it."""
    head = content[:4096].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<?xml", b"<svg", b"<!doctype svg")) and b"<svg" in head:
        return "SVG drawings can hold scripts and are not read. Save it as PNG."
    if not is_heif(content):
        try:
            with untrusted("the image"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    with Image.open(BytesIO(content), formats=FORMATS) as image:
                        pixels = image.width * image.height
                except Image.DecompressionBombError:
                    pixels = limits.image_pixels + 1
        except UserError:
            return None  # whatever is wrong with it, decoding says
        if pixels > limits.image_pixels:
            most = f"{limits.image_pixels // 10**6} million pixels"
            return f"This image has more than {most}, the most that this page reads. {SMALLER}"
    return None


def thumbnail(content: bytes | Path, limits: Limits, px: int = THUMB_PX) -> str:
    """Return a small square of a picture as a data: address. Raises Refused for what is none."""
    data = content.read_bytes() if isinstance(content, Path) else content
    if why := _of_head(data, limits):
        raise Refused(why)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            picture = decode_noted(data, ImageSettings(px), "file")
        except UserError as error:
            raise Refused(f"it cannot be read: {str(error).removeprefix('file: ')}") from error
    return data_address(Image.fromarray(picture.pixels))


def data_address(image: Image.Image) -> str:
    """Return a picture as a data: address, which no other visitor can ask for."""
    out = BytesIO()
    image.convert("RGB").save(out, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def _read_file(path: Path, limits: Limits) -> bytes | str:
    why = refusal(path, limits)
    return why if why else path.read_bytes()


# --- names -----------------------------------------------------------------------------------


def class_name(text: str) -> str:
    """Return a class's name, fit for a folder. Raises Refused."""
    label = unicodedata.normalize("NFC", " ".join(text.split()))
    if not label:
        raise Refused("Give the class a name first.")
    odd = any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn") for c in label)
    if odd or label.startswith(".") or re.search(r'[/\\:*?"<>|]', label):
        raise Refused(
            f"{printable(label)[:LONGEST_LABEL]!r} cannot name a class. Use letters, digits, "
            "spaces and hyphens."
        )
    if len(label) > LONGEST_LABEL or len(label.encode()) > 200:
        raise Refused(f"The name of a class has at most {LONGEST_LABEL} characters.")
    return label


def _plain(name: str) -> str:
    """Return a file's own name where it can stay as it is, "" elsewhere."""
    own = name.replace("\\", "/").rpartition("/")[2]
    safe = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,95}", own)
    return own if safe and PurePosixPath(own).suffix.lower() in IMAGE_SUFFIXES else ""


def _safe(name: str) -> str:
    """Return a file's name without anything that could lead elsewhere."""
    path = PurePosixPath(name.replace("\\", "/"))
    suffix = path.suffix.lower() if path.suffix.lower() in IMAGE_SUFFIXES else ".img"
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem)[:40].strip("-") or "image"
    return f"{stem}{suffix if suffix != '.img' else '.jpg'}"


def _short(name: str) -> str:
    text = printable(name.replace("\\", "/").rpartition("/")[2])
    return text if len(text) <= 40 else f"{text[:24]}…{text[-12:]}"


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _left_out(left: list[str]) -> str:
    if not left:
        return ""
    more = f" and {len(left) - TOLD:,} more" if len(left) > TOLD else ""
    return f" Left out: {'; '.join(left[:TOLD])}{more}."
