"""What a recipe says of one phase: what trains, for how long, at which rates, on what."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import Self

from hf_transfer.recipe import conflicts
from hf_transfer.recipe.phase_parts import AUGMENTS, AugmentByName, PseudoByName, StopByName
from hf_transfer.recipe.values import (
    Conflict,
    Number,
    Rate,
    Share,
    Switch,
    Text,
    Whole,
    spec,
)

OPTIMIZERS = ("adamw", "sgd", "adafactor", "adagrad", "rmsprop")
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "polynomial", "inverse_sqrt")
GRADUAL = re.compile(r"(\d+) ?(stage|block|%)s?")
UNKNOWN_LR = 1e-3  # what plans show for lr: auto
RATE_PAIR = "the rate of the first group and that of the last"


def pairs(value: Any) -> Any:
    """Return a mapping as pairs, which a frozen spec can hold; anything else as it is."""
    return tuple(value.items()) if isinstance(value, Mapping) else value


@spec
class PhaseSettings:
    """What any phase may say, but for what trains in it."""

    _: dataclasses.KW_ONLY
    name: Text | None = Field(
        default=None, description="name of the phase and of its folder; by default from `train`"
    )
    epochs: Number | None = Field(
        default=None, gt=0, le=1e6, description="length in epochs; or give `steps`"
    )
    steps: Whole | None = Field(
        default=None, ge=1, le=10**9, description="length in optimizer steps"
    )
    min_steps: Whole | None = Field(
        default=None,
        ge=1,
        le=10**9,
        description="least number of optimizer steps: with few images, more epochs than `epochs`; "
        "`stop` does not end a phase before",
    )
    lr: Rate | tuple[Rate, Rate] | Literal["auto"] = Field(
        default=1e-3,
        description="learning rate of the head. Of two rates, the first is for the lowest group "
        "that trains, the last for the head, with equal ratios between them; `auto` finds one rate "
        "by a range test before the phase",
        json_schema_extra={
            "allowed": f"a number above 0 and at most 1,000,000, or two: {RATE_PAIR}; or auto"
        },
    )
    layer_decay: Number | None = Field(
        default=None,
        gt=0,
        le=1,
        description="factor on the rate from group to group, from the head down",
    )
    lrs: Annotated[
        tuple[tuple[Text, Rate], ...],
        BeforeValidator(pairs, json_schema_input_type=dict[str, Rate]),
    ] = Field(
        default=(),
        description="rates by selector; the first selector that matches a parameter sets its rate",
        json_schema_extra={"allowed": "a mapping such as {head: 1e-3, last 1 stage: 1e-4}"},
    )
    weight_decay: Number = Field(
        default=0.01,
        ge=0,
        le=1e6,
        description="weight decay; never for biases, norms and other one-dimensional parameters",
    )
    optimizer: Text = Field(
        default="adamw",
        description="optimizer",
        json_schema_extra={"enum": list(OPTIMIZERS)},
    )
    momentum: Share | None = Field(default=None, description="momentum of `sgd` and `rmsprop`")
    schedule: Text = Field(
        default="cosine",
        description="how the rates change during the phase",
        json_schema_extra={"enum": list(SCHEDULES)},
    )
    warmup: Number | None = Field(
        default=None,
        ge=0,
        le=1e9,
        description="how long the rates rise at first: below 1 a share of the phase, else in "
        "steps; by default 0, and 0.1 after a head that was solved for",
        json_schema_extra={"allowed": "a share of the phase below 1 or a whole number of steps"},
    )
    batch_size: Whole = Field(
        default=32, ge=1, le=1_000_000, description="images in a batch of one process"
    )
    accumulate: Whole = Field(
        default=1, ge=1, le=1_000_000, description="batches in one optimizer step"
    )
    sampler: Literal["shuffled", "balanced"] = Field(
        default="shuffled",
        description="how an epoch draws images; `balanced`: equally many of each class",
    )
    augment: AugmentByName = Field(
        default=AUGMENTS["none"],
        description="how training images are varied",
        json_schema_extra={
            "default": "none",
            "allowed": "none, light, standard or a mapping such as {crop: [0.5, 1], flip: true}",
        },
    )
    label_smoothing: Share = Field(
        default=0.0, description="share of the target that goes to the other labels"
    )
    mixup: Number = Field(
        default=0.0, ge=0, le=1e3, description="a of Beta(a, a) that mixes images"
    )
    cutmix: Number = Field(
        default=0.0, ge=0, le=1e3, description="a of Beta(a, a) that pastes rectangles"
    )
    pseudo: PseudoByName = Field(
        default=None,
        description="also learn from the images of `data.unlabelled`, by the network's own "
        "confident answers; `fixmatch`: with the defaults. A phase that makes validation worse is "
        "undone",
        json_schema_extra={
            "allowed": "fixmatch or a mapping such as {per_image: 4, confidence: 0.95}"
        },
    )
    stop: StopByName = Field(
        default=None,
        description="when to end the phase early; `rises`: as soon as the validation loss rises",
        json_schema_extra={
            "allowed": "rises (until validation loss rises) or a mapping such as "
            "{metric: loss, patience: 3}"
        },
    )
    best: Text = Field(
        default="loss",
        description="metric whose best epoch the phase ends with; `last` means the last epoch",
    )
    l2_sp: Number = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="strength of the pull of the backbone towards its pretrained weights (L2-SP)",
    )
    max_grad_norm: Number = Field(
        default=1.0, ge=0, le=1e9, description="largest norm of the gradient; 0 means no limit"
    )
    features: Literal["auto", "cached", "live"] = Field(
        default="auto",
        description="whether the frozen part runs once, with its outputs kept on disk (`cached`)",
    )
    feature_precision: Literal["fp32", "fp16"] = Field(
        default="fp32", description="precision of cached features on disk"
    )
    views: Whole = Field(
        default=1, ge=1, le=10_000, description="augmented versions of each image to cache"
    )
    solve: Literal["lbfgs"] | None = Field(
        default=None,
        description="solve for the head exactly instead of taking steps: logistic regression, or "
        "for numbers ridge regression",
    )
    still_norms: Switch | None = Field(
        default=None,
        description="keep the statistics of normalisation layers fixed even where they train; by "
        "default only after a head that was solved for",
        json_schema_extra={"allowed": "true or false"},
    )
    reestimate_norms: Switch | Annotated[Whole, Field(ge=2, le=10**9)] = Field(
        default=False,
        description="re-estimate the statistics of BatchNorm before the phase, on all training "
        "images or on a number of them",
        json_schema_extra={"allowed": "true, false or a number of images from 2"},
    )
    keep_adapters: Switch = Field(
        default=False, description="also write the adapters as a folder that peft opens"
    )
    on_nan: Literal["stop", "rollback"] = Field(
        default="stop",
        description="what to do when the loss is not a number; `rollback`: return to the last good "
        "checkpoint and divide the rates by 10",
    )
    cold_head: Switch = Field(
        default=False,
        description="allow the backbone to train under a new head that has not trained yet",
    )
    place: SkipJsonSchema[str] = dataclasses.field(  # "recipe.yaml:14", if from a file
        default="", compare=False, repr=False
    )

    @model_validator(mode="before")
    @classmethod
    def _used(cls, value: Any) -> Any:
        """Refuse keys of a recipe that a solver does not use, even at their defaults."""
        if isinstance(value, dict) and value.get("solve"):
            given = [key for key, setting in value.items() if setting is not None]
            _refuse(conflicts.with_solve(given))
        return value

    @field_validator("lrs")
    @classmethod
    def _not_empty(cls, value: Any, info: ValidationInfo) -> Any:
        if info.context and not value:  # written in a recipe, and not the default
            raise ValueError
        return value

    @field_validator("optimizer", "schedule")
    @classmethod
    def _is_known(cls, name: str, info: ValidationInfo) -> str:
        known = OPTIMIZERS if info.field_name == "optimizer" else SCHEDULES
        if info.context and name not in known:  # in Python any of transformers' may be named
            raise ValueError
        return name

    @field_validator("warmup")
    @classmethod
    def _whole_steps(cls, warmup: float | None) -> float | None:
        if warmup and warmup > 1 and warmup != int(warmup):
            raise ValueError
        return warmup

    @property
    def is_augmented(self) -> bool:
        """Whether training images vary from epoch to epoch."""
        return self.augment != AUGMENTS["none"]

    @property
    def lr_ends(self) -> tuple[float, float] | None:
        """The rate of the lowest group that trains and the head's, where `lr` gives two."""
        return self.lr if isinstance(self.lr, tuple) else None

    @property
    def head_lr(self) -> float:
        """The rate of the head; where it is to be found, the one that stands for it."""
        if isinstance(self.lr, str):
            return UNKNOWN_LR
        return self.lr[1] if isinstance(self.lr, tuple) else self.lr

    def scaled(self, factor: float) -> Self:
        """Return the same settings with all rates times a factor."""
        ends = self.lr_ends
        one: Any = self.lr if isinstance(self.lr, str) else self.head_lr * factor
        return dataclasses.replace(
            self,
            lr=(ends[0] * factor, ends[1] * factor) if ends else one,
            lrs=tuple((selector, rate * factor) for selector, rate in self.lrs),
        )


