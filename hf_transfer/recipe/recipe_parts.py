"""Parts of a recipe: its new head, drawn letters as a source, and a comparison."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator
from typing_extensions import Self

from hf_transfer.recipe.values import Conflict, Switch, Whole, spec


@spec
class HeadSpec:
    """What of the network is newly initialised for the labels."""

    replace: Whole = Field(
        default=1, ge=1, le=1000, description="layers with weights to replace, counted from the top"
    )
    keep: Switch = Field(
        default=False,
        description="keep the checkpoint's own head, which must be for the same labels",
    )

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.keep and self.replace > 1:
            raise Conflict([((), "keep and replace exclude each other; remove one of them")])
        return self


@spec
class LettersSpec:
    """Drawn letters as a source task whose labels cost nothing."""

    fonts: Whole = Field(
        default=14, ge=1, le=1000, description="fonts that the letters are drawn in"
    )
    images: Whole = Field(default=10_000, ge=26, le=10**7, description="images of letters in all")


@spec
class CompareSpec:
    """A comparison over numbers of labelled images per class, each with several seeds."""

    per_class: tuple[Annotated[Whole, Field(ge=1, le=10**6)], ...] = Field(
        min_length=1,
        description="numbers of labelled images per class to compare",
        json_schema_extra={"allowed": "a list of whole numbers such as [2, 5, 10]"},
    )
    seeds: Whole = Field(default=3, ge=1, le=1000, description="number of repeats for each")
