"""The run's folder: who may write there, and what it holds when a run is finished."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_transfer.base.boundary import untrusted
from hf_transfer.base.errors import UserError
from hf_transfer.base.files import (
    MARK,
    add_text,
    kind_of,
    mark,
    owned,
    read_limited,
    remove_owned,
    told,
    write_text,
    written_folder,
)
from hf_transfer.base.launch import is_main
from hf_transfer.base.locks import LOCK, only_writer
from hf_transfer.base.outputs import folder_to_write
from hf_transfer.data.image_set import ImageSet
from hf_transfer.data.targets import is_text
from hf_transfer.recipe.load import dump_recipe, parse_recipe
from hf_transfer.recipe.specs import DataSpec, Recipe
from hf_transfer.results.card import model_card
from hf_transfer.results.card_pictures import card_pictures
from hf_transfer.results.page import write_html
from hf_transfer.results.report import RunReport, aggregate

BEGUN = ("recipe.yaml", "inputs.json", "precision.json", MARK, LOCK)  # written before it trains
KIND = "run"  # what the mark of a run's folder says


class FolderError(UserError):
    """A run folder that cannot be written, or that holds another run."""


@dataclass(frozen=True)
class RunFolder:
    """Every path in the folder of a run."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The recipe, as it was run."""
        return self.path / "recipe.yaml"

    @property
    def inputs(self) -> Path:
        """Digests of what the run is made from, which a resumed run compares."""
        return self.path / "inputs.json"

    @property
    def precision(self) -> Path:
        """The precision that was chosen."""
        return self.path / "precision.json"

    @property
    def report(self) -> Path:
        """All facts of the finished run; written last."""
        return self.path / "report.json"

    @property
    def page(self) -> Path:
        """The report as a page."""
        return self.path / "report.html"

    @property
    def model(self) -> Path:
        """The folder of the model."""
        return self.path / "model"

    @property
    def adapter(self) -> Path:
        """The folder of the adapters, where they are kept."""
        return self.path / "adapter"

    @property
    def letters(self) -> Path:
        """The images of a source task of letters."""
        return self.path / "letters"

    @property
    def source(self) -> RunFolder:
        """The run of the source task."""
        return RunFolder(self.path / "source")

    def seed(self, seed: int) -> RunFolder:
        """Return the run of one of several seeds."""
        return RunFolder(self.path / f"seed-{seed}")

    def fold(self, number: int) -> RunFolder:
        """Return the run of one part of a cross-validation, from 1 on."""
        return RunFolder(self.path / f"fold-{number}")

    @property
    def answers(self) -> Path:
        """What a part of a cross-validation said of the images that it tests."""
        return self.path / "answers.json"

    @property
    def is_finished(self) -> bool:
        """Whether the run has written its report."""
        return self.report.is_file()

    @property
    def is_empty(self) -> bool:
        """Whether nothing lies in the folder but the lock of who is about to write."""
        return not self.path.is_dir() or all(p.name == LOCK for p in self.path.iterdir())


def open_folder(out: Path, recipe: Recipe, resume: bool | None) -> None:
    """Make the run's folder and write its recipe.yaml; nothing in use is ever overwritten.

    Raises FolderError where the folder holds a run and `resume` is off, or another recipe, or
    anything that no run wrote, or has a name that weights cannot be read back from.
    """
    if not is_main():  # whose own recipe.yaml would be in the way; the launcher ends all as one
        return
    check_folder(out, recipe, resume)
    with told(out):
        mark(out, KIND)
    write_text(RunFolder(out).recipe, dump_recipe(recipe))


def check_folder(out: Path, recipe: Recipe, resume: bool | None) -> None:
    """Raise FolderError where a run may not write a folder. `resume` is None for a run that cannot
    be resumed: it starts again where an earlier one was stopped before it had written anything."""
    here = RunFolder(out)
    if not is_text(str(out)) or "\0" in str(out):
        raise FolderError(
            f"--out {out} is not UTF-8, and safetensors opens no such path; choose another folder"
        )
    folder_to_write(out, FolderError)
    if here.is_empty:
        return
    if resume is None and set(_names(here)) <= set(BEGUN) and kind_of(out) == KIND:
        return
    if not resume:
        more = "" if resume is None else ", or add --resume to continue the run in it"
        raise FolderError(f"--out {out} is not empty; choose another folder{more}")
    _check_resumed(here, recipe)


def _check_resumed(here: RunFolder, recipe: Recipe) -> None:
    """Raise FolderError unless a folder holds this run."""
    for folder in (here.path, here.model, here.adapter):
        if not RunFolder(folder).is_empty and kind_of(folder) is None:
            raise FolderError(
                f"--resume: hf_transfer did not write {folder}, and leaves it as it is; choose "
                "another --out"
            )
    if not here.recipe.is_file():
        return
    with untrusted(str(here.recipe), "choose another --out", FolderError):
        before = read_limited(here.recipe).decode()
    if before != dump_recipe(recipe):
        was, now = _deciding(parse_recipe(before, here.recipe.name)), _deciding(recipe)
        if was != now:
            raise FolderError(
                f"--resume: {here.recipe} is another recipe ({_difference(was, now)}); choose "
                "another --out"
            )


def _deciding(recipe: Recipe) -> str:
    """Return as YAML what decides the results: not how a path is written, nor who reads images."""

    def placed(data: DataSpec) -> DataSpec:
        if data.path is None:
            return data
        return dataclasses.replace(data, path=str(Path(data.path).expanduser().resolve()))

    source = recipe.source
    if source is not None and source.data is not None:
        source = dataclasses.replace(source, data=placed(source.data))
    return dump_recipe(
        dataclasses.replace(
            recipe, data=placed(recipe.data), source=source, workers=0, report_to=()
        )
    )


