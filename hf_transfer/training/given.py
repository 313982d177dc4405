"""What a user gives a Trainer, in any usual form, as it is used: model, phases, weights, path."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import ConcatDataset, Subset
from transformers import PreTrainedModel, TrainingArguments

from hf_transfer.backbones.blueprint import Backbone
from hf_transfer.backbones.load import load_backbone
from hf_transfer.base.boundary import untrusted
from hf_transfer.base.errors import UserError
from hf_transfer.base.files import expanded
from hf_transfer.data.image_set import ImageSet
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.inputs.model_input import collate
from hf_transfer.planning.phase import Phase
from hf_transfer.recipe.load import load_recipe
from hf_transfer.recipe.specs import GradualSpec, PhaseSpec
from hf_transfer.recipe.tasks import CLASSIFICATION
from hf_transfer.results.metrics.by_name import EpochMetrics
from hf_transfer.training.labels import names_of
from hf_transfer.training.recovery import checkpoints

logger = logging.getLogger(__name__)
USUAL_OUTPUTS = 8  # of a bare module, which does not name its labels
USUAL_SIDE = 224  # pixels that a bare module sees, where the images have as many


def given_model(model: Any, images: Any, init: Any = None) -> nn.Module:
    """Return the model, or what `init` makes; a name such as timm/resnet50 is loaded for the labels
    of `images`."""
    if init is not None:
        if model is not None or not callable(init):
            raise UserError("model_init is a function that returns a model; pass it or model")
        model = init(*[None] * _wanted(init))  # of a trial, where it takes one, as Trainer's own
    if isinstance(model, nn.Module):
        return model
    if not isinstance(model, str | Path):
        raise UserError(
            f"model is {_kind(model)}; pass what load_backbone returns, a torch module, or a name "
            "such as timm/resnet50.a1_in1k"
        )
    labels = names_of(images)
    if not labels:
        raise UserError(
            f"{model}: the training set does not name its labels; load the model with "
            "load_backbone(NAME, labels) and pass it"
        )
    path = expanded(model)
    return load_backbone(str(path) if path.is_dir() else str(model), labels)


def _wanted(init: Callable[..., Any]) -> int:
    """Return how many arguments a function must be given by place."""
    kinds = signature(init).parameters.values()
    return sum(
        each.default is each.empty and each.kind <= each.POSITIONAL_OR_KEYWORD for each in kinds
    )


def given_layers(head: Any, groups: Any) -> tuple[Any, Any]:
    """Return `head` as a list of patterns and `groups` as a mapping of such lists."""
    if groups is not None and not isinstance(groups, Mapping):
        raise UserError(
            f"groups are {_kind(groups)}; pass layers by name, from input to output: "
            "{'stem': ['conv1.*'], …, 'head': ['fc.*']}"
        )
    named = {name: _patterns(own) for name, own in (groups or {}).items()}
    return (None if head is None else _patterns(head)), (named or None)


def _patterns(given: Any) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def seen(model: nn.Module, images: Any) -> ImageSettings | None:
    """Return what a bare module sees, by the images of an ImageSet, or of parts of some, which it
    is to train on; None for a model that says so itself."""
    if isinstance(model, PreTrainedModel) or hasattr(model, "config"):
        return None
    while isinstance(images, Subset | ConcatDataset):
        images = images.dataset if isinstance(images, Subset) else images.datasets[0]
    if hasattr(model, "backbone") or not isinstance(images, ImageSet):
        return None
    side, channels = images.pixels.shape[2:]
    usual = ImageSettings(min(side, USUAL_SIDE))
    if channels == usual.channels:
        return usual
    return replace(usual, channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)


class Renamed:
    """A collator of items whose labels have another name, which `label_names` gives."""

    def __init__(self, collator: Callable[[Any], dict[str, Any]], name: str) -> None:
        self.collator, self.name = collator, name

    def __call__(self, items: Any) -> dict[str, Any]:
        """Return a batch with "labels"."""
        batch = dict(self.collator(items))
        if self.name in batch:
            batch["labels"] = batch.pop(self.name)
        return batch


def given_collator(collator: Any, args: TrainingArguments, images: Any) -> Any:
    """Return the collator, ours where there is none; it gives "labels", whatever `label_names` says
    they are called in the items of a user's own set."""
    collator, names = collator or collate, [*(args.label_names or ())]
    args.label_names = ["labels"]
    if isinstance(images, ImageSet) or not set(names) - {"labels", "label", "label_ids"}:
        return collator
    if len(names) > 1:
        raise UserError(
            f"label_names {names}: an image has one label, or one array of them; name one"
        )
    return Renamed(collator, names[0])


def own_loss(kind: Any, own: Mapping[str, Any]) -> bool:
    """Return whether a user computes the loss: by a function among Trainer's `own` arguments, or in
    a subclass of TransferTrainer whose compute_loss does not call ours."""
    code = getattr(kind.compute_loss, "__code__", None)
    apart = code is not None and "compute_loss" not in code.co_names
    return apart or own.get("compute_loss_func") is not None


