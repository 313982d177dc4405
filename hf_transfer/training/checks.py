"""What cannot be trained: every refusal of a model, data or a phase, each worded once."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from hf_transfer.backbones.blueprint import Backbone
from hf_transfer.backbones.trace import check_runs
from hf_transfer.backbones.weights import check_finite
from hf_transfer.base.boundary import printable, untrusted
from hf_transfer.base.cache import room
from hf_transfer.base.errors import UserError
from hf_transfer.base.processes import Processes
from hf_transfer.data.image_set import ImageSet
from hf_transfer.data.pixels import StoredPixels
from hf_transfer.inputs.batches import check_first_item
from hf_transfer.inputs.model_input import collate
from hf_transfer.planning.frozen_prefix import check_kept, insists
from hf_transfer.planning.phase import Phase
from hf_transfer.planning.steps import check_warmup
from hf_transfer.recipe import stopping
from hf_transfer.recipe.conflicts import phase_conflicts
from hf_transfer.recipe.specs import Augment, PhaseSpec
from hf_transfer.results.metrics.by_name import EpochMetrics
from hf_transfer.training.given import Renamed, own_loss
from hf_transfer.training.labels import check_class, check_labels, check_shape
from hf_transfer.training.outcome import metric_names
from hf_transfer.training.seam import Seam

USUAL = ("classification", "multi_label", "regression")  # tasks whose labels come with images
BATCH_NORM = nn.modules.batchnorm._BatchNorm


def check_model(
    model: nn.Module, args: TrainingArguments, sync_batchnorm: bool = False, own_loss: bool = True
) -> None:
    """Raise UserError where the network cannot do what the arguments ask of it, or computes a loss
    of its own although the user has none (`own_loss`)."""
    plain = not own_loss and not isinstance(model, PreTrainedModel)
    if not isinstance(model, PreTrainedModel):
        try:
            inspect.signature(model.forward).bind(pixel_values=None)
        except TypeError as error:
            raise UserError(
                f"{type(model).__name__}.forward is called with pixel_values=…: {error}; rename "
                "its argument to pixel_values"
            ) from None
    name = getattr(getattr(model, "backbone", None), "id", type(model).__name__)
    check_finite(model, name)
    if plain and "labels" in inspect.signature(model.forward).parameters:
        raise UserError(
            f"{type(model).__name__} computes a loss of its own, from labels, which is not used; "
            "pass it as compute_loss_func, or let forward take pixel_values alone"
        )
    if sync_batchnorm and not any(isinstance(module, BATCH_NORM) for module in model.modules()):
        raise UserError("sync_batchnorm: this network has no BatchNorm; remove it")
    if args.activation_checkpointing and not getattr(
        model, "supports_gradient_checkpointing", False
    ):
        raise UserError(
            f"{name} does not support gradient checkpointing; remove gradient_checkpointing, and "
            "for memory take a smaller batch_size with accumulate"
        )


def check_end(ends_with: str) -> None:
    """Raise UserError for another phase to end with than there can be."""
    if ends_with not in ("best", "last"):
        raise UserError(f"ends_with must be best or last, got {ends_with!r}")


def check_run(trainer: Seam) -> None:
    """Raise UserError for what cannot be trained of phases, data and metrics."""
    train, evaluation = trainer.train_dataset, trainer.eval_dataset
    labels, own = trainer.backbone.labels, own_loss(type(trainer), vars(trainer))
    metrics = metric_names(trainer.compute_metrics)
    loss = "focal" if trainer.loss.objective.focal else "cross_entropy"
    check_phases(trainer.phases, train, evaluation, metrics, own, trainer.loss.task, loss)
    check_pseudo(trainer.phases, train, trainer.unlabelled, own)
    check_labels(train, "the training set", labels)
    check_labels(evaluation, "the validation set", labels)
    judged = isinstance(trainer.compute_metrics, EpochMetrics)
    usual = judged or not (own or isinstance(trainer.model, PreTrainedModel))
    model = trainer.model
    check_items(train, evaluation, trainer.data_collator, model, trainer.backbone, own, usual)
    images = len(train) if hasattr(train, "__len__") else 0
    check_warmup(trainer.phases, images, trainer.processes.count)
    for phase in trainer.phases:
        whole = phase.spec.batch_size * trainer.processes.count
        if trainer.args.dataloader_drop_last and not phase.spec.solve and 0 < images < whole:
            raise UserError(
                f"phase {phase.name}: dataloader_drop_last leaves no batch of {images} images, at "
                f"{whole} in a step; choose a smaller batch_size, or keep the last batch"
            )


def check_phases(
    phases: Sequence[Phase],
    train: Any,
    evaluation: Any,
    metrics: Collection[str] | None,
    own_loss: bool,
    task: str = "classification",
    loss: str = "cross_entropy",
) -> None:
    """Raise UserError with everything that would fail or have no effect, before any training.

    `metrics` are the names that an evaluation gives, None where that is not known yet;
    `own_loss` says that the user's own function computes the loss.
    """
    if not phases:
        raise UserError("there are no phases to train; pass phases=[{'train': 'head', …}]")
    if train is None:
        raise UserError("there is nothing to train on; pass train_dataset=")
    with untrusted("the length of the training set"):
        if hasattr(train, "__len__") and not len(train):
            raise UserError("the training set is empty; pass one with images")
    problems = [
        f"phase {phase.name}: {problem}"
        for phase in phases
        for problem in (
            *phase_conflicts(phase.spec, task, loss),
            *_head_problems(phase),
            *_data_problems(phase.spec, train, own_loss),
            *_metric_problems(phase.spec, evaluation, metrics),
        )
    ]
    if problems:
        raise UserError("\n".join(problems))


def check_pseudo(phases: Sequence[Phase], train: Any, beside: Any, own_loss: bool) -> None:
    """Raise UserError where a phase with `pseudo` has no images without labels to learn from."""
    for phase in phases:
        if phase.spec.pseudo is None:
            continue
        where = f"phase {phase.name}: pseudo"
        if own_loss:
            raise UserError(f"{where} would change the loss, which is your own")
        if not isinstance(train, ImageSet):
            kind = type(train).__name__
            raise UserError(f"{where} needs an ImageSet, as load_data makes it, not a {kind}")
        if not isinstance(beside, ImageSet) or not len(beside):
            raise UserError(
                f"{where} learns from images without labels, and there are none; pass them as "
                "unlabelled=, an ImageSet"
            )


def check_items(
    train: Any,
    evaluation: Any,
    collator: Any,
    model: nn.Module,
    backbone: Backbone,
    own_loss: bool = False,
    usual: bool = True,
) -> None:
    """Raise UserError where the first item of a set is none that a step can take; another
    collator than ours may make anything of it. Labels are for the `usual` loss or metrics, unless
    `own_loss` and own metrics take them."""
    classes, task = len(backbone.labels), backbone.task
    if task == "classification" and classes == 1 and usual:
        raise UserError(
            f"the model has one output, {printable(backbone.labels[0])!r}, and a classification "
            "needs at least two; to predict numbers set problem_type='regression' in its config"
        )
    own = (collator.name,) if isinstance(collator, Renamed) else ()
    if getattr(collator, "collator", collator) is not collate:
        return
    sets = {"the training set": train, "the validation set": evaluation}
    if isinstance(evaluation, dict):
        sets |= {f"the validation set {name}": each for name, each in evaluation.items()}
    for what, images in sets.items():
        if images is None or isinstance(images, dict):
            continue
        first = check_first_item(images, what, backbone.image, own)
        if first is None:
            continue
        label, shape = first
        if usual and task in USUAL:
            check_shape(label, what, 0 if task == "classification" else classes)
        if task == "classification" and not (own_loss and not usual):
            check_class(label, what, classes)
        if shape and shape[1:] != (backbone.image.size,) * 2:
            check_runs(model, shape)


def check_features(
    phases: Sequence[Phase],
    train: Any,
    evaluation: Any,
    here: Processes,
    *,
    sharded: bool,
    halved: bool,
) -> None:
    """Raise UserError for phases that insist on features that one of the machines cannot keep, as
    `check_kept`, or that there are no stored pixels for. All processes call this together."""
    phases = [phase for phase in phases if insists(phase.spec)]
    if not phases:
        return
    for what, data in {"data set": train, "validation set": evaluation}.items():
        if not isinstance(data, ImageSet | None):
            wanted = insists(phases[0].spec)
            raise UserError(
                f"phase {phases[0].name}: {wanted} is not possible, because the {what} gives no "
                f"stored pixels; make it with load_data, or remove {wanted}"
            )
    problem = None
    sets = [data.pixels for data in (train, evaluation) if data is not None]
    pixels = {stored.stored.folder for stored in sets if isinstance(stored, StoredPixels)}
    held_out = len(evaluation) if isinstance(evaluation, ImageSet) else 0
    images = {"train": len(train), "validation": held_out}
    try:
        check_kept(
            phases,
            images,
            room(*pixels),
            sharded=sharded,
            halved=halved,
        )
    except UserError as error:
        problem = error
    if here.most(int(problem is not None)):
        names = ", ".join(phase.name for phase in phases)
        raise problem or UserError(f"another process has no room for features of phase {names}")


def check_norms(has_statistics: bool, phases: Sequence[Phase], images: Any) -> None:
    """Raise UserError where a phase cannot have running statistics re-estimated."""
    asked = [phase.name for phase in phases if phase.spec.reestimate_norms]
    if asked and not has_statistics:
        raise UserError(
            f"phase {asked[0]}: reestimate_norms: this network keeps no statistics of batches; "
            "remove it"
        )
    if asked and not (hasattr(images, "__len__") and len(images) > 1):
        raise UserError(
            f"phase {asked[0]}: reestimate_norms needs a data set with a length above 1"
        )


def unsolvable(phase: Phase, needs: str) -> UserError:
    """Return the error for a phase whose head cannot be solved for, by what that needs."""
    return UserError(f"phase {phase.name}: {_unsolvable(phase.spec, needs)}")


def _unsolvable(spec: PhaseSpec, needs: str) -> str:
    return f"solve: {spec.solve} needs {needs}; write epochs: 10 instead"


def _head_problems(phase: Phase) -> list[str]:
    """Return what keeps a head from being solved for: more than one dense layer with a bias."""
    if not phase.spec.solve:
        return []
    known = dict(phase.layout.parameters)
    shapes = sorted((known[name] for name in phase.parameters), key=len, reverse=True)
    flat = [shape[:1] + tuple(side for side in shape[1:] if side > 1) for shape in shapes]
    if len(flat) == 2 and len(flat[0]) <= 2 and flat[1] == flat[0][:1]:
        return []
    needs = "a head of one dense layer with a bias, and this one has "
    return [_unsolvable(phase.spec, needs + ", ".join(phase.parameters))]


def _data_problems(spec: PhaseSpec, train: Any, own_loss: bool) -> list[str]:
    by_place = hasattr(train, "__len__") and hasattr(train, "__getitem__")
    varied = {"augment": spec.augment != Augment(), "mixup": spec.mixup, "cutmix": spec.cutmix}
    named = [key for key, used in varied.items() if used]
    problems = []
    if spec.lr == "auto" and not by_place:
        problems.append("lr: auto needs a training set with a length; write a rate, say lr: 1e-3")
    classes = train.labels if isinstance(train, ImageSet) and train.labels.ndim == 1 else None
    if spec.solve and classes is not None and len(np.unique(classes)) < 2:
        needs = f"training images of at least two classes, and all {len(train)} are of one"
        problems.append(_unsolvable(spec, needs))
    if named and not isinstance(train, ImageSet):
        problems.append(
            f"{', '.join(named)} vary the pixels of an ImageSet, and this data set is a "
            f"{type(train).__name__}; vary them there, or make it with load_data"
        )
    changed = {"label_smoothing": spec.label_smoothing, "mixup": spec.mixup, "cutmix": spec.cutmix}
    named = [key for key, used in changed.items() if used]
    if named and own_loss:
        problems.append(f"{', '.join(named)} would change the loss, which is your own")
    return problems


def _metric_problems(
    spec: PhaseSpec, evaluation: Any, metrics: Collection[str] | None
) -> list[str]:
    asked = {} if spec.best in ("last", "loss") else {"best": spec.best}
    asked |= {"stop": spec.stop.metric} if spec.stop else {}
    if evaluation is None:
        return [f"{key} needs validation images; pass eval_dataset=" for key in asked]
    if isinstance(evaluation, dict):
        known = sorted(f"{name}_loss" for name in evaluation)
        asked |= {"best": spec.best} if spec.best == "loss" else {}
        return [
            f"{key}: several validation sets have no {metric!r} in common; have {', '.join(known)}"
            for key, metric in asked.items()
            if not any(metric.startswith(f"{name}_") for name in evaluation)
        ]
    if metrics is None:
        return []
    return [
        f"{key}: {stopping.unclear(metric)}"
        if metric in metrics
        else f"{key}: there is no metric {metric!r}; have {', '.join(sorted(metrics))}"
        for key, metric in asked.items()
        if metric not in metrics or stopping.unclear(metric)
    ]
