"""Images without labels: every image below a folder, for a pretext that makes its own targets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_transfer.base.errors import DataError
from hf_transfer.data.columns import Codes
from hf_transfer.data.folders import list_folder
from hf_transfer.data.image_groups import rule_groups
from hf_transfer.data.scan import Scan
from hf_transfer.recipe.specs import DataSpec
from hf_transfer.recipe.tasks import Task

LABEL = "image"  # what stands in the place of labels
WANTED = "name a folder with images without labels, in any layout"
LEAST = 2  # frames of a folder that validate: one alone has no neighbour


def list_unlabelled(path: Path, spec: DataSpec, task: Task) -> Scan:
    """Return all images below a folder, whatever its layout; folders mean nothing as labels.

    For a pretext of `video` they are frames in the order of their names, folder by folder, and the
    last of each folder are for validation. Raises DataError.
    """
    if not path.is_dir():
        what = "is no folder" if path.exists() else "no such folder"
        raise DataError(f"data {str(path)!r}: {what}; {WANTED}")
    files = list_folder(path).images
    if not files:
        raise DataError(f"{path}: no images; {WANTED}")
    if task.video:
        files = tuple(sorted(files, key=in_time))
        if (neighbours(files) == np.arange(len(files))).all():
            raise DataError(
                f"{path}: no folder has two images, and {task.name} learns from frames that follow "
                "each other; put the frames of each video into a folder of its own"
            )
    groups = Codes(rule_groups(path, files, spec.group)) if spec.group else None
    return Scan(
        path=str(path),
        root=path,
        labels=(LABEL,),
        files=files,
        targets=Codes([0] * len(files)),
        splits=Codes(last_of_each(files, spec.validation) if task.video else [""] * len(files)),
        task=task.name,
        groups=groups,
    )


def in_time(name: str) -> tuple[str, list[Any]]:
    """Return what to sort frames by: their folder, then their name with numbers as numbers."""
    folder, _, file = name.rpartition("/")
    return folder, [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", file)]


def last_of_each(files: tuple[str, ...], share: float) -> list[str]:
    """Return splits of frames: of each folder the last `share` are for validation, so that no frame
    is the neighbour of one that trains, but at one place. Of folders with so few frames that this
    is not LEAST, those of some are for validation that make up the share together."""
    splits: list[str] = []
    folders = np.array([name.rpartition("/")[0] for name in files])
    starts = [0, *(np.flatnonzero(folders[1:] != folders[:-1]) + 1).tolist(), len(files)]
    owed = 0.0
    for start, end in zip(starts, starts[1:], strict=False):
        held = round((end - start) * share)
        if held < LEAST:
            owed += (end - start) * share
            held = min(round(owed), end - start)
            held = held if held >= LEAST else 0
            owed -= held
        splits += ["train"] * (end - start - held) + ["validation"] * held
    return splits


def neighbours(files: Sequence[str]) -> np.ndarray:
    """Return for each frame the row of the next one in its folder, for the last the one before."""
    folders = np.array([name.rpartition("/")[0] for name in files])
    rows = np.arange(len(files))
    after, before = np.minimum(rows + 1, len(files) - 1), np.maximum(rows - 1, 0)
    found: np.ndarray = np.where(folders[after] == folders, after, before)
    found = np.where(found == rows, before, found)
    return np.where(folders[found] == folders, found, rows)
