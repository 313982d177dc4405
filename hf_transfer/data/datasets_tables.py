"""What `datasets` loads: saved data sets, Parquet and Arrow files, data sets of the Hub."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hf_transfer.base.bars import quiet_datasets
from hf_transfer.base.boundary import untrusted
from hf_transfer.base.errors import DataError
from hf_transfer.data import reading
from hf_transfer.data.datasets_loading import FILES, SAVED, load_tables
from hf_transfer.data.split_names import split_of
from hf_transfer.data.tables import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    SUFFIXES,
    LabelledImage,
    column,
    group_name,
    image_column,
    names_of,
    target_columns,
)
from hf_transfer.data.targets import read_target
from hf_transfer.recipe.specs import DataSpec

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
TEXTS = ("string", "large_string", "string_view")
BYTES = ("binary", "large_binary", "binary_view")


@dataclass(frozen=True)
class ImageTable:
    """The images of a `datasets` source, undecoded: one column "image" in each split.

    Paths in it are relative to one of `folders`, the first in which there is such a file.
    """

    splits: dict[str, Any]
    folders: tuple[Path, ...] = ()

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
            with reading.opened(self._located(image["path"])) as data:
                yield data

    def identity(self, name: str) -> str:
        """Return the name with what `datasets` knows the content of the split by, and of an image
        that the table has only the path of what changes with its file."""
        split, _, number = name.rpartition("/")
        known = f"{name}\0{self.splits[split]._fingerprint}"
        path = self.paths[split][int(number)].as_py()
        return known if path is None else f"{known}\0{reading.identity_of(self._located(path))}"

    def rows(self) -> Iterator[str | Path]:
        """Yield each image: the file that it is in, or the name that `opened` takes."""
        for split, paths in self.paths.items():
            for number, path in enumerate(paths):
                place = path.as_py()
                yield f"{split}/{number:08d}" if place is None else self._located(place)

    def _located(self, path: str) -> Path:
        places = [folder / path.replace("\\", "/") for folder in self.folders]
        return next((place for place in places if place.exists()), (*places, Path(path))[0])


def is_datasets(path: Path, files: Sequence[str] = ()) -> bool:
    """Return whether `datasets` is to load this: what it saved, parquet, arrow, or a Hub id.

    `files` are those in the folder, if it is one.
    """
    if path.is_file():
        return path.suffix.lower() in FILES
    if path.is_dir():
        return any(name in SAVED or name.lower().endswith(tuple(FILES)) for name in files)
    if path.suffix.lower() in (*SUFFIXES, *FILES):
        return False
    name = str(path)
    return bool(HUB_ID.fullmatch(name)) and not name.startswith(".") and not path.parent.exists()


def read_datasets(
    path: Path, files: Sequence[str], spec: DataSpec, task: str
) -> tuple[ImageTable, list[LabelledImage], tuple[str, ...], tuple[str, ...]]:
    """Return the images, a row for each, the names of classes, labels or targets in the source's
    order (empty where it has none) and what was ignored. Raises DataError, one line."""
    with untrusted(f"data {str(path)!r}", kind=DataError), quiet_datasets():
        loaded = load_tables(path, files, spec)
        if not any(map(len, loaded.values())):
            raise DataError(f"{path}: no rows; expected a row per image")
        rows: list[LabelledImage] = []
        images: dict[str, Any] = {}
        columns: tuple[str, ...] = ()
        orders: dict[str, tuple[str, ...]] = {}
        ignored = []
        own = bool(spec.label_columns)
        for key, table in loaded.items():
            split = _split_of(key, loaded)
            if split is None:
                ignored.append(f"{key}/ ({_images(len(table))} of a split that is not used)")
                continue
            image, columns = _columns(path, spec, table.features)
            orders[key] = () if own else _class_names(table.features[columns[0]])
            group = spec.group if spec.group in table.features else None
            found, unlabelled = _rows(
                path, key, split, table, columns, own, orders[key], group, task
            )
            rows += found
            if unlabelled:
                ignored.append(f"{key}/ ({_images(unlabelled)} without a label)")
            images[key] = _undecoded(path, table, image)
        told = [row.target for row in rows]
        order = _order(path, orders)
        if order and task == "multi_label":
            order = tuple(name for name in order if any(name in target for target in told))
        order = order or names_of(str(path), task, columns, told, own)
        return ImageTable(images, _folders(path, files)), rows, order, tuple(ignored)


def _images(count: int) -> str:
    return f"{count:,} image{'s' * (count != 1)}"


def read_images(path: Path) -> ImageTable:
    """Return the images of a .parquet or .arrow file, whatever labels it has. Raises DataError."""
    with untrusted(str(path), kind=DataError), quiet_datasets():
        loaded = load_tables(path, (), DataSpec())
        images = {
            key: _undecoded(path, table, _image_column(path, table.features))
            for key, table in loaded.items()
        }
    return ImageTable(images, _folders(path, ()))


def _image_column(path: Path, features: Any) -> str:
    """Return the column of images: the only one of that kind, or one with a usual name."""
    from datasets import Image

    found = [name for name, feature in features.items() if isinstance(feature, Image)]
    return found[0] if len(found) == 1 else image_column(path, tuple(features))


def _split_of(key: str, loaded: dict[str, Any]) -> str | None:
    """Return what a split is for; an only one is for training, whatever its name."""
    if len(loaded) == 1:
        return "train"
    if not any(split_of(other) == "train" for other in loaded):
        raise DataError(f"no training split among {', '.join(loaded)}; call one of them train")
    return split_of(key)


def _rows(
    path: Path,
    key: str,
    split: str,
    table: Any,
    columns: tuple[str, ...],
    own: bool,
    order: tuple[str, ...],
    group: str | None,
    task: str,
) -> tuple[list[LabelledImage], int]:
    """Return the rows of one split that have targets, and how many have none."""
    rows, unlabelled = [], 0
    chosen = table.select_columns(list(dict.fromkeys((*columns, group or columns[0]))))[:]
    groups = chosen[group] if group else [""] * len(table)
    for number, values in enumerate(zip(*(chosen[c] for c in columns), strict=True)):
        if any(v is None or v != v or (order and v == -1) for v in values):  # NaN, too
            unlabelled += 1
            continue
        name = f"{key}/{number:08d}"
        named = [_named(value, order) for value in values]
        place = f"{path}: {name}"
        its = group_name(groups[number], group, place) if group else ""
        rows.append(LabelledImage(name, read_target(task, named, columns, place, own), split, its))
    return rows, unlabelled


def _order(path: Path, orders: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the order of classes: that of training, whose names the other splits must have.

    Splits may have them in another order: they are matched by name.
    """
    train = next(key for key in orders if len(orders) == 1 or split_of(key) == "train")
    for key, names in orders.items():
        odd = sorted(set(names) ^ set(orders[train])) if names and orders[train] else ()
        if odd:
            raise DataError(
                f"{path}: the classes of {key} are not those of {train}: {', '.join(odd[:5])}; "
                "give all splits the same ClassLabel names"
            )
    return orders[train]