@contextmanager
def opened(out: Path, recipe: Recipe, resume: bool | None) -> Iterator[None]:
    """Open the run's folder for one launch at a time; remove it again where the run fails before it
    has trained anything.

    Raises FolderError as `open_folder` does, and UserError that says which process writes there.
    """
    if not is_main():
        yield
        return
    check_folder(out, recipe, resume)
    with told(out):
        out.mkdir(parents=True, exist_ok=True)
    try:
        with only_writer(out):
            open_folder(out, recipe, resume)
            try:
                yield
            except (UserError, OSError):
                if not resume:  # what was there before would be resumed
                    _remove_begun(RunFolder(out))
                raise
    finally:
        with suppress(OSError):
            out.rmdir()  # where nothing was begun


def _remove_begun(here: RunFolder) -> None:
    """Remove what a run has written if it has trained nothing yet; files of others stay."""
    remove_owned(here.letters)
    names = _names(here)
    if set(names) <= set(BEGUN):
        for name in set(names) - {LOCK}:
            (here.path / name).unlink(missing_ok=True)


def _names(here: RunFolder) -> list[str]:
    return [p.relative_to(here.path).as_posix() for p in here.path.rglob("*") if not p.is_dir()]


def threads(out: Path) -> int | None:
    """Return the number of threads that the run in a folder began with; None where none began."""
    path = RunFolder(out).inputs
    if not path.is_file():
        return None
    found = _inputs(path).get("threads")
    return found if isinstance(found, int) and 0 < found < 10_000 else None


def keep_inputs(out: Path, inputs: dict[str, Any], threads: int = 1) -> None:
    """Write what the run is made from to inputs.json, or compare with what is there.

    The number of threads is noted for a run that is resumed. Raises FolderError, naming the first
    thing that is not as it was.
    """
    path = RunFolder(out).inputs
    if not is_main():
        return
    if not path.is_file():
        write_text(path, json.dumps({**inputs, "threads": threads}, indent=1) + "\n")
        return
    was = _inputs(path)
    for name, value in inputs.items():
        if was.get(name) != value:
            raise FolderError(
                f"--resume: the {name} differ from those that the run in {out} began with "
                f"(was {_short(was.get(name))}, is {_short(value)}); choose another --out"
            )


def _inputs(path: Path) -> dict[str, Any]:
    with untrusted(str(path), "choose another --out", FolderError):
        return dict(json.loads(read_limited(path)))


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) > 40 else text


def _difference(one: str, two: str) -> str:
    """Return the first line that differs, as `was … is …`."""
    lines = [*one.splitlines(), ""], [*two.splitlines(), ""]
    for old, new in zip(*lines, strict=False):
        if old != new:
            return f"was '{old.strip()}', is '{new.strip()}'"
    return "of another length"


def finish(report: RunReport, out: Path) -> RunReport:
    """Write report.json, report.html and the model's card, the report last; return it."""
    if is_main():
        here = RunFolder(out)
        write_html(report, here.page)
        write_card(report, here.model)
        report.save(here.report)
    return report


def write_card(report: RunReport, model: Path) -> None:
    """Write a model's card and its pictures into the model's folder."""
    for name, (_, drawn) in card_pictures(report).items():
        add_text(model, name, drawn, "model")
    add_text(model, "README.md", model_card(report), "model")


def keep_answers(out: Path, images: ImageSet, outputs: np.ndarray) -> None:
    """Write a model's outputs (N, C) for images, numbers in their units, by the files' names."""
    if not is_main():
        return
    told = outputs if images.scale is None else images.scale.to_units(outputs)
    found = dict(zip(images.files, np.asarray(told, np.float64).tolist(), strict=True))
    write_text(RunFolder(out).answers, json.dumps(found))


def answers_of(out: Path, folds: int) -> dict[str, list[float]]:
    """Return the outputs by file of all parts of a cross-validation. Raises FolderError."""
    found: dict[str, list[float]] = {}
    for number in range(1, folds + 1):
        path = RunFolder(out).fold(number).answers
        with untrusted(str(path), f"remove {path.parent} and resume the run", FolderError):
            found.update(json.loads(path.read_text(encoding="utf-8")))
    return found


def finish_seeds(reports: Sequence[RunReport], out: Path) -> RunReport:
    """Write the folder of a repeated run: the seed of median accuracy (mAP, R2) stands for it."""
    leads = reports[0].task.headline
    values = [report.metrics.get(leads) for report in reports]
    known = [-math.inf if value is None else value for value in values]
    order = [report for _, report in sorted(zip(known, reports, strict=True), key=lambda p: p[0])]
    chosen = order[(len(order) - 1) // 2]
    median = dataclasses.replace(chosen, seeds=aggregate(reports))
    if is_main():
        here = RunFolder(out)
        theirs = here.seed(median.seed)
        for one, place in ((theirs.model, here.model), (theirs.adapter, here.adapter)):
            if one.is_dir():
                _copy(one, place)
        write_html(median, here.page, seeds=reports)
        write_card(median, here.model)
        median.save(here.report)
    return median


def _copy(one: Path, place: Path) -> None:
    """Copy what we wrote in a folder to another, whole or not at all."""
    with written_folder(place, kind_of(one) or "model") as aside:
        for name in owned(one):
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(one / name, aside / name)
