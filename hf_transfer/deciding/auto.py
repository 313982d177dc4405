"""`auto`: what these images and this time allow, tried in order, chosen by proof, as one model.

First exact heads on the frozen backbone, out of fold. Then fine-tuning, taken where a gain is to be
expected: by what it gains on images that it was not trained on, and on other tasks. Then once more
on all labelled images. The result is a run like any other.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_transfer.backbones.load import load_backbone, options_of
from hf_transfer.backbones.regression_units import take_scale
from hf_transfer.base import launch
from hf_transfer.base.errors import UserError
from hf_transfer.base.files import expanded
from hf_transfer.base.machine import kept_memory, nothing_to_collect
from hf_transfer.base.signatures import checked
from hf_transfer.base.threads import fitting
from hf_transfer.data.image_set import ImageData
from hf_transfer.data.scan import Scan
from hf_transfer.data.sources import list_source
from hf_transfer.deciding import bag, presets, taken
from hf_transfer.deciding.attempts import Attempts
from hf_transfer.deciding.auto_report import NAME, Found, judged, written
from hf_transfer.deciding.folds import folds, groups_of, labelled
from hf_transfer.deciding.tried import Clock
from hf_transfer.deciding.truth import temperature, truth_of
from hf_transfer.planning.phase import Phase
from hf_transfer.planning.phases import make_phases
from hf_transfer.recipe.load import asked, parse_recipe
from hf_transfer.recipe.specs import Recipe
from hf_transfer.recipe.tasks import PRETEXTS
from hf_transfer.results import run_folder
from hf_transfer.results.examples import examples, shows_images
from hf_transfer.results.places import place_name
from hf_transfer.results.report import PhaseReport, RunReport
from hf_transfer.training.machine import precision
from hf_transfer.training.recovery import failures

Say = Callable[[str], None]
UNUSED = (  # keys of a recipe that auto would not look at
    "phases", "seeds", "metrics", "thresholds", "tta", "report_to", "ends_with", "source",
    "compare", "folds",
)  # fmt: skip
TEXT = """\
precision: auto
phases:
  - {train: head, solve: lbfgs}
  - {train: all, epochs: 10, min_steps: 60, lr: 3e-4, layer_decay: 0.75, warmup: 0.1,
     still_norms: true, augment: light, best: last}
