"""Who is here: each visitor's images, models and training, apart from all others.

A visitor is known by the session that the browser opened; the folders have names that nobody can
guess. What is not used for an hour goes, and so does everything when its visitor leaves.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hf_transfer.base.files import kind_of, mark
from hf_transfer.base.locks import Hold, alone
from hf_transfer.space.limits import PREFIX, Limits, Refused
from hf_transfer.space.uploads import Pictures

if TYPE_CHECKING:
    from hf_transfer.space.draft import Draft
    from hf_transfer.space.jobs import Job
    from hf_transfer.space.models import Shown

logger = logging.getLogger(__name__)
KIND = "space"  # what the mark of a server's folder says


@dataclass
class Visitor:
    """One visitor: pictures, models by title, the plan that is being made and the training.

    The server gives out nothing of `folder`; what the visitor downloads lies in `served`.
    """

    folder: Path
    served: Path
    own: Pictures  # that the visitor sent
    example: Pictures  # the example's digits, which are never mixed with these
    sent: set[Path] = field(default_factory=set)  # files that were sent to be answered
    models: dict[str, Shown] = field(default_factory=dict)
    draft: Draft | None = None
    job: Job | None = None
    advice: tuple[str, str] = ("", "")  # the network that was looked at, and what advice saw
    digits: bool = False  # whether the pictures on the page are the example's
    used: float = field(default_factory=time.monotonic)
    left: float | None = None  # when the page was closed, or lost its connection
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def is_idle(self) -> bool:
        """Whether nothing of theirs would be lost."""
        return not (self.own.kept or self.example.kept or self.models or self.draft or self.job)

    @property
    def pictures(self) -> Pictures:
        """The pictures on the page, to train on."""
        return self.example if self.digits else self.own


class Visitors:
    """All visitors by session; `root` is the server's folder, private to its user, and `uploads`
    the one in it whose files are given to whoever knows their names."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        remove_left_behind()
        self.root = Path(tempfile.mkdtemp(prefix=PREFIX))  # mode 0700
        self._hold = Hold(self.root)  # before its mark, without which nobody removes it
        mark(self.root, KIND)
        self.uploads = self.root / "uploads"
        self._known: dict[str, Visitor] = {}
        self._gone: deque[str] = deque(maxlen=1000)  # sessions that lost something, to be told
        self._lock = threading.Lock()

    def of(self, session: str | None) -> Visitor:
        """Return the visitor of a session; a new one where it is not known. Raises Refused, also
        once where all that they had is deleted."""
        if not session:
            raise Refused("This page needs a session. Load it again.")
        with self._lock:
            if session in self._gone:
                self._gone.remove(session)
                raise Refused(
                    "Your images and models are deleted: the connection to this page was lost, or "
                    f"nothing was clicked for {self.limits.kept}. Load the page again."
                )
            visitor = self._known.get(session)
            if visitor is None:
                if len(self._known) >= self.limits.visitors and not self._make_room():
                    raise Refused(
                        f"{self.limits.visitors} visitors are here, the most that this page "
                        "serves at once. Try again in a few minutes."
                    )
                folder = self.root / secrets.token_urlsafe(24)
                folder.mkdir(mode=0o700)
                served = self.uploads / secrets.token_urlsafe(24)
                own = Pictures(folder / "own", self.limits)
                visitor = Visitor(folder, served, own, Pictures(folder / "example", self.limits))
                self._known[session] = visitor
            visitor.used, visitor.left = time.monotonic(), None
            return visitor

    def _make_room(self) -> bool:
        """Forget the visitor who has done nothing for longest; return whether there was one."""
        idle = [name for name, visitor in self._known.items() if visitor.is_idle]
        if not idle:
            return False
        oldest = self._known.pop(min(idle, key=lambda name: self._known[name].used))
        forget(oldest, oldest.sent.difference(*(one.sent for one in self._known.values())))
        return True

    def note(self, visitor: Visitor, files: Iterable[str | Path]) -> None:
        """Note which files a visitor sent, so that they go when the visitor leaves."""
        places = map(Path, files)
        visitor.sent.update(place for place in places if place.is_relative_to(self.uploads))

    def away(self, session: str | None) -> None:
        """Stop a visitor's training; the rest goes unless they are heard of again in a moment.

        A page that is closed and one that has lost its connection for a moment look alike.
        """
        with self._lock:
            visitor = self._known.get(session or "")
            if visitor is not None:
                visitor.left = time.monotonic()
        if visitor is not None and visitor.job is not None:
            visitor.job.stop("its visitor left")

    def leave(self, session: str | None) -> None:
        """Forget a visitor: stop the training, remove images and models."""
        with self._lock:
            visitor = self._known.pop(session or "", None)
            others = [one.sent for one in self._known.values()]
            if session and visitor is not None and not visitor.is_idle:
                self._gone.append(session)
        if visitor is not None:
            forget(visitor, visitor.sent.difference(*others))

    def sweep(self) -> None:
        """Forget the visitors of whom nothing was heard for as long as things are kept, and what
        uploads that broke off have left: nobody knows whose it is."""
        now = time.monotonic()
        with self._lock:
            old = [
                session
                for session, visitor in self._known.items()
                if now - visitor.used > self.limits.kept_seconds
                or (visitor.left is not None and now - visitor.left > self.limits.away_seconds)
            ]
        for session in old:
            self.leave(session)
        late = time.time() - self.limits.kept_seconds
        for file in self.uploads.glob("*"):  # whole ones lie in folders
            with suppress(OSError):  # it has just become whole
                if file.is_file() and file.stat().st_mtime < late:
                    file.unlink()

    def close(self) -> None:
        """Forget all visitors and remove the server's folder."""
        with self._lock:
            sessions = list(self._known)
        for session in sessions:
            self.leave(session)
        self._hold.close()
        shutil.rmtree(self.root, ignore_errors=True)


def forget(visitor: Visitor, sent: Iterable[Path]) -> None:
    """Stop a visitor's training and remove all that is theirs, with the files that were `sent`."""
    if visitor.job is not None:
        visitor.job.stop("its visitor left")
    visitor.models.clear()
    visitor.draft = None
    for file in sent:
        with suppress(OSError):
            file.unlink()
    for folder in (visitor.folder, visitor.served):
        shutil.rmtree(folder, ignore_errors=True)


def remove_left_behind() -> None:
    """Remove the folders of servers that ended without doing so; those in use are left alone."""
    for place in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            ours = place.lstat().st_uid == os.getuid() if hasattr(os, "getuid") else True
            if place.is_symlink() or not ours or kind_of(place) != KIND:
                continue
            with alone(place) as unused:
                if unused:
                    logger.info("removing %s, which a server left behind", place)
                    shutil.rmtree(place, ignore_errors=True)
