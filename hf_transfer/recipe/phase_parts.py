"""Parts of a phase: how images are varied, when it stops, what it learns without labels."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from hf_transfer.recipe.values import Number, Rate, Switch, Text, Whole, conflict, spec


@spec
class Augment:
    """How training images are varied; everything is off by default."""

    crop: tuple[Rate, Rate] | None = Field(
        default=None,
        description="smallest and largest share of the area that a random crop keeps",
        json_schema_extra={
            "allowed": "two numbers above 0 and at most 1: the smallest and largest share of the "
            "area"
        },
    )
    flip: Switch = Field(default=False, description="mirror half of the images left to right")
    vertical_flip: Switch = Field(
        default=False, description="mirror half of the images top to bottom"
    )
    color: Number = Field(
        default=0.0,
        ge=0,
        le=1,
        description="strength of changes of brightness, contrast and saturation",
    )
    erase: Number = Field(default=0.0, ge=0, le=1, description="chance that a rectangle is erased")
    rotate: Number = Field(default=0.0, ge=0, le=180, description="largest rotation, in degrees")

    @field_validator("crop")
    @classmethod
    def _ordered(cls, crop: tuple[float, float] | None) -> tuple[float, float] | None:
        if crop and max(crop) > 1:
            raise ValueError
        if crop and crop[0] > crop[1]:
            raise conflict(
                f"crop has its numbers the wrong way round; write [{crop[1]:g}, {crop[0]:g}]"
            )
        return crop


STRONG = Augment(crop=(0.2, 1.0), flip=True, color=0.6, erase=0.5)
AUGMENTS = {
    "none": Augment(),
    "light": Augment(crop=(0.6, 1.0), flip=True),
    "standard": Augment(crop=(0.35, 1.0), flip=True, color=0.3),
}


@spec
class Stop:
    """When a phase ends early: `patience` evaluations without a gain above `min_change`."""

    metric: Text = Field(default="loss", description="validation metric to watch")
    patience: Whole = Field(
        default=3, ge=1, le=1_000_000, description="evaluations without a gain that end the phase"
    )
    min_change: Number = Field(
        default=0.0, ge=0, le=1e9, description="smallest change that counts as a gain"
    )


def _named_augment(value: Any) -> Any:
    return AUGMENTS.get(value, value) if isinstance(value, str) else value


def _named_stop(value: Any) -> Any:
    return Stop(patience=1) if value == "rises" else value


AugmentByName = Annotated[
    Augment,
    BeforeValidator(
        _named_augment, json_schema_input_type=Literal["none", "light", "standard"] | Augment
    ),
]
StopByName = Annotated[
    Stop | None,
    BeforeValidator(_named_stop, json_schema_input_type=Literal["rises"] | Stop | None),
]


@spec
class Pseudo:
    """What a phase learns of images without labels: its own confident answers (FixMatch)."""

    per_image: Whole = Field(
        default=4, ge=1, le=64, description="images without labels beside each labelled one"
    )
    confidence: Number = Field(
        default=0.95,
        gt=0,
        lt=1,
        description="probability from which an answer counts, on an image varied as `augment` of "
        "the phase says",
    )
    weight: Rate = Field(default=1.0, description="of their loss, beside that of labelled images")
    augment: AugmentByName = Field(
        default=STRONG,
        description="how the same image is varied to learn that answer",
        json_schema_extra={"default": "{crop: [0.2, 1], flip: true, color: 0.6, erase: 0.5}"},
    )


def _named_pseudo(value: Any) -> Any:
    return Pseudo() if value == "fixmatch" else value


PseudoByName = Annotated[
    Pseudo | None,
    BeforeValidator(_named_pseudo, json_schema_input_type=Literal["fixmatch"] | Pseudo | None),
]
