"""Tables of labelled images: CSV and JSON Lines become rows of a name, a target and a split."""

from __future__ import annotations

import csv
import json
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from hf_transfer.base.boundary import untrusted
from hf_transfer.base.errors import DataError
from hf_transfer.data.folders import IMAGE_SUFFIXES
from hf_transfer.data.split_names import split_of
from hf_transfer.data.targets import (
    MISSING,
    Target,
    check_not_measured,
    check_separator,
    read_target,
    target_names,
)
from hf_transfer.recipe.specs import DataSpec

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
IMAGE_COLUMNS = ("image", "path", "file", "file_name", "filename")
LABEL_COLUMNS = ("label", "class", "labels")
HEADER_ROWS = 100  # of JSON Lines, where a row may lack columns
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


class LabelledImage(NamedTuple):
    """What a source says of one image; split and group are "" where it says nothing of them."""

    name: str
    target: Target
    split: str
    group: str = ""


@dataclass(frozen=True)
class TableFile:
    """A table: its images lie relative to `folder` (of the data's root, "" or "train/"), and all
    are of one `split` where that is given."""

    path: Path
    folder: str = ""
    split: str = ""


class _Twice:
    """Stands for the value of a column that a table has twice."""


TWICE = _Twice()


def read_tables(
    tables: Sequence[TableFile], root: Path, spec: DataSpec, task: str
) -> tuple[Path, list[LabelledImage], tuple[str, ...]]:
    """Return the folder that names are relative to, a row per image, and the names of labels or
    targets in their order, where the columns give them.

    The columns are the recipe's, or where those are the defaults and absent, one of IMAGE_COLUMNS
    and LABEL_COLUMNS; `split` is used if it is there. Raises DataError with the line's number.
    """
    rows: dict[str, tuple[str, LabelledImage]] = {}
    columns: tuple[str, ...] = ()
    own = bool(spec.label_columns)
    for table in tables:
        header = header_of(table.path)
        if not header:
            continue
        image = column(table.path, spec.image_column, IMAGE_COLUMNS, header, "image_column")
        columns = target_columns(table.path, spec, header)
        group = spec.group if spec.group in header else None
        for place, row in _rows(table, root, image, columns, own, group, task):
            first, before = rows.setdefault(row.name, (place, row))
            if before != row:
                raise DataError(
                    f"{place}: {row.name} has label {row.target!r} here and {before.target!r} at "
                    f"{first}, or another split or group; list every image once"
                )
    path = tables[0].path
    if not rows:
        raise DataError(f"{path}: no rows; expected a header and a row per image")
    found = [row for _, row in rows.values()]
    if len({bool(row.split) for row in found}) > 1:
        place = next(place for place, row in rows.values() if not row.split)
        raise DataError(f"{place}: no split, but other rows have one; give all or none")
    root, found = _rebased(root, found)
    return root, found, names_of(str(path), task, columns, [row.target for row in found], own)


def listed_images(path: Path) -> Iterator[Path]:
    """Yield the image that each row of a table names, whatever labels it has. Raises DataError."""
    header = header_of(path)
    image = image_column(path, header)
    with _text_of(path):
        for line, record in _records(path):
            place = f"{path}:{line}"
            with untrusted(place, kind=DataError):
                yield path.parent / _name(_cell(record, image, place), "", path.parent, place)


def image_column(path: Path, columns: Sequence[str]) -> str:
    """Return the column that holds images by its usual name. Raises DataError."""
    try:
        return column(path, IMAGE_COLUMNS[0], IMAGE_COLUMNS, columns, "image_column")
    except DataError:
        raise DataError(
            f"{path}: no column of images; call it one of {', '.join(IMAGE_COLUMNS)}; its columns: "
            f"{', '.join(columns) or 'none'}"
        ) from None


def _rows(
    table: TableFile,
    root: Path,
    image: str,
    columns: tuple[str, ...],
    own: bool,
    group: str | None,
    task: str,
) -> Iterator[tuple[str, LabelledImage]]:
    """Yield each row with its place, as in "list.csv:7"."""
    with _text_of(table.path):
        for line, record in _records(table.path):
            place = f"{table.path}:{line}"
            with untrusted(place, kind=DataError):
                name = _name(_cell(record, image, place), table.folder, root, place)
                values = [_cell(record, each, place) for each in columns]
                target = read_target(task, values, columns, place, own)
                split = _split(record, place) or table.split
                its = group_name(_cell(record, group, place), group, place) if group else ""
            yield place, LabelledImage(name, target, split, its)


@contextmanager
def _text_of(path: Path) -> Iterator[None]:
    try:
        with untrusted(str(path), kind=DataError):
            yield
    except DataError as error:
        if isinstance(error.__cause__, UnicodeDecodeError):
            raise DataError(f"{path}: not UTF-8 text; save the table as UTF-8") from error
        raise


def header_of(path: Path) -> tuple[str, ...]:
    """Return the names of a table's columns; empty for a table without rows."""
    with _text_of(path):
        first = islice(_records(path), HEADER_ROWS if _is_json(path) else 1)
        return tuple(dict.fromkeys(name for _, record in first for name in record))


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    return _json_lines(path) if _is_json(path) else _csv(path)


