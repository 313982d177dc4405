"""Settings of a recipe that contradict each other, or that would have no effect."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from hf_transfer.base.nearest import nearest
from hf_transfer.recipe import stopping
from hf_transfer.recipe.tasks import CLASSIFICATION, PROBES, REGRESSION, TASKS, Task

if TYPE_CHECKING:
    from hf_transfer.recipe.phase_specs import PhaseSettings
    from hf_transfer.recipe.specs import DataSpec, Recipe, SourceSpec

Problem = tuple[tuple[str | int, ...], str]  # where in the recipe, and what is wrong there

# What sets the steps, the rates or the loss: a head that is solved for uses none of them.
UNSOLVED = (
    *("epochs", "steps", "min_steps", "lr", "lrs", "layer_decay", "weight_decay", "optimizer"),
    *("momentum", "schedule", "warmup", "batch_size", "accumulate", "label_smoothing", "mixup"),
    *("cutmix", "stop", "best", "l2_sp", "max_grad_norm", "on_nan", "sampler", "pseudo"),
)
LABELLED_ONLY = {  # keys of data that say nothing of images without labels: the defaults
    **{"train_per_class": None, "validation_per_class": None, "label_columns": (), "config": None},
    **{"image_column": "image", "label_column": "label", "unlabelled": None},
}
SKEWED = ("balanced", "focal", "logit_adjusted")  # losses for uneven classes


def in_phase(spec: PhaseSettings) -> Iterator[str]:
    """Yield what contradicts itself in a phase."""
    yield from _of_length(spec)
    yield from _of_rates(spec)
    yield from _of_features(spec)


def in_gradual(spec: PhaseSettings) -> Iterator[str]:
    """Yield what `gradual` cannot be combined with."""
    for key, remedy in (
        ("solve", "put {train: head, solve: lbfgs} before it"),
        ("lrs", "use layer_decay"),
        ("cold_head", "it starts with the head, so remove it"),
    ):
        if getattr(spec, key):
            yield f"gradual cannot be combined with {key}; {remedy}"


def with_solve(keys: Collection[str]) -> Iterator[str]:
    """Yield what of the keys given a solver does not use."""
    unused = [key for key in UNSOLVED if key in keys]
    if unused:
        remedy = "it" if len(unused) == 1 else "them"
        yield (
            f"solve: lbfgs runs until it converges and does not use {', '.join(unused)}; "
            f"remove {remedy}"
        )


def _of_length(spec: PhaseSettings) -> Iterator[str]:
    lengths = [key for key in ("epochs", "steps") if getattr(spec, key) is not None]
    if not lengths and spec.solve is None:
        yield "a phase needs epochs or steps, such as epochs: 10"
    if len(lengths) == 2:
        yield "a phase has either epochs or steps, not both; remove one"
    if spec.min_steps is not None and spec.steps is not None:
        yield "min_steps is for a length in epochs, and this phase has steps; remove one"
    if spec.solve:
        changed = [f.name for f in dataclasses.fields(spec) if not _is_default(spec, f.name)]
        yield from with_solve(changed)


def _is_default(spec: PhaseSettings, name: str) -> bool:
    fields = type(spec).__pydantic_fields__  # type: ignore[attr-defined]
    return bool(getattr(spec, name) == fields[name].default)


def _of_rates(spec: PhaseSettings) -> Iterator[str]:
    if spec.lr == "auto" and spec.lrs:
        yield "lr: auto cannot be combined with lrs; use layer_decay, or write lr"
    if spec.lr_ends and spec.layer_decay is not None:
        yield "lr with two rates and layer_decay both set the rate of each group; remove one"
    if spec.momentum is not None and spec.optimizer not in ("sgd", "rmsprop"):
        yield f"momentum does nothing in {spec.optimizer}; remove it or write optimizer: sgd"
    if spec.warmup and spec.schedule == "constant":
        yield "schedule: constant has no warmup; write schedule: constant_with_warmup"
    if spec.schedule == "constant_with_warmup" and not spec.warmup:
        yield "schedule: constant_with_warmup needs warmup, such as warmup: 0.1"


def _of_features(spec: PhaseSettings) -> Iterator[str]:
    live, cached = spec.features == "live", spec.features == "cached"
    if spec.views > 1 and not spec.is_augmented:
        yield f"views: {spec.views} would be the same pixels each time; add augment: light"
    if spec.views > 1 and live:
        yield "views are for cached features; remove features: live or views"
    if spec.feature_precision != "fp32" and live:
        yield "feature_precision is for cached features; remove features: live or feature_precision"
    if (spec.mixup or spec.cutmix) and cached:
        yield "mixup and cutmix mix pixels, not features; remove them or features: cached"
    if spec.pseudo and (spec.mixup or spec.cutmix):
        yield "pseudo cannot be combined with mixup or cutmix; remove one of them"
    if spec.pseudo and cached:
        yield "pseudo varies images in every epoch; remove it or features: cached"
    if spec.solve and live:
        yield "solve: lbfgs works on cached features; remove features: live"


# --- a recipe --------------------------------------------------------------------------------


def in_data(data: DataSpec) -> Iterator[str]:
    """Yield what contradicts itself in the data's section."""
    if data.validation + data.test >= 1:
        yield (
            f"validation {data.validation:g} and test {data.test:g} leave nothing to train on; "
            "their sum must be below 1"
        )
    if data.fold is not None:
        number, parts = data.fold
        if parts < 2 or not 1 <= number <= parts:
            yield f"fold {list(data.fold)} is no part; write such as [1, 5] for the first of five"
        if data.test:
            yield "fold says which images test; remove test"
    if data.window is not None and data.window[1] < 1:
        yield f"window {list(data.window)}: its second number, the width, must be at least 1"


