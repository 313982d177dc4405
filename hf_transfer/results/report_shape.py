"""The shape of report.json: what its nested values must be, for pydantic to check.

A report may come from anywhere. What passes here can be shown without further care.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, GetPydanticSchema, with_config
from typing_extensions import NotRequired, TypedDict

from hf_transfer.recipe.tasks import TASKS
from hf_transfer.results.metrics_shape import Count, Finite, Number, Share

Picture = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]*={0,2}$", max_length=100_000)]


def shaped(shape: Any) -> GetPydanticSchema:
    """Annotate a field of plain values with the shape that they must have."""
    return GetPydanticSchema(lambda _, handler: handler(shape))


@with_config(ConfigDict(extra="allow"))
class RecipeFacts(TypedDict, total=False):
    """What is read of the recipe as it ran."""

    task: Literal[tuple(TASKS)] | None  # type: ignore[valid-type]


@with_config(ConfigDict(extra="allow"))
class Preprocessing(TypedDict):
    """How pictures become the network's input: `ImageSettings`, and the side that is stored."""

    size: Count
    stored: Count
    channels: Count
    mean: list[Finite]
    std: list[Finite]
    interpolation: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
    crop_mode: Literal["center", "squash", "border"]
    crop_offset: Literal["nearest", "down"]
    window: tuple[Finite, Finite] | None
    frame: Count | None


@with_config(ConfigDict(extra="allow"))
class Augmentation(TypedDict, total=False):
    """How a phase varied its images."""

    crop: tuple[Finite, Finite] | None
    flip: bool
    vertical_flip: bool
    color: Finite
    erase: Finite
    rotate: Finite


@with_config(ConfigDict(extra="allow"))
class PhaseSettings(TypedDict, total=False):
    """What is read of a phase's settings, as its recipe has them."""

    optimizer: str
    schedule: str
    warmup: Number
    batch_size: Count
    accumulate: Count
    weight_decay: Finite
    label_smoothing: Number
    mixup: Number
    cutmix: Number
    l2_sp: Number
    layer_decay: Number
    augment: Augmentation | None


@with_config(ConfigDict(extra="allow"))
class BackboneFacts(TypedDict, total=False):
    """The backbone: where it came from and what it is."""

    id: str
    repo: str | None
    source: str | None
    weights: str | None
    parameters: Count | None
    license: str | None
    image_size: Count | list[Count] | None
    channels: Count | None
    preprocessing: Preprocessing


@with_config(ConfigDict(extra="allow"))
class Finding(TypedDict):
    """One kind of finding of the audit."""

    kind: str
    count: Count
    files: list[str]
    done: str


@with_config(ConfigDict(extra="allow"))
class AuditFacts(TypedDict, total=False):
    """What the audit of the images found."""

    findings: list[Finding]


@with_config(ConfigDict(extra="allow"))
class TargetFacts(TypedDict):
    """What the numbers of one target are like in a split, in their units."""

    target: str
    mean: Finite
    std: Finite
    min: Finite
    max: Finite


@with_config(ConfigDict(extra="allow"))
class Unmatched(TypedDict):
    """A label that only the data or only the model has, and what became of its images."""

    label: str
    where: str
    done: str


@with_config(ConfigDict(extra="allow"))
class UnlabelledFacts(TypedDict):
    """Images without labels that phases with `pseudo` learned from."""

    path: str
    images: Count
    held_out: Count


@with_config(ConfigDict(extra="allow"))
class DataFacts(TypedDict, total=False):
    """The images: where they came from, how many there are, and what they show."""

    path: str | None
    repo: str | None
    labels: list[str]
    images: dict[str, Count]
    counts: dict[str, dict[str, Count]]
    targets: dict[str, list[TargetFacts]]
    fingerprint: str | None
    audit: AuditFacts | None
    unmatched: list[Unmatched]
    unlabelled: UnlabelledFacts


@with_config(ConfigDict(extra="allow"))
class ExampleRow(TypedDict):
    """One image that is shown: what it is, what the model said, and a small WebP in base 64."""

    file: str
    truth: str
    answer: str
    sure: Share
    picture: Picture


@with_config(ConfigDict(extra="allow"))
class SuspectRows(TypedDict):
    """The images that a finding of the audit names, as places in `rows`."""

    kind: str
    rows: list[Count]