def _columns(path: Path, spec: DataSpec, features: Any) -> tuple[str, tuple[str, ...]]:
    """Return the columns of the images and of their targets; where there is only one image or
    ClassLabel column, it needs no name."""
    from datasets import ClassLabel, Image

    def only(wanted: str, usual: str, kind: type) -> str:
        found = [name for name, feature in features.items() if isinstance(feature, kind)]
        absent = wanted not in features and wanted == usual
        return found[0] if absent and len(found) == 1 else wanted

    image = only(spec.image_column, "image", Image)
    image = column(str(path), image, IMAGE_COLUMNS, features, "image_column")
    if spec.label_columns:
        return image, target_columns(str(path), spec, features)
    label = only(spec.label_column, "label", ClassLabel)
    return image, (column(str(path), label, LABEL_COLUMNS, features, "label_column"),)


def _class_names(feature: Any) -> tuple[str, ...]:
    """Return the names of a ClassLabel, or of a list of them; empty for any other feature."""
    return tuple(getattr(getattr(feature, "feature", feature), "names", None) or ())


def _named(value: Any, names: Sequence[str]) -> Any:
    """Return a value as a table would hold it: places in `names` as the names themselves."""
    if isinstance(value, (list, tuple)):
        return [_named(item, names) for item in value]
    return names[value] if names else value


def _undecoded(path: Path, table: Any, column: str) -> Any:
    """Return a column of images, of their bytes or of their paths as a table of undecoded ones."""
    from datasets import Features, Image, Value

    feature = table.features[column]
    kind = getattr(feature, "dtype", None)
    fields = feature if isinstance(feature, dict) else {}
    table = table.select_columns([column])
    if not isinstance(feature, Image):
        if fields:
            if not {"bytes", "path"} & set(fields):
                raise DataError(f"{path}: column {column!r} holds {feature}, not images")
            plain = {"bytes": Value("binary"), "path": Value("string")}
            table = table.map(
                lambda row: {column: {name: row[column].get(name) for name in plain}},
                features=Features({column: plain}),
            )
        elif kind in (*TEXTS, *BYTES):
            table = table.cast_column(column, Value("string" if kind in TEXTS else "binary"))
        else:
            raise DataError(f"{path}: column {column!r} holds {feature}, not images")
    table = table.cast_column(column, Image(decode=False))
    return table if column == "image" else table.rename_column(column, "image")


def _folders(path: Path, files: Sequence[str]) -> tuple[Path, ...]:
    """Return the folders that paths in tables are relative to: the tables' own, then the data's."""
    if not path.is_dir():
        return (path.parent,)
    inner = {path / os.path.dirname(name) for name in files if name.lower().endswith(tuple(FILES))}
    return (*sorted(inner - {path}), path)
