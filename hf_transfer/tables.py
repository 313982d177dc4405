"""Tables of labelled images: CSV, JSON Lines and `datasets` become rows (name, label, split)."""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_transfer.recipe import DataSpec, UserError

logger = logging.getLogger(__name__)

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
IMAGE_COLUMNS = ("image", "path", "file", "file_name", "filename")
LABEL_COLUMNS = ("label", "class")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev", "eval"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
Row = tuple[str, str, str]  # name, label, split ("" where the source names none)


class DataError(UserError):
    """A data set that cannot be used as it is."""


# --- CSV and JSON Lines ----------------------------------------------------------------------


def read_table(path: Path, spec: DataSpec) -> list[Row]:
    """Return a row per image of a .csv, .tsv or .jsonl file with a header or keys.

    The columns are the recipe's, or where those are the defaults and absent, one of IMAGE_COLUMNS
    and LABEL_COLUMNS; `split` is used if it is there. Raises DataError with the line's number.
    """
    records = _json_lines(path) if path.suffix.lower() in (".jsonl", ".ndjson") else _csv(path)
    rows: dict[str, tuple[int, str, str]] = {}
    image = label = ""
    try:
        for line, record in records:
            place = f"{path}:{line}"
            if not image:
                image = _column(path, spec.image_column, IMAGE_COLUMNS, record, "image_column")
                label = _column(path, spec.label_column, LABEL_COLUMNS, record, "label_column")
            name = _text(record, image, place).removeprefix("./")
            here = (line, _text(record, label, place), _split(record, place))
            before = rows.setdefault(name, here)
            if before[1:] != here[1:]:
                raise DataError(
                    f"{place}: {name} has label {here[1]!r} here and {before[1]!r} on line "
                    f"{before[0]}, or another split; list every image once"
                )
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text; save the table as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path}: not a table: {error}") from error
    if not rows:
        raise DataError(f"{path}: no rows; expected a header and a row per image")
    splits = {split for _, _, split in rows.values()}
    if "" in splits and len(splits) > 1:
        line = next(line for line, _, split in rows.values() if not split)
        raise DataError(f"{path}:{line}: no split, but other rows have one; give all or none")
    return [(name, label, split) for name, (_, label, split) in rows.items()]


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        file.seek(0)
        delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=header.count)
        reader = csv.DictReader(file, delimiter=delimiter, skipinitialspace=True)
        for record in reader:
            yield reader.line_num, record


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{line}: not JSON: {error.msg}") from error
            if not isinstance(record, dict):
                raise DataError(f"{path}:{line}: expected an object with an image and a label")
            yield line, record


def _column(
    path: Path | str, wanted: str, others: tuple[str, ...], columns: Iterable[str], key: str
) -> str:
    columns = [str(column) for column in columns]
    choices = others if wanted == others[0] else (wanted,)
    for name in choices:
        if name in columns:
            return name
    raise DataError(
        f"{path}: no column {wanted!r}; set data.{key} to one of its columns: {', '.join(columns)}"
    )


def _text(record: dict[str, Any], column: str, place: str) -> str:
    value = record.get(column)
    text = str(value).strip() if isinstance(value, (str, int)) else ""
    if not text:
        raise DataError(f"{place}: no {column}")
    return text


def _split(record: dict[str, Any], place: str) -> str:
    split = str(record.get("split") or "").strip().lower()
    if split and split not in SPLIT_NAMES:
        raise DataError(f"{place}: split {split!r}; allowed: train, validation, test")
    return SPLIT_NAMES.get(split, "")


# --- datasets --------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageTable:
    """The images of a `datasets` source, undecoded: one column "image" in each split."""

    splits: dict[str, Any]

    def read(self, name: str) -> bytes:
        """Return the bytes of the image called `split/number`. Raises OSError."""
        split, _, number = name.rpartition("/")
        image = self.splits[split][int(number)]["image"]
        return image["bytes"] or Path(image["path"]).read_bytes()

    def identity(self, name: str) -> str:
        """Return the name with what `datasets` knows the content of the split by."""
        split = name.rpartition("/")[0]
        return f"{name}\0{self.splits[split]._fingerprint}"


def is_datasets(path: Path) -> bool:
    """Return whether `datasets` is to load this: what it saved, parquet, arrow, or a Hub id."""
    if path.is_file():
        return path.suffix.lower() in (".parquet", ".arrow")
    if path.is_dir():
        saved = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
        return saved or any(
            next(path.glob(pattern), None) for pattern in ("*.parquet", "data/*.parquet", "*.arrow")
        )
    name = str(path)
    return bool(HUB_ID.fullmatch(name)) and not name.startswith(".") and not path.parent.exists()


def read_datasets(
    path: Path, spec: DataSpec
) -> tuple[ImageTable, list[Row], tuple[str, ...], tuple[str, ...]]:
    """Return the images, a row for each, the class names in the source's order (empty where it has
    none) and what was ignored. Raises DataError, one line."""
    from datasets import ClassLabel, Image

    rows: list[Row] = []
    images: dict[str, Any] = {}
    order: tuple[str, ...] = ()
    ignored = []
    for key, table in _load(path, spec).items():
        split = SPLIT_NAMES.get(key.lower())
        if split is None:
            ignored.append(f"{key}/ ({len(table):,} images of a split that is not used)")
            continue
        features = table.features
        of_kind = [
            [name for name, feature in features.items() if isinstance(feature, kind)]
            for kind in (Image, ClassLabel)
        ]
        image, label = (
            kind[0] if wanted not in features and wanted == default and len(kind) == 1 else wanted
            for wanted, default, kind in zip(
                (spec.image_column, spec.label_column), ("image", "label"), of_kind, strict=True
            )
        )
        image = _column(str(path), image, IMAGE_COLUMNS, features, "image_column")
        label = _column(str(path), label, LABEL_COLUMNS, features, "label_column")
        named = features[label] if isinstance(features[label], ClassLabel) else None
        order = tuple(named.names) if named else ()
        unlabelled = 0
        for number, value in enumerate(table.select_columns([label])[:][label]):
            if value is None or value == -1:
                unlabelled += 1
                continue
            rows.append(
                (f"{key}/{number:08d}", named.int2str(value) if named else str(value), split)
            )
        if unlabelled:
            ignored.append(f"{key}/ ({unlabelled:,} images without a label)")
        images[key] = _undecoded(path, table, image)
    return ImageTable(images), rows, order, tuple(ignored)


def _undecoded(path: Path, table: Any, column: str) -> Any:
    from datasets import Image, Value

    feature = table.features[column]
    if not isinstance(feature, Image) and feature != Value("string"):
        raise DataError(f"{path}: column {column!r} holds {feature}, not images")
    table = table.select_columns([column]).cast_column(column, Image(decode=False))
    return table if column == "image" else table.rename_column(column, "image")


def _load(path: Path, spec: DataSpec) -> dict[str, Any]:
    import datasets

    try:
        if path.is_file():
            kind = "parquet" if path.suffix.lower() == ".parquet" else "arrow"
            found = datasets.load_dataset(kind, data_files=str(path))
        elif any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
            found = datasets.load_from_disk(str(path))
        else:
            found = datasets.load_dataset(str(path), name=spec.config)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        where = "" if path.exists() else ": neither a folder nor a data set on the Hub"
        raise DataError(f"data {str(path)!r}{where}: {reason}") from error
    return dict(found) if isinstance(found, dict) else {"train": found}
