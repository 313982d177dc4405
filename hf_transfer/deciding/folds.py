"""Folds: which images predict which, so that what is estimated never saw what it is tested on.

Everything that comes from the images belongs inside the fold: heads, their strength, statistics.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from transformers import PreTrainedModel

from hf_transfer.base.errors import UserError
from hf_transfer.data.image_set import ImageData, load_data
from hf_transfer.data.scan import Scan
from hf_transfer.data.splits import parts, tenths
from hf_transfer.recipe.specs import Recipe

FOLDS, REPEATS = 5, 3


def folds(
    labels: np.ndarray,
    count: int = FOLDS,
    *,
    repeats: int = REPEATS,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Return the fold of each image in each repeat, int64 (repeats, N), each in 0..count - 1.

    Every class has its share in each fold, as nearly as whole images allow; `labels` are classes
    (N,), 0 and 1 or bool (N, L), or floats, which are numbers (N, T). Images of a group (N,) stay
    together. With fewer groups (or images) than folds there are as many folds as groups. Raises
    UserError below two.
    """
    labels = np.asarray(labels)
    units = len(labels) if groups is None else len(np.unique(groups))
    count = min(count, units)
    if count < 2:
        what = "one image" if groups is None else "one group"
        raise UserError(f"cross-validation needs two folds, and there is {what}")
    codes = None if groups is None else np.unique(groups, return_inverse=True)[1]
    return np.stack([_dealt(labels, count, codes, seed + at) for at in range(repeats)])


def _dealt(labels: np.ndarray, count: int, groups: np.ndarray | None, seed: int) -> np.ndarray:
    order = np.random.default_rng(seed).permutation(len(labels))
    rows = np.arange(len(labels))
    if labels.dtype.kind == "f":
        labels = tenths(rows, labels.reshape(len(labels), -1).tolist())
    if labels.ndim == 1 and groups is None:
        order = np.argsort(order)  # the place of each image in it
    shown = labels if labels.ndim == 1 else [np.flatnonzero(row).tolist() for row in labels]
    return parts(rows, shown, count, order, groups)


def pairs(fold: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (rows to fit on, rows to predict) for each fold of one repeat, (N,); none is empty."""
    for one in np.unique(fold):
        yield np.flatnonzero(fold != one), np.flatnonzero(fold == one)


def groups_of(found: Scan, files: Sequence[str]) -> np.ndarray | None:
    """Return the group of each file (N,), as `data.group` has it; None where it says nothing."""
    if found.groups is None:
        return None
    place = dict(zip(found.files, found.groups.codes.tolist(), strict=True))
    return np.array([place[name] for name in files], np.int64)


def labelled(recipe: Recipe, listed: Scan, model: PreTrainedModel) -> ImageData:
    """Return the data with all labelled images in train: folds of them validate."""
    pooled = listed.splits.map(lambda split: "train" if split == "validation" else split)
    spec = dataclasses.replace(recipe.data, validation=0.0)
    return load_data(
        spec,
        model.backbone.image,
        recipe.seed,
        task=recipe.task,
        listed=dataclasses.replace(listed, splits=pooled),
        folds=True,
    )
