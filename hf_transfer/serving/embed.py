"""Images to features, numbers in which similar images lie close: those that the head reads, or
those that arrive at any other group of the network."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_transfer.backbones.access import evaluating
from hf_transfer.base.boundary import as_text, printable
from hf_transfer.base.cache import StoreError
from hf_transfer.base.errors import UserError
from hf_transfer.base.nearest import nearest
from hf_transfer.base.signatures import checked
from hf_transfer.inputs.arriving import arriving
from hf_transfer.inputs.head_features import head_features
from hf_transfer.inputs.model_input import to_model_input
from hf_transfer.serving.embed_files import place_of, write_embeddings
from hf_transfer.serving.kept_embeddings import Files, Part
from hf_transfer.serving.onnx_model import OnnxModel
from hf_transfer.serving.pictures import batches, files_of, find_images
from hf_transfer.serving.predict import network_of

if TYPE_CHECKING:
    from hf_transfer.serving.load import Model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Embeddings:
    """Features float32 (N, D) of images, row by row of `files`; `errors` are (file, why not)."""

    files: tuple[str, ...]
    features: np.ndarray[Any, Any]
    errors: tuple[tuple[str, str], ...] = ()

    def near(self, query: np.ndarray[Any, Any], count: int = 10) -> list[tuple[str, float]]:
        """Return the `count` images most similar to features (D,), each with the cosine, -1..1."""
        rows = self.features / np.linalg.norm(self.features, axis=1, keepdims=True).clip(1e-12)
        cosines = rows @ (query / max(float(np.linalg.norm(query)), 1e-12))
        order = np.argsort(-cosines, kind="stable")[:count]
        return [(self.files[row], float(cosines[row])) for row in order]

    def to_dataset(self) -> Any:
        """Return a `datasets.Dataset` with the columns "file" and "features"."""
        from datasets import Dataset

        return Dataset.from_dict({"file": self._names(), "features": self.features})

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame with a row for each file and a column for each feature."""
        from pandas import DataFrame, Index

        return DataFrame(self.features, index=Index(self._names(), name="file"))

    def _names(self) -> list[str]:
        return [as_text(name) for name in self.files]


@checked
def embed(
    model: Model | PreTrainedModel | OnnxModel | str | Path,
    images: Any,
    *,
    group: str | None = None,
    batch_size: int = 32,
    keep: bool = True,
    out: str | Path | None = None,
) -> Embeddings:
    """Return the features of images: what arrives at a `group` of the network, as `hf-transfer
    groups` names them (default: the head), one vector an image.

    `model` and `images` are what `predict` takes; `batch_size` of them are passed through the
    network at once. The features of files are kept in the cache, so that nothing is computed twice
    and a call that was stopped continues, unless `keep` is False. `out` is a .npy or .parquet file,
    or a folder of `datasets`, to write them to as well. Images that cannot be read are in the
    result's `errors`; its `near` finds the images most similar to one. Raises UserError.
    """
    place = None if out is None else place_of(out)
    found = list(iter_embeddings(model, images, group=group, batch_size=batch_size, keep=keep))
    files = tuple(name for names, _, _ in found for name in names)
    errors = tuple(error for _, _, failed in found for error in failed)
    if not files:
        raise UserError(errors[0][1] if errors else "there are no images to embed")
    features = np.concatenate([part for names, part, _ in found if names])
    if place is not None:
        write_embeddings(found, place)
    return Embeddings(files, features, errors)


def iter_embeddings(
    model: Model | PreTrainedModel | OnnxModel | str | Path,
    images: Any,
    *,
    group: str | None = None,
    batch_size: int = 32,
    keep: bool = True,
) -> Iterator[Part]:
    """Yield batches of (names, features float32 (B, D), images that fail with the reason).

    They are as `embed` says, averaged over places or tokens where there are several.
    """
    model = network_of(model)
    features = partial(_features_at(model, group), model)
    files = files_of(images) if keep else None
    if files:
        kept = Files(model, files, group or model.backbone.groups.names[-1], features, batch_size)
        try:
            yield from kept.parts()
            return
        except StoreError as error:
            logger.warning("features are not kept: %s", error.strerror or error)
    for batch in batches(images, model.backbone.image, batch_size):
        pairs = list(zip(batch.names, batch.errors, strict=True))
        yield (
            [name for name, error in pairs if not error],
            features(batch.pixels),
            [(name, error) for name, error in pairs if error],
        )


def _features_at(model: PreTrainedModel, group: str | None) -> Any:
    """Return the function of (model, stored pixels) that gives what arrives at a group."""
    names = model.backbone.groups.names
    if group is None or group == names[-1]:
        return head_features
    if group not in names[1:]:
        first = " (the images themselves arrive there)" * (group == names[0])
        raise UserError(
            f"{model.backbone.id} has no group {group!r} to take features at{first}"
            f"{nearest(group, names[1:])}; its groups: {', '.join(names[1:])}"
        )
    return partial(_arriving, group=group)


@torch.no_grad()
def _arriving(model: PreTrainedModel, pixels: torch.Tensor, *, group: str) -> Any:
    """Return what arrives at a group, pooled: float32 (B, D) of stored pixels (B, S', S', C)."""
    if not len(pixels):
        return np.zeros((0, 0), np.float32)
    with evaluating(model):
        seen = to_model_input(pixels.to(model.device), model.backbone.image).to(model.dtype)
        found = arriving(model, seen, group)
    if group not in found:
        raise UserError(f"{model.backbone.id}: no vector for each image arrives at group {group}")
    return found[group].cpu().numpy()


def embed_to(
    model: str | Path,
    images: Sequence[str | Path],
    out: str | Path | None = None,
    near: str | Path | None = None,
    top: int = 10,
    group: str | None = None,
    batch_size: int = 32,
) -> tuple[list[str], list[str]]:
    """Write features to `out`, or find the `top` other images most similar to the image `near`, or
    both; return lines that tell of it, and why images were left out. Raises UserError, also for
    neither."""
    if out is None and near is None:
        raise UserError("embed writes features (--out FILE) or finds similar images (--near IMAGE)")
    place = None if out is None else place_of(out)
    files = find_images(images)
    query = find_images([near]) if near is not None else []
    if len(query) > 1:
        raise UserError(f"--near takes one image, and {near} stands for {len(query):,}")
    network, lines, errors = network_of(model), list[str](), list[str]()
    options: Any = {"group": group, "batch_size": batch_size}
    if place is not None:
        count, failed = write_embeddings(iter_embeddings(network, files, **options), place)
        lines.append(f"features of {count:,} images written to {place}")
        errors = [why for _, why in failed]
    if query:
        asked = embed(network, query[:1], **options)
        found = embed(network, files, **options)
        itself = os.path.realpath(asked.files[0])
        nearby = [
            (file, cosine)
            for file, cosine in found.near(asked.features[0], len(found.files))
            if os.path.realpath(file) != itself
        ]
        lines += [f"{cosine:.3f}  {printable(file)}" for file, cosine in nearby[:top]]
        errors = [why for _, why in found.errors]
    return lines, errors