def _is_json(path: Path) -> bool:
    return path.suffix.lower() in (".jsonl", ".ndjson")


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        file.seek(0)
        delimiter = "\t" if "\t" in header else max(",;|", key=header.count)
        reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
        columns = [name.strip() for name in next(reader, ())]
        above = reader.line_num
        for cells in reader:
            line, above = above + 1, reader.line_num  # where the row begins, if a cell goes on
            more = [cell for cell in cells[len(columns) :] if cell.strip()]
            if more:
                raise DataError(
                    f"{path}:{line}: {len(cells)} cells where the header has "
                    f"{len(columns)}; put a cell that holds {delimiter!r} in quotes"
                )
            if any(cell.strip() for cell in cells):
                yield line, _once(zip(columns, cells, strict=False))


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            remedy = "each line must be one JSON object"
            with untrusted(f"{path}:{line}", remedy, DataError):
                record = json.loads(text, object_pairs_hook=_once)
            if not isinstance(record, dict):
                raise DataError(f"{path}:{line}: expected an object with an image and a label")
            yield line, record


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return pairs as a dict, with what comes twice marked as such."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        found[name] = TWICE if name in found else value
    return found


# --- columns ---------------------------------------------------------------------------------


def column(
    path: Path | str, wanted: str, others: tuple[str, ...], columns: Iterable[str], key: str
) -> str:
    """Return the column called `wanted`, or where that is the first of `others` and absent, one of
    those; upper and lower case may differ. Raises DataError that names `data.{key}`."""
    columns = [str(column) for column in columns]
    choices = others if wanted in others[:1] else (wanted,)
    for same in (str, str.lower):
        for choice in choices:
            found = [name for name in columns if same(name).strip() == same(choice)]
            if found:
                return found[0]
    if any(os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES for name in columns):
        raise DataError(
            f"{path}: the first line must name the columns, as in image,label; it is "
            f"{','.join(columns)}"
        )
    raise DataError(
        f"{path}: no column {wanted!r}; set data.{key} to one of its columns: {', '.join(columns)}"
    )


def target_columns(path: Path | str, spec: DataSpec, columns: Iterable[str]) -> tuple[str, ...]:
    """Return the columns that hold the targets. Raises DataError for one that is not there."""
    columns = list(columns)
    if not spec.label_columns:
        return (column(path, spec.label_column, LABEL_COLUMNS, columns, "label_column"),)
    return tuple(column(path, c, (), columns, "label_columns") for c in spec.label_columns)


def names_of(
    path: str, task: str, columns: Sequence[str], targets: Sequence[Target], own: bool
) -> tuple[str, ...]:
    """Return the names that the columns give, in their order; empty where the cells hold them.
    Several labels have their `own` columns, or lie in one.

    Raises DataError where rows have different numbers of targets, or labels look joined.
    """
    if task == "regression":
        counts = {len(target) for target in targets}
        if len(counts) > 1:
            raise DataError(f"{path}: {columns[0]} holds lists of different lengths: {counts}")
        return target_names(columns, counts.pop() if counts else 0)
    if task == "classification":
        check_not_measured(path, columns, targets)
    if task == "multi_label" and not own:
        check_separator(path, columns[0], targets)
    return tuple(columns) if task == "multi_label" and own else ()


# --- cells -----------------------------------------------------------------------------------


def _cell(record: dict[str, Any], column: str, place: str) -> Any:
    value = record.get(column)
    if value is None:
        raise DataError(f"{place}: no {column}")
    if value is TWICE:
        raise DataError(f"{place}: column {column!r} is there twice; rename or remove one")
    return value


def _name(value: Any, folder: str, root: Path, place: str) -> str:
    """Return an image's name relative to the root, where it lies below it."""
    text = str(value).strip() if isinstance(value, (str, int)) else ""
    if not text:
        raise DataError(f"{place}: no image")
    if "\0" in text:
        raise DataError(f"{place}: the name of the image holds a NUL character")
    if ADDRESS.match(text):
        raise DataError(f"{place}: {text} is an address; download the images and list the files")
    os.fsencode(text)  # raises for what no file can be called
    if "\\" in text and not (root / folder / text).exists():  # as Windows writes it
        text = text.replace("\\", "/")
    return posixpath.normpath(posixpath.join(folder, text))


def _split(record: dict[str, Any], place: str) -> str:
    text = str(_cell({"split": "", **record}, "split", place)).strip() if "split" in record else ""
    split = split_of(text)
    if text and not split:
        raise DataError(f"{place}: split {text!r}; allowed: train, validation, test")
    return split or ""


def group_name(value: Any, column: str, place: str) -> str:
    text = str(value).strip() if isinstance(value, (str, int, float)) else ""
    if not text or text.lower() in MISSING:
        raise DataError(f"{place}: no {column}, which data.group names")
    return text


def _rebased(root: Path, rows: list[LabelledImage]) -> tuple[Path, list[LabelledImage]]:
    """Return the folder that names are relative to, and the rows with names relative to it.

    It is the table's own, or where all images lie elsewhere, the one that holds them.
    """
    own = f"{root.resolve().as_posix()}/"
    absolute = [row.name for row in rows if os.path.isabs(row.name)]
    if not absolute:
        return root, rows
    if len(absolute) == len(rows) and not all(name.startswith(own) for name in absolute):
        root = Path(os.path.commonpath([posixpath.dirname(name) for name in absolute]))
        own = f"{root.as_posix().rstrip('/')}/"
    return root, [row._replace(name=row.name.removeprefix(own)) for row in rows]
