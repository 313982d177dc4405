"""What the audit finds, of one kind: how many files or classes, the first names, what was done."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

NAMED = 50  # files named per kind; the rest are counted
NO_LABELLED_IMAGE = "not an image by its name, in no class folder, or without a label"


@dataclass(frozen=True)
class Finding:
    """One kind of finding: how many files (or classes), the first files' names, what was done."""

    kind: str
    count: int
    files: tuple[str, ...]
    done: str


def finding(kind: str, files: Sequence[str], done: str) -> Finding:
    """Return a finding about files or classes; the first are named."""
    return Finding(kind, len(files), tuple(map(public_name, files[:NAMED])), done)


def public_name(name: str) -> str:
    """Return a file's name without the folders of this machine: what lies elsewhere is cut."""
    if os.path.isabs(name) or name.startswith("../"):
        return "/".join(["…", *name.split("/")[-2:]])
    return name