@spec
class PhaseSpec(PhaseSettings):
    """One phase as the recipe says it."""

    train: Text | tuple[Text, ...] = Field(
        description="selector of what trains, or several: all that they select, except what those "
        "with `not ` select",
        json_schema_extra={"allowed": "a text or a list of selectors", "minItems": 1},
    )

    @field_validator("train")
    @classmethod
    def _closed(cls, train: Any) -> Any:
        if not train:
            raise ValueError
        return train

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        _refuse(conflicts.in_phase(self))
        return self


@spec
class GradualSpec(PhaseSettings):
    """Gradual unfreezing: phases that train the head first, then one step more of the network."""

    gradual: Text = Field(
        description="step by which each phase trains more: stages, blocks or a share of the blocks",
        json_schema_extra={"allowed": "a step such as 1 stage, 2 blocks or 25%"},
    )
    lr_drop: Number = Field(
        default=1.0,
        gt=0,
        le=1,
        description="factor on all rates from one of these phases to the next",
    )
    thaws: Whole | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="number of steps; by default until everything trains",
    )

    @field_validator("gradual")
    @classmethod
    def _is_step(cls, text: str) -> str:
        found = GRADUAL.fullmatch(text)
        if not found or not 0 < int(found[1]) <= (100 if found[2] == "%" else 1_000_000):
            raise ValueError
        count, grain = int(found[1]), found[2]
        return f"{count}%" if grain == "%" else f"{count} {grain}{'s' * (count > 1)}"

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        _refuse([*conflicts.in_phase(self), *conflicts.in_gradual(self)])
        return self

    @property
    def count(self) -> int:
        """How many stages, blocks or percent of the blocks each step adds."""
        return int(re.match(r"\d+", self.gradual)[0])  # type: ignore[index]

    @property
    def grain(self) -> Literal["stages", "blocks", "%"]:
        """What `count` counts."""
        return "%" if "%" in self.gradual else "stages" if "stage" in self.gradual else "blocks"

    def phase(self, train: str, step: int) -> PhaseSpec:
        """Return the phase that trains `train`, `step` phases after the first of these."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(PhaseSettings)}
        made = PhaseSpec(**{**own, "train": train, "name": self.name and f"{self.name} {train}"})
        return made.scaled(self.lr_drop**step)


def _refuse(problems: Iterable[str]) -> None:
    """Raise Conflict where there are problems."""
    found: list[conflicts.Problem] = [((), text) for text in problems]
    if found:
        raise Conflict(found)
