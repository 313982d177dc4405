"""Files and folders: written whole or not at all, owned by a mark, read within limits.

A folder of ours holds `.hf_transfer`, which lists the files that we wrote there. Nothing that
it does not list is ever replaced or removed.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from hf_transfer.base.errors import UserError
from hf_transfer.base.locks import Hold, alone

MARK = ".hf_transfer"
LONGEST_MARK = 2**20  # bytes
MOST_BYTES = 2**29  # of a file that is read whole


class WriteError(UserError):
    """A file or folder that cannot be written, or that is another's."""


# --- reading ---------------------------------------------------------------------------------


def expanded(path: str | Path) -> Path:
    """Return a path with `~` at its start as the home folder. Raises UserError without one."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(
            f"there is no home folder for {str(path)!r}; write the whole path"
        ) from None


def read_limited(path: str | Path, limit: int = MOST_BYTES) -> bytes:
    """Return the bytes of a regular file. Raises OSError as `regular` does."""
    with regular(path, limit) as (file, size):
        data = file.read(size + 1)  # to read `limit` bytes would first take as much memory
        if len(data) > size:  # it grew meanwhile, or says that it is empty (/proc)
            data += file.read(limit + 1 - len(data))
        if len(data) > limit:
            raise _too_large(path, len(data), limit)
        return data


@contextmanager
def regular(path: str | Path, limit: int) -> Iterator[tuple[BinaryIO, int]]:
    """Yield an open file and its size. Raises OSError for one of more than `limit` bytes (EFBIG),
    and for a device, a pipe or a folder, which it does not wait for."""
    place = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        found = os.fstat(place)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        if found.st_size > limit:
            raise _too_large(path, found.st_size, limit)
        with os.fdopen(place, "rb", closefd=False) as file:
            yield file, found.st_size
    finally:
        os.close(place)


def _too_large(path: str | Path, size: int, limit: int) -> OSError:
    why = f"it has {size / 1e6:,.0f} MB, and {limit / 1e6:,.0f} MB are the limit"
    return OSError(errno.EFBIG, why, str(path))


# --- writing ---------------------------------------------------------------------------------


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file, whole or not at all, and return its path. Raises WriteError.

    What UTF-8 cannot hold, such as a file name of other bytes, becomes an escape: JSON's own.
    """
    return write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write a file, whole or not at all, and return its path. Raises WriteError."""
    path = Path(path)
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        put_bytes(path, data)
    return path


def put_bytes(path: Path, data: bytes) -> None:
    """Write a file into a folder that is there, whole or not at all. Raises OSError."""
    scratch = aside(path.parent)
    try:
        with scratch.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def written_folder(place: str | Path, what: str, *, synced: bool = True) -> Iterator[Path]:
    """Yield a folder to fill with files, which then are in `place`: all of them or none.

    What we wrote there before goes; files of others stay as they are, and where one has a name
    that is needed WriteError is raised and nothing changes, as on a full disk. `what` is the word
    for the folder's kind in its mark. Without `synced` the disk may hold the files later: for many
    that can be made again.
    """
    place = Path(place)
    if place.is_symlink():  # the folder that it leads to is written, and the link stays
        place = place.resolve()
    with told(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        _sweep(place)
        scratch = place.with_name(f".{place.name}.{secrets.token_hex(4)}.part")
        hold = Hold(scratch)
        try:
            _write_mark(scratch, "unfinished", ())
            yield scratch
            names = [name for name in _files(scratch) if name != MARK]
            _check_free(place, [*names, MARK])
            _write_mark(scratch, what, names)
            for name in (*names, MARK) if synced else ():
                to_disk(scratch / name)
            _put(scratch, place)
            to_disk(place.parent)
        finally:
            hold.close()
            shutil.rmtree(scratch, ignore_errors=True)


def add_text(folder: Path, name: str, text: str, what: str) -> None:
    """Write a text file into a folder of ours and list it in the mark, which is made if need be.

    Raises WriteError, also where a file of others has that name.
    """
    add_bytes(folder, name, text.encode("utf-8", "backslashreplace"), what)


def add_bytes(folder: Path, name: str, data: bytes, what: str) -> None:
    """Write a file into a folder of ours as `add_text` does. Raises WriteError."""
    _check_free(folder, [name])
    known = owned(folder)
    write_bytes(folder / name, data)
    if name not in known:
        with told(folder):
            _write_mark(folder, kind_of(folder) or what, sorted({*known, name}))


def aside(folder: Path, ending: str = "") -> Path:
    """Return an unused name, for what is written in a folder before it is moved into place.

    Unlike files from `tempfile`, what is made with it is readable as the umask allows.
    """
    return folder / f".{secrets.token_hex(8)}{ending}"


def to_disk(path: Path) -> None:
    """Flush a file or a folder's list of names to disk, if the platform can."""
    if path.is_dir() and sys.platform == "win32":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn an error in writing a file or folder into a WriteError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of any class: writers in Rust and C++ have their own
        why = why_unwritten(error)
        if why is None:
            raise
        raise WriteError(
            f"cannot write {path}: {why}; free space or choose another folder"
        ) from error


