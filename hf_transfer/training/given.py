"""What a user gives a Trainer, in any usual form, as it is used: model, phases, weights, path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainingArguments

from hf_transfer.backbones.load import load_backbone
from hf_transfer.base.errors import UserError
from hf_transfer.planning.phase import Phase
from hf_transfer.recipe.load import load_recipe
from hf_transfer.recipe.specs import GradualSpec, PhaseSpec
from hf_transfer.training.labels import names_of
from hf_transfer.training.recovery import checkpoints


def given_model(model: Any, images: Any) -> nn.Module:
    """Return the model; a name such as timm/resnet50 is loaded for the labels of `images`."""
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
    path = Path(model).expanduser()
    return load_backbone(str(path) if path.is_dir() else str(model), labels)


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
    if isinstance(resume, bool | None):
        return bool(resume)
    path, folder = Path(resume).expanduser().resolve(), Path(out).expanduser().resolve()
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
