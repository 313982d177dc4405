"""The features of a finished run's images, kept beside its model: what its head is solved on again.

With each image it is kept whether it is held out, and whose it is, as the run's `data.group` says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save
from transformers import PreTrainedModel

from hf_transfer.base.bars import shown
from hf_transfer.base.boundary import untrusted
from hf_transfer.base.files import write_bytes
from hf_transfer.data.digests import digest
from hf_transfer.data.image_groups import owners
from hf_transfer.data.image_set import ImageData, ImageSet
from hf_transfer.data.scan import Scan
from hf_transfer.inputs.head_features import head_features
from hf_transfer.serving.hub import model_folder

KEPT = "features.safetensors"
ARRAYS = ("features", "classes", "held_out", "pixels", "groups")  # in it
BATCH = 32


@dataclass(frozen=True)
class Kept:
    """Features (N, D) of images, their places (N,) in `labels`, which are held out (N,), and
    digests uint8 (N, 16): `pixels` of the pictures, `groups` of whose they are by the `rule` of
    data.group. A picture of which nothing says that is a group of its own."""

    features: np.ndarray
    classes: np.ndarray
    held_out: np.ndarray
    pixels: np.ndarray
    groups: np.ndarray
    labels: tuple[str, ...]
    rule: str | None = None

    @property
    def codes(self) -> np.ndarray | None:
        """The groups as whole numbers (N,); None without a rule."""
        return np.unique(self.groups, axis=0, return_inverse=True)[1].ravel() if self.rule else None

    def joined(self, other: Kept) -> Kept:
        """Return both: the own labels first, then those that only the other has."""
        labels = (*self.labels, *(one for one in other.labels if one not in self.labels))
        places = np.array([labels.index(label) for label in other.labels])
        return Kept(
            np.concatenate([self.features, other.features]),
            np.concatenate([self.classes, places[other.classes]]),
            np.concatenate([self.held_out, other.held_out]),
            np.concatenate([self.pixels, other.pixels]),
            np.concatenate([self.groups, other.groups]),
            labels,
            self.rule or other.rule,
        )

    def without(self, other: Kept) -> Kept:
        """Return those whose pictures the other lacks."""
        known = {row.tobytes() for row in other.pixels}
        new = np.array([row.tobytes() not in known for row in self.pixels], bool)
        arrays = {name: getattr(self, name)[new] for name in ARRAYS}
        return replace(self, **arrays)

    def beside(self, other: Kept) -> tuple[Kept, int]:
        """Return those of the other's groups on its side, in training where it trains on any of
        the group, and how many they are."""
        sides: dict[bytes, bool] = {}
        for row, held in zip(other.groups, other.held_out.tolist(), strict=True):
            sides[row.tobytes()] = held and sides.get(row.tobytes(), True)
        found = [sides.get(row.tobytes()) for row in self.groups]
        own = self.held_out.tolist()
        held_out = [mine if side is None else side for side, mine in zip(found, own, strict=True)]
        known = len(found) - found.count(None)
        return replace(self, held_out=np.array(held_out, bool)), known


def features_of(model: PreTrainedModel, data: ImageData, listed: Scan, rule: str | None) -> Kept:
    """Return the features of images, which `listed` names; by a `rule` it says whose they are."""
    whose = dict(zip(listed.files, owners(listed, rule), strict=True))
    sets = [(data.train, False), (data.validation, True)]
    sets += [(data.test, True)] if data.test is not None else []
    parts = []
    for images, held in sets:
        if len(images):
            features, pixels = _passed(model, images)
            groups = np.stack([_group(whose, *of) for of in zip(images.files, pixels, strict=True)])
            parts.append((features, images.labels, np.full(len(images), held), pixels, groups))
    features, labels, held_out, pixels, groups = map(np.concatenate, zip(*parts, strict=True))
    return Kept(features, labels, held_out, pixels, groups, tuple(data.labels), rule)


def _group(whose: Mapping[str, str], file: str, picture: np.ndarray) -> np.ndarray:
    owner = whose[file]
    return (
        np.frombuffer(digest(owner.encode(errors="surrogateescape")), np.uint8)
        if owner
        else picture
    )


def _passed(model: PreTrainedModel, images: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """Return the features (N, D) of images and digests (N, 16) of their pixels."""
    places = range(len(images))
    spans = [places[at : at + BATCH] for at in places[::BATCH]]
    parts = shown(spans, "features", "batches")
    features, digests = [], []
    for span in parts:
        pixels = images.__getitems__(span)["pixels"]
        features.append(head_features(model, pixels))
        digests += [np.frombuffer(digest(one.numpy()), np.uint8) for one in pixels]
    return np.concatenate(features), np.stack(digests)


def read_features(folder: Path) -> Kept | None:
    """Return the features that are kept in a run's folder, None where they are not of its model.

    Raises UserError for a file that cannot be read.
    """
    path = folder / KEPT
    if not path.is_file():
        return None
    with untrusted(str(path), "delete it"), safe_open(path, "np") as file:
        facts = json.loads(file.metadata()["facts"])
        features, classes, held_out, pixels, groups = map(file.get_tensor, ARRAYS)
        if facts["model"] != _digest(folder) or features.ndim != 2:
            return None
        about = tuple(facts["labels"]), facts["group"]
        return Kept(features, classes, held_out.astype(bool), pixels, groups, *about)


def keep_features(found: Kept, folder: Path) -> None:
    """Write features into the folder of the run whose model they are of."""
    facts = {"labels": found.labels, "model": _digest(folder), "group": found.rule}
    arrays: dict[str, np.ndarray] = {
        "features": found.features.astype(np.float32),
        "classes": found.classes.astype(np.int64),
        "held_out": found.held_out.astype(np.uint8),
        "pixels": found.pixels,
        "groups": found.groups,
    }
    write_bytes(folder / KEPT, save(arrays, {"facts": json.dumps(facts)}))


def _digest(folder: Path) -> str:
    return hashlib.sha256((model_folder(folder) / "model.safetensors").read_bytes()).hexdigest()
