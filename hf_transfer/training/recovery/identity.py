"""What a run is made of, in short: a run that is resumed must be made of the same."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainingArguments

from hf_transfer.backbones.blueprint import Backbone
from hf_transfer.data.image_set import ImageSet
from hf_transfer.inputs.feature_key import pixels_identity
from hf_transfer.training import proof
from hf_transfer.training.labels import COLUMNS, names_of


def made_of(
    model: nn.Module,
    backbone: Backbone,
    args: TrainingArguments,
    train: Any,
    evaluation: Any,
    class_weights: torch.Tensor | None,
) -> dict[str, Any]:
    """Return what a run starts from, by name: weights, seed, precision, images and labels.

    Of an ImageSet the content of every image counts, as it was read from its file; of another set
    its length, labels and their names. A head that is new may have other values.
    """
    weights = proof.fingerprint(model, backbone.prefix)
    return {
        "backbone": weights.digest(without=backbone.layout.head),
        "seed": args.seed if args.data_seed is None else [args.seed, args.data_seed],
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        "images": len(train) if hasattr(train, "__len__") else None,
        "training images": content(train),
        "validation images": content(evaluation),
        "class_weights": None if class_weights is None else class_weights.tolist(),
    }


def content(images: Any) -> Any:
    """Return a short name of a set's images and labels, as plain values."""
    if isinstance(images, dict):
        return {name: content(each) for name, each in images.items()}
    if images is None or not hasattr(images, "__len__"):
        return None if images is None else type(images).__name__
    found = hashlib.blake2b(repr((len(images), names_of(images))).encode(), digest_size=16)
    if isinstance(images, ImageSet):
        found.update(pixels_identity(images))
        found.update(np.ascontiguousarray(images.labels))
    else:
        columns = getattr(images, "column_names", None) or ()
        for name in (name for name in COLUMNS if name in columns):
            found.update(repr(list(images[name])).encode())
    return found.hexdigest()
