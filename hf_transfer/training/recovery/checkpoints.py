"""Checkpoints: written whole or not at all, and verified before they are used.

A folder is first written in `unfinished/`. manifest.json, its last file, holds the size and sha256
of every other; then the folder is renamed into place. `checkpoint-end` is the end of a phase: its
weights and its report. If it is complete, the phase is done.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from hf_transfer.base.errors import UserError
from hf_transfer.base.files import kind_of, mark, to_disk, why_unwritten
from hf_transfer.base.processes import Processes
from hf_transfer.results.report import PhaseReport
from hf_transfer.training.machine import sharding

logger = logging.getLogger(__name__)

END, MANIFEST, WEIGHTS, BEST = (
    "checkpoint-end",
    "manifest.json",
    "model.safetensors",
    "best.safetensors",
)
KEPT = 2  # of a phase under way: the newest, and the one before should that be torn
ASIDE = "unfinished"
SCRATCH = re.compile(r"\.[0-9a-f]{16}")  # what a file is called until it is whole
NUMBERED = re.compile(r"checkpoint-(\d+)")


class CheckpointError(UserError):
    """A checkpoint that cannot be written, or that belongs to another run."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, and what its manifest says about its run."""

    folder: Path
    about: dict[str, Any]


# --- writing ---------------------------------------------------------------------------------


def write(
    folder: Path,
    name: str,
    fill: Callable[[Path], None],
    about: Mapping[str, Any],
    processes: Processes,
) -> None:
    """Write `folder`/`name`: every process writes into a temporary folder, which the first then
    renames.

    Raises CheckpointError, in all processes, if one of them cannot write; then nothing is left of
    it, and what was there before is unchanged.
    """
    aside = folder / ASIDE / name
    failure = _tried(lambda: _prepare(aside)) if processes.main else None
    processes.wait()
    failure = failure or _tried(lambda: fill(aside))
    failed = processes.most(int(failure is not None))
    if not failed and processes.main:
        failure = _tried(lambda: _seal(aside, folder / name, about))
    failed = processes.most(int(failure is not None))
    if processes.main:
        _clear(folder / ASIDE)
    if not failed:
        return
    reason = "another process could not" if failure is None else why_unwritten(failure)
    raise CheckpointError(
        f"cannot write {folder / name}: {reason}; what was saved before is whole: make room, then "
        "add --resume"
    ) from failure


def _prepare(aside: Path) -> None:
    _clear(aside.parent)
    _begin(aside.parent)
    aside.mkdir()


def _begin(aside: Path) -> None:
    """Mark the folder of unfinished checkpoints as ours. Raises OSError if it is another's.

    A process that was killed as it marked or cleared it left at most a mark that was being written.
    """
    plain = aside.is_dir() and not aside.is_symlink()
    begun = plain and all(SCRATCH.fullmatch(path.name) for path in aside.iterdir())
    if os.path.lexists(aside) and kind_of(aside) != ASIDE and not begun:
        raise FileExistsError(errno.EEXIST, f"hf_transfer did not write {aside}; move it away")
    mark(aside, ASIDE)


def _clear(aside: Path) -> None:
    """Remove what a killed process left unfinished, and nothing else; last the mark, without which
    nobody would know that the rest is ours."""
    if kind_of(aside) != ASIDE or aside.is_symlink():
        return
    for path in aside.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(aside, ignore_errors=True)


def _seal(aside: Path, place: Path, about: Mapping[str, Any]) -> None:
    """Write the manifest, flush everything to disk, and rename the folder into place."""
    files = {}
    for path in sorted(aside.iterdir()):
        files[path.name] = _size_and_hash(path)
        to_disk(path)
    manifest = aside / MANIFEST
    manifest.write_text(json.dumps({"files": files, "about": about}, indent=1) + "\n")
    to_disk(manifest)
    if os.path.lexists(place):
        if place.is_symlink() or not (place / MANIFEST).is_file():
            raise FileExistsError(errno.EEXIST, f"hf_transfer did not write {place}; move it away")
        place.rename(aside.parent / f"{place.name}.old")  # goes with what is unfinished
    aside.rename(place)
    to_disk(place.parent)


def _tried(write: Callable[[], None]) -> BaseException | None:
    """Return the error that kept a function from writing, or None; other errors propagate."""
    try:
        write()
    except Exception as error:  # of any class: writers in Rust and C++ have their own
        if why_unwritten(error) is None:
            raise
        return error
    return None