def given_metrics(own: Mapping[str, Any], backbone: Backbone) -> Any:
    """Return `compute_metrics` of Trainer's `own` arguments, by default the task's.

    A user's function that fails, or returns no dict, raises UserError.
    """
    task, outputs = backbone.task, len(backbone.labels)
    compute = own.get("compute_metrics", EpochMetrics(task=task, scale=backbone.scale))
    if isinstance(compute, EpochMetrics):
        first = own.get("preprocess_logits_for_metrics")
        return compute.of_classes() if first and _gives_classes(first, task, outputs) else compute
    if compute is None:
        return None
    asked = "it takes an EvalPrediction and returns a dict such as {'accuracy': 0.9}"
    if not callable(compute):
        raise UserError(f"compute_metrics is {_kind(compute)}, not a function; {asked}")

    @wraps(compute)
    def told(*args: Any, **options: Any) -> Any:
        with untrusted("compute_metrics", asked, verb="run"):
            found = compute(*args, **options)
        if options.get("compute_result", True) and not isinstance(found, dict):
            raise UserError(f"compute_metrics returned {_kind(found)}; {asked}")
        return found

    return told


def _gives_classes(first: Callable[..., Any], task: str, outputs: int) -> bool:
    """Return whether `preprocess_logits_for_metrics` makes classes of logits; it is called once.

    Raises UserError for what the usual metrics cannot use.
    """
    outputs = outputs or USUAL_OUTPUTS
    rows, several = outputs + 2, task != CLASSIFICATION.name  # other than outputs, to tell them
    labels = torch.zeros((rows, outputs) if several else rows, dtype=None if several else int)
    asked = "it takes logits (B, C) and labels"
    with untrusted("preprocess_logits_for_metrics", asked, verb="run"):
        found = first(torch.zeros(rows, outputs), labels)
    shape = tuple(getattr(found[0] if isinstance(found, tuple) else found, "shape", ()))
    if shape == (rows, outputs):
        return False
    if shape == (rows,) and not several:
        return True
    needed = "logits" if several else "logits or the class of each image"
    raise UserError(
        f"preprocess_logits_for_metrics returns a shape of {shape} for logits of "
        f"{(rows, outputs)}, and the usual metrics need {needed}; pass compute_metrics for "
        "anything else"
    )


def given_phases(phases: Any) -> Sequence[Any]:
    """Return phases as a sequence; a recipe's name or file stands for its phases, and one phase
    for itself."""
    if isinstance(phases, str | Path):
        return load_recipe(phases).phases
    if isinstance(phases, Mapping | PhaseSpec | GradualSpec | Phase):
        return [phases]
    if not isinstance(phases, Sequence):
        raise UserError(
            f"phases are {_kind(phases)}; pass a list such as [{{'train': 'head', 'epochs': 10}}], "
            "or the name of a recipe"
        )
    for number, phase in enumerate(phases, 1):
        if not isinstance(phase, Mapping | PhaseSpec | GradualSpec | Phase):
            raise UserError(
                f"phase {number} is {_kind(phase)}; write {{'train': 'head', 'epochs': 10}}, say"
            )
    return phases


def given_steps(args: TrainingArguments, phases: Sequence[Phase], images: Any) -> None:
    """Let Trainer's constructor know that a set without a length is trained on for steps.

    Raises UserError for a phase that says its length in epochs of such a set.
    """
    if images is None or hasattr(images, "__len__"):
        return
    for phase in phases:
        if phase.spec.steps is None:
            raise UserError(
                f"phase {phase.name}: epochs of a training set without a length have no known end; "
                "write steps"
            )
        args.max_steps = phase.spec.steps


def given_resume(resume: Any, out: str) -> bool:
    """Return whether to resume the run in `out`; a path in it says so as well as True does.

    Raises UserError for a path elsewhere, or to a checkpoint that is not the newest.
    """
    if not resume and any(expanded(out).glob("phase-*/checkpoint-*")):
        logger.warning(
            "%s holds checkpoints of an earlier run, and this run starts over; to continue the "
            "earlier one, write train(resume_from_checkpoint=True)",
            out,
        )
    if isinstance(resume, bool | None):
        return bool(resume)
    if not isinstance(resume, str | Path):
        raise UserError(f"resume_from_checkpoint is {_kind(resume)}; pass True or a path")
    path, folder = expanded(resume).resolve(), expanded(out).resolve()
    if path != folder and folder not in path.parents:
        raise UserError(
            f"resume_from_checkpoint is a path outside args.output_dir, {out}, where phases and "
            "checkpoints are found; set output_dir to the folder of that run"
        )
    if not path.is_dir():
        raise UserError(f"resume_from_checkpoint: there is no folder {resume}")
    newest = checkpoints.numbered(path.parent)[:1]
    if checkpoints.NUMBERED.fullmatch(path.name) and newest != [path]:
        raise UserError(
            f"resume_from_checkpoint: {path.name} is not the newest of its phase, "
            f"{newest[0].name if newest else 'which has none'}; a run goes on from there"
        )
    return True


def _kind(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"
