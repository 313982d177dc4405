"""Which labelled images score a model, and which of their labels it knows."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_transfer.base.errors import DataError, UserError
from hf_transfer.base.nearest import similar
from hf_transfer.data.sources import SPLITS, Scan, list_source
from hf_transfer.data.tables import SUFFIXES, header_of
from hf_transfer.recipe.specs import DataSpec

ALL = "all"  # images of every split


def chosen_of(
    spec: DataSpec, task: str, labels: tuple[str, ...], split: str | None
) -> tuple[Scan, str]:
    """Return the labelled images to score, and the name of their split."""
    found = listed_for(spec, task, labels)
    there = [name for name in SPLITS if name in found.images]
    if split is None:
        split = next((name for name in ("test", "validation") if name in there), ALL)
    if split == ALL:
        return found, ALL
    if not there:
        raise UserError(
            f"{found.path} has no splits; leave out split {split!r} to score all its images, or "
            "sort them into folders train, validation and test (a table: add a column split)"
        )
    if split not in there:
        own = ", ".join([*there, ALL])
        raise UserError(f"{found.path} has no split {split!r}; choose one of {own}")
    return found.take(found.splits.where(split)), split


def listed_for(spec: DataSpec, task: str, labels: tuple[str, ...]) -> Scan:
    """Return the source's images; also those of one class, where the model has it, and of a table
    with columns for some of the model's labels."""
    try:
        return list_source(spec, task, to_train=False)
    except DataError:
        other = spec
        if task != "classification" and not spec.label_columns:
            path = Path(spec.path or "").expanduser()
            there = header_of(path) if path.suffix.lower() in SUFFIXES else labels
            shared = [label for label in labels if label in there]
            other = replace(spec, label_columns=tuple(shared))
        with suppress(DataError):
            found = list_source(other, task, least=1, to_train=False)
            if set(found.labels) & set(labels):
                return found
        raise


def match_labels(found: Scan, labels: tuple[str, ...]) -> dict[str, Any]:
    """Return which labels of data and model have a partner. Raises UserError where none has."""
    counts = Counter(found.labels[at] for target in found.targets for at in found.places(target))
    known = [label for label in labels if label in found.labels]
    unknown = [label for label in found.labels if label not in labels]
    absent = [label for label in labels if label not in found.labels]
    check_known(found, labels, "the model's")
    if found.task == "regression" and absent:
        raise UserError(f"{found.path} has no target {_few(absent)}, which the model predicts")
    nearest = {label: similar(label, labels, cutoff=0.6) for label in unknown}
    return {
        "matched": known,
        "only_in_data": [
            {"label": label, "images": counts[label], "nearest": next(iter(nearest[label]), None)}
            for label in unknown
        ],
        "only_in_model": absent,
    }


def check_known(found: Scan, labels: tuple[str, ...], whose: str) -> None:
    """Raise UserError where data has no label of a model."""
    if not set(labels) & set(found.labels):
        raise UserError(
            f"no label of {found.path} ({_few(found.labels)}) is one of {whose} ({_few(labels)}); "
            "rename the folders, or the labels in the table"
        )


def _few(labels: Any) -> str:
    names = list(labels)
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
