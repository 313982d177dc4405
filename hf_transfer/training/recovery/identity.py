"""Digests of what a run is made from: a resumed run must be made from the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import ConcatDataset, IterableDataset, Subset
from transformers import TrainingArguments

from hf_transfer.backbones.blueprint import Backbone
from hf_transfer.data.image_set import ImageSet
from hf_transfer.inputs.feature_key import pixels_identity
from hf_transfer.training import proof
from hf_transfer.training.labels import COLUMNS, names_of
from hf_transfer.training.loss import Objective

LABELS = ("targets", "labels")  # under which sets of torch and torchvision keep all labels
SAMPLED = 32  # items of a set that is not ours, which may take long to make


def made_of(
    model: nn.Module,
    backbone: Backbone,
    args: TrainingArguments,
    train: Any,
    evaluation: Any,
    objective: Objective,
    read_all: bool = False,
) -> dict[str, Any]:
    """Return what a run starts from, by name: weights, seed, precision, images and labels.

    With `read_all` the images are read from their files again, even if their digests are known: the
    command line's --resume does so. A new head may have other values.
    """
    weights = proof.fingerprint(model, backbone.prefix)
    return {
        "backbone": weights.digest(without=backbone.layout.head),
        "seed": args.seed if args.data_seed is None else [args.seed, args.data_seed],
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        "images": len(train) if hasattr(train, "__len__") else None,
        "training images": content(train, read_all),
        "validation images": content(evaluation, read_all),
        "class_weights": _numbers(objective.weights),
        "loss": {"focal": objective.focal, "log_prior": _numbers(objective.log_prior)},
    }


def _numbers(values: torch.Tensor | None) -> list[float] | None:
    return None if values is None else values.tolist()


def content(images: Any, read_all: bool = False) -> Any:
    """Return a short name of a set's images and labels, as plain values.

    Of an ImageSet, and of torch's Subset and ConcatDataset of them, every image counts; of another
    set its length, labels and their names, and some items where they do not vary.
    """
    if isinstance(images, dict):
        return {name: content(each, read_all) for name, each in images.items()}
    if images is None or not hasattr(images, "__len__"):
        return None if images is None else type(images).__name__
    found = hashlib.blake2b(repr((len(images), names_of(images))).encode(), digest_size=16)
    if isinstance(images, ImageSet):
        found.update(pixels_identity(images, read_all))
        found.update(np.ascontiguousarray(images.labels).data)
    elif isinstance(images, Subset):
        found.update(repr([content(images.dataset, read_all), *map(int, images.indices)]).encode())
    elif isinstance(images, ConcatDataset):
        found.update(repr([content(each, read_all) for each in images.datasets]).encode())
    else:
        columns = getattr(images, "column_names", None) or ()
        for name in (name for name in COLUMNS if name in columns):
            found.update(repr(list(images[name])).encode())
        for name in LABELS:
            labels = getattr(images, name, None)
            if isinstance(labels, list | tuple | np.ndarray | torch.Tensor):
                found.update(repr(np.asarray(labels).tolist()).encode())
        found.update(_items(images))
    return found.hexdigest()


def _items(images: Any) -> bytes:
    """Return a digest of some items of a set, evenly spaced: of what in them does not vary."""
    places = range(0, len(images), max(1, len(images) // SAMPLED)) if _by_place(images) else ()
    one, two = ([_item(images[place]) for place in places] for _ in range(2))
    names = set[str]().union(*one)
    pairs = list(zip(one, two, strict=True))
    still = {key for key in names if all(a.get(key) == b.get(key) for a, b in pairs)}
    return repr([sorted((k, v) for k, v in each.items() if k in still) for each in one]).encode()


def _by_place(images: Any) -> bool:
    return hasattr(images, "__getitem__") and not isinstance(images, IterableDataset)


def _item(item: Any) -> dict[str, str]:
    """Return a digest of each part of an item that is a number or numbers, by its name or place."""
    if isinstance(item, list | tuple):
        item = dict(enumerate(item))
    parts = item.items() if isinstance(item, Mapping) else ()
    return {
        str(key): hashlib.blake2b(
            np.ascontiguousarray(torch.as_tensor(value).cpu().numpy()).data, digest_size=16
        ).hexdigest()
        for key, value in parts
        if isinstance(value, torch.Tensor | np.ndarray | int | float)
    }
