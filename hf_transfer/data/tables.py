"""Tables of labelled images: CSV, JSON Lines and `datasets` become rows (name, target, split)."""

from __future__ import annotations

import csv
import errno
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hf_transfer.base.errors import DataError
from hf_transfer.data import reading
from hf_transfer.data.targets import Target, check_separator, read_target, target_names
from hf_transfer.recipe.specs import DataSpec

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
Row = tuple[str, Target, str]  # name, target, split ("" where the source names none)


# --- CSV and JSON Lines ----------------------------------------------------------------------


def read_table(path: Path, spec: DataSpec, task: str) -> tuple[list[Row], tuple[str, ...]]:
    """Return a row per image of a .csv, .tsv or .jsonl file with a header or keys, and the names
    of labels or targets in their order, where the columns give them.

    The columns are the recipe's, or where those are the defaults and absent, one of IMAGE_COLUMNS
    and LABEL_COLUMNS; `split` is used if it is there. Raises DataError with the line's number.
    """
    records = _json_lines(path) if path.suffix.lower() in (".jsonl", ".ndjson") else _csv(path)
    rows: dict[str, tuple[int, Target, str]] = {}
    image = ""
    columns: tuple[str, ...] = ()
    try:
        for line, record in records:
            place = f"{path}:{line}"
            if not image:
                image = _column(path, spec.image_column, IMAGE_COLUMNS, record, "image_column")
                columns = _target_columns(path, spec, record)
            name = _text(record, image, place).removeprefix("./")
            values = [_cell(record, column, place) for column in columns]
            here = (line, read_target(task, values, columns, place), _split(record, place))
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
    found = [(name, target, split) for name, (_, target, split) in rows.items()]
    return found, names_of(str(path), task, columns, [target for _, target, _ in found])


def names_of(
    path: str, task: str, columns: Sequence[str], targets: Sequence[Target]
) -> tuple[str, ...]:
    """Return the names that the columns give, in their order; empty where the cells hold them.

    Raises DataError where rows have different numbers of targets, or labels look joined.
    """
    if task == "regression":
        counts = {len(target) for target in targets}
        if len(counts) > 1:
            raise DataError(f"{path}: {columns[0]} holds lists of different lengths: {counts}")
        return target_names(columns, counts.pop() if counts else 0)
    if task == "multi_label" and len(columns) == 1:
        check_separator(path, columns[0], targets)
    return tuple(columns) if task == "multi_label" and len(columns) > 1 else ()


def _target_columns(path: Path | str, spec: DataSpec, columns: Iterable[str]) -> tuple[str, ...]:
    columns = list(columns)
    if not spec.label_columns:
        return (_column(path, spec.label_column, LABEL_COLUMNS, columns, "label_column"),)
    return tuple(_column(path, c, (), columns, "label_columns") for c in spec.label_columns)


def _cell(record: dict[str, Any], column: str, place: str) -> Any:
    value = record.get(column)
    if value is None:
        raise DataError(f"{place}: no {column}")
    return value


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
    choices = others if wanted in others[:1] else (wanted,)
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


def identity_of(path: Path | str) -> str:
    """Return what changes when a file does, or that it is missing.

    Size and time of modification are what `tar` and `rsync -a` set; the time of the inode's change
    and the inode are not.
    """
    try:
        found = os.stat(path)
    except OSError:
        return "missing"
    return f"{found.st_size}\0{found.st_mtime_ns}\0{found.st_ctime_ns}\0{found.st_ino}"


