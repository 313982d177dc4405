"""The kinds of values in a recipe, and the dataclass that checks them.

Declared with pydantic, once: `mistakes` words what is wrong from the same declaration from which
`reference` makes the table of keys and the JSON schema.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, TypeVar

import pydantic.dataclasses
from pydantic import AllowInfNan, ConfigDict, Field, PlainValidator, Strict
from pydantic_core import PydanticCustomError
from typing_extensions import dataclass_transform

from hf_transfer.base.errors import RecipeError

Spec = TypeVar("Spec")


class Conflict(ValueError):
    """Settings that do not go together: (path below the spec that says so, what is wrong)."""

    def __init__(self, problems: list[tuple[tuple[str | int, ...], str]]) -> None:
        super().__init__("; ".join(text for _, text in problems))
        self.problems = tuple(problems)


def conflict(text: str) -> PydanticCustomError:
    """Return the error that says `text` of the value at hand."""
    return PydanticCustomError("said", "{text}", {"text": text})


def _text(value: Any) -> str:
    """Return a text that is not blank, also of a Path; bytes that are not UTF-8 may be in it."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise ValueError
    text.encode("utf-8", "surrogateescape")  # raises for what no file's name can hold
    return text


Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict(), AllowInfNan(False)]
Switch = Annotated[bool, Strict()]
Text = Annotated[str, PlainValidator(_text, json_schema_input_type=str)]
Share = Annotated[Number, Field(ge=0, lt=1)]
Rate = Annotated[Number, Field(gt=0, le=1e6)]


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, Field))
def spec(cls: type[Spec]) -> type[Spec]:
    """Return a class as a frozen dataclass whose values are checked whenever one is made.

    Made in Python, it raises RecipeError with a line for each mistake.
    """
    made: Any = pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))(cls)
    check: Callable[..., None] = made.__init__
    names = [field.name for field in dataclasses.fields(made) if not field.kw_only]

    @wraps(check)
    def __init__(self: Any, *args: Any, **values: Any) -> None:
        given = dict(zip(names, args, strict=False))  # pydantic knows nothing of KW_ONLY
        if len(args) > len(names) or not given.keys().isdisjoint(values):
            raise TypeError(f"{cls.__name__} takes only {', '.join(names)} by position")
        given |= values
        try:
            check(self, **given)
        except pydantic.ValidationError as error:
            from hf_transfer.recipe.mistakes import python_problems

            raise RecipeError(python_problems(made, given, error)) from None

    made.__init__ = __init__
    return made  # type: ignore[no-any-return]
