"""Locks on folders, which say who uses them. They end with the process, however it ends."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hf_transfer.base.errors import UserError

LOCK = ".lock"  # in a folder that one process writes at a time


class Hold:
    """A shared lock on a folder, made if need be; until it is closed or forgotten."""

    def __init__(self, folder: Path) -> None:
        self._place = -1
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                self._place = os.open(folder, os.O_RDONLY)
            except FileNotFoundError:
                continue  # removed just now
            except PermissionError:  # Windows opens no folders: nothing is locked there
                return
            _flock(self._place, shared=True)
            if _is(folder, self._place):
                return
            self.close()

    def close(self) -> None:
        """Let go of the folder."""
        if self._place >= 0:
            os.close(self._place)
            self._place = -1

    def __del__(self) -> None:
        self.close()


@contextmanager
def alone(folder: Path) -> Iterator[bool | None]:
    """Keep others from holding a folder; yield whether it worked, None without locks."""
    try:
        place = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        yield True
        return
    except OSError:
        yield None
        return
    try:
        found = _flock(place, shared=False)
        for _ in range(2):
            if found is False:
                time.sleep(0.005)  # another process may just be asking the same
                found = _flock(place, shared=False)
        yield found
    finally:
        os.close(place)


@contextmanager
def only_writer(folder: Path, what: str = "run") -> Iterator[None]:
    """Let no other process write a folder until the block ends.

    Raises UserError that says who writes there: process, machine and since when. What a dead
    process left is taken over.
    """
    path = folder / LOCK
    place = _locked(path, what)
    try:
        yield
    finally:
        with suppress(OSError):
            if _is(path, place):
                path.unlink()
        os.close(place)


def _locked(path: Path, what: str) -> int:
    """Return the descriptor of a lock file that is ours now."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    while True:
        try:
            place = os.open(path, flags, 0o666)
        except OSError as error:
            why = "it is a link" if error.errno == errno.ELOOP else error.strerror
            raise UserError(f"cannot write {path}: {why}; choose another folder") from error
        taken = _flock(place, shared=False)
        owner = _owner(place)
        gone = _is_gone(owner)
        if taken or (taken is None and (gone or not owner)):
            if _is(path, place):
                break
        elif gone:  # its children, which inherited the lock, have not ended yet
            with suppress(FileNotFoundError):
                if _is(path, place):
                    path.unlink()
        else:
            os.close(place)
            gone_too = "" if taken is False else f", remove {path} if it has ended"
            raise UserError(
                f"{path.parent} is in use by another {what} ({_told(owner)}); wait until it has "
                f"ended, stop it{gone_too}, or choose another folder"
            )
        os.close(place)
    own = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
    os.ftruncate(place, 0)
    os.lseek(place, 0, os.SEEK_SET)
    os.write(place, json.dumps({**own, "started": _started(os.getpid())}).encode())
    return place


def _owner(place: int) -> dict[str, object]:
    try:
        found = json.loads(os.read(place, 4096))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _told(owner: dict[str, object]) -> str:
    since = owner.get("since")
    when = ""
    if isinstance(since, float) and 0 < since < 2**33:
        when = time.strftime(", since %Y-%m-%d %H:%M:%S", time.localtime(since))
    return f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'this machine')}{when}"


def _is_gone(owner: dict[str, object]) -> bool:
    """Return whether the process that wrote a lock ran on this machine and has ended."""
    pid = owner.get("pid")
    if not isinstance(pid, int) or pid <= 0 or owner.get("host") != socket.gethostname():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return owner.get("started") not in (None, _started(pid))  # its number is another's now


def _started(pid: int) -> str | None:
    """Return when a running process started, as the kernel counts; None if it ended, or where that
    is not known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]  # a zombie runs no more
    except (OSError, IndexError):
        return None


def _flock(place: int, shared: bool) -> bool | None:
    """Lock an open file or folder, exclusively without waiting; return whether it is locked.

    None where a file system or a platform has no locks.
    """
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(place, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def _is(path: Path, place: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(place))
    except FileNotFoundError:
        return False
