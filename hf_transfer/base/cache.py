"""What is kept on disk between runs: decoded pixels and features; listed, limited, cleared.

An entry is a folder. Whoever reads or builds it holds a shared lock on that folder, so that what is
in use is never removed; beyond the limit the entries not used for longest go. The name of what is
unfinished begins with a dot; where nobody holds it any more, its build was killed.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from hf_transfer.base.errors import UserError

logger = logging.getLogger(__name__)

KINDS = ("pixels", "features")
LIMIT_BYTES = 50 * 10**9  # of all entries together, unless HF_TRANSFER_CACHE_GB says otherwise
FREE_SHARE = 0.9  # of the free disk that may be taken
ABOUT = "about.json"
ABANDONED_SECONDS = 24 * 3600  # without a change, where nothing can be locked


READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


class StoreError(OSError):
    """What cannot be kept: no room, or no permission."""


@dataclass(frozen=True)
class CacheEntry:
    """Pixels or features of one set of images, as `hf-transfer cache` lists them."""

    kind: str
    key: str
    about: str
    size_bytes: int
    used: float  # seconds since 1970
    folder: Path
    in_use: bool = False
    unfinished: bool = False  # decoding under way, or killed


class Hold:
    """A shared lock on an entry's folder, made if need be; until it is closed or forgotten."""

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
        """Let go of the entry."""
        if self._place >= 0:
            os.close(self._place)
            self._place = -1

    def __del__(self) -> None:
        self.close()


def _flock(place: int, shared: bool) -> bool | None:
    """Lock an open folder, exclusively without waiting; return whether it is locked.

    None where a file system or a platform has no locks: what is removed while it is read is then
    built again.
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


def _is(folder: Path, place: int) -> bool:
    try:
        return os.path.samestat(os.stat(folder), os.fstat(place))
    except FileNotFoundError:
        return False


def cache_root() -> Path:
    """Return where all is kept: $HF_TRANSFER_CACHE or ~/.cache/hf_transfer."""
    root = os.environ.get("HF_TRANSFER_CACHE")
    return Path(root).expanduser() if root else Path.home() / ".cache" / "hf_transfer"


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
        for place in folders or [cache_root() / kind for kind in KINDS]
        if place.is_dir()
        for folder in place.iterdir()
        if folder.is_dir()
    ]
    return sorted(found, key=lambda entry: -entry.used)


def cache_entry(folder: Path) -> CacheEntry:
    """Return what is known of one entry; files that vanish meanwhile count nothing."""
    size, about, used = 0, "", 0.0
    try:
        used = folder.stat().st_mtime
        for path in folder.iterdir():
            size += path.stat().st_size
        about = json.loads((folder / ABOUT).read_text())["about"]
    except (OSError, ValueError, KeyError):
        pass
    unfinished = folder.name.startswith(".")
    key = folder.name.split(".")[1] if unfinished else folder.name
    with _alone(folder) as alone:
        in_use = alone is False
    return CacheEntry(folder.parent.name, key, about, size, used, folder, in_use, unfinished)


@contextmanager
def _alone(folder: Path) -> Iterator[bool | None]:
    """Keep others from holding a folder; tell whether that is so, None where there are no locks."""
    try:
        place = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        yield True
        return
    except OSError:
        yield None
        return
    try:
        alone = _flock(place, shared=False)
        for _ in range(2):
            if alone is False:
                time.sleep(0.005)  # another process may just be asking the same
                alone = _flock(place, shared=False)
        yield alone
    finally:
        os.close(place)


def remove(entry: CacheEntry) -> int:
    """Remove an entry, if it can be and nobody uses it; return the bytes that this freed."""
    with _alone(entry.folder) as alone:
        if alone is False or not entry.folder.exists():
            return 0
        shutil.rmtree(entry.folder, ignore_errors=True)
    left = cache_entry(entry.folder).size_bytes if entry.folder.exists() else 0
    return max(0, entry.size_bytes - left)


def sweep(root: Path) -> None:
    """Remove what builds that were killed have left behind in `root` and in its entries."""
    folders = [path for path in root.glob(".*") if path.is_dir()]
    for path in [*folders, *root.glob("*/.*.part")]:
        folder = path if path in folders else path.parent
        with _alone(folder) as alone:
            if alone or (alone is None and _is_old(path)):
                logger.info("removing what a killed build left: %s", path)
                if path in folders:
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def _is_old(path: Path) -> bool:
    """Return whether a file, or a folder with all in it, has not changed for long."""
    try:
        changed = [each.stat().st_mtime for each in (path, *path.glob("*"))]
    except FileNotFoundError:
        return False
    return time.time() - max(changed) > ABANDONED_SECONDS


def make_room(
    root: Path, keys: Collection[str], needed: int, limit_bytes: int | None = None
) -> None:
    """Remove the entries not used for longest until `needed` bytes more fit into these of `root`.

    What killed builds have left goes first. In the cache's own place pixels and features share one
    limit. Raises StoreError where they do not fit, and then removes no entry.
    """
    limit = limit_from_environment() if limit_bytes is None else limit_bytes
    place = next(p for p in (root, *root.parents) if p.exists())
    if not os.access(place, os.W_OK):
        raise StoreError(errno.EACCES, f"{place} cannot be written")
    shared = [cache_root() / kind for kind in KINDS]
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
        raise StoreError(
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


def aside(folder: Path, ending: str = "") -> Path:
    """Return a name that nothing has, for what is written in a folder before it is put in place.

    Unlike files from `tempfile`, what is made with it can be read by those whom the umask lets.
    """
    return folder / f".{secrets.token_hex(8)}{ending}"


def write_about(folder: Path, about: str, rows: int) -> None:
    """Say in an entry what it holds; whole or not at all."""
    unfinished = aside(folder, ".part")
    unfinished.write_text(json.dumps({"about": about, "rows": rows}) + "\n")
    os.replace(unfinished, folder / ABOUT)


def touch(folder: Path) -> None:
    """Note that an entry is used now: others go first. Where only reading is allowed, none goes."""
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
            raise UserError(f"no entry of {cache_root()} begins with {start!r}; see cache")
    chosen = [e for e in entries if not starts or e.key.startswith(tuple(starts))]
    freed = sum(remove(entry) for entry in chosen) if clear else 0
    if as_json:
        rows = [{**asdict(entry), "folder": str(entry.folder)} for entry in chosen]
        about = {"folder": str(cache_root()), "limit_bytes": limit_from_environment()}
        return json.dumps({**about, "freed_bytes": freed, "entries": rows}, indent=1)
    return _cleared(freed, chosen) if clear else _table(chosen)


def _cleared(freed: int, chosen: Sequence[CacheEntry]) -> str:
    left = [cache_entry(entry.folder) for entry in chosen if entry.folder.exists()]
    used = sum(entry.in_use for entry in left)
    parts = [f"freed {_gb(freed)}"]
    parts += [f"{used} in use are kept"] if used else []
    parts += [f"{len(left) - used} cannot be removed"] if used < len(left) else []
    place = "" if os.access(cache_root(), os.W_OK) or not left else f": {cache_root()} is read-only"
    return "; ".join(parts) + place


def _table(entries: Sequence[CacheEntry]) -> str:
    now = time.time()
    lines = [
        f"{entry.kind:8}  {_gb(entry.size_bytes):>9}  {_ago(now - entry.used):>7}  "
        f"{entry.key[:8]}  {entry.about or 'unfinished' * entry.unfinished}"
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