"""


@kept_memory()
@checked
def auto(
    data: str | Path,
    backbone: str | Path | None = None,
    *,
    preset: str = "good",
    minutes: float | None = None,
    epochs: float | None = None,
    image_size: int | None = None,
    group: str | None = None,
    seed: int = 0,
    refit: bool = True,
    scratch: bool = False,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    on_progress: Say | None = None,
) -> RunReport:
    """Train the best model that a time budget allows, and return its report; the run is in `out`.

    `preset` (fast, good, best) says which `backbone`, `image_size` in pixels and `minutes`, where
    they are not given; `epochs` is how long fine-tuning may take. `group` keeps a patient or video
    together, as data.group; `seed` draws the folds; `overrides` are settings of a recipe, such as
    "data.image_size=96". With `refit` the chosen way is trained on all labelled images at the end,
    else on all but one fold. With `scratch` the same network is also trained from random weights,
    to compare with, in the time that is left. `on_progress` gets a line for each thing that is
    tried, and why it is kept or not. Raises UserError.
    """
    say = on_progress or (lambda _: None)
    presets.check_amount("minutes", minutes)
    presets.check_amount("epochs", epochs)
    recipe = recipe_of(data, backbone, image_size, group, seed, overrides)
    listed = list_source(recipe.data, recipe.task)  # before a backbone is downloaded for no images
    wanted = presets.preset(preset, backbone, image_size, minutes)
    spec = dataclasses.replace(recipe.data, image_size=wanted.image_size or recipe.data.image_size)
    recipe = dataclasses.replace(recipe, backbone=wanted.backbone, data=spec)
    folder = expanded(out) if out is not None else Path("runs") / NAME
    if launch.count() > 1:
        raise UserError("auto runs in one process; start it without a launcher")
    quick = nothing_to_collect()
    with run_folder.opened(folder, recipe, None), fitting(), failures.told(), quick:
        clock = Clock(60 * wanted.minutes)
        time_limit = f"{wanted.minutes:g} minute{'s' * (wanted.minutes != 1)}"
        say(f"auto: {recipe.backbone}, {time_limit} at most")
        found = search(
            recipe, clock, say, epochs=epochs, refit=refit, scratch=scratch, listed=listed
        )
        found.facts["options"] = _words(epochs, group, refit, scratch, overrides)
        return written(found, folder, clock)


def _words(
    epochs: float | None, group: str | None, refit: bool, scratch: bool, overrides: Sequence[str]
) -> list[str]:
    """Return the options of the command line that say the same, without the folders of paths."""
    words = [] if epochs is None else ["--epochs", f"{epochs:g}"]
    words += ["--group", group] if group else []
    words += [] if refit else ["--no-refit"]
    words += ["--scratch"] if scratch else []
    for key, _, value in (change.partition("=") for change in overrides):
        words += ["--set", f"{key}={place_name(value) if value[:1] in '/~.' else value}"]
    return words


def recipe_of(
    data: str | Path,
    backbone: str | Path | None,
    image_size: int | None,
    group: str | None,
    seed: int,
    overrides: Sequence[str],
) -> Recipe:
    """Return the recipe that `auto` begins with. Raises UserError for what it cannot do."""
    task = [change.partition("=")[2].strip() for change in overrides if change.startswith("task")]
    if task and task[-1] in PRETEXTS:
        raise UserError(
            f"auto is for images with labels, not task: {task[-1]}; train the recipe free_labels, "
            "which learns from images without labels first"
        )
    if any(re.fullmatch(r"loss\s*=\s*focal\s*", change) for change in overrides):
        raise UserError(
            "auto solves for its head, which loss: focal has no solution for; write loss: balanced "
            "or logit_adjusted, or train a recipe, such as full"
        )
    plain = parse_recipe(TEXT, f"{NAME}.yaml")
    recipe = asked(plain, data, backbone, seed, overrides)
    for key in UNUSED:
        if getattr(recipe, key) != getattr(plain, key):
            raise UserError(
                f"auto does not use {key}; leave it out, or train a recipe, such as lp_ft"
            )
    spec = recipe.data
    spec = dataclasses.replace(
        spec, image_size=image_size or spec.image_size, group=group or spec.group
    )
    return dataclasses.replace(recipe, data=spec)


def search(
    recipe: Recipe,
    clock: Clock,
    say: Say,
    *,
    epochs: float | None = None,
    refit: bool = True,
    scratch: bool = False,
    listed: Scan | None = None,
    model: PreTrainedModel | None = None,
    data: ImageData | None = None,
) -> Found:
    """Return the best model for the recipe's data that the clock allows.

    `data` is given where the images are drawn already: those that train are all that are labelled.
    Images that test take no part.
    """
    backbone = recipe.backbone
    assert backbone is not None  # a preset gives one, and a recipe with a source is refused
    listed = listed or list_source(recipe.data, recipe.task)
    model = model or load_backbone(backbone, listed.labels, **options_of(recipe))
    model.eval()
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    recipe = _settled(recipe, model)
    data = data or labelled(recipe, listed, model)
    images = data.train
    take_scale(model, images)
    work = Attempts(model, recipe, data, images, groups_of(listed, images.files), clock, say, refit)
    work.heads()
    bag.check_head(_with(model, work.start), images, work.start)
    head = _head_phase(model, clock)
    if scratch:
        work.keep_for_scratch(epochs)
    work.fine_tune(epochs)
    chosen = taken.take(work)
    rows, logits = taken.expected(work, chosen)
    model, phases, final, notes = _trained(work, chosen, head)
    if scratch:
        random = options_of(dataclasses.replace(recipe, pretrained=False))
        untrained = load_backbone(backbone, listed.labels, **random).to(model.device)
        take_scale(untrained, images)
        work.from_scratch(untrained, epochs)
    heat = temperature(logits, work.truth[rows])
    _cool(model, heat)
    if not refit:
        data = without_fold(data, work.folds)
    logits = logits / heat
    metrics, told_of = judged(work, chosen, rows, logits)
    if shows_images(recipe.page_images, data.audit):
        shown, findings = images.subset(rows), data.audit.findings
        told_of["examples"] = examples(recipe.task, logits, shown, findings, [images])
    found = model, data, chosen, rows, logits, metrics
    return Found(*found, phases, told_of, final, notes)


Last = tuple[PreTrainedModel, tuple[PhaseReport, ...], Recipe, tuple[str, ...]]


def _trained(work: Attempts, chosen: str, head: PhaseReport) -> Last:
    """Return the model of the chosen way, trained on all labelled images (without refit, on all but
    one fold), what its phases did, its recipe, and what there is to note."""
    model, recipe, images = work.model, work.recipe, work.images
    used = np.arange(len(images)) if work.refit else np.flatnonzero(work.folds[0] != 0)
    if chosen not in work.origin:
        start = work.start if work.refit else bag.start_of(model, images, work.start, used)
        start.put(model)
        return model, (head,), dataclasses.replace(recipe, phases=recipe.phases[:1]), ()
    trial, point = work.origin[chosen]
    candidate, notes = trial.candidate, tuple[str, ...]()
    tuned = work.trained(candidate, used, work.clock.end)
    model = tuned.at(point, images, used)
    if tuned.report.stopped:
        notes = ("the time was over before the last training ended; give it more minutes",)
        work.say(f"note: {notes[0]}")
    work.say(f"trained on {len(used)} labelled images: {chosen}")
    own = dataclasses.replace(candidate.spec, cold_head=candidate.new_head)
    if candidate.new_head:  # the solved one is no part of the model
        return model, (tuned.report,), dataclasses.replace(recipe, phases=(own,)), notes
    final = dataclasses.replace(recipe, phases=(*recipe.phases[:1], own))
    return model, (head, tuned.report), final, notes


def _settled(recipe: Recipe, model: PreTrainedModel) -> Recipe:
    """Return the recipe in the precision that is fastest here, where it leaves that open."""
    with tempfile.TemporaryDirectory() as scratch:
        choice = precision.settle(recipe, model, Path(scratch))
    return dataclasses.replace(recipe, precision=choice["precision"])


def without_fold(data: ImageData, dealt: np.ndarray) -> ImageData:
    """Return data of whose training images fold 0 validates; folds are dealt as (repeats, N)."""
    held = dealt[0] == 0
    train, validation = (data.train.subset(np.flatnonzero(rows)) for rows in (~held, held))
    return dataclasses.replace(data, train=train, validation=validation)


def trained_on(recipe: Recipe, model: PreTrainedModel, refit: bool, listed: Scan) -> ImageData:
    """Return the data of a finished run of `auto`, split as it was for the model that was saved;
    `listed` is what `list_source` finds."""
    data = labelled(recipe, listed, model)
    if refit:
        return data
    dealt = folds(
        truth_of(data.train),
        groups=groups_of(listed, data.train.files),
        seed=recipe.seed,
    )
    return without_fold(data, dealt)


def _with(model: PreTrainedModel, start: bag.Start) -> PreTrainedModel:
    import copy

    own = copy.deepcopy(model)
    start.put(own)
    return own


@torch.no_grad()
def _cool(model: PreTrainedModel, heat: float) -> None:
    """Divide the model's logits by a temperature, in its head; by 1 for numbers."""
    for parameter in bag.head_parameters(model):
        parameter.div_(heat)


def _head_phase(model: PreTrainedModel, clock: Clock) -> PhaseReport:
    """Return the report of the phase in which the head was solved for."""
    phase: Phase = make_phases(parse_recipe(TEXT, NAME).phases[:1], model.backbone.groups)[0]
    sizes = phase.layout.sizes
    return PhaseReport(
        name=phase.name,
        groups=phase.groups,
        trainable_parameters=sum(sizes[name] for name in phase.parameters),
        total_parameters=sum(sizes.values()),
        epochs=1.0,
        steps=0,
        seconds=time.monotonic() - clock.began,
        solve="lbfgs",
        features="cached",
    )
