"""Reports: every fact of a finished run, to JSON and back, and over several seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from hf_transfer.base.errors import UserError
from hf_transfer.base.files import write_text
from hf_transfer.recipe.tasks import CLASSIFICATION, TASKS, Task
from hf_transfer.results.words import Facts, _is_number

VERSION = 1


Record = TypeVar("Record", bound="PhaseReport | RunReport")


@dataclass(frozen=True)
class PhaseReport:
    """What one phase did. `history` is the Trainer's log: rows with `epoch`, `step` and values."""

    name: str
    groups: tuple[str, ...]
    trainable_parameters: int
    total_parameters: int
    epochs: float
    steps: int
    seconds: float
    stopped: str | None = None  # why the phase ended early; None: it ran to its end
    best_epoch: float | None = None
    metrics: Facts = field(default_factory=dict)
    history: tuple[Facts, ...] = ()
    rates: tuple[Facts, ...] = ()  # {label, parameters, lr, weight_decay}; none where solved
    solve: str | None = None  # by which solver the head was solved for, in `steps`; no epochs
    features: str = "live"
    checks: Facts = field(default_factory=dict)
    compiled: Facts = field(default_factory=dict)  # {compiled, why, step, seconds}, by `auto`
    rollbacks: int = 0  # how often its loss exploded and it went back, to a tenth of its rates

    def __post_init__(self) -> None:
        _settle(self, tuples=("groups", "history", "rates"))


@dataclass(frozen=True)
class RunReport:
    """Every fact of a finished run, as plain JSON values; an absent fact is None or left out.

    `metrics` are those of the task on validation and, under `test`, on test. Values given
    are copied and made plain: tuples become lists, numpy scalars numbers, NaN and infinities None.
    """

    name: str
    recipe: Facts
    backbone: Facts  # {id, source, weights, parameters, license, image_size}
    data: Facts  # {path, labels, counts: {split: {label: n}}, fingerprint, audit}
    phases: tuple[PhaseReport, ...]
    metrics: Facts
    seconds: Facts  # {wall, training}
    environment: Facts
    seed: int
    warnings: tuple[str, ...] = ()
    created: str | None = None  # ISO 8601, with the offset from UTC
    seeds: Facts = field(default_factory=dict)  # `aggregate` of all seeds, where it was repeated
    version: int = VERSION

    def __post_init__(self) -> None:
        _settle(self, tuples=("phases", "warnings"))

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of classes, labels or targets in the order of the model's outputs."""
        return tuple(self.data.get("labels") or ())

    @property
    def task(self) -> Task:
        """What the model answers; what a report of before says nothing of is classification."""
        return TASKS[str(self.recipe.get("task") or CLASSIFICATION.name)]

    @property
    def headline(self) -> float | None:
        """The value that the report leads with, on the split that counts: test, or validation."""
        value = (self.metrics.get("test") or self.metrics).get(self.task.headline)
        return None if value is None else float(value)

    def to_dict(self) -> Facts:
        """Return the report as plain JSON values; `RunReport.from_dict` gives an equal report."""
        result: Facts = _plain(asdict(self))
        return result

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], place: str = "report") -> RunReport:
        """Return the report that `to_dict` wrote. Raises UserError for any other mapping."""
        if not isinstance(values, Mapping):
            raise UserError(f"{place}: a mapping was expected, got {type(values).__name__}")
        if values.get("version") != VERSION:
            raise UserError(
                f"{place}: version {values.get('version')!r} cannot be read, only {VERSION}; "
                "run the recipe again, or install the hf_transfer that wrote it"
            )
        phases = values.get("phases")
        if not isinstance(phases, Sequence) or isinstance(phases, str):
            raise UserError(f"{place}: 'phases' must be a list")
        read = tuple(
            _build(PhaseReport, phase, f"{place}: phase {i}") for i, phase in enumerate(phases, 1)
        )
        return _build(cls, {**values, "phases": read}, place)

    def save(self, path: str | Path) -> Path:
        """Write the report as JSON, whole or not at all; return the path. Raises UserError."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        return write_text(path, text + "\n")

    @classmethod
    def load(cls, path: str | Path) -> RunReport:
        """Return the report in a file, or in a run folder's report.json. Raises UserError."""
        path = Path(path)
        path = path / "report.json" if path.is_dir() else path
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(
                f"cannot read {path}: {error.strerror}; was the run finished?"
            ) from None
        except ValueError as error:
            raise UserError(f"{path} is not a report: {error}; run the recipe again") from None
        return cls.from_dict(values, str(path))


def aggregate(reports: Sequence[RunReport]) -> Facts:
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
            ("backbone", first.backbone.get("id"), other.backbone.get("id")),
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


def split_rows(report: RunReport) -> list[tuple[str, int, list[int]]]:
    """Return (split, images, images of each class or label) of each split that has any."""
    images = report.data.get("images") or {}
    return [
        (split, images.get(split, sum(counts.values())), list(counts.values()))
        for split, counts in (report.data.get("counts") or {}).items()
        if counts
    ]


def _spread(rows: Sequence[Facts]) -> Facts:
    result: Facts = {}
    for name in rows[0]:
        values: list[Any] = [row.get(name) for row in rows]
        numbers = [value for value in values if _is_number(value)]
        if len(numbers) == len(rows) and name != "n":
            mean = math.fsum(numbers) / len(numbers)
            result[name] = {
                "mean": mean,
                "min": min(numbers),
                "max": max(numbers),
                "values": numbers,
            }
    return result


def _build(kind: type[Record], values: Any, place: str) -> Record:
    if not isinstance(values, Mapping):
        raise UserError(f"{place}: a mapping was expected, got {type(values).__name__}")
    names = [entry.name for entry in fields(kind)]
    for title, wrong in (
        ("lacks", [n for n in names if n not in values]),
        ("has unknown", [str(n) for n in values if n not in names]),
    ):
        if wrong:
            raise UserError(f"{place}: the report {title} {', '.join(wrong)}; run the recipe again")
    return kind(**values)


def _settle(record: Any, tuples: Sequence[str]) -> None:
    """Make a record's values plain, so that the file gives back an equal record."""
    for entry in fields(record):
        value = getattr(record, entry.name)
        if entry.name in tuples:
            value = tuple(v if isinstance(v, PhaseReport) else _plain(v) for v in value)
        else:
            value = _plain(value)
        object.__setattr__(record, entry.name, value)


def _plain(value: Any) -> Any:
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
