"""Reports: every fact of a finished run, to JSON and back, and over several seeds."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter

from hf_transfer.base.boundary import untrusted
from hf_transfer.base.errors import UserError
from hf_transfer.base.files import read_limited, write_text
from hf_transfer.recipe.tasks import CLASSIFICATION, TASKS, Task
from hf_transfer.results import report_shape as shape
from hf_transfer.results.metrics_shape import Count, Finite, Metrics, Number
from hf_transfer.results.report_check import checked, shown
from hf_transfer.results.report_shape import shaped
from hf_transfer.results.words import COUNTS, CROSS, LABELLED, JsonDict, is_number, split_words

VERSION = 1
UNEVEN = 1.5  # largest class to smallest, from which balanced accuracy leads


@dataclass(frozen=True)
class PhaseReport:
    """What one phase did. `history` is the Trainer's log: rows with `epoch`, `step` and values."""

    name: str
    groups: tuple[str, ...]
    trainable_parameters: Count
    total_parameters: Count
    epochs: Finite
    steps: Count
    seconds: Finite
    stopped: str | None = None  # why the phase ended early; None: it completed
    best_epoch: Number = None
    metrics: JsonDict = field(default_factory=dict)  # on validation, with the weights it ended with
    history: tuple[JsonDict, ...] = ()
    rates: Annotated[tuple[JsonDict, ...], shaped(tuple[shape.RateRow, ...])] = ()
    solve: str | None = None  # by which solver the head was solved for, in `steps`; no epochs
    features: str = "live"
    checks: JsonDict = field(default_factory=dict)  # {moved, unmoved, still, ranks}
    rollbacks: Count = 0  # how often its loss exploded and it went on at a tenth of its rates
    gentle: tuple[str, ...] = ()  # how it spared what it started from, in words
    settings: Annotated[JsonDict, shaped(shape.PhaseSettings)] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _make_plain(self, tuples=("groups", "history", "rates", "gentle"))


@dataclass(frozen=True)
class RunReport:
    """Every fact of a finished run, as plain JSON values; an absent fact is None or left out.

    `metrics` are those of the task on validation and, under `test`, on test; `examples` are the
    images that the page shows, with what the model said of each; `figures` are further charts, each
    {title, note, x, y, lines: [{name, points: [[x, y] or [x, y, low, high], ...]}], names}, where
    `names` are those of x = 0, 1, 2 ...; `moved` says of each group below the head how far its
    weights and what it makes of images are from the start. Values given are copied and made plain:
    tuples become lists, numpy scalars numbers, NaN and infinities None.
    """

    name: str
    recipe: Annotated[JsonDict, shaped(shape.RecipeFacts)]
    backbone: Annotated[JsonDict, shaped(shape.BackboneFacts)]
    data: Annotated[JsonDict, shaped(shape.DataFacts)]
    phases: tuple[PhaseReport, ...]
    metrics: Annotated[JsonDict, shaped(Metrics)]
    seconds: Annotated[JsonDict, shaped(shape.Seconds)]
    environment: JsonDict
    seed: int
    warnings: tuple[str, ...] = ()
    created: str | None = None  # ISO 8601, with the offset from UTC
    seeds: Annotated[JsonDict, shaped(shape.SeedsFacts)] = field(default_factory=dict)
    folds: Annotated[JsonDict, shaped(shape.FoldsFacts)] = field(default_factory=dict)
    best_phase: str | None = None  # the phase whose weights the model has, where that was chosen
    auto: Annotated[JsonDict, shaped(shape.AutoFacts)] = field(default_factory=dict)
    examples: Annotated[JsonDict, shaped(shape.ExamplesFacts)] = field(default_factory=dict)
    figures: Annotated[tuple[JsonDict, ...], shaped(tuple[shape.Figure, ...])] = ()
    moved: Annotated[tuple[JsonDict, ...], shaped(tuple[shape.MovedRow, ...])] = ()
    source: Annotated[JsonDict, shaped(shape.SourceFacts)] = field(default_factory=dict)
    version: int = VERSION

    def __post_init__(self) -> None:
        _make_plain(self, tuples=("phases", "warnings", "figures", "moved"))

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of classes, labels or targets in the order of the model's outputs."""
        return tuple(self.data.get("labels") or ())

    @property
    def task(self) -> Task:
        """What the model answers; classification where the report does not say."""
        return TASKS[str(self.recipe.get("task") or CLASSIFICATION.name)]

    @property
    def splits(self) -> dict[str, JsonDict]:
        """The metrics of each split that was measured; the one that counts, test, comes first.

        Those of a finished model on other images are "labelled".
        """
        found = {"test": self.metrics.get("test") or {}, "validation": self.metrics}
        found[LABELLED] = self.metrics.get(LABELLED) or {}
        return {split: values for split, values in found.items() if self.task.headline in values}

    @property
    def measured(self) -> tuple[str, JsonDict]:
        """The split that counts, and its metrics: test, or validation; empty without either."""
        return next(iter(self.splits.items()), ("validation", {}))

    def split_name(self, split: str) -> str:
        """What a split's images are called: those that `auto` judged out of fold are no split."""
        crossed = "test" if self.folds else None
        if self.auto and self.auto.get("parts") != 1:
            crossed = "validation"
        return CROSS if split == crossed else split

    @property
    def where(self) -> str:
        """Where the split that counts was measured: "on validation", "in cross-validation"."""
        return split_words(self.split_name(self.measured[0]))

    @property
    def leading_metric(self) -> str:
        """The metric that the report leads with: balanced accuracy where classes are uneven."""
        _, values = self.measured
        counts = [row["n"] for row in values.get("per_class", ()) if row["n"]]
        uneven = bool(counts) and max(counts) >= UNEVEN * min(counts)
        known = values.get("balanced_accuracy") is not None
        return "balanced_accuracy" if uneven and known else self.task.headline

    @property
    def headline(self) -> float | None:
        """The value of the leading metric on the split that counts."""
        value = self.measured[1].get(self.leading_metric)
        return None if value is None else float(value)

    @property
    def network(self) -> str | None:
        """The backbone that the run began with: that of its source, where one trained it first."""
        found: str | None = self.source.get("backbone") or self.backbone.get("id")
        return found

    def to_dict(self) -> JsonDict:
        """Return the report as plain JSON values; `RunReport.from_dict` gives an equal report."""
        result: JsonDict = _plain(asdict(self))
        return result

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], place: str = "the report") -> RunReport:
        """Return the report that `to_dict` wrote, every value checked. Raises UserError."""
        with untrusted(place, "run the recipe again"):
            if not isinstance(values, Mapping):
                raise UserError(
                    f"{place} is not a report: it holds {type(values).__name__}, not a mapping"
                )
            if values.get("version") != VERSION:
                raise UserError(
                    f"{place}: version {shown(values.get('version'))} cannot be read, only "
                    f"{VERSION}; "
                    "run the recipe again, or install the hf_transfer that wrote it"
                )
            report: RunReport = checked(_adapter(), _plain(values), place)
            return report

    def save(self, path: str | Path) -> Path:
        """Write the report as JSON, whole or not at all; return the path. Raises UserError."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        return write_text(path, text + "\n")

    @classmethod
    def load(cls, path: str | Path) -> RunReport:
        """Return the report in a file, or in a run folder's report.json. Raises UserError."""
        path = Path(path)
        path = path / "report.json" if path.is_dir() else path
        if not path.exists():
            raise UserError(f"there is no {path}; was the run finished?")
        with untrusted(str(path), "run the recipe again"):
            return cls.from_dict(json.loads(read_limited(path)), str(path))


