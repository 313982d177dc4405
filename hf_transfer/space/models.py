"""The models that a page shows: those that it was started with, and each visitor's own."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer.base.boundary import untrusted
from hf_transfer.base.errors import UserError
from hf_transfer.results.report import RunReport
from hf_transfer.serving.hub import find_report, model_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOADED = 12  # networks that lie in memory at once; others are loaded again when asked for


@dataclass(frozen=True)
class Answered:
    """What a model said of one validation image: its file, its class, the answer and how sure."""

    file: Path
    true: str
    said: str
    share: float


@dataclass(eq=False)
class Shown:
    """One model on the page: its title, its folder, and what is known of how it was made.

    `run` is the folder of its run, where that is on this machine.
    """

    title: str
    folder: Path
    report: RunReport | None = None
    why_no_report: str = ""
    run: Path | None = None
    own: bool = False  # trained by the visitor, so that it can be downloaded
    answers: tuple[Answered, ...] = field(default=())

    @cached_property
    def neighbours(self) -> tuple[tuple[Path, ...], np.ndarray[Any, Any]] | None:
        """The training images and their features (N, D) of length 1; None if they are not here."""
        if self.run is None or not (self.run / "features.npy").is_file():
            return None
        root = Path(json.loads((self.run / "shown.json").read_text())["root"])
        names = json.loads((self.run / "features.json").read_text())
        features = np.load(self.run / "features.npy", allow_pickle=False)
        features /= np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
        return tuple(root / name for name in names), features


def shown_model(where: str | Path, title: str | None = None, own: bool = False) -> Shown:
    """Return a run folder, a model folder or a Hub repository as a model on the page.

    A report that cannot be read is noted, and the page goes on. Raises UserError without a model.
    """
    folder = model_folder(where)
    report, why = None, ""
    try:
        report = find_report(folder)
    except UserError as error:
        why = str(error)
    run = folder.parent if folder.name == "model" else None
    return Shown(title or _title(where, folder), folder, report, why, run, own, _answers(run))


def _title(where: str | Path, folder: Path) -> str:
    """Return the repository's id or, for a folder here, the run's or the folder's own name."""
    if not Path(where).expanduser().exists():
        return str(where)
    folder = folder.resolve()
    return folder.parent.name if folder.name == "model" else folder.name


def _answers(run: Path | None) -> tuple[Answered, ...]:
    if run is None or not (run / "shown.json").is_file():
        return ()
    with untrusted("shown.json"):
        found = json.loads((run / "shown.json").read_text(encoding="utf-8"))
        root = Path(found["root"])
        return tuple(
            Answered(root / name, true, said, float(share))
            for name, true, said, share in found["validation"]
        )


class Networks:
    """The networks in memory, those used last; one answers at a time."""

    def __init__(self, most: int = LOADED) -> None:
        self._most = most
        self._loaded: OrderedDict[Path, PreTrainedModel] = OrderedDict()
        self.lock = threading.RLock()

    def of(self, model: Shown) -> PreTrainedModel:
        """Return a model's network, ready to answer. Raises UserError."""
        from hf_transfer.serving.predict import ready

        with self.lock:
            if model.folder not in self._loaded:
                self._loaded[model.folder] = ready(model.folder)
                while len(self._loaded) > self._most:
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(model.folder)
            return self._loaded[model.folder]

    def forget_missing(self) -> None:
        """Return the memory of models whose folders are gone."""
        with self.lock:
            for folder in [one for one in self._loaded if not one.exists()]:
                del self._loaded[folder]
