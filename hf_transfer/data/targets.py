"""Targets: what a row of a table says of its image: one class, several labels, or numbers."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from hf_transfer.base.errors import DataError

BETWEEN = "|"  # several labels in one cell of a CSV table: cat|dog
MISSING = ("nan", "<na>", "nat")  # what pandas writes where there is no value
DOUBTFUL = ("none", "null", "na", "n/a", "?", "-")  # a class, or no value
WHOLE = re.compile(r"-?[0-9]+\.0+")  # a whole number in a column that had a gap, by pandas
DECIMAL = re.compile(r"[-+]?[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?")
FLAGS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}

Target = str | tuple[str, ...] | tuple[float, ...]  # as a table has it; classes by their names


def read_target(
    task: str, values: Sequence[Any], columns: Sequence[str], place: str, own: bool = False
) -> Target:
    """Return what the cells of one row mean for a task; a column each.

    A class is a text or a whole number; labels are in one column (a list, or text with | between)
    or each in its `own` one of 0 and 1; numbers have a column each. Raises DataError, with the
    place.
    """
    if task == "classification":
        return _text(values[0], columns[0], place)
    if task == "regression":
        given = values[0] if len(values) == 1 and isinstance(values[0], list) else values
        names = target_names(columns, len(given))
        return tuple(_number(v, name, place) for v, name in zip(given, names, strict=True))
    if own:
        found = [name for v, name in zip(values, columns, strict=True) if _flag(v, name, place)]
    else:
        found = _labels(values[0], columns[0], place)
    return tuple(sorted(set(found)))


def target_names(columns: Sequence[str], count: int) -> tuple[str, ...]:
    """Return the names of a row's numbers: its columns', or those of one list numbered."""
    if len(columns) == count:
        return tuple(columns)
    return tuple(f"{columns[0]} {i}" for i in range(count))


def _text(value: Any, column: str, place: str) -> str:
    """Return a class or label: a text or a whole number; 1.0 is one, as pandas writes it."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    elif isinstance(value, str) and WHOLE.fullmatch(value.strip()):
        value = value.strip().partition(".")[0]
    if isinstance(value, (list, tuple)):
        raise DataError(
            f"{place}: {column} is a list, {_cut(value)}; several labels of an image need "
            "task: multi_label"
        )
    if isinstance(value, float) and not math.isnan(value):
        raise DataError(
            f"{place}: {column} is {value!r}, and a class is a text or a whole number; to predict "
            "numbers, set task: regression"
        )
    if not isinstance(value, (str, int, float)):
        raise DataError(f"{place}: {column} is {_cut(value)}; a class is a text or a whole number")
    text = str(value).strip()
    if not text:
        raise DataError(f"{place}: no {column}")
    if text.lower() in MISSING:
        raise DataError(
            f"{place}: {column} is {text!r}, which stands for a missing value; remove the row, or "
            "write another name"
        )
    return text


def _cut(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _labels(value: Any, column: str, place: str) -> list[str]:
    """Return the labels in a cell; an empty text or list says that there are none."""
    if isinstance(value, str):
        value = _listed(value) if value.strip() else []
    if not isinstance(value, (list, tuple)):
        raise DataError(
            f"{place}: {column} is {value!r}; several labels are a list, or a text such as "
            f"cat{BETWEEN}dog"
        )
    return [_text(label, column, place) for label in value]


def _listed(text: str) -> Sequence[Any]:
    if text.lstrip().startswith("["):
        try:
            found = json.loads(text)
        except json.JSONDecodeError:
            found = None
        if isinstance(found, list):
            return found
    return [part.strip() for part in text.split(BETWEEN) if part.strip()]


def _flag(value: Any, column: str, place: str) -> bool:
    found = FLAGS.get(str(value).strip().lower())
    if found is None:
        raise DataError(
            f"{place}: {column} is {_cut(value)}; each of data.label_columns holds 0 or 1, and a "
            "column that lists labels is data.label_column"
        )
    return found


def _number(value: Any, column: str, place: str) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        comma = isinstance(value, str) and re.fullmatch(r"-?\d+,\d+", value.strip())
        remedy = "write it with a point: 1.5" if comma else "mend the row or take it out"
        raise DataError(f"{place}: {column} is {value!r}; a target is a finite number: {remedy}")
    return number


def check_separator(path: str, column: str, targets: Iterable[Target]) -> None:
    """Raise DataError where labels look separated by another sign than ours: a;b in every row."""
    rows = [target for target in targets if target]
    odd = next((row[0] for row in rows if any(sign in str(row[0]) for sign in ";,")), None)
    if odd and all(len(row) == 1 for row in rows):
        raise DataError(
            f"{path}: {column} holds {odd!r}; several labels are separated by {BETWEEN}, as in "
            f"cat{BETWEEN}dog"
        )


def check_not_measured(path: str, columns: Sequence[str], targets: Sequence[Target]) -> None:
    """Raise DataError where the classes are measurements: numbers with decimals, hardly one twice.

    A few such numbers, as 0.5 and 1.0 of many images each, may be classes.
    """
    found = {str(target) for target in targets}
    numbers = any("." in text for text in found) and all(map(DECIMAL.fullmatch, found))
    if numbers and 2 * len(found) > len(targets):
        raise DataError(
            f"{path}: {columns[0]} holds {len(found):,} different numbers in {len(targets):,} "
            "rows; to predict numbers, set task: regression"
        )


def is_text(name: str) -> bool:
    """Return whether UTF-8 can hold a text: whether it is no name of other bytes."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def look_alikes(labels: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Return the labels that differ only in case, accents' encoding, blanks, - and _, in groups."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        plain = unicodedata.normalize("NFKC", label).casefold().removesuffix(".0")
        groups.setdefault(re.sub(r"[\s_-]+", "", plain), []).append(label)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)