@functools.cache
def _adapter() -> TypeAdapter[RunReport]:
    return TypeAdapter(RunReport)


def aggregate(reports: Sequence[RunReport]) -> JsonDict:
    """Return {n, seeds, metrics, test, seconds}: each metric as {mean, min, max, values} over runs.

    The runs must differ in their seed only. Raises UserError for none, or for runs of other
    recipes, backbones or labels. A metric that one run lacks is left out.
    """
    if not reports:
        raise UserError("there is no report to aggregate")
    first = reports[0]
    for other in reports[1:]:
        for what, one, two in (
            ("recipe", first.name, other.name),
            ("backbone", first.network, other.network),
            ("labels", first.labels, other.labels),
        ):
            if one != two:
                raise UserError(f"runs of different {what} cannot be aggregated: {one}, {two}")
    return {
        "n": len(reports),
        "seeds": [report.seed for report in reports],
        "metrics": _spread([report.metrics for report in reports]),
        "test": _spread([report.metrics.get("test") or {} for report in reports]),
        "seconds": _spread([report.seconds for report in reports]),
    }


def aggregate_folds(reports: Sequence[RunReport]) -> JsonDict:
    """Return {n, test} of the parts of a cross-validation: each metric as {mean, min, max, values};
    {} without any."""
    if not reports:
        return {}
    return {"n": len(reports), "test": _spread([report.metrics["test"] for report in reports])}


def split_rows(report: RunReport) -> list[tuple[str, int, list[int]]]:
    """Return (split, images, images of each class or label) of each split that has any."""
    images = report.data.get("images") or {}
    return [
        (split, images.get(split, sum(counts.values())), list(counts.values()))
        for split, counts in (report.data.get("counts") or {}).items()
        if counts and images.get(split, True)
    ]


def _spread(rows: Sequence[JsonDict]) -> JsonDict:
    result: JsonDict = {}
    for name in rows[0]:
        values: list[Any] = [row.get(name) for row in rows]
        numbers = [value for value in values if is_number(value)]
        if len(numbers) == len(rows) and name not in COUNTS:
            mean = math.fsum(numbers) / len(numbers)
            result[name] = {
                "mean": mean,
                "min": min(numbers),
                "max": max(numbers),
                "values": numbers,
            }
    return result


def _make_plain(record: Any, tuples: Sequence[str]) -> None:
    """Make a record's values plain, so that the file gives back an equal record."""
    for entry in fields(record):
        value = getattr(record, entry.name)
        if entry.name in tuples:
            value = tuple(v if isinstance(v, PhaseReport) else _plain(v) for v in value)
        else:
            value = _plain(value)
        object.__setattr__(record, entry.name, value)


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind is str or kind is int or (kind is float and math.isfinite(value)):  # most are
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a report holds plain values, not {type(value).__name__}: {value!r}")
