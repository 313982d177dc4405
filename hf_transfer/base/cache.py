"""What is kept on disk between runs: digests of files, pixels, features; listed, limited, cleared.

An entry is a folder with a mark of ours: nothing else in the cache is ever touched. Whoever reads
or builds it holds a shared lock on that folder, so that what is in use is never removed; beyond the
limit the entries not used for longest go.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from hf_transfer.base.errors import UserError
from hf_transfer.base.files import MARK, fact, kind_of, mark
from hf_transfer.base.locks import alone

logger = logging.getLogger(__name__)

KINDS = ("contents", "pixels", "features")
LIMIT_BYTES = 50 * 10**9  # of all entries together, unless HF_TRANSFER_CACHE_GB says otherwise
FREE_SHARE = 0.9  # of the free disk that may be taken
ENTRY = "cache entry"  # what the mark of one says
FILE = re.compile(  # the names of the files in an entry; `span` is a shard's of the first column
    r"(?P<span>0-\d{10})-(?P<rows>\d+)-[0-9a-f]{8}\.npy"
    r"|\d+-\d{10}-\d+-[0-9a-f]{8}\.npy|checked\.json|\.[0-9a-f]{16}(\.part)?"
)
ABANDONED_SECONDS = 24 * 3600  # without a change, where nothing can be locked
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


class StoreError(OSError):
    """What cannot be kept: no room, or no permission."""


class NoRoomError(StoreError):
    """What does not fit beside what is kept and in use."""


@dataclass(frozen=True)
class CacheEntry:
    """What is known or made of one set of images, as `hf-transfer cache` lists them."""

    kind: str
    key: str
    about: str
    size_bytes: int
    used: float  # seconds since 1970
    folder: Path
    in_use: bool = False
    unfinished: bool = False  # being built, or its build was stopped


def cache_root() -> Path:
    """Return where all is kept: $HF_TRANSFER_CACHE or ~/.cache/hf_transfer."""
    root = os.environ.get("HF_TRANSFER_CACHE")
    return Path(root).expanduser() if root else Path.home() / ".cache" / "hf_transfer"


def cache_folder(kind: str) -> Path:
    """Return where entries of a kind are kept."""
    return cache_root() / kind


def limit_from_environment() -> int:
    """Return the most bytes that all entries together may take. Raises StoreError."""
    text = os.environ.get("HF_TRANSFER_CACHE_GB")
    if text is None:
        return LIMIT_BYTES
    try:
        limit = int(float(text) * 1e9)
    except (ValueError, OverflowError):
        limit = -1
    if limit < 0:
        raise StoreError(
            errno.EINVAL, f"HF_TRANSFER_CACHE_GB is {text!r}; write a number of gigabytes"
        )
    return limit


@dataclass(frozen=True)
class Room:
    """The most bytes that could be kept if nothing else were, but what a run uses anyway."""

    limit_bytes: int
    disk_bytes: int
    used_bytes: int = 0

    def lack(self, needed: int) -> tuple[str, str] | None:
        """Return why so many bytes of features cannot be kept, and what would mend it; None where
        they can."""
        if needed + self.used_bytes > self.limit_bytes:
            cache = f"the cache's {_gb(self.limit_bytes)}"
            cache += f" beside {_gb(self.used_bytes)} of pixels" * bool(self.used_bytes)
            return (
                f"{_gb(needed)} of features do not fit into {cache}",
                "raise HF_TRANSFER_CACHE_GB",
            )
        if needed > self.disk_bytes:
            disk = f"the disk, of which {_gb(self.disk_bytes)} can be taken"
            mend = "free some, or let HF_TRANSFER_CACHE name a folder on another"
            return f"{_gb(needed)} of features do not fit on {disk}", mend
        return None


def room(*used: Path) -> Room:
    """Return the room on this machine where these folders of pixels stay. Raises StoreError."""
    root = cache_root()
    free = shutil.disk_usage(next(p for p in (root, *root.parents) if p.exists())).free
    entries = cache_entries()
    kept = sum(entry.size_bytes for entry in entries if entry.folder not in used)
    stays = sum(entry.size_bytes for entry in entries if entry.folder in used)
    return Room(limit_from_environment(), int(free * FREE_SHARE) + kept, stays)


def cache_entries(*folders: Path) -> list[CacheEntry]:
    """Return what is kept in these folders (all of the cache's), the last used first."""
    found = [
        cache_entry(folder)
        for place in folders or [cache_folder(kind) for kind in KINDS]
        if place.is_dir()
        for folder in place.iterdir()
        if _is_entry(folder)
    ]
    return sorted(found, key=lambda entry: -entry.used)


def _is_entry(folder: Path) -> bool:
    """Return whether a folder is an entry that we made; nothing else is ever listed or removed."""
    return not folder.is_symlink() and folder.is_dir() and kind_of(folder) == ENTRY


def cache_entry(folder: Path) -> CacheEntry:
    """Return what is known of one entry; files that vanish meanwhile count nothing."""
    size, used, there = 0, 0.0, {}
    with suppress(OSError):
        used = folder.stat().st_mtime
        for path in folder.iterdir():
            size += path.lstat().st_size
            if match := FILE.fullmatch(path.name):
                there[match["span"]] = int(match["rows"] or 0)
    rows, about = fact(folder, "rows"), fact(folder, "about")
    unfinished = isinstance(rows, int) and sum(there.values()) < rows
    with alone(folder) as nobody:
        in_use = nobody is False
    about = about if isinstance(about, str) else ""
    return CacheEntry(
        folder.parent.name, folder.name, about, size, used, folder, in_use, unfinished
    )


def remove(entry: CacheEntry) -> int:
    """Remove an entry, if it can be and nobody uses it; return the bytes that this freed.

    Files that have not an entry's names, and links, are not ours and stay.
    """
    folder = entry.folder
    with alone(folder) as nobody:
        if nobody is False or not _is_entry(folder):
            return 0
        paths = [path for path in folder.iterdir() if FILE.fullmatch(path.name)]
        for path in (*paths, folder / MARK):
            if not path.is_symlink():
                with suppress(OSError):
                    path.unlink()
        with suppress(OSError):
            folder.rmdir()
    left = cache_entry(folder).size_bytes if _is_entry(folder) else 0
    return max(0, entry.size_bytes - left)


def sweep(root: Path) -> None:
    """Remove what builds that were killed have left behind in the entries of `root`."""
    for path in root.glob("*/.*.part"):
        folder = path.parent
        if not (FILE.fullmatch(path.name) and _is_entry(folder)) or path.is_symlink():
            continue
        with alone(folder) as nobody:
            if nobody or (nobody is None and _is_old(path)):
                logger.info("removing what a killed build left: %s", path)
                path.unlink(missing_ok=True)


def _is_old(path: Path) -> bool:
    """Return whether a file has not changed for long."""
    try:
        return time.time() - path.stat().st_mtime > ABANDONED_SECONDS
    except FileNotFoundError:
        return False


def make_room(
    root: Path, keys: Collection[str], needed: int, limit_bytes: int | None = None
) -> None:
    """Remove the entries not used for longest until `needed` bytes more fit into these of `root`.

    What killed builds have left goes first. In the cache's own place all kinds share one limit.
    Raises StoreError where they do not fit, and then removes no entry.
    """
    limit = limit_from_environment() if limit_bytes is None else limit_bytes
    place = next(p for p in (root, *root.parents) if p.exists())
    if not os.access(place, os.W_OK):
        raise StoreError(errno.EACCES, f"{place} cannot be written")
    shared = [cache_folder(kind) for kind in KINDS]
    places = shared if root in shared else [root]
    for each in places:
        sweep(each)
    entries, mine = cache_entries(*places), {root / key for key in keys}
    own = sum(entry.size_bytes for entry in entries if entry.folder in mine)
    entries = [entry for entry in entries if entry.folder not in mine]
    held = sum(entry.size_bytes for entry in entries if entry.in_use)
    idle = [entry for entry in entries if not entry.in_use]
    used = sum(entry.size_bytes for entry in entries)
    free = int(shutil.disk_usage(place).free * FREE_SHARE)
    if held + own + needed > limit or needed > free + used - held:
        raise NoRoomError(
            errno.ENOSPC,
            f"{_gb(needed)} do not fit: the limit of all that is kept is {_gb(limit)} "
            f"(HF_TRANSFER_CACHE_GB), {_gb(held)} are in use, {_gb(free)} are free",
        )
    while idle and (used + own + needed > limit or needed > free):
        oldest = idle.pop()
        logger.info("removing %s not used for longest: %s", oldest.kind, oldest.about or oldest.key)
        freed = remove(oldest)
        used, free = used - freed, free + freed


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def claim(folder: Path, about: str, rows: int) -> None:
    """Make a folder an entry of so many rows, and say in it what it holds."""
    if (fact(folder, "about"), fact(folder, "rows")) != (about, rows):
        mark(folder, ENTRY, about=about, rows=rows)


def touch(folder: Path) -> None:
    """Mark an entry as used now, so that others are removed first. A read-only cache loses none."""
    try:
        os.utime(folder)
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise


def cache_report(starts: Sequence[str] = (), clear: bool = False, as_json: bool = False) -> str:
    """Return what the command `cache` prints: entries whose keys start so (none given: all), their
    sizes, and after `clear` the bytes freed.

    Raises UserError where a start matches nothing.
    """
    entries = cache_entries()
    for start in starts:
        if not any(entry.key.startswith(start) for entry in entries):
            raise UserError(
                f"no entry of {cache_root()} begins with {start!r}; see hf-transfer cache"
            )
    chosen = [e for e in entries if not starts or e.key.startswith(tuple(starts))]
    freed = sum(remove(entry) for entry in chosen) if clear else 0
    if as_json:
        rows = [{**asdict(entry), "folder": str(entry.folder)} for entry in chosen]
        about = {"folder": str(cache_root()), "limit_bytes": limit_from_environment()}
        return json.dumps({**about, "freed_bytes": freed, "entries": rows}, indent=1)
    return _cleared(freed, chosen) if clear else _table(chosen)


def _cleared(freed: int, chosen: Sequence[CacheEntry]) -> str:
    left = [cache_entry(entry.folder) for entry in chosen if _is_entry(entry.folder)]
    used = sum(entry.in_use for entry in left)
    parts = [f"freed {_gb(freed)}"]
    parts += [f"{used} in use are kept"] if used else []
    parts += [f"{len(left) - used} cannot be removed"] if used < len(left) else []
    place = "" if os.access(cache_root(), os.W_OK) or not left else f": {cache_root()} is read-only"
    return "; ".join(parts) + place


def _table(entries: Sequence[CacheEntry]) -> str:
    now = time.time()
    lines = [
        f"{entry.kind:<8}  {_gb(entry.size_bytes):>9}  {_ago(now - entry.used):>7}  "
        f"{entry.key[:8]}  {entry.about}{'  (unfinished)' * entry.unfinished}"
        f"{'  (in use)' * entry.in_use}"
        for entry in entries
    ]
    total = sum(entry.size_bytes for entry in entries)
    limit = limit_from_environment()
    what = f"{len(entries)} entries, {_gb(total)} of at most {_gb(limit)} (HF_TRANSFER_CACHE_GB)"
    if total > limit:
        what += "; what is beyond that goes once it is not in use and room is needed"
    return "\n".join([*lines, f"{cache_root()}: {what}"])


def _ago(seconds: float) -> str:
    """Return how long ago an entry was used, roughly."""
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name}"
    return "now"
