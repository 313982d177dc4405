"""Runs side by side: what was run, on which data, with which result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_transfer.base.errors import UserError
from hf_transfer.base.files import expanded
from hf_transfer.base.signatures import checked
from hf_transfer.planning.text_table import table
from hf_transfer.results.conclusions import data_name
from hf_transfer.results.places import place_name
from hf_transfer.results.report import RunReport
from hf_transfer.results.words import metric_phrase, show_metric, show_seconds


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, and its report."""

    folder: Path
    report: RunReport

    @property
    def images(self) -> tuple[str, str, int, int]:
        """What runs must share for their results to be compared: images, split, how many, and the
        seed that draws it. A report that does not say which images shares them with none."""
        split, values = self.report.measured
        where, which = self.report.split_name(split), self.report.data.get("fingerprint")
        return str(which or self.folder), where, int(values.get("n") or 0), self.report.seed


@checked
def runs(folder: str | Path = "runs") -> tuple[Run, ...]:
    """Return the finished runs in a folder, or in the folders in it, the newest first.

    What cannot be read as a report is left out. Raises UserError where there is no run.
    """
    place = expanded(folder)
    if not place.is_dir():
        raise UserError(f"there is no folder {place}; runs are in runs/, or where --out said")
    found = []
    for path in sorted({place / "report.json", *place.glob("*/report.json")}):
        if path.is_file():
            try:
                found.append(Run(path.parent, RunReport.load(path)))
            except UserError:
                continue
    if not found:
        raise UserError(f"{place}: there is no finished run; a run's folder holds report.json")
    return tuple(sorted(found, key=lambda run: run.report.created or "", reverse=True))


def format_runs(found: Sequence[Run], width: int) -> str:
    """Return runs as a table, and which of those on the same images is best."""
    rows = [("run", "recipe", "data", "backbone", "result", ">time", "date"), *map(_row, found)]
    return "\n".join([*table(rows, width), *_best(found)])


def _row(run: Run) -> tuple[str, ...]:
    report = run.report
    split, values = report.measured
    leads, value = report.leading_metric, report.headline
    result = "not measured"
    if value is not None:
        ends = values.get("intervals", {}).get(leads)
        bounds = f"{' to '.join(show_metric(leads, end) for end in ends)}, " if ends else ""
        what = f"{report.split_name(split)} {metric_phrase(leads)} {show_metric(leads, value)}"
        result = f"{what} ({bounds}n = {values.get('n')})"
    wall = report.seconds.get("wall")
    return (
        run.folder.name,
        report.name,
        data_name(report) or "",
        place_name(report.network or ""),
        result,
        "" if wall is None else show_seconds(wall),
        (report.created or "")[:10],
    )


def _best(found: Sequence[Run]) -> list[str]:
    """Return a line for each set of images that several runs were measured on."""
    lines = []
    for images in dict.fromkeys(run.images for run in found):
        same = [run for run in found if run.images == images and run.report.headline is not None]
        if len(same) > 1:
            best = max(same, key=lambda run: run.report.headline or 0.0)
            lines.append(
                f"{len(same)} runs on the same {images[2]} {images[1]} images: best is "
                f"{best.folder.name}; hf-transfer evaluate --compare tests the difference"
            )
    return ["", *lines] if lines else []