def _size_and_hash(path: Path) -> list[Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return [path.stat().st_size, digest.hexdigest()]


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write tensors under exactly these names, whatever their memory format or sharing."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(plain, path, metadata={"format": "pt"})


def save_whole(model: nn.Module, folder: Path, main: bool) -> None:
    """Write a model's weights by their own names, gathered where they are sharded, and its
    configuration, so that `from_pretrained` opens them. All processes call this together."""
    tensors = sharding.whole(model.state_dict(), main)
    if main:
        save_tensors(tensors, folder / WEIGHTS)
        if isinstance(model, PreTrainedModel):
            model.config.save_pretrained(str(folder))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a checkpoint, by the names in the model's state_dict."""
    return load_file(folder / WEIGHTS)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Give the model the weights of a checkpoint; every name must be there."""
    model.load_state_dict(weights(folder))


def load_best(folder: Path, device: torch.device) -> dict[str, torch.Tensor] | None:
    """Return the best weights of the phase so far, which were saved with a checkpoint."""
    path = folder / BEST
    if not path.is_file():
        return None
    return {name: tensor.to(device) for name, tensor in load_file(path).items()}


# --- reading ---------------------------------------------------------------------------------


def read(folder: Path) -> Checkpoint | None:
    """Return a checkpoint if all files are as its manifest says, else None; log a torn one."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, recorded in manifest["files"].items():
            size = (folder / name).stat().st_size
            if size != recorded[0]:
                raise ValueError(f"{name} has {size} bytes, not {recorded[0]}")
            if _size_and_hash(folder / name) != recorded:
                raise ValueError(f"the content of {name} is not what was written")
        return Checkpoint(folder, manifest["about"])
    except FileNotFoundError as error:
        if folder.is_dir():
            logger.warning("%s is not used: it has no %s", folder, Path(error.filename).name)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        logger.warning("%s is not used: it is torn (%s)", folder, error)
    return None


def about_of(path: Path) -> dict[str, Any]:
    """Return what a checkpoint says about its run, complete or not; nothing without a manifest."""
    try:
        return dict(json.loads((path / MANIFEST).read_text())["about"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}


def whole(folder: Path) -> Iterator[Checkpoint]:
    """Yield the complete checkpoints of a phase in progress, the newest first."""
    found = (read(path) for path in numbered(folder))
    return (checkpoint for checkpoint in found if checkpoint is not None)


def newest(folder: Path) -> Checkpoint | None:
    """Return the newest complete checkpoint of a phase in progress, or None."""
    return next(whole(folder), None)


def drop(folder: Path, keep: int = 0, good: int = 0, end: bool = False) -> None:
    """Remove all checkpoints of a phase that this module wrote but the newest `keep` and the newest
    `good` of those that say so, and what a killed process left; with `end` the phase's end, too."""
    found = numbered(folder)
    spared = [*found[:keep], *[path for path in found if about_of(path).get("good")][:good]]
    remove(folder, [path for path in found if path not in spared])
    if end:
        remove(folder, [folder / END])


def remove(folder: Path, paths: Iterable[Path]) -> None:
    """Remove those of the given checkpoints of a phase that this module wrote, complete or not."""
    aside = folder / ASIDE
    own = [path for path in paths if (path / MANIFEST).is_file() and not path.is_symlink()]
    _clear(aside)
    if own:
        _begin(aside)
    for path in own:
        path.rename(aside / path.name)  # a kill while it is removed leaves no half of it
    _clear(aside)


def numbered(folder: Path) -> list[Path]:
    """Return the checkpoints of a phase in progress, the newest first."""
    found = {
        int(match[1]): path
        for path in folder.glob("checkpoint-*")
        if (match := NUMBERED.fullmatch(path.name))
    }
    return [found[step] for step in sorted(found, reverse=True)]


# --- the end of a phase ----------------------------------------------------------------------


def write_phase(
    folder: Path,
    model: nn.Module,
    report: PhaseReport,
    about: Mapping[str, Any],
    processes: Processes,
) -> None:
    """Write the end of a phase, `checkpoint-end`: its weights and its report."""

    def fill(aside: Path) -> None:
        if processes.main:
            save_tensors(model.state_dict(), aside / WEIGHTS)
            (aside / "phase.json").write_text(json.dumps(asdict(report), indent=1) + "\n")

    write(folder, END, fill, about, processes)


def read_phase(folder: Path) -> tuple[Checkpoint, PhaseReport] | None:
    """Return the end of a phase and its report, or None where the phase is not done."""
    done = read(folder / END)
    if done is None:
        return None
    return done, PhaseReport(**json.loads((done.folder / "phase.json").read_text()))
