"""Where labelled images come from: a folder, a table or a `datasets` source becomes one list.

Names, labels and splits only: nothing is decoded here, and torch is not imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from hf_transfer.base.boundary import untrusted
from hf_transfer.base.errors import DataError
from hf_transfer.base.files import expanded
from hf_transfer.base.signatures import checked
from hf_transfer.data.columns import Codes
from hf_transfer.data.datasets_tables import is_datasets, read_datasets
from hf_transfer.data.folders import Listing, labelled, list_folder, unused
from hf_transfer.data.image_groups import rule_groups
from hf_transfer.data.scan import SPLITS, Scan
from hf_transfer.data.split_names import split_of
from hf_transfer.data.splits import (
    by_strata,
    draw_order,
    drawn_first,
    grouped,
    iterative,
    parts,
    tenths,
)
from hf_transfer.data.tables import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    SUFFIXES,
    LabelledImage,
    TableFile,
    header_of,
    read_tables,
)
from hf_transfer.data.targets import Target, is_text
from hf_transfer.data.unlabelled import list_unlabelled
from hf_transfer.recipe.specs import DataSpec
from hf_transfer.recipe.tasks import TASKS, check_task

__all__ = ["SPLITS", "DataError", "Scan", "limited", "list_source", "near_places", "scan"]

PACKED = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".xz", ".bz2")


@checked
def scan(
    spec: DataSpec, seed: int = 0, task: str = "classification", listed: Scan | None = None
) -> Scan:
    """Return the labelled images of a source with their splits; nothing is decoded.

    `spec` names the source, and `task` says what labels are. The source is a folder of class
    folders, one of train/validation/test folders of such, a .csv, .tsv or .jsonl table, a folder or
    file of `datasets`, or a data set on the Hub (owner/name).
    Splits that it lacks are drawn from train, class by class (several labels: so that each has its
    share; numbers: tenth by tenth of the first): a pure function of names, labels and seed; the
    order in which a disk lists files changes nothing. `listed` is what `list_source` has found.
    Raises DataError, one line.
    """
    found = _split(listed or list_source(spec, task), spec, seed)
    return found.take(limited(found, spec, seed))


def list_source(
    spec: DataSpec, task: str = "classification", *, least: int = 2, to_train: bool = True
) -> Scan:
    """Return all labelled images of a source, in the splits that it has, "" where it has none.

    The only place where a source is listed: what comes after is made of this. Raises DataError,
    also for fewer than the `least` number of classes and, if images are `to_train` on, for none.
    """
    if not isinstance(spec, DataSpec):
        raise DataError(
            f"data {str(spec)!r}: pass DataSpec(path=…), which also says how to split it"
        )
    check_task(task)
    if not spec.path and TASKS[task].is_pretext:
        raise DataError("no images without labels: name a folder with --unlabelled or data.path")
    if not spec.path:
        raise DataError("no data: name a folder of class folders with --data or data.path")
    with untrusted(f"data {str(spec.path)!r}", kind=DataError):
        path = Path(spec.path).expanduser()
        try:
            if TASKS[task].is_pretext:
                return list_unlabelled(path, spec, TASKS[task])
            found = _read(path, spec, task)
        except OSError as error:
            raise DataError(f"{error.filename or path}: {error.strerror or error}") from error
    if len(found.labels) < least and task == "classification":
        only = found.labels[0]
        raise DataError(f"{path}: only one class, {only!r}{_nested(Path(found.root) / only)}")
    if spec.group and found.groups is None:
        if found.table is not None:
            raise DataError(f"{path}: no column {spec.group!r}, as data.group names")
        found = replace(found, groups=Codes(rule_groups(found.root, found.files, spec.group)))
    if to_train and not {"train", ""} & set(found.splits.table):
        only = " and ".join(sorted(found.images))
        raise DataError(
            f"{path}: no training images, only {only}; call the split to train on train"
        )
    return found


def _read(path: Path, spec: DataSpec, task: str) -> Scan:
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return _of_tables([TableFile(path)], path, path.parent, spec, task)
    listing = list_folder(path) if path.is_dir() else None
    files = listing.files if listing else ()
    if is_datasets(path, files):
        table, rows, order, ignored = read_datasets(path, files, spec, task)
        return replace(_listed(path, path, sorted(rows), ignored, order, task), table=table)
    if listing is None:
        raise DataError(_not_there(path))
    if metadata := _metadata(listing, spec):
        found = _of_tables(metadata, path, path, spec, task)
        return replace(found, ignored=unused(listing, found.files))
    if task != "classification":
        raise DataError(
            f"{path}: a folder of class folders is for task: classification; for task: {task} name "
            f"a {', '.join(SUFFIXES)} table that lists the images{_table_in(listing)}"
        )
    return _of_folders(listing)


def _of_folders(listing: Listing) -> Scan:
    images = listing.images
    if packed := [name for name in listing.files if not images and name.endswith(PACKED)]:
        raise DataError(f"{listing.root}: no images; unpack {packed[0]} first")
    if images and not any("/" in name for name in images):
        raise DataError(
            f"{listing.root}: images lie in the folder itself ({len(images):,}); put each in a "
            f"folder named after its class, or name the table that lists them{_table_in(listing)}"
        )
    rows = (LabelledImage(*row) for row in labelled(listing))
    found = _listed(listing.root, listing.root, rows)
    return replace(found, ignored=unused(listing, found.files))


def _of_tables(
    tables: Sequence[TableFile], path: Path, folder: Path, spec: DataSpec, task: str
) -> Scan:
    root, rows, order = read_tables(tables, folder, spec, task)
    return _listed(path, root, sorted(rows), order=order, task=task)


def _metadata(listing: Listing, spec: DataSpec) -> list[TableFile]:
    """Return the metadata.csv or .jsonl files, in the root or in split folders, that have labels.

    So `datasets` lays out folders of images. Without labels they are none, and folders are classes.
    """
    labels = {name.lower() for name in spec.label_columns or (spec.label_column, *LABEL_COLUMNS)}
    images = {name.lower() for name in (spec.image_column, *IMAGE_COLUMNS)}
    found = []
    for name in listing.files:
        folder, _, file = name.rpartition("/")
        if not file.lower().startswith("metadata."):
            continue
        split = split_of(folder) or ""
        if file.lower().endswith(SUFFIXES) and (split or not folder):
            columns = {column.lower() for column in header_of(listing.root / name)}
            if columns & images and columns & labels:
                table = TableFile(listing.root / name, f"{folder}/" if folder else "", split)
                found.append(table)
    return found


def _listed(
    path: Path,
    root: Path,
    rows: Iterable[LabelledImage],
    ignored: tuple[str, ...] = (),
    order: tuple[str, ...] = (),
    task: str = "classification",
) -> Scan:
    """Return the scan of rows that come in the order of their names."""
    files: list[str] = []
    told_of: list[Target] = []
    named_splits: list[str] = []
    groups: list[str] = []
    for name, target, split, group in rows:
        files.append(name)
        told_of.append(target)
        named_splits.append(split)
        if group:
            groups.append(group)
    targets = Codes(told_of)
    told = {"classification": lambda target: (target,), "multi_label": tuple}.get(task)
    present = {label for target in targets.table for label in told(target)} if told else set()
    named = tuple(label for label in order if label in present or task != "classification")
    labels = named or in_order(present)
    if not labels and files:
        raise DataError(f"{path}: no image has a label")
    if not labels:
        raise DataError(f"{path}: no images; expected one folder per class with images in each")
    if odd := next((label for label in labels if not is_text(label)), None):
        raise DataError(
            f"{path}: the label {odd!r} is not UTF-8, as a saved model's labels must be; rename "
            "its folder, or change it in the table"
        )
    place = {label: at for at, label in enumerate(labels)}
    return Scan(
        path=str(path),
        root=root,
        labels=labels,
        files=tuple(files),
        targets=targets.map(lambda target: _placed(target, place)),
        splits=Codes(named_splits),
        ignored=ignored,
        task=task,
        groups=Codes(groups) if groups else None,
    )


def _placed(target: Target, place: dict[str, int]) -> Any:
    """Return a target with labels as their places; numbers stay as they are."""
    if isinstance(target, str):
        return place[target]
    return tuple(place[part] if isinstance(part, str) else part for part in target)


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Return labels sorted, as numbers where all are whole numbers."""
    labels = list(labels)
    if all(label.isdecimal() for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))


