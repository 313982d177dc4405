"""The models that a page shows: those that it was started with, and each visitor's own."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from hf_transfer.base.boundary import untrusted
from hf_transfer.base.errors import UserError
from hf_transfer.results.report import RunReport
from hf_transfer.serving.hub import find_report, model_folder
from hf_transfer.space import similar

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_transfer.backbones.blueprint import Backbone

Answer = TypeVar("Answer")
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

    `run` is the folder of its run, where that is on this machine. `may_show` says whether visitors
    may see its images: their own, those of a server that this machine alone reaches, and those of
    a recipe that publishes them.
    """

    title: str
    folder: Path
    report: RunReport | None = None
    why_no_report: str = ""
    run: Path | None = None
    own: bool = False  # trained by the visitor, so that it can be downloaded
    may_show: bool = True
    answers: tuple[Answered, ...] = field(default=())
    known: similar.Known | None = None  # images that it was made with
    advice: str = ""  # what advice saw in its images, as HTML


def shown_model(
    where: str | Path, title: str | None = None, own: bool = False, alone: bool = True
) -> Shown:
    """Return a run folder, a model folder or a Hub repository as a model on the page.

    `alone` says that no other machine reaches the page. A report that cannot be read is noted, and
    the page goes on. Raises UserError without a model.
    """
    folder = model_folder(where)
    report, why = None, ""
    try:
        report = find_report(folder)
    except UserError as error:
        why = str(error)
    if report is not None:
        from hf_transfer.serving.predict import check_answers

        check_answers(str(where), report.task.name)
    run = folder.parent if folder.name == "model" else None
    may_show = own or alone or (report is not None and report.recipe.get("page_images") == "card")
    made = Shown(title or _title(where, folder), folder, report, why, run, own, may_show)
    if own and run is not None:
        made.answers, made.known = _answers(run), similar.known_of(run)
    return made


def _title(where: str | Path, folder: Path) -> str:
    """Return the repository's id or, for a folder here, the run's or the folder's own name."""
    if not Path(where).expanduser().exists():
        return str(where)
    folder = folder.resolve()
    return folder.parent.name if folder.name == "model" else folder.name


def _answers(run: Path) -> tuple[Answered, ...]:
    if not (run / "shown.json").is_file():
        return ()
    with untrusted("shown.json"):
        found = json.loads((run / "shown.json").read_text(encoding="utf-8"))
        root = Path(found["root"])
        return tuple(
            Answered(root / name, true, said, float(share))
            for name, true, said, share in found["validation"]
        )


class Networks:
    """The networks in memory, those used last; one answers at a time.

    All of them compute in one thread: each thread that does keeps memory of its own for good, with
    a ResNet-18 three megabytes, and a server answers in forty.
    """

    def __init__(self, most: int = LOADED) -> None:
        self._most = most
        self._loaded: OrderedDict[Path, PreTrainedModel] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, "networks")

    def ask(self, model: Shown, question: Callable[[PreTrainedModel], Answer]) -> Answer:
        """Return the answer to a question about a model's network. Raises UserError, and what the
        question raises."""
        return self._thread.submit(lambda: question(self._of(model))).result()

    def backbone(self, model: Shown) -> Backbone:
        """Return what is known of a model's network. Raises UserError."""
        return self.ask(model, lambda network: cast("Backbone", network.backbone))

    def forget_missing(self) -> None:
        """Return the memory of models whose folders are gone."""
        self._thread.submit(self._forget).result()

    def close(self) -> None:
        """Answer no more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _of(self, model: Shown) -> PreTrainedModel:
        from hf_transfer.serving.predict import network_of

        if model.folder not in self._loaded:
            self._loaded[model.folder] = network_of(model.folder)
            while len(self._loaded) > self._most:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(model.folder)
        return self._loaded[model.folder]

    def _forget(self) -> None:
        for folder in [one for one in self._loaded if not one.exists()]:
            del self._loaded[folder]
