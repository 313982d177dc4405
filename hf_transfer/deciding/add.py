"""More images, or new classes, for a finished classifier: its head is solved again in seconds.

The backbone stays as it is. The features of all images are kept beside the model, so the old
images are passed through the network once, and are not needed for a further addition.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save
from transformers import PreTrainedModel

from hf_transfer.backbones.load import load_backbone
from hf_transfer.backbones.saving import save_model
from hf_transfer.base.bars import shown
from hf_transfer.base.boundary import untrusted
from hf_transfer.base.errors import UserError
from hf_transfer.base.files import add_bytes, expanded, write_bytes
from hf_transfer.base.outputs import folder_to_write
from hf_transfer.base.signatures import checked
from hf_transfer.data.digests import digest
from hf_transfer.data.image_set import ImageData, ImageSet, load_data
from hf_transfer.data.sources import list_source
from hf_transfer.deciding.add_report import counts_of, write_report
from hf_transfer.deciding.auto import trained_on
from hf_transfer.inputs.head_features import head_features
from hf_transfer.recipe.load import load_recipe
from hf_transfer.recipe.specs import DataSpec, Recipe
from hf_transfer.results.metrics.by_name import measure
from hf_transfer.results.report import RunReport
from hf_transfer.results.run_folder import RunFolder
from hf_transfer.serving.familiar import FILE, learn
from hf_transfer.serving.hub import model_folder
from hf_transfer.serving.predict import network_of
from hf_transfer.training.solver import Solution, solve_head

KEPT = "features.safetensors"
ARRAYS = ("features", "classes", "held_out", "pixels")  # in it
BATCH = 32
ALL_NEW = "all held-out images are new, because the run was trained on all images that it had"
UNMEASURED = (
    "accuracy was not measured: the run was trained on all images that it had, so none of its "
    "classes has held-out images; score the model on others with hf-transfer evaluate"
)


@dataclass(frozen=True)
class Kept:
    """Features (N, D) of images, their places (N,) in `labels`, which are held out (N,), and
    digests uint8 (N, 16) of their pixels."""

    features: np.ndarray
    classes: np.ndarray
    held_out: np.ndarray
    pixels: np.ndarray
    labels: tuple[str, ...]

    def joined(self, other: Kept) -> Kept:
        """Return both: the own labels first, then those that only the other has."""
        labels = (*self.labels, *(one for one in other.labels if one not in self.labels))
        places = np.array([labels.index(label) for label in other.labels])
        return Kept(
            np.concatenate([self.features, other.features]),
            np.concatenate([self.classes, places[other.classes]]),
            np.concatenate([self.held_out, other.held_out]),
            np.concatenate([self.pixels, other.pixels]),
            labels,
        )

    def without(self, other: Kept) -> Kept:
        """Return those whose pictures the other lacks."""
        known = {row.tobytes() for row in other.pixels}
        new = np.array([row.tobytes() not in known for row in self.pixels], bool)
        return Kept(
            self.features[new],
            self.classes[new],
            self.held_out[new],
            self.pixels[new],
            self.labels,
        )


@dataclass(frozen=True)
class Added:
    """What an addition came to; `known` images were in the run already, `before` and `after` are
    accuracies on the old held-out images, `everything` on all held-out ones, None where there are
    none."""

    out: Path
    labels: tuple[str, ...]
    new: tuple[str, ...]
    images: int
    known: int
    before: float | None
    after: float | None
    old_n: int
    everything: dict[str, Any] | None


@checked
def add_images(
    run: str | Path, data: str | Path | DataSpec, *, out: str | Path | None = None, seed: int = 0
) -> Added:
    """Add labelled images to a finished run's classifier and return what it came to.

    `data` holds more images of its classes, or of new ones, which come after the old; pictures that
    the run has already are left out, since they would be trained on and tested. The head is
    solved to convergence on the features of all images; the backbone does not change. The model is
    written to `out`/model (default: the run's name with -more), beside it report, page and card;
    `seed` splits the new images. Raises UserError, also for a model whose head is not one dense
    layer.
    """
    folder = expanded(run)
    name = Path(os.path.realpath(folder)).name
    near = folder if folder.name.strip(".") else folder.resolve()  # of . and .. the name is no name
    place = folder_to_write(out) if out else near.with_name(f"{name}-more")
    started = time.monotonic()
    model = network_of(folder)
    if os.path.realpath(place) == os.path.realpath(folder):
        raise UserError(f"--out {place} is the run that is added to; choose another folder")
    if not RunFolder(place).is_empty:
        raise UserError(f"{place} is not empty; choose another folder with --out")
    weight = _head(model)
    spec = data if isinstance(data, DataSpec) else DataSpec(path=str(data))
    old = _old(folder, model)
    listed = list_source(spec, least=1)
    added = load_data(spec, model.backbone.image, seed, listed=listed)
    given = _features(model, added)
    new = given.without(old)
    if not len(new.classes):
        raise UserError(f"all images of {spec.path} are in {folder} already; add other images")
    both = old.joined(new)
    train, held = ~both.held_out, both.held_out
    solution = solve_head(both.features[train], both.classes[train], len(both.labels), seed=seed)
    grown = _grown(folder, both, weight, solution, seed)
    grown.backbone = replace(grown.backbone, tta=model.backbone.tta)
    save_model(grown, place / "model")
    familiar = learn(
        both.features[train], both.classes[train], both.features[held] if held.any() else None
    )
    add_bytes(place / "model", FILE, familiar.to_bytes(), "model")
    _keep(both, place)
    logits = both.features @ solution.weight.T + solution.bias
    everything = None
    if old.held_out.any() or len(np.unique(both.classes[held])) == len(both.labels):
        everything = measure("classification", logits[held], both.classes[held], both.labels)
    before = old.features @ _own(model, weight).T + _own(model, _bias(weight))
    own = old.held_out
    found = Added(
        place,
        both.labels,
        both.labels[len(old.labels) :],
        len(new.classes),
        len(given.classes) - len(new.classes),
        _accuracy(before[own], old.classes[own]),
        _accuracy(logits[: len(own)][own], old.classes[own]),
        int(own.sum()),
        everything,
    )
    counts = counts_of(both.classes, held, both.labels)
    told = (added, counts, everything or {}, solution, time.monotonic() - started)
    write_report(folder, place, grown, *told, warnings=_worse(found))
    return found


def format_added(found: Added) -> str:
    """Return what an addition came to, as lines."""
    new = f"new: {', '.join(found.new)}" if found.new else "none of them new"
    lines = [f"{found.images:,} images added; {len(found.labels)} classes, {new}"]
    if found.known:
        lines.append(f"left out: {found.known:,} images that the run has already")
    if found.before is not None and found.after is not None:
        lines.append(
            f"accuracy on the {found.old_n:,} old held-out images: {found.after:.3f}, before "
            f"{found.before:.3f}"
        )
    if found.everything:
        low, high = found.everything["intervals"]["accuracy"]
        lines.append(
            f"accuracy on all {found.everything['n']:,} held-out images: "
            f"{found.everything['accuracy']:.3f} ({low:.3f} to {high:.3f})"
        )
    lines += [f"note: {text}" for text in _worse(found) if found.before is None]
    return "\n".join([*lines, f"written to {found.out}: report.html, report.json, model/"])


def _worse(found: Added) -> tuple[str, ...]:
    """Return the warning of an addition that cost accuracy on the old images, or cannot tell."""
    if found.before is None:
        return (ALL_NEW if found.everything else UNMEASURED,)
    if found.before is None or found.after is None or found.after >= found.before:
        return ()
    return (
        f"accuracy on the {found.old_n:,} held-out images from before is {found.after:.3f}; it "
        f"was {found.before:.3f} before the last images were added",
    )


def _accuracy(logits: np.ndarray, classes: np.ndarray) -> float | None:
    return float((logits.argmax(axis=1) == classes).mean()) if len(classes) else None


# --- the head ----------------------------------------------------------------------------------


def _head(model: PreTrainedModel) -> str:
    """Return the name of the weight of a head that is one dense layer. Raises UserError."""
    backbone = model.backbone
    head = backbone.layout.head
    weights = [name for name in head if name.endswith("weight")]
    ndim = model.get_parameter(f"{backbone.prefix}{weights[0]}").ndim if weights else 0
    if backbone.task != "classification" or len(head) != 2 or len(weights) != 1 or ndim != 2:
        raise UserError(
            f"{backbone.id} is no classifier whose head is one dense layer, and no other can be "
            "solved again; train it on all images"
        )
    return weights[0]


def _grown(folder: Path, both: Kept, weight: str, solution: Solution, seed: int) -> PreTrainedModel:
    """Return the run's network with a head for all labels, which is the solution."""
    grown = load_backbone(str(model_folder(folder)), both.labels, seed=seed)
    with torch.no_grad():
        for name, values in ((weight, solution.weight), (_bias(weight), solution.bias)):
            parameter = grown.get_parameter(f"{grown.backbone.prefix}{name}")
            parameter.copy_(torch.from_numpy(values).view_as(parameter))
    return grown.eval()


def _bias(weight: str) -> str:
    return f"{weight.removesuffix('weight')}bias"


def _own(model: PreTrainedModel, name: str) -> np.ndarray:
    parameter = model.get_parameter(f"{model.backbone.prefix}{name}")
    values: np.ndarray = parameter.detach().double().cpu().numpy()
    return values


# --- features ----------------------------------------------------------------------------------


def _old(folder: Path, model: PreTrainedModel) -> Kept:
    """Return the features of a run's own images: those that were kept, else computed and kept."""
    path = folder / KEPT
    if path.is_file():
        with untrusted(str(path), "delete it"), safe_open(path, "np") as file:
            facts = json.loads(file.metadata()["facts"])
            features, classes, held_out, pixels = map(file.get_tensor, ARRAYS)
            if facts["model"] == _digest(folder) and features.ndim == 2:
                labels = tuple(facts["labels"])
                return Kept(features, classes, held_out.astype(bool), pixels, labels)
    recipe = RunFolder(folder).recipe
    if not recipe.is_file():
        raise UserError(
            f"{folder} holds neither recipe.yaml nor the {KEPT} of its model: without the images "
            "that it was trained on nothing can be added"
        )
    asked = load_recipe(recipe, allow_code=True)
    found = _features(model, _images(folder, asked, model))
    if found.labels != model.backbone.labels:
        raise UserError(f"the classes of {asked.data.path} are no longer those of {folder}")
    _keep(found, folder)
    return found


def _images(folder: Path, asked: Recipe, model: PreTrainedModel) -> ImageData:
    """Return a run's own images, split as they were for its model: `auto` validates in folds, and
    then may train on all of them."""
    report = RunFolder(folder).report
    before = RunReport.load(report) if report.is_file() else None
    if before is None or not before.auto:
        return load_data(asked.data, model.backbone.image, asked.seed)
    return trained_on(asked, model, refit=not before.data["images"].get("validation"))


def _features(model: PreTrainedModel, data: ImageData) -> Kept:
    sets = [(data.train, False), (data.validation, True)]
    sets += [(data.test, True)] if data.test is not None else []
    rows = [
        (*_passed(model, images), images.labels, np.full(len(images), held))
        for images, held in sets
        if len(images)
    ]
    features, pixels, classes, held_out = map(np.concatenate, zip(*rows, strict=True))
    return Kept(features, classes, held_out, pixels, tuple(data.labels))


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


def _keep(found: Kept, folder: Path) -> None:
    facts = json.dumps({"labels": found.labels, "model": _digest(folder)})
    arrays = {
        "features": found.features.astype(np.float32),
        "classes": found.classes.astype(np.int64),
        "held_out": found.held_out.astype(np.uint8),
        "pixels": found.pixels,
    }
    write_bytes(folder / KEPT, save(arrays, {"facts": facts}))


def _digest(folder: Path) -> str:
    return hashlib.sha256((model_folder(folder) / "model.safetensors").read_bytes()).hexdigest()