def why_unwritten(error: BaseException) -> str | None:
    """Return why the system could not write, in its words; None for an error of another kind."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = str(error)
    if number := re.search(r"\(os error (\d+)\)", text):  # safetensors
        return os.strerror(int(number[1]))
    if "PytorchStreamWriter" in text or "inline_container" in text:  # torch.save
        return "the disk takes no more"
    return None


# --- ownership -------------------------------------------------------------------------------


def kind_of(folder: Path) -> str | None:
    """Return what a folder is by its mark; None where it is not ours."""
    found = _read_mark(folder).get("hf_transfer")
    return found if isinstance(found, str) else None


def owned(folder: Path) -> frozenset[str]:
    """Return the names of the files in a folder that we wrote; none where it is not ours."""
    found = _read_mark(folder).get("files")
    names = [name for name in found if isinstance(name, str)] if isinstance(found, list) else []
    return frozenset(name for name in names if _is_below(name))


def mark(folder: Path, what: str, **facts: object) -> None:
    """Mark a folder as ours, with facts about it in its mark. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_mark(folder, what, owned(folder), **facts)


def fact(folder: Path, name: str) -> object:
    """Return the fact of this name in a folder's mark; None if there is none."""
    return _read_mark(folder).get(name)


def _is_below(name: str) -> bool:
    parts = name.split("/")
    return not os.path.isabs(name) and not {"", ".", ".."} & set(parts)


def _read_mark(folder: Path) -> dict[str, object]:
    try:
        if (folder / MARK).is_symlink():
            return {}
        found = json.loads(read_limited(folder / MARK, LONGEST_MARK))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_mark(folder: Path, what: str, names: Collection[str], **facts: object) -> None:
    found = {"hf_transfer": what, "files": sorted(names), **facts}
    put_bytes(folder / MARK, (json.dumps(found, indent=1) + "\n").encode())


def _files(folder: Path) -> list[str]:
    """Return the names of all files, links and empty folders below a folder."""
    found = []
    for root, folders, files in os.walk(folder):
        here = Path(root)
        links = [name for name in folders if (here / name).is_symlink()]
        found += [(here / name).relative_to(folder).as_posix() for name in (*files, *links)]
        if not folders and not files and here != folder:
            found.append(here.relative_to(folder).as_posix())
    return sorted(found)


def _is_ours(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _check_free(place: Path, names: Collection[str]) -> None:
    """Raise WriteError where a file, link or folder of others has one of these names in `place`."""
    if place.exists() and not place.is_dir():
        raise WriteError(f"cannot write {place}: there is a file of that name; choose another")
    known = {*owned(place), *([MARK] if kind_of(place) else [])}
    for name in names:
        path = place / name
        if os.path.lexists(path) and not (name in known and _is_ours(path)):
            raise WriteError(
                f"cannot write {path}: hf_transfer did not write the file that is there; move it "
                "away, or choose another folder"
            )


def _put(scratch: Path, place: Path) -> None:
    """Replace what we wrote there by a filled folder."""
    if not place.exists():
        scratch.rename(place)
        return
    old = {*owned(place), MARK}
    if old.issuperset(_files(place)) and _exchanged(scratch, place):
        return  # what was there goes as the scratch folder
    names = [name for name in _files(scratch) if name != MARK]
    for name in (*names, MARK):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(scratch / name, place / name)
    for name in old.difference(names, [MARK]):
        if _is_ours(place / name):
            (place / name).unlink()


def _exchanged(one: Path, other: Path) -> bool:
    """Swap two folders atomically, so that both names always exist, if the platform can."""
    if sys.platform != "linux":
        return False
    swap = getattr(ctypes.CDLL(None), "renameat2", None)
    here, at_once = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return swap is not None and not swap(here, os.fsencode(one), here, os.fsencode(other), at_once)


def _sweep(place: Path) -> None:
    """Remove what killed processes left next to a folder that they were writing."""
    for path in place.parent.glob(f".{_literal(place.name)}.*.part"):
        if kind_of(path) == "unfinished" and not path.is_symlink():
            with alone(path) as nobody:
                if nobody:
                    shutil.rmtree(path, ignore_errors=True)


def _literal(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def remove_owned(folder: Path) -> None:
    """Remove the files that we wrote in a folder, and folders that are then empty; nothing else."""
    if folder.is_symlink() or kind_of(folder) is None:
        return
    names = owned(folder)
    for name in (*names, MARK):
        if _is_ours(folder / name):
            (folder / name).unlink(missing_ok=True)
    for below in sorted({above for name in names for above in Path(name).parents}, reverse=True):
        with suppress(OSError):
            (folder / below).rmdir()
