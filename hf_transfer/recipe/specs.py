"""What a recipe says, as frozen dataclasses that check their values; `load` reads and writes YAML.

Every key is declared once, here, in `recipe_parts` or in `phase_specs`: its type, its limits, its
default and what it means.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator
from typing_extensions import Self

from hf_transfer.recipe import conflicts
from hf_transfer.recipe.phase_parts import AUGMENTS, Augment, Pseudo, Stop
from hf_transfer.recipe.phase_specs import GradualSpec, PhaseSettings, PhaseSpec, pairs
from hf_transfer.recipe.recipe_parts import CompareSpec, HeadSpec, LettersSpec
from hf_transfer.recipe.tasks import TASKS
from hf_transfer.recipe.values import Conflict, Number, Rate, Share, Switch, Text, Whole, spec

__all__ = [
    "AUGMENTS",
    "Augment",
    "CompareSpec",
    "DataSpec",
    "GradualSpec",
    "HeadSpec",
    "LettersSpec",
    "PhaseSettings",
    "PhaseSpec",
    "Pseudo",
    "Recipe",
    "SourceSpec",
    "Stop",
]


PretextName = Literal["rotation", "contrastive", "redundancy", "exemplar", "slow", "motion"]


def _kind(value: Any) -> str:
    gradual = isinstance(value, GradualSpec) or (isinstance(value, dict) and "gradual" in value)
    return "GradualSpec" if gradual else "PhaseSpec"


AnyPhase = Annotated[
    Annotated[GradualSpec, Tag("GradualSpec")] | Annotated[PhaseSpec, Tag("PhaseSpec")],
    Discriminator(_kind),
    Field(json_schema_extra={"allowed": "a mapping such as {train: head, epochs: 10}"}),
]
Weight = Annotated[Number, Field(ge=0, le=1e6)]
ByLabel = Annotated[
    Literal["sqrt"] | tuple[tuple[Text, Weight], ...],
    BeforeValidator(pairs, json_schema_input_type=Literal["sqrt"] | dict[str, Weight]),
]
Thresholds = Annotated[
    Literal["f1"] | tuple[tuple[Text, Rate], ...],
    BeforeValidator(pairs, json_schema_input_type=Literal["f1"] | dict[str, Rate]),
]
Trackers = Annotated[
    tuple[Literal["tensorboard", "trackio", "wandb", "mlflow"], ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
]
Phases = Annotated[
    tuple[AnyPhase, ...],
    Field(
        min_length=1,
        json_schema_extra={"allowed": "a list of phases such as {train: head, epochs: 10}"},
    ),
]


@spec
class DataSpec:
    """Where the images are, and how they are split."""

    path: Text | None = Field(
        default=None,
        description="folder with a subfolder for each label or split, table (CSV, JSON Lines, "
        "Parquet), saved `datasets`, or the name of a data set on the Hub",
    )
    validation: Share = Field(
        default=0.2,
        description="share of the images to validate on, where the data has no such split",
    )
    test: Share = Field(
        default=0.0, description="share of the images to test on, where the data has no such split"
    )
    image_size: Whole | None = Field(
        default=None,
        ge=8,
        le=4096,
        description="side of the images in pixels; by default the backbone's own",
    )
    train_per_class: Whole | None = Field(
        default=None, ge=1, le=10**9, description="largest number of training images of each class"
    )
    validation_per_class: Whole | None = Field(
        default=None,
        ge=1,
        le=10**9,
        description="largest number of validation images of each class",
    )
    image_column: Text = Field(
        default="image", description="column of a table that holds the images"
    )
    label_column: Text = Field(
        default="label", description="column of a table that holds the labels"
    )
    config: Text | None = Field(default=None, description="configuration of a data set on the Hub")
    max_bad: Number = Field(
        default=0.01, ge=0, le=1, description="largest share of images that cannot be read"
    )
    min_per_class: Whole = Field(
        default=2, ge=1, le=10**9, description="smallest number of training images of each class"
    )
    label_columns: tuple[Text, ...] = Field(
        default=(),
        description="columns, one for each label or number, instead of `label_column`",
        json_schema_extra={"allowed": "a list of columns, one for each label or target"},
    )
    channels: Whole | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="channels of the images; by default the backbone's",
    )

    fit: Literal["crop", "squash", "pad"] | None = Field(
        default=None,
        description="how pictures become squares: cropped, distorted, or whole with borders; by "
        "default as for the backbone's checkpoint",
    )
    group: Text | None = Field(
        default=None,
        description="images that stay together in splits, such as a patient's or video's: a column "
        "of the table, a pattern on the files' names with one group, such as `^(\\d+)_`, or a tag "
        "of DICOM files, such as `dicom:PatientID`",
    )
    window: tuple[Number, Number] | None = Field(
        default=None,
        description="window of DICOM files, [centre, width]; by default each file's own",
        json_schema_extra={"allowed": "a list of two numbers, [centre, width]"},
    )
    frame: Whole | None = Field(
        default=None, ge=1, le=10**6, description="frame of DICOM files with several, from 1"
    )
    fold: tuple[Whole, Whole] | None = Field(
        default=None,
        description="one part of a cross-validation that tests, [number, parts], from [1, 5] on; "
        "`folds` runs all of them",
        json_schema_extra={"allowed": "a list of two numbers, [number, parts]"},
    )
    unlabelled: Text | None = Field(
        default=None,
        description="folder of images without labels, in any layout, for phases with `pseudo`; by "
        "default that of the pretext in `source`",
    )

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        problems: list[conflicts.Problem] = [((), text) for text in conflicts.in_data(self)]
        if problems:
            raise Conflict(problems)
        return self


@spec
class SourceSpec:
    """A task on which the backbone is trained first: images without labels (a pretext), a labelled
    folder, or drawn letters."""

    backbone: Text = Field(description="network that is trained first")
    phases: Phases = Field(description="phases of its training")
    data: DataSpec | None = Field(
        default=None, description="images to learn from first; or give `letters`"
    )
    letters: LettersSpec | None = Field(
        default=None, description="drawn letters to learn from first"
    )
    pretext: PretextName | None = Field(
        default=None,
        description="task whose labels cost nothing, learned from the images of `data`, whose "
        "labels are ignored",
    )
    start: Literal["random", "pretrained"] = Field(
        default="random", description="weights that the network starts from"
    )

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        problems: list[conflicts.Problem] = [((), text) for text in conflicts.in_source(self)]
        if problems:
            raise Conflict(problems)
        return self


def _loss(values: dict[str, Any]) -> Any:
    return TASKS[values["task"]].loss


@spec
class Recipe:
    """Everything that a run is made of; the same recipe, data and seed give the same run."""

    name: Text = Field(
        description="name of the recipe and of its run's folder; by default its file's",
        json_schema_extra={"allowed": "a name without / and \\"},
    )
    phases: Phases = Field(description="what is trained, one phase after the other")
    task: Literal["classification", "multi_label", "regression"] | PretextName = Field(
        default="classification",
        description="what the model says about an image: one class, labels, numbers; or a pretext, "
        "which learns features from images without labels",
    )
    backbone: Text | None = Field(
        default=None,
        description="pretrained network: `timm/NAME`, `transformers/REPO`, `torchvision/NAME` or a "
        "folder",
    )
    pretrained: Switch = Field(
        default=True, description="start from pretrained weights; if false, from random ones"
    )
    weights: Text | None = Field(
        default=None, description="file of weights for a backbone that its library cannot load"
    )
    head: HeadSpec = Field(
        default=HeadSpec(), description="what is newly initialised for the labels"
    )
    data: DataSpec = Field(
        default=DataSpec(), description="where the images are, and how they are split"
    )
    loss: Literal[
        "cross_entropy", "balanced", "focal", "logit_adjusted", "squared_error", "pretext"
    ] = Field(
        default_factory=_loss,
        description="loss; for uneven classes: `balanced` gives rare ones more weight, `focal` "
        "gives easy images less weight, `logit_adjusted` learns to answer as if all classes were "
        "equally frequent",
        json_schema_extra={
            "default": "cross_entropy; squared_error for a regression; pretext for a pretext"
        },
    )
    class_weights: ByLabel = Field(
        default=(),
        description="weights of classes in the loss: a number for each label, or `sqrt` of the "
        "balanced weights",
        json_schema_extra={"allowed": "sqrt or a mapping such as {daisy: 2, rose: 0.5}"},
    )
    thresholds: Thresholds = Field(
        default=(),
        description="for several labels, the probability from which a label counts as present; "
        "chosen on validation by `f1`, or by what missing a label costs, in false alarms; by "
        "default one half",
        json_schema_extra={"allowed": "f1 or a mapping such as {crack: 5}"},
    )
    tta: Switch = Field(
        default=False,
        description="average the answers for an image and its mirror image (test-time "
        "augmentation): in the run's metrics, and saved with the model for predict, evaluate and "
        "the demo",
    )
    metrics: tuple[Text, ...] = Field(
        default=(),
        description="additional metrics of the `evaluate` library, by name",
        json_schema_extra={"allowed": "a list of metrics"},
    )
    page_images: Literal["none", "page", "card"] | None = Field(
        default=None,
        description="where images are shown: only on the report's `page`, also on the model's "
        "`card` and so in what is pushed, or nowhere",
        json_schema_extra={"default": "page; none for DICOM"},
    )
    seed: Whole = Field(
        default=0,
        ge=0,
        le=2**31 - 1,
        description="seed of everything random: split, head, augmentation",
    )
    seeds: Whole = Field(
        default=1, ge=1, le=1000, description="number of repeats, with seed, seed + 1, and so on"
    )
    folds: Whole = Field(
        default=1,
        ge=1,
        le=100,
        description="cross-validation: parts of the images, each of which tests once a model "
        "trained without it; then the final model trains on all of them",
    )
    precision: Literal["fp32", "bf16", "fp16", "auto"] = Field(
        default="fp32", description="precision of training; `auto` measures what is fastest"
    )
    report_to: Trackers = Field(
        default=(),
        description="trackers to log to: tensorboard, trackio, wandb, mlflow",
        json_schema_extra={"allowed": "one of tensorboard, trackio, wandb and mlflow, or a list"},
    )
    workers: Whole = Field(default=0, ge=0, le=1024, description="processes that load images")
    sync_batchnorm: Switch = Field(
        default=False, description="compute batch statistics over the images of all processes"
    )
    compile: Switch = Field(default=False, description="compile each phase with torch.compile")
    ends_with: Literal["best", "last"] = Field(
        default="best", description="phase whose weights the finished model has"
    )
    gradient_checkpointing: Switch = Field(
        default=False, description="run forward twice, which needs less memory and more time"
    )
    source: SourceSpec | None = Field(
        default=None, description="task on which the backbone is trained first"
    )
    compare: CompareSpec | None = Field(
        default=None, description="comparison over numbers of labelled images"
    )

    @property
    def runs(self) -> int:
        """How often the phases run: for each seed, in each fold and on all images."""
        return self.seeds * (self.folds + 1 if self.folds > 1 else 1)

    @field_validator("name")
    @classmethod
    def _is_no_path(cls, name: str) -> str:
        if name in (".", "..") or any(c in name for c in "/\\") or not name.isprintable():
            raise ValueError
        return name

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        problems = list(conflicts.in_recipe(self))
        if problems:
            raise Conflict(problems)
        return self
