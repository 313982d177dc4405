"""A run: recipe, data, backbone, phases, proof, report, model. Start reading here.

This file has no logic of its own; each line leads to the module that has.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback

from hf_transfer.backbones.load import load_backbone, options_of
from hf_transfer.backbones.saving import save_model
from hf_transfer.base import launch
from hf_transfer.base.errors import UserError, data_of
from hf_transfer.base.files import expanded
from hf_transfer.base.machine import kept_memory
from hf_transfer.base.signatures import checked
from hf_transfer.base.threads import fitting
from hf_transfer.data.beside import check_apart, load_beside
from hf_transfer.data.image_set import ImageData, load_data
from hf_transfer.data.letters import write_letters
from hf_transfer.data.sources import list_source, scan
from hf_transfer.planning.data_checks import check_fold, check_metrics
from hf_transfer.planning.phase import Phase
from hf_transfer.recipe.load import asked, source_recipe
from hf_transfer.recipe.specs import Recipe
from hf_transfer.recipe.tasks import labels_of
from hf_transfer.results import facts, run_folder
from hf_transfer.results.metrics.by_name import EpochMetrics
from hf_transfer.results.metrics.thresholds import Rule
from hf_transfer.results.report import RunReport, aggregate_folds
from hf_transfer.serving.familiar import keep_familiar
from hf_transfer.serving.hub import check_owner, push_finished
from hf_transfer.training import measuring, moved, watching
from hf_transfer.training.arguments import joined, training_arguments
from hf_transfer.training.machine import precision
from hf_transfer.training.recovery import failures
from hf_transfer.training.trainer import TransferTrainer

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 60.0  # what an interruption costs at most


@checked
def train(
    recipe: str | Path | Recipe,
    *,
    data: str | Path | None = None,
    backbone: str | Path | None = None,
    unlabelled: str | Path | None = None,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
    allow_code: bool = False,
    report_to: str | Sequence[str] = (),
    push_to: str | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> RunReport:
    """Train a recipe and return its report; the run is in the folder `out` (runs/RECIPE).

    `recipe` is a shipped recipe's name, a path, or a Recipe; `data`, `backbone` and `seed` take the
    place of its own, and `overrides` are settings such as "phases.0.lr=1e-4". A recipe with a
    pretext first learns from the images below `unlabelled`. With `resume` an interrupted run
    continues. Metrics that are Python files run only with `allow_code`. `report_to` are trackers,
    such as "tensorboard"; `push_to` is a repository on the Hub to push the finished run to.
    `callbacks` are Trainer's. Raises UserError.
    """
    if push_to and launch.is_main():  # before hours of training
        check_owner(push_to)
    if report_to:
        trackers = [report_to] if isinstance(report_to, str) else list(report_to)
        overrides = [*overrides, f"report_to={json.dumps(trackers)}"]
    wanted = asked(recipe, data, backbone, seed, overrides, allow_code, unlabelled)
    if wanted.compare is not None:
        raise UserError(
            f"recipe {wanted.name} is a comparison; run it with hf-transfer train {wanted.name}"
        )
    folder = expanded(out) if out is not None else Path("runs") / wanted.name
    report = run(wanted, folder, resume=resume, callbacks=callbacks)
    if push_to and launch.is_main():
        push_finished(folder, push_to)
    return report


@kept_memory()
def run(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    target: Recipe | None = None,
) -> RunReport:
    """Train a recipe into the folder `out` and return its report; once per seed.

    With `resume`, finished phases and seeds are read back and an interrupted one goes on. A pretext
    is watched on the labelled images of its `target`, the recipe that goes on from it, and none of
    that one's validation and test images trains it. Several processes are still joined afterwards:
    who begins them calls processes.leave.
    """
    with run_folder.opened(out, recipe, resume), fitting(run_folder.threads(out)), failures.told():
        if recipe.seeds == 1:
            folds = _folds(recipe, out, resume, callbacks) if recipe.folds > 1 else ()
            return run_seed(recipe, out, resume, callbacks, target, folds)
        reports = []
        for seed in range(recipe.seed, recipe.seed + recipe.seeds):
            one = dataclasses.replace(recipe, seed=seed, seeds=1)
            one_out = run_folder.RunFolder(out).seed(seed).path
            logger.info("seed %d", seed)
            reports.append(run(one, one_out, resume=resume, callbacks=callbacks))
        return run_folder.finish_seeds(reports, out)


def _folds(
    recipe: Recipe, out: Path, resume: bool, callbacks: Sequence[TrainerCallback]
) -> list[RunReport]:
    """Run the parts of a cross-validation, each in a folder of its own, and return their reports.

    Raises UserError before any of them where one leaves a class too few images to train on.
    """
    ones = []
    for number in range(1, recipe.folds + 1):
        data = dataclasses.replace(recipe.data, fold=(number, recipe.folds))
        ones.append(dataclasses.replace(recipe, data=data, folds=1))
        check_fold(recipe, number, scan(data, recipe.seed, recipe.task).counts)
    reports = []
    for number, one in enumerate(ones, 1):
        logger.info("fold %d of %d", number, recipe.folds)
        place = run_folder.RunFolder(out).fold(number).path
        reports.append(run(one, place, resume=resume, callbacks=callbacks))
    logger.info("all images")
    return reports


def run_seed(
    recipe: Recipe,
    out: Path,
    resume: bool,
    callbacks: Sequence[TrainerCallback],
    target: Recipe | None = None,
    folds: Sequence[RunReport] = (),
) -> RunReport:
    """Train a recipe with its seed and write the run's folder; the report is written last.

    `folds` are the reports of a cross-validation, whose answers together stand for a test.
    """
    here = run_folder.RunFolder(out)
    if resume and here.is_finished:
        return RunReport.load(out)
    started = time.monotonic()
    check_apart(recipe)
    extra = measuring.extra_metrics(recipe.metrics)
    backbone_id = train_source(recipe, out, resume, callbacks) if recipe.source else recipe.backbone
    assert backbone_id is not None  # a recipe has a backbone or a source
    source = facts.source_facts(RunReport.load(here.source.path)) if recipe.source else {}
    start, model, data, watch = _loaded(recipe, backbone_id, out, resume, target)
    beside = load_beside(recipe, model.backbone.image, resume)
    extra = (*extra, *watch)
    check_metrics(recipe, data.counts)
    rule = measuring.thresholds(recipe, data.labels)
    run_folder.keep_inputs(out, measuring.inputs(model, data), torch.get_num_threads())
    trainer, speed = prepare(
        recipe, model, data, out, extra, callbacks, CHECKPOINT_SECONDS, beside=beside
    )
    training = time.monotonic()
    trainer.train(resume_from_checkpoint=resume)
    trained = time.monotonic() - training
    metrics, shown = _measured(recipe, out, trainer, data, extra, rule)
    metrics, told = watching.concluded(metrics, watch)
    change = []
    if launch.is_main():
        change = moved.moved_of(model, trainer.reports, data.validation or data.train, start)
        save_model(model, here.model)
        keep_familiar(here.model, data)
    report = RunReport(
        name=recipe.name,
        recipe=dataclasses.asdict(recipe),
        backbone=facts.backbone_facts(model, backbone_id),
        data=facts.data_facts(data, beside),
        phases=tuple(trainer.reports),
        metrics=metrics,
        seconds={
            "wall": time.monotonic() - started + sum(fold.seconds["wall"] for fold in folds),
            "training": trained + sum(fold.seconds["training"] for fold in folds),
        },
        environment={**facts.environment(), **speed},
        seed=recipe.seed,
        warnings=(*facts.warnings_of(trainer.reports, source), *trainer.notes, *told),
        created=facts.now(),
        examples=shown,
        figures=moved.figures(change),
        moved=tuple(change),
        source=source,
        folds=aggregate_folds(folds),
    )
    report = run_folder.finish(report, out)
    trainer.processes.wait()  # what comes next may read the folder
    return report


Start = Callable[[], PreTrainedModel]  # returns the network as it starts
Loaded = tuple[Start, PreTrainedModel, ImageData, tuple[watching.Watch, ...]]


def _loaded(
    recipe: Recipe, backbone_id: str, out: Path, resume: bool, target: Recipe | None
) -> Loaded:
    """Return how the network starts, the network, the images, and what watches a pretext."""
    listed = list_source(recipe.data, recipe.task)
    labels = labels_of(recipe.task, listed.labels)
    start = functools.partial(load_backbone, backbone_id, labels, **options_of(recipe))
    model = start()
    joined(recipe, out)  # before images are read: whoever ends from here on is missed at once
    without, labelled = watching.target_of(recipe, target, model, resume)
    with data_of(recipe.name) if target else nullcontext():
        data = load_data(
            recipe.data,
            model.backbone.image,
            recipe.seed,
            task=recipe.task,
            listed=listed,
            read_all=resume,
            without=without,
        )
    return start, model, data, watching.watched(model, data, labelled)


def _measured(
    recipe: Recipe,
    out: Path,
    trainer: TransferTrainer,
    data: ImageData,
    extra: Sequence[measuring.Extra],
    rule: Rule,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the metrics and the examples; of a cross-validation those of all its folds."""
    metrics, shown, answers = measuring.measure(
        trainer, data, extra, recipe.page_images, rule, recipe.tta
    )
    if recipe.data.fold and data.test is not None:
        run_folder.keep_answers(out, data.test, answers)
    if recipe.folds > 1:
        crossed = run_folder.answers_of(out, recipe.folds)
        metrics, shown = measuring.crossed(metrics, data, crossed, extra, recipe)
    return metrics, shown