def in_source(source: SourceSpec) -> Iterator[str]:
    """Yield what contradicts itself in the section of a source task."""
    if source.pretext is not None and source.letters is not None:
        yield "a pretext learns from the images of data; remove letters"
    elif source.pretext is not None and source.data is None:
        yield f"pretext: {source.pretext} needs images; add data: {{path: FOLDER}}"
    elif (source.data is None) == (source.letters is None):
        yield "source needs one of data and letters, as what to learn first"


def _unused_by_pretext(data: DataSpec, pretext: str) -> Iterator[tuple[str, str]]:
    """Yield the keys of a pretext's data that it would not use, and what to say of them."""
    for key, usual in LABELLED_ONLY.items():
        if getattr(data, key) != usual:
            yield key, f"{key} is for images with labels, not for {pretext}; remove it"


def in_recipe(recipe: Recipe) -> Iterator[Problem]:
    """Yield what sections of a recipe contradict each other, or do not go with its task."""
    yield from _of_weights(recipe)
    yield from _with_task(recipe)
    yield from _of_pseudo(recipe)
    yield from _of_folds(recipe)
    for i, spec in enumerate(recipe.phases):
        for text in _phase_problems(spec, recipe.metrics, recipe.task, recipe.loss):
            yield ("phases", i), text
    if recipe.source is not None:
        if recipe.source.pretext and recipe.source.data:
            for key, text in _unused_by_pretext(recipe.source.data, recipe.source.pretext):
                yield ("source", "data", key), text
        for i, spec in enumerate(recipe.source.phases):
            task = recipe.source.pretext or CLASSIFICATION.name
            extra = () if recipe.source.pretext else recipe.metrics
            for text in _phase_problems(spec, extra, task):
                yield ("source", "phases", i), text


def _of_folds(recipe: Recipe) -> Iterator[Problem]:
    """Yield what does not go with a cross-validation."""
    if recipe.folds == 1:
        return
    if recipe.data.fold is not None:
        yield ("folds",), "folds runs every part, and data.fold one; remove one of them"
    if recipe.data.test:
        yield ("folds",), "with folds each image tests once; remove data.test"
    if recipe.source is not None:
        yield ("folds",), "folds would train the source again for each part; remove folds"


def _of_weights(recipe: Recipe) -> Iterator[Problem]:
    """Yield what contradicts where the weights come from."""
    if recipe.weights is not None and not recipe.pretrained:
        yield ("weights",), "weights are not loaded with pretrained: false; remove one of them"
    if recipe.head.keep and not recipe.pretrained:
        yield ("head",), "random weights have no head to keep; remove keep"
    if recipe.source is None:
        return
    if recipe.backbone is not None:
        remedy = "write source.backbone instead"
        yield ("backbone",), f"the backbone is the one that source trains; {remedy}"
    if recipe.weights is not None:
        remedy = "remove one of them"
        yield ("weights",), f"weights cannot be combined with source; {remedy}"


def _of_pseudo(recipe: Recipe) -> Iterator[Problem]:
    """Yield what contradicts itself of images without labels."""
    free = TASKS[recipe.task].is_pretext  # which has no use for it anyway
    if recipe.data.unlabelled and not free and not any(spec.pseudo for spec in recipe.phases):
        yield ("data", "unlabelled"), "unlabelled is for phases with pseudo; add it to one"
    for i, spec in enumerate(recipe.source.phases if recipe.source else ()):
        if spec.pseudo:
            yield ("source", "phases", i), "pseudo is for phases of the target; move it there"


def _with_task(recipe: Recipe) -> Iterator[Problem]:
    """Yield the settings of a recipe that do not go with its task."""
    task, data = TASKS[recipe.task], recipe.data
    yield from _of_loss(recipe, task)
    if task.is_pretext:
        for key, text in _unused_by_pretext(data, task.name):
            yield ("data", key), text
    if task is CLASSIFICATION:
        if data.label_columns:
            yield (
                ("data", "label_columns"),
                "label_columns are for task: multi_label or regression; add the task",
            )
        return
    for key in ("train_per_class", "validation_per_class"):
        if getattr(data, key) and not task.is_pretext:
            yield ("data", key), f"{key} cannot be combined with task: {task.name}; remove it"
    if recipe.metrics:
        yield (
            ("metrics",),
            f"metrics of the evaluate library cannot be combined with task: {task.name}; "
            "remove them",
        )
    if recipe.compare is not None:
        yield ("compare",), "compare is for task: classification; remove one of them"
    if recipe.tta and task.is_pretext:
        yield ("tta",), f"tta averages answers about images, and task: {task.name} has none"


