"""Labels by name: what a set of images calls them, against what the model does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch.utils.data import ConcatDataset, Subset

from hf_transfer.base.boundary import printable
from hf_transfer.base.errors import UserError

COLUMNS = ("labels", "label", "label_ids")


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
