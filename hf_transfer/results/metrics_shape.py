"""The shape of the metrics in report.json, and of the numbers that all of it is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, with_config
from typing_extensions import NotRequired, TypedDict

from hf_transfer.results.words import LARGEST

Count = Annotated[int, Field(strict=True, ge=0, le=10**15)]
Finite = Annotated[float, Field(strict=True, gt=-LARGEST, lt=LARGEST)]
Number = Finite | None  # None: not measured
Share = Annotated[float, Field(strict=True, ge=0, le=1)] | None


@with_config(ConfigDict(extra="allow"))
class ClassRow(TypedDict):
    """One class in `per_class`."""

    label: str
    n: Count
    precision: Share
    recall: Share
    f1: Share


@with_config(ConfigDict(extra="allow"))
class LabelRow(ClassRow):
    """One label of several in `per_label`."""

    predicted: Count
    average_precision: Share
    auroc: Share


@with_config(ConfigDict(extra="allow"))
class TargetRow(TypedDict):
    """One target of a regression in `per_target`."""

    target: str
    n: Count
    r2: Number
    mae: Finite
    rmse: Finite
    points: NotRequired[list[tuple[Finite, Finite]]]


@with_config(ConfigDict(extra="allow"))
class CalibrationRow(TypedDict):
    """The images of one bin of confidence: how sure the model was, how often it was right."""

    n: Count
    confidence: Annotated[float, Field(strict=True, ge=0, le=1)]
    accuracy: Annotated[float, Field(strict=True, ge=0, le=1)]


@with_config(ConfigDict(extra="allow"))
class GroupRow(TypedDict):
    """One group of images, such as a patient's, in `per_group`."""

    group: str
    n: Count
    value: Number
    interval: NotRequired[tuple[Finite, Finite]]


@with_config(ConfigDict(extra="allow"))
class SplitMetrics(TypedDict, total=False):
    """The metrics on one split; those of a recipe's own stand beside ours."""

    n: Count
    groups: Count
    accuracy: Share
    balanced_accuracy: Share
    map: Share
    macro_f1: Share
    micro_f1: Share
    all_right: Share
    top5: Share
    auroc: Share
    r2: Number
    mae: Number
    rmse: Number
    ece: Share
    nll: Number
    reasons: dict[str, str]
    intervals: dict[str, tuple[Finite, Finite]]
    per_class: list[ClassRow]
    per_label: list[LabelRow]
    per_target: list[TargetRow]
    per_group: list[GroupRow]
    confusion: list[list[Count]]
    calibration: list[CalibrationRow]


@with_config(ConfigDict(extra="allow"))
class Metrics(SplitMetrics, total=False):
    """The metrics on validation, under `test` those on test, and under `labelled` those of a
    finished model on other images."""

    test: SplitMetrics
    labelled: SplitMetrics