def _of_loss(recipe: Recipe, task: Task) -> Iterator[Problem]:
    """Yield what of the loss does not go with the task, or with its class weights."""
    if task.is_pretext or recipe.loss == "pretext":
        if recipe.loss != task.loss:
            own = "a loss of its own" if task.is_pretext else f"the loss {task.loss}"
            yield ("loss",), f"task: {task.name} has {own}; remove loss: {recipe.loss}"
        if recipe.class_weights:
            yield ("class_weights",), "class_weights are for labels; remove them"
        return
    if recipe.loss in SKEWED and task is REGRESSION:
        yield ("loss",), f"loss: {recipe.loss} is for labels, and a regression has none; remove it"
    elif recipe.loss == "logit_adjusted" and task is not CLASSIFICATION:
        yield ("loss",), "loss: logit_adjusted is for task: classification; write balanced or focal"
    elif (recipe.loss == "squared_error") != (task is REGRESSION):
        yield ("loss",), f"the loss of task: {task.name} is {task.loss}; write that or remove loss"
    if recipe.thresholds and task.name != "multi_label":
        remedy = "for uneven costs of classes write class_weights" if task is CLASSIFICATION else ""
        yield (
            ("thresholds",),
            "; ".join(["thresholds are for task: multi_label", remedy or "remove them"]),
        )
    if recipe.class_weights and task is REGRESSION:
        yield ("class_weights",), "class_weights are for labels, and a regression has none"
    if recipe.class_weights and recipe.loss in ("balanced", "logit_adjusted"):
        yield (
            ("class_weights",),
            f"class_weights cannot be combined with loss: {recipe.loss}; remove one of them",
        )


def phase_conflicts(spec: PhaseSettings, task: str, loss: str = "cross_entropy") -> Iterator[str]:
    """Yield what is wrong with the settings of a phase for a task and a loss."""
    if spec.sampler == "balanced" and task != CLASSIFICATION.name:
        yield f"sampler: balanced is for task: classification, not {task}; remove it"
    if spec.pseudo and task != CLASSIFICATION.name:
        yield f"pseudo is for task: classification, not {task}; remove it"
    if spec.solve and loss == "focal":
        yield "solve: lbfgs minimises cross-entropy; remove loss: focal, or write epochs: 10"
    if spec.solve and TASKS[task].is_pretext:
        yield f"solve: lbfgs is for labels and numbers, not for {task}; write epochs: 10 instead"
    if task == REGRESSION.name or TASKS[task].is_pretext:
        for key in ("label_smoothing", "mixup", "cutmix"):
            if getattr(spec, key):
                yield f"{key} is for labels, and a {TASKS[task].kind} has none; remove it"
    yield from _with_pretext(spec, task)


def _with_pretext(spec: PhaseSettings, task: str) -> Iterator[str]:
    """Yield what a pretext cannot do, or lacks."""
    if TASKS[task].is_pretext and spec.features == "cached":
        yield f"features: cached is for images that stay as they are, not for {task}; remove it"
    if TASKS[task].compares and spec.batch_size == 1:
        yield f"{task} compares the images of a batch; write batch_size: 2 or more"
    if TASKS[task].moves and spec.is_augmented:
        yield f"{task} moves its pictures itself; remove augment"
    if TASKS[task].varies and not spec.is_augmented:
        yield (
            f"{task} compares variations of an image, and this phase has none; add augment: "
            "standard, or {crop: [0.2, 1], flip: true, color: 0.4}"
        )


def _phase_problems(
    spec: PhaseSettings, extra: tuple[str, ...], task: str, loss: str = "cross_entropy"
) -> Iterator[str]:
    """Yield what of a phase does not go with the task: settings, and the metrics that it stops at
    or keeps the best of.

    With the recipe's own `metrics` any name that says what is better may come up, and is looked
    for once they are loaded.
    """
    yield from phase_conflicts(spec, task, loss)
    known = TASKS[task].metrics + (tuple(PROBES.values()) if TASKS[task].is_pretext else ())
    for key, metric in judged_by(spec):
        if extra:
            why = stopping.unclear(metric)
            if why:
                yield f"{key}: {why}"
        elif metric not in known:
            last = " and last" if key == "best" else ""
            yield (
                f"{key}: there is no metric {metric!r}{nearest(metric, known)}; there are "
                f"{', '.join(known)}{last}"
            )


def judged_by(spec: PhaseSettings) -> list[tuple[str, str]]:
    """Return the metrics by which a phase is judged, each after the key that names it."""
    named = [("best", spec.best)] if spec.best != "last" else []
    return [*named, *([("stop", spec.stop.metric)] if spec.stop else [])]