@with_config(ConfigDict(extra="allow"))
class Sheet(TypedDict):
    """A picture of many images."""

    title: str
    note: str
    picture: Picture


@with_config(ConfigDict(extra="allow"))
class ExamplesFacts(TypedDict, total=False):
    """The images that are shown; lists of places in `rows`, `cells` as [true, said, places]."""

    rows: list[ExampleRow]
    mistakes: list[Count]
    unsure: list[Count]
    right: list[Count]
    suspects: list[SuspectRows]
    sheets: list[Sheet]
    cells: list[tuple[Count, Count, list[Count]]]


@with_config(ConfigDict(extra="allow"))
class FigureLine(TypedDict):
    """One line of a figure; a point is (x, y), or (x, y, low, high) with its interval."""

    name: str
    points: list[tuple[Finite, Finite] | tuple[Finite, Finite, Finite, Finite]]


@with_config(ConfigDict(extra="allow"))
class Figure(TypedDict):
    """A further chart of the page; `names` are those of x = 0, 1, 2 ..."""

    title: str
    x: str
    y: str
    lines: list[FigureLine]
    note: NotRequired[str]
    names: NotRequired[list[str]]


@with_config(ConfigDict(extra="allow"))
class MovedRow(TypedDict):
    """How far a group's weights moved, over their norm, and 1 less the CKA of what leaves it."""

    group: str
    weights: Number
    representation: Number


@with_config(ConfigDict(extra="allow"))
class TriedRow(TypedDict):
    """One thing that `auto` tried, and why it was kept or not; with the metric that leads."""

    what: str
    why: str
    accuracy: NotRequired[Share]
    balanced_accuracy: NotRequired[Share]
    map: NotRequired[Share]
    r2: NotRequired[Number]
    seconds: Number
    kept: bool


@with_config(ConfigDict(extra="allow"))
class ExpectedFacts(TypedDict):
    """What to expect of the metric that leads on new images, from n that chose nothing."""

    accuracy: NotRequired[Share]
    balanced_accuracy: NotRequired[Share]
    map: NotRequired[Share]
    r2: NotRequired[Number]
    interval: NotRequired[tuple[Finite, Finite]]
    n: Count


@with_config(ConfigDict(extra="allow"))
class AutoFacts(TypedDict, total=False):
    """How `auto` found the model; metrics are of images that chose nothing."""

    expected: ExpectedFacts
    exact_head: Number
    majority: Share
    parts: Count  # of a cross-validation; 1 where one part was held out
    tried: list[TriedRow]
    budget_seconds: Number
    options: list[str]  # of the command line, besides those that the report tells elsewhere


@with_config(ConfigDict(extra="allow"))
class RateRow(TypedDict, total=False):
    """The rates of one parameter group of a phase."""

    label: str
    parameters: Count
    lr: Number
    weight_decay: Number


@with_config(ConfigDict(extra="allow"))
class Seconds(TypedDict, total=False):
    """How long the run took."""

    wall: Number
    training: Number


@with_config(ConfigDict(extra="allow"))
class Spread(TypedDict):
    """One metric over several seeds."""

    mean: Finite
    min: Finite
    max: Finite
    values: list[Finite]


@with_config(ConfigDict(extra="allow"))
class SourceFacts(TypedDict, total=False):
    """The task that the backbone was trained on first; empty where there was none."""

    task: Literal[tuple(TASKS)]  # type: ignore[valid-type]
    backbone: str | None
    weights: str | None
    path: str | None
    images: dict[str, Count]
    held_out: Count
    phases: list[str]
    metrics: dict[str, Number]
    before: dict[str, Number]
    probe: str | None
    curve: list[tuple[Finite, Finite]]
    seconds: Number
    warnings: list[str]


@with_config(ConfigDict(extra="allow"))
class SeedsFacts(TypedDict, total=False):
    """All metrics over several seeds; empty where the recipe ran once."""

    n: Count
    seeds: list[int]
    metrics: dict[str, Spread]
    test: dict[str, Spread]
    seconds: dict[str, Spread]


@with_config(ConfigDict(extra="allow"))
class FoldsFacts(TypedDict, total=False):
    """All metrics over the parts of a cross-validation; empty without one."""

    n: Count
    test: dict[str, Spread]
