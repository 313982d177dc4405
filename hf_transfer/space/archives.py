"""Zip files of folders: looked through before anything is unpacked, and never unpacked to paths."""

from __future__ import annotations

import re
import stat
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from hf_transfer.base.boundary import untrusted
from hf_transfer.base.errors import DataError, UserError
from hf_transfer.data.folders import IMAGE_SUFFIXES, Listing, labelled, shown
from hf_transfer.space.limits import Limits, Refused, megabytes

END = struct.Struct("<4s4H2LH")  # of a zip file: signature, disks, entries, size, offset, comment
DIRECTORY_BYTES = 4 * 2**20
ARCHIVES = {
    b"Rar!": "a RAR archive",
    b"7z\xbc\xaf": "a 7-Zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
}


def opened(path: Path, limits: Limits) -> zipfile.ZipFile:
    """Return an archive whose directory is small enough to be read. Raises Refused."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise Refused("This is not a regular file.")
    if path.stat().st_size > limits.upload_bytes:
        raise Refused(f"The page reads zip files of up to {megabytes(limits.upload_bytes)}.")
    with path.open("rb") as file:
        begin = file.read(300)
        file.seek(max(0, path.stat().st_size - 2**16 - END.size))
        tail = file.read()
    kind = next((what for magic, what in ARCHIVES.items() if begin.startswith(magic)), None)
    if kind or begin[257:262] == b"ustar":
        raise Refused(f"This is {kind or 'a tar archive'}. Pack the folders as a zip file.")
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < END.size:
        raise Refused("This is not a zip file, or it is incomplete. Pack the folders again.")
    _, _, _, _, count, size, _, _ = END.unpack_from(tail, at)
    if count > limits.entries or size > DIRECTORY_BYTES:
        raise Refused(f"The page reads zip files of up to {limits.entries:,} entries.")
    try:
        with untrusted("the zip file"):
            return zipfile.ZipFile(path)
    except UserError as error:
        raise Refused("This zip file is damaged. Pack the folders again.") from error


def entries(archive: zipfile.ZipFile, limits: Limits) -> list[zipfile.ZipInfo]:
    """Return the files of an archive. Raises Refused for one that is out to do harm."""
    infos = [info for info in archive.infolist() if not info.is_dir()]
    seen: set[str] = set()
    for info in archive.infolist():
        name = info.orig_filename.replace("\\", "/")
        parts = name.rstrip("/").split("/")
        if name.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", name) or "\0" in name:
            raise Refused("This zip file holds a path that leads out of its own folder.")
        mode = info.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise Refused("This zip file holds a link or a device. Pack the images themselves.")
        if info.flag_bits & 0x1:
            raise Refused("This zip file has a password. Pack the folders without one.")
        if name in seen:
            raise Refused("This zip file holds two files of the same name.")
        seen.add(name)
    if sum(info.file_size for info in infos) > limits.total_bytes:
        raise Refused(
            f"This zip file unpacks to more than {megabytes(limits.total_bytes)}, the most that "
            "this page reads."
        )
    return infos


def class_folders(
    infos: list[zipfile.ZipInfo], class_name: Callable[[str], str]
) -> list[tuple[zipfile.ZipInfo, str, str]]:
    """Return the files with class and split, as training reads their folder; the class is "" for
    what lies in no class's folder. Raises Refused where there are no classes.

    Folders that hold all the others are passed over; without any to train on, splits are none.
    """
    paths = {info.filename.replace("\\", "/"): info for info in infos}
    found = {name: info for name, info in paths.items() if all(map(shown, name.split("/")))}
    folders = [tuple(name.split("/")[:-1]) for name in found if "/" in name and _may_be_image(name)]
    if not folders:
        why = "holds no images" if any("/" in name for name in found) else "holds no folders"
        raise Refused(f"This zip file {why}. Put each image in a folder with its class.")
    depth, least = 0, min(map(len, folders))
    while depth + 1 < least and len({parts[: depth + 1] for parts in folders}) == 1:
        depth += 1
    above = "".join(f"{folder}/" for folder in folders[0][:depth])
    rows = dict.fromkeys(found, ("", ""))
    try:
        for name, label, split in labelled(_listing(found, above)):
            rows[f"{above}{name}"] = class_name(label), split
    except DataError as error:
        raise Refused(f"{str(error).partition(', or list')[0]}.") from error
    splits = {split for _, split in rows.values() if split}
    is_split = "train" in splits and len(splits) > 1
    return [(found[name], label, split * is_split) for name, (label, split) in rows.items()]


def _listing(names: Iterable[str], above: str) -> Listing:
    """Return what lies below a folder of an archive."""
    files = sorted(name.removeprefix(above) for name in names if name.startswith(above))
    folders = {f"{parent}/" for name in files for parent in PurePosixPath(name).parents}
    return Listing(Path("This zip file"), tuple(files), tuple(sorted(folders - {"./"})), ())


def unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limits: Limits) -> bytes | str:
    """Return a file's content, or why there is none; never more is read than the limit."""
    name = info.filename
    if not _may_be_image(name):
        return "not an image"
    if info.file_size > limits.image_bytes:
        return f"larger than {megabytes(limits.image_bytes)}"
    try:
        with untrusted(name), archive.open(info) as file:
            content = file.read(limits.image_bytes + 1)
    except UserError:
        return "damaged in the zip file"
    if len(content) > limits.image_bytes:
        return f"larger than {megabytes(limits.image_bytes)}"
    return content


def _may_be_image(name: str) -> bool:
    suffix = PurePosixPath(name).suffix.lower()
    return not suffix or suffix in IMAGE_SUFFIXES or suffix in (".svg", ".svgz")