def prepare(
    recipe: Recipe,
    model: PreTrainedModel,
    data: ImageData,
    out: Path,
    extra: Sequence[measuring.Extra] = (),
    callbacks: Sequence[TrainerCallback] = (),
    checkpoint_seconds: float | None = None,
    phases: Sequence[Phase] | None = None,
    beside: ImageData | None = None,
) -> tuple[TransferTrainer, dict[str, Any]]:
    """Return a Trainer for a recipe's phases (or for `phases`), and the precision that it takes;
    `beside` are images without labels for phases with `pseudo`."""
    speed = precision.settle(recipe, model, out)
    trainer = TransferTrainer(
        model,
        training_arguments(dataclasses.replace(recipe, precision=speed["precision"]), out),
        phases=recipe.phases if phases is None else phases,
        train_dataset=data.train,
        eval_dataset=data.validation if len(data.validation) else None,
        loss=recipe.loss,
        unlabelled=beside.train if beside else None,
        class_weights=measuring.class_weights(recipe),
        compute_metrics=EpochMetrics(extra, len(data.labels), data.task, data.scale),
        checkpoint_seconds=checkpoint_seconds,
        sync_batchnorm=recipe.sync_batchnorm,
        ends_with=recipe.ends_with,
        callbacks=list(callbacks),
    )
    return trainer, speed


def train_source(
    recipe: Recipe, out: Path, resume: bool, callbacks: Sequence[TrainerCallback]
) -> str:
    """Train the backbone on its source task first, in `out`/source; return the model's folder."""
    first, here = source_recipe(recipe), run_folder.RunFolder(out)
    if recipe.source.letters is not None:
        processes = joined(recipe, out)
        if processes.main:  # not before it has opened the folder, where they would be in the way
            write_letters(recipe.source.letters, here.letters, recipe.seed)
        processes.wait()
        data = dataclasses.replace(first.data, path=str(here.letters))
        first = dataclasses.replace(first, data=data)
    run(first, here.source.path, resume=resume, callbacks=callbacks, target=recipe)
    return str(here.source.model)
