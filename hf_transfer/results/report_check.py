"""What is wrong with a report's values, in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from hf_transfer.base.boundary import printable
from hf_transfer.base.errors import UserError

WANTED = {  # pydantic's words for types that JSON calls otherwise
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "dataclass_type": "a mapping",
}
LONGEST = 60  # characters of a wrong value that are worth repeating


def checked(adapter: TypeAdapter[Any], values: Mapping[str, Any], place: str) -> Any:
    """Return what an adapter makes of a report's values. Raises UserError, one line."""
    try:
        return adapter.validate_python(values)
    except ValidationError as error:
        first, *others = error.errors(include_url=False, include_context=False)
        more = f" (and {len(others)} more problems)" if others else ""
        raise UserError(
            f"{place}: {_problem(first['loc'], first)}{more}; the report was damaged, or written "
            "by another version: run the recipe again"
        ) from None


def _problem(where: tuple[int | str, ...], found: Any) -> str:
    name = ".".join(printable(str(part)) for part in where) or "the report"
    if found["type"] == "missing":
        return f"{name} is missing"
    if found["type"] == "unexpected_keyword_argument":
        return f"{name} is unknown"
    value = shown(found["input"])
    wanted = WANTED.get(found["type"]) or found["msg"].removeprefix("Input should be ")
    return f"{name} must be {wanted}, not {value}"


def shown(value: Any) -> str:
    """Return a wrong value as it may be repeated in a line: short, and printable."""
    text = printable(repr(value))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