# --- hints -----------------------------------------------------------------------------------


def _nested(folder: Path) -> str:
    listing = list_folder(folder) if folder.is_dir() else None
    folders = [name.rstrip("/") for name in listing.folders] if listing else []
    inner = [name for name in folders if "/" not in name]
    while len(inner) == 1:  # archive/flowers/flowers, as downloads are packed
        folder, (above,) = folder / inner[0].rpartition("/")[2], inner
        inner = [name for name in folders if name.rpartition("/")[0] == above]
    inner = [name.rpartition("/")[2] for name in inner]
    if len(inner) < 2:
        return "; a classifier needs at least two"
    few = ", ".join(inner[:3]) + (", ..." if len(inner) > 3 else "")
    return f"; it holds folders itself ({few}): did you mean {folder}?"


def _table_in(listing: Listing) -> str:
    tables = [name for name in listing.files if name.lower().endswith(SUFFIXES)]
    return f": {listing.root / tables[0]}" if tables else ""


def _not_there(path: Path) -> str:
    if path.exists():
        unpack = "; unpack it first" if path.suffix.lower() in PACKED else ""
        return (
            f"data {str(path)!r}: a file, not a folder of class folders or a table "
            f"({', '.join(SUFFIXES)}, .parquet){unpack}"
        )
    close = near_places(path)
    hint = f"; nearest: {', '.join(map(str, close))}" if close else ""
    return f"data {str(path)!r}: no such folder{hint}"


