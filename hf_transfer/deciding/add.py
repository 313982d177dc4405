"""More images, or new classes, for a finished classifier: its head is solved again in seconds.

The backbone stays as it is. The features of all images are kept beside the model, so the old
images are passed through the network once, and are not needed for a further addition.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_transfer.backbones.load import load_backbone
from hf_transfer.backbones.saving import save_model
from hf_transfer.base.errors import DataError, UserError
from hf_transfer.base.files import add_bytes, expanded
from hf_transfer.base.outputs import folder_to_write
from hf_transfer.base.signatures import checked
from hf_transfer.data.image_set import ImageData, load_data
from hf_transfer.data.scan import Scan
from hf_transfer.data.sources import list_source
from hf_transfer.deciding.add_report import counts_of, write_report
from hf_transfer.deciding.auto import trained_on
from hf_transfer.deciding.kept_features import (
    KEPT,
    Kept,
    features_of,
    keep_features,
    read_features,
)
from hf_transfer.recipe.load import load_recipe
from hf_transfer.recipe.specs import DataSpec, Recipe
from hf_transfer.results.metrics.by_name import measure
from hf_transfer.results.report import RunReport
from hf_transfer.results.run_folder import RunFolder
from hf_transfer.serving.familiar import FILE, learn
from hf_transfer.serving.hub import model_folder
from hf_transfer.serving.predict import network_of
from hf_transfer.training.solver import Solution, solve_head

ALL_NEW = "all held-out images are new, because the run was trained on all images that it had"
UNMEASURED = (
    "accuracy was not measured: the run was trained on all images that it had, so none of its "
    "classes has held-out images; score the model on others with hf-transfer evaluate"
)


@dataclass(frozen=True)
class Added:
    """What an addition came to; `known` images were in the run already, `followed` are of groups
    that it has. `before` and `after` are accuracies on the old held-out images, `everything` on all
    held-out ones, None where there are none."""

    out: Path
    labels: tuple[str, ...]
    new: tuple[str, ...]
    images: int
    known: int
    followed: int
    before: float | None
    after: float | None
    old_n: int
    everything: dict[str, Any] | None
    notes: tuple[str, ...]  # that a reader of the result must know


@checked
def add_images(
    run: str | Path,
    data: str | Path | DataSpec,
    *,
    group: str | None = None,
    out: str | Path | None = None,
    seed: int = 0,
) -> Added:
    """Add labelled images to a finished run's classifier and return what it came to.

    `data` holds more images of its classes, or of new ones, which come after the old; pictures that
    the run has already are left out, since they would be trained on and tested. `group` keeps a
    patient or video together, as data.group (default: the run's own); new images of one that the
    run has train or are held out as those. The head is solved to convergence on the features of all
    images; the backbone does not change. The model is written to `out`/model (default: the run's
    name with -more), beside it report, page and card; `seed` splits the new images. Raises
    UserError, also for a model whose head is not one dense layer.
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
    spec = replace(spec, group=group or spec.group)
    list_source(spec, least=1)  # what is wrong with it is said before the old images are passed
    old = _old(folder, model)
    listed, spec = _listed(spec, old.rule, folder)
    added = load_data(spec, model.backbone.image, seed, listed=listed, folds=True)
    given = features_of(model, added, listed, spec.group)
    new, followed = given.without(old).beside(old)
    if not len(new.classes):
        raise UserError(f"all images of {spec.path} are in {folder} already; add other images")
    both = old.joined(new)
    held, codes = both.held_out, both.codes
    _check_training(both, folder)
    grown, solution = _solved(folder, both, weight, seed)
    grown.backbone = replace(grown.backbone, tta=model.backbone.tta)
    _save(grown, both, place)
    logits = both.features @ solution.weight.T + solution.bias
    everything = None
    if old.held_out.any() or len(np.unique(both.classes[held])) == len(both.labels):
        of = logits[held], both.classes[held], both.labels
        everything = measure("classification", *of, groups=None if codes is None else codes[held])
    before = old.features @ _own(model, weight).T + _own(model, _bias(weight))
    own = old.held_out
    found = Added(
        place,
        both.labels,
        both.labels[len(old.labels) :],
        len(new.classes),
        len(given.classes) - len(new.classes),
        followed,
        _accuracy(before[own], old.classes[own]),
        _accuracy(logits[: len(own)][own], old.classes[own]),
        int(own.sum()),
        everything,
        _notes(old, new, everything),
    )
    counts = counts_of(both.classes, held, both.labels)
    told = (added, counts, everything or {}, solution, time.monotonic() - started)
    write_report(folder, place, grown, *told, warnings=(*found.notes, *_worse(found)))
    return found


def format_added(found: Added) -> str:
    """Return what an addition came to, as lines."""
    new = f"new: {', '.join(found.new)}" if found.new else "none of them new"
    lines = [f"images added: {found.images:,}; {len(found.labels)} classes, {new}"]
    if found.known:
        lines.append(f"left out: {found.known:,} images that the run has already")
    if found.followed:
        lines.append(
            f"{found.followed:,} of them are of groups that the run has, and train or are held out "
            "as those"
        )
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
    lines += [f"note: {text}" for text in found.notes]
    return "\n".join([*lines, f"written to {found.out}: report.html, report.json, model/"])


def _notes(old: Kept, new: Kept, everything: dict[str, Any] | None) -> tuple[str, ...]:
    """Return what the held-out images do not tell."""
    notes = []
    if not old.held_out.any():
        notes.append(ALL_NEW if everything else UNMEASURED)
    if new.rule and not old.rule:
        notes.append(
            f"new images are kept together by {new.rule!r}; the run itself kept no groups "
            "together, so its images of one group may train and be held out"
        )
    return tuple(notes)


def _worse(found: Added) -> tuple[str, ...]:
    """Return the warning of an addition that cost accuracy on the old images."""
    if found.before is None or found.after is None or found.after >= found.before:
        return ()
    return (
        f"accuracy on the {found.old_n:,} held-out images from before is {found.after:.3f}; it "
        f"was {found.before:.3f} before the last images were added",
    )


def _check_training(both: Kept, folder: Path) -> None:
    """Raise UserError for a class of which no image trains."""
    missing = np.setdiff1d(np.arange(len(both.labels)), both.classes[~both.held_out])
    if len(missing):
        raise UserError(
            f"class {both.labels[missing[0]]!r} has no image to train on: all are of groups that "
            f"{folder} holds out; add images of other groups"
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


def _solved(folder: Path, both: Kept, weight: str, seed: int) -> tuple[PreTrainedModel, Solution]:
    """Return the run's network with the best head for the images that train, and that solution."""
    train, codes, labels = ~both.held_out, both.codes, both.labels
    groups = None if codes is None else codes[train]
    rows = both.features[train], both.classes[train], len(labels)
    solution = solve_head(*rows, images=groups, seed=seed)
    grown = load_backbone(str(model_folder(folder)), labels, seed=seed)
    with torch.no_grad():
        for name, values in ((weight, solution.weight), (_bias(weight), solution.bias)):
            parameter = grown.get_parameter(f"{grown.backbone.prefix}{name}")
            parameter.copy_(torch.from_numpy(values).view_as(parameter))
    return grown.eval(), solution


def _save(grown: PreTrainedModel, both: Kept, place: Path) -> None:
    """Write the model, what is familiar to it and the features into the folder of the run."""
    save_model(grown, place / "model")
    train, held, codes = ~both.held_out, both.features[both.held_out], both.codes
    groups = None if codes is None else codes[train]
    familiar = learn(both.features[train], both.classes[train], held, groups=groups)
    add_bytes(place / "model", FILE, familiar.to_bytes(), "model")
    keep_features(both, place)


def _bias(weight: str) -> str:
    return f"{weight.removesuffix('weight')}bias"


def _own(model: PreTrainedModel, name: str) -> np.ndarray:
    parameter = model.get_parameter(f"{model.backbone.prefix}{name}")
    values: np.ndarray = parameter.detach().double().cpu().numpy()
    return values


# --- images ------------------------------------------------------------------------------------


def _listed(spec: DataSpec, rule: str | None, folder: Path) -> tuple[Scan, DataSpec]:
    """Return the images to add, kept together by their own data.group or else by the run's."""
    listed = list_source(spec, least=1)
    if spec.group or not rule:
        return listed, spec
    spec = replace(spec, group=rule)
    try:
        return list_source(spec, least=1), spec
    except DataError as error:
        raise UserError(
            f"{error}; {folder} keeps images together by it: give --group, a column or pattern "
            "that says whose the new images are, or '(.+)' where each stands alone"
        ) from error


def _old(folder: Path, model: PreTrainedModel) -> Kept:
    """Return the features of a run's own images: those that were kept, else computed and kept."""
    if kept := read_features(folder):
        return kept
    recipe = RunFolder(folder).recipe
    if not recipe.is_file():
        raise UserError(
            f"{folder} holds neither recipe.yaml nor the {KEPT} of its model: without the images "
            "that it was trained on nothing can be added"
        )
    asked = load_recipe(recipe, allow_code=True)
    listed = list_source(asked.data, asked.task)
    found = features_of(model, _images(folder, asked, model, listed), listed, asked.data.group)
    if found.labels != model.backbone.labels:
        raise UserError(f"the classes of {asked.data.path} are no longer those of {folder}")
    keep_features(found, folder)
    return found


def _images(folder: Path, asked: Recipe, model: PreTrainedModel, listed: Scan) -> ImageData:
    """Return a run's own images, split as they were for its model: `auto` validates in folds, and
    then may train on all of them."""
    report = RunFolder(folder).report
    before = RunReport.load(report) if report.is_file() else None
    if before is None or not before.auto:
        return load_data(asked.data, model.backbone.image, asked.seed, listed=listed)
    refit = not before.data["images"].get("validation")
    return trained_on(asked, model, refit=refit, listed=listed)
