"""The facts of a run for its report, gathered from the objects that know them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from hf_transfer.base import launch
from hf_transfer.data.image_set import ImageData, ImageSet, joined
from hf_transfer.inputs.mirror import mean_of_views, mirrored
from hf_transfer.recipe.specs import Recipe
from hf_transfer.recipe.tasks import TASKS
from hf_transfer.results.examples import examples, shows_images
from hf_transfer.results.metrics.by_name import load_metric
from hf_transfer.results.metrics.by_name import measure as measured
from hf_transfer.results.metrics.resampling import widen
from hf_transfer.results.metrics.thresholds import Rule, best_thresholds, check_rule, shifted
from hf_transfer.training.proof import fingerprint
from hf_transfer.training.trainer import TransferTrainer

Extra = Callable[[Any, Any], dict[str, Any]]


def inputs(model: torch.nn.Module, data: ImageData) -> dict[str, Any]:
    """Return what a run starts from, by name: a resumed run must start from the same."""
    first = fingerprint(model, model.backbone.prefix)
    return {
        "images": sum(map(len, (data.train, data.validation, data.test or ()))),
        "data": data.fingerprint,
        "weights": first.digest(),
    }


def class_weights(recipe: Recipe) -> str | dict[str, float] | None:
    """Return the class weights of a recipe as a Trainer takes them."""
    given = recipe.class_weights
    return given if isinstance(given, str) else dict(given) or None


def extra_metrics(names: Sequence[str]) -> tuple[Extra, ...]:
    """Return the further `evaluate` metrics of a recipe, loaded before anything is trained."""
    return tuple(load_metric(name) for name in names)


def measure(
    trainer: TransferTrainer,
    data: ImageData,
    extra: Sequence[Extra] = (),
    page_images: str | None = "none",
    rule: Rule = "",
    tta: bool = False,
) -> tuple[dict[str, Any], dict[str, Any], np.ndarray]:
    """Return the final metrics on validation, and under `test` on test where there is one; and the
    examples and the answers (N, C) of the split that counts, which is test where there is one.

    `extra` metrics are computed from the same logits. `page_images` is the recipe's. By a `rule`
    the thresholds of several labels are chosen on validation, and the model keeps them. With `tta`
    answers are means over each image and its mirror image, and the model keeps that, too.
    """
    images = data.validation
    found = trainer.predict_validation()
    if tta:
        trainer.model.backbone = replace(trainer.model.backbone, tta=True)
        found = _with_mirror(trainer, images, found)
    limits: tuple[float, ...] = ()
    if rule:
        limits = best_thresholds(found.predictions, images.labels, images.names, rule)
        trainer.model.backbone = replace(trainer.model.backbone, thresholds=limits)
    metrics = _measured(found, images, data.task, extra, limits)
    if data.test is not None:
        images, found = data.test, trainer.predict(data.test)
        found = _with_mirror(trainer, images, found) if tta else found
        metrics["test"] = _measured(found, images, data.task, extra, limits)
    if rule:
        metrics["thresholds"] = dict(zip(images.names, limits, strict=True))
    shown = launch.is_main() and shows_images(page_images, data.audit)
    shown = shown and not TASKS[data.task].is_pretext  # whose answers are about no single image
    answers = shifted(found.predictions, limits) if limits else found.predictions
    if not shown:
        return metrics, {}, answers
    others = [one for one in data.splits.values() if one is not images]
    pictures = examples(data.task, found.predictions, images, data.audit.findings, others, limits)
    return metrics, pictures, answers


def crossed(
    metrics: dict[str, Any],
    data: ImageData,
    answers: Mapping[str, Sequence[float]],
    extra: Sequence[Extra],
    recipe: Recipe,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return metrics with those of a cross-validation under `test`, and its examples.

    `answers` are the outputs for each image by a model that was trained without it, numbers in
    their units. Intervals are wider than those of as many independent images.
    """
    everything = joined(data.train, data.validation)
    images = everything.subset(
        [row for row, name in enumerate(everything.files) if name in answers]
    )
    outputs = np.array([answers[name] for name in images.files])
    if images.scale is not None:
        outputs = images.scale.to_standard(outputs)
    of = images.labels, images.names, images.scale
    test = measured(data.task, outputs, *of, groups=images.groups)
    widen(test, recipe.folds)
    for metric in extra:
        test |= metric(outputs, images.labels)
    metrics = {**metrics, "test": test}
    if not (launch.is_main() and shows_images(recipe.page_images, data.audit)):
        return metrics, {}
    return metrics, examples(data.task, outputs, images, data.audit.findings, [everything])


def thresholds(recipe: Recipe, labels: Sequence[str]) -> Rule:
    """Return by what the thresholds of a recipe are chosen; "" for one half. Raises UserError for a
    label that there is not."""
    given = recipe.thresholds
    rule: Rule = given if isinstance(given, str) else dict(given) or ""
    check_rule(rule, labels)
    return rule


def _with_mirror(trainer: TransferTrainer, images: ImageSet, found: Any) -> Any:
    """Return predictions as means with those of the mirror images."""
    if not len(images):
        return found
    views = [found.predictions, trainer.predict(mirrored(images)).predictions]
    task = trainer.model.backbone.task
    mean = mean_of_views(task, [torch.from_numpy(view) for view in views]).float().numpy()
    return found._replace(predictions=mean)


def _measured(
    found: Any,
    images: ImageSet,
    task: str,
    extra: Sequence[Extra],
    limits: Sequence[float] = (),
) -> dict[str, Any]:
    logits, labels = found.predictions, found.label_ids  # a pretext makes its own labels
    logits = shifted(logits, limits) if limits else logits
    metrics = measured(task, logits, labels, images.names, images.scale, groups=images.groups)
    for metric in extra:
        metrics |= metric(logits, labels)
    return metrics