def check_place(where: str | Path) -> None:
    """Raise DataError for data that is no folder, no file and no name on the Hub."""
    path = expanded(where)
    if not path.exists() and not is_datasets(path):
        raise DataError(_not_there(path))


def near_places(path: Path) -> list[Path]:
    """Return up to three folders or files beside a path whose names are similar to its own."""
    folder = path.parent
    beside = sorted(os.listdir(folder)) if os.access(folder, os.R_OK) and folder.is_dir() else []
    return [folder / name for name in get_close_matches(path.name, beside, 3)]


# --- splits ----------------------------------------------------------------------------------


def _split(found: Scan, spec: DataSpec, seed: int) -> Scan:
    """Return the scan with validation and test drawn from train where the source has none.

    Of every class (numbers: of every tenth) each gets its share, at least one image (of a pretext
    that compares them two), and train keeps as many. Of several labels each gets it as nearly as
    whole images, or groups that stay together, allow; that may be none.
    """
    splits = found.splits.map(lambda split: split or "train")
    shares = {"test": spec.test, "validation": spec.validation}
    shares = {s: share for s, share in shares.items() if share and s not in splits.table}
    rows = splits.where("train")
    order = draw_order(found.files, seed, TASKS[found.task].is_pretext)
    numbers, several = found.task == "regression", found.task == "multi_label"
    strata = tenths(rows, found.targets) if numbers else found.targets.codes
    groups = None if found.groups is None else found.groups.codes
    if spec.fold is not None:
        labels = found.targets if several else strata
        tests = _tests(found, rows, parts(rows, labels, spec.fold[1], order, groups), spec.fold)
        splits, rows = splits.put(rows[tests], "test"), rows[~tests]
    if several or groups is not None:
        shown = found.targets if several else [(stratum,) for stratum in strata.tolist()]
        drawn = iterative(rows, shown, order, shares, groups)
    else:
        drawn = by_strata(rows, strata, order, shares, 2 if TASKS[found.task].compares else 1)
    for split, mine in drawn.items():
        splits = splits.put(mine, split)
    return replace(found, splits=splits)


def _tests(found: Scan, rows: np.ndarray, part: np.ndarray, fold: tuple[int, int]) -> np.ndarray:
    """Return which of the rows are in the part that tests. Raises DataError where a part has none,
    or where images that test are known already."""
    number, count = fold
    if "test" in found.splits.table:
        raise DataError(
            f"{found.path} has images to test on, and in a cross-validation every image tests "
            "once; leave out the folds, or give the images without their test split"
        )
    used = len(np.unique(part))
    if used < count:
        what = "images" if found.groups is None else "groups"
        raise DataError(
            f"{found.path}: {count} folds need {count} {what} to train on, and there are {used}"
        )
    return np.asarray(part == number - 1)


def limited(found: Scan, spec: DataSpec, seed: int) -> np.ndarray:
    """Return the rows left when no class has more images than the recipe says, int64, in order.

    They are drawn in an order that the seed decides, so a smaller limit gives a subset.
    """
    limits = {"train": spec.train_per_class, "validation": spec.validation_per_class}
    if limits == {"train": None, "validation": None}:
        return np.arange(len(found.files))
    order, codes = draw_order(found.files, seed), found.targets.codes
    kept = np.ones(len(found.files), bool)
    for split, limit in limits.items():
        if limit is not None:
            for mine in grouped(codes, found.splits.where(split)):
                kept[drawn_first(mine, order)[limit:]] = False
    return np.flatnonzero(kept)