# --- datasets --------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageTable:
    """The images of a `datasets` source, undecoded: one column "image" in each split."""

    splits: dict[str, Any]

    @cached_property
    def paths(self) -> dict[str, Any]:
        """For each row of a split the file that its image is in; null where the table has it."""
        from pyarrow.compute import if_else, is_null, struct_field

        images = {split: t.with_format("arrow")[:]["image"] for split, t in self.splits.items()}
        return {
            split: if_else(is_null(struct_field(each, "bytes")), struct_field(each, "path"), None)
            for split, each in images.items()
        }

    @contextmanager
    def opened(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of the image called `split/number`. Raises OSError."""
        split, _, number = name.rpartition("/")
        image = self.splits[split][int(number)]["image"]
        if image is None or (image["bytes"] is None and image["path"] is None):
            raise FileNotFoundError(errno.ENOENT, "the row has no image", name)
        if image["bytes"] is not None:
            yield image["bytes"]
        else:
            with reading.opened(image["path"]) as data:
                yield data

    def identity(self, name: str) -> str:
        """Return the name with what `datasets` knows the content of the split by, and of an image
        that the table has only the path of what changes with its file."""
        split, _, number = name.rpartition("/")
        known = f"{name}\0{self.splits[split]._fingerprint}"
        path = self.paths[split][int(number)].as_py()
        return known if path is None else f"{known}\0{identity_of(path)}"


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
    path: Path, spec: DataSpec, task: str
) -> tuple[ImageTable, list[Row], tuple[str, ...], tuple[str, ...]]:
    """Return the images, a row for each, the names of classes, labels or targets in the source's
    order (empty where it has none) and what was ignored. Raises DataError, one line."""
    rows: list[Row] = []
    images: dict[str, Any] = {}
    columns: tuple[str, ...] = ()
    order: tuple[str, ...] = ()
    ignored = []
    for key, table in _load(path, spec).items():
        split = SPLIT_NAMES.get(key.lower())
        if split is None:
            ignored.append(f"{key}/ ({len(table):,} images of a split that is not used)")
            continue
        image, columns = _dataset_columns(path, spec, table.features)
        order = _class_names(table.features[columns[0]]) if len(columns) == 1 else ()
        unlabelled = 0
        chosen = table.select_columns(list(columns))[:]
        for number, values in enumerate(zip(*(chosen[c] for c in columns), strict=True)):
            if any(value is None or (order and value == -1) for value in values):
                unlabelled += 1
                continue
            name = f"{key}/{number:08d}"
            named = [_named(value, order) for value in values]
            rows.append((name, read_target(task, named, columns, f"{path}: {name}"), split))
        if unlabelled:
            ignored.append(f"{key}/ ({unlabelled:,} images without a label)")
        images[key] = _undecoded(path, table, image)
    told = [target for _, target, _ in rows]
    if order and task == "multi_label":
        order = tuple(name for name in order if any(name in target for target in told))
    order = order or names_of(str(path), task, columns, told)
    return ImageTable(images), rows, order, tuple(ignored)


def _dataset_columns(path: Path, spec: DataSpec, features: Any) -> tuple[str, tuple[str, ...]]:
    """Return the columns of the images and of what is told of them; an only image or ClassLabel
    column needs no name."""
    from datasets import ClassLabel, Image

    def only(wanted: str, usual: str, kind: type) -> str:
        found = [name for name, feature in features.items() if isinstance(feature, kind)]
        absent = wanted not in features and wanted == usual
        return found[0] if absent and len(found) == 1 else wanted

    image = only(spec.image_column, "image", Image)
    image = _column(str(path), image, IMAGE_COLUMNS, features, "image_column")
    if spec.label_columns:
        return image, _target_columns(str(path), spec, features)
    label = only(spec.label_column, "label", ClassLabel)
    return image, (_column(str(path), label, LABEL_COLUMNS, features, "label_column"),)


def _class_names(feature: Any) -> tuple[str, ...]:
    """Return the names of a ClassLabel, or of a list of them; empty for any other feature."""
    return tuple(getattr(getattr(feature, "feature", feature), "names", ()))


def _named(value: Any, names: Sequence[str]) -> Any:
    """Return a value as a table would hold it: places in `names` as the names themselves."""
    if isinstance(value, (list, tuple)):
        return [_named(item, names) for item in value]
    return names[value] if names else value


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
