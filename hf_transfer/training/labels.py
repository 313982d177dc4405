"""Labels by name: what a set of images calls them, against what the model does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, Subset

from hf_transfer.base.boundary import printable
from hf_transfer.base.errors import UserError

COLUMNS = ("labels", "label", "label_ids")
IGNORED = -100  # torch's label of what is left out of the loss


def check_labels(images: Any, what: str, labels: Sequence[str]) -> None:
    """Raise UserError where a set gives its labels other names than the model at the same place,
    or has more of them. `what` names the set, as "the training set".

    A dictionary of sets is checked set by set; a set without names of its own fits any model.
    """
    if isinstance(images, dict):
        for name, each in images.items():
            check_labels(each, f"{what} {name}", labels)
        return
    if isinstance(images, ConcatDataset):
        for number, each in enumerate(images.datasets, 1):
            check_labels(each, f"{what}, part {number},", labels)
        return
    names = names_of(images)
    if labels and len(names) > len(labels):
        raise UserError(
            f"{what} has {len(names)} labels and the model {len(labels)}; load the model for the "
            "labels of the data"
        )
    if _unnamed(names) or _unnamed(labels):
        return
    for place, (name, own) in enumerate(zip(names, labels, strict=False)):
        if name != own:
            raise UserError(
                f"label {place} of {what} is {printable(name)!r}, and of the model "
                f"{printable(own)!r}; load the model for the labels of the data, in their order"
            )


def check_shape(label: Any, what: str, several: int) -> None:
    """Raise UserError for a label that the usual loss and metrics cannot take: one number, or of a
    task with `several` outputs that many."""
    shape = tuple(np.shape(label))
    if shape == ((several,) if several else ()) or (several == 1 and shape == ()):
        return
    wanted = f"{several} numbers" if several else "one number, of one-hot labels the argmax"
    raise UserError(
        f"{what} gives labels of shape {shape}, and a label is {wanted}; for others pass a model "
        "of another problem_type, or compute_loss_func and compute_metrics (or None) of your own"
    )


def check_class(label: Any, what: str, classes: int) -> None:
    """Raise UserError for a label that is no place among `classes`; 0: they are not known. Arrays,
    such as those of a segmentation, are not looked at."""
    if np.ndim(label) > 0:
        return
    value = label.item() if hasattr(label, "item") else label
    if isinstance(value, bool | int):
        if not classes or 0 <= value < classes or value == IGNORED:
            return
        known = f"0 to {classes - 1}, the place of a label in the model's"
        raise UserError(f"{what} gives the label {value}; a label is a whole number from {known}")
    raise UserError(
        f"{what} gives {printable(repr(value))[:40]} as a label; for a classification it is a "
        "whole number, the place of the label in the model's; for numbers to be predicted set "
        "problem_type='regression' in the model's config"
    )


def names_of(images: Any) -> tuple[str, ...]:
    """Return what a set calls its labels, in the order of their numbers; () where it does not say:
    an ImageSet, datasets' ClassLabel, torchvision's `classes`, or a Subset of one of them."""
    if isinstance(images, Subset):
        return names_of(images.dataset)
    features = getattr(images, "features", None)
    if isinstance(features, dict):
        found = (getattr(features.get(key), "names", None) for key in COLUMNS)
        return tuple(map(str, next((names for names in found if names), ())))
    for attribute in ("names", "classes"):
        names = getattr(images, attribute, None)
        if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
            return tuple(names)
    return ()


def _unnamed(names: Sequence[str]) -> bool:
    """Return whether names say nothing: numbers, and what transformers calls labels by itself."""
    return all(re.fullmatch(rf"(LABEL_)?{i}", str(name)) for i, name in enumerate(names))
