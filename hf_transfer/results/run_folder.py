"""The run's folder: who may write there, and what it holds when a run is finished."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_transfer.base.errors import UserError
from hf_transfer.base.files import write_text
from hf_transfer.base.launch import is_main
from hf_transfer.data.targets import is_text
from hf_transfer.recipe.load import dump_recipe, parse_recipe
from hf_transfer.recipe.specs import DataSpec, Recipe
from hf_transfer.results.card import model_card
from hf_transfer.results.page import write_html
from hf_transfer.results.report import RunReport, aggregate

# All that a run writes before it trains, and in a phase's folder before there is a checkpoint.
BEGUN = {"recipe.yaml", "inputs.json", "precision.json", "letters"}


class FolderError(UserError):
    """A run folder that cannot be written, or that holds another run."""


def open_folder(out: Path, recipe: Recipe, resume: bool) -> None:
    """Make the run's folder and write its recipe.yaml; nothing in use is ever overwritten.

    Raises FolderError where the folder holds a run and `resume` is off, or another recipe, or has
    a name that weights cannot be read back from.
    """
    if not is_main():  # whose own recipe.yaml would be in the way; the launcher ends all as one
        return
    if not is_text(str(out)):
        raise FolderError(
            f"--out {out} is not UTF-8, and safetensors opens no such path; choose another folder"
        )
    text = dump_recipe(recipe)
    written = out / "recipe.yaml"
    if out.exists() and not out.is_dir():
        raise FolderError(f"--out {out} is a file; choose another folder")
    if out.is_dir() and any(out.iterdir()):
        if not resume:
            raise FolderError(
                f"--out {out} is not empty; choose another folder, or add --resume to go on there"
            )
        before = written.read_text(encoding="utf-8") if written.is_file() else text
        if before != text:
            was, now = _deciding(parse_recipe(before, written.name)), _deciding(recipe)
            if was != now:
                raise FolderError(
                    f"--resume: {written} is another recipe ({_difference(was, now)}); choose "
                    "another --out"
                )
    write_text(written, text)


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
        dataclasses.replace(recipe, data=placed(recipe.data), source=source, workers=0)
    )


@contextmanager
def opened(out: Path, recipe: Recipe, resume: bool) -> Iterator[None]:
    """Open the run's folder; remove it again where the run fails before it has trained anything."""
    open_folder(out, recipe, resume)
    try:
        yield
    except (UserError, OSError):
        found = [path.relative_to(out).parts for path in out.rglob("*") if not path.is_dir()]
        begun = all(names[0] in BEGUN for names in found)
        if is_main() and not resume and begun:  # what was there before would be resumed
            shutil.rmtree(out, ignore_errors=True)
        raise


def keep_inputs(out: Path, inputs: dict[str, Any]) -> None:
    """Write what the run is made from to inputs.json, or compare with what is there.

    Raises FolderError, naming the first thing that is not as it was.
    """
    path = out / "inputs.json"
    if not is_main():
        return
    if not path.is_file():
        write_text(path, json.dumps(inputs, indent=1) + "\n")
        return
    was = json.loads(path.read_text(encoding="utf-8"))
    for name, value in inputs.items():
        if was.get(name) != value:
            raise FolderError(
                f"--resume: the {name} differ from those that the run in {out} began with "
                f"(was {_short(was.get(name))}, is {_short(value)}); choose another --out"
            )


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
        write_html(report, out / "report.html")
        write_text(out / "model" / "README.md", model_card(report))
        report.save(out / "report.json")
    return report


def finish_seeds(reports: Sequence[RunReport], out: Path) -> RunReport:
    """Write the folder of a repeated run: the seed of median accuracy (mAP, R2) stands for it."""
    leads = reports[0].task.headline
    values = [report.metrics.get(leads) for report in reports]
    known = [-math.inf if value is None else value for value in values]
    order = [report for _, report in sorted(zip(known, reports, strict=True), key=lambda p: p[0])]
    chosen = order[(len(order) - 1) // 2]
    median = dataclasses.replace(chosen, seeds=aggregate(reports))
    if is_main():
        for name in ("model", "adapter"):  # the second where adapters are kept
            if (out / f"seed-{median.seed}" / name).is_dir():
                shutil.copytree(out / f"seed-{median.seed}" / name, out / name, dirs_exist_ok=True)
        write_html(median, out / "report.html", seeds=reports)
        write_text(out / "model" / "README.md", model_card(median))
        median.save(out / "report.json")
    return median
