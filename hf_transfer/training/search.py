"""Settings of phases, searched by optuna: each trial is a run in a folder of its own."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer_utils import BestRun

from hf_transfer.base.errors import UserError
from hf_transfer.base.nearest import nearest
from hf_transfer.planning.phase import Phase
from hf_transfer.recipe import stopping
from hf_transfer.recipe.specs import PhaseSpec
from hf_transfer.recipe.tasks import TASKS

logger = logging.getLogger(__name__)


def settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a constructor, by its `locals()`."""
    own = {name: value for name, value in values.items() if name not in ("self", "kwargs")}
    return {k: v for k, v in {**own, **values["kwargs"]}.items() if k != "__class__"}


def best_run(
    kind: Callable[..., Trainer],
    given: Mapping[str, Any],
    phases: Sequence[Phase],
    hp_space: Callable[[Any], Mapping[str, Any]] | None = None,
    compute_objective: Callable[[dict[str, float]], float] | None = None,
    n_trials: int = 20,
    direction: str | None = None,
    backend: str | None = None,
    hp_name: Callable[[Any], str] | None = None,
    **options: Any,
) -> BestRun:
    """Return the best of several runs, each with a new model from `model_init`.

    `hp_space` maps an optuna trial to settings: "phases.0.lr", "phases.1.epochs" and the like, or
    "phases" as a whole: a recipe's name, or a list. By default the rate of each phase is searched,
    from a tenth to ten times its own. The objective is the leading metric (accuracy, mAP, R2) of
    the phase that a run ends with, which is maximized, or what `compute_objective` makes of its
    metrics, which is minimized unless `direction` says maximize. `options` go to optuna's
    `create_study`. The hyperparameters of the best run are those of its optuna trial. Raises
    UserError.
    """
    if given.get("model_init") is None:
        raise UserError(
            "hyperparameter_search begins each trial with a new model; pass model_init, a function "
            "that returns one, in place of model"
        )
    if given.get("eval_dataset") is None:
        raise UserError("hyperparameter_search compares on validation images; pass eval_dataset=")
    if str(backend or "optuna") != "optuna":
        raise UserError(f"hyperparameter_search runs with optuna, not {backend}; remove backend")
    optuna = _optuna()
    specs = [phase.spec for phase in phases]
    space = hp_space or (lambda trial: usual_space(trial, phases))
    direction = direction or ("maximize" if compute_objective is None else "minimize")
    study = optuna.create_study(direction=direction, **options)

    def run(trial: Any) -> float:
        changes = dict(space(trial))
        args = copy.copy(given["args"])
        name = hp_name(trial) if hp_name else f"trial-{trial.number}"
        args.output_dir = str(Path(args.output_dir) / name)
        phases = changes["phases"] if set(changes) == {"phases"} else changed(specs, changes)
        trainer = kind(**{**given, "args": args, "phases": phases})
        trainer.train()
        metrics = dict(trainer.reports[trainer.runner.best.index].metrics)
        if compute_objective is None:
            value = leading(metrics, trainer.backbone.task)
        else:
            value = float(compute_objective(metrics))
        logger.info("%s: %s", name, value)
        return value

    study.optimize(run, n_trials=n_trials)
    best = study.best_trial
    return BestRun(str(best.number), best.value, best.params, study)


def changed(specs: Sequence[PhaseSpec], changes: Mapping[str, Any]) -> list[PhaseSpec]:
    """Return phases with settings such as {"phases.0.lr": 1e-3}. Raises UserError."""
    found = list(specs)
    for key, value in changes.items():
        first, _, rest = key.partition(".")
        place, _, name = rest.partition(".")
        if first != "phases" or place not in map(str, range(len(found))):
            raise UserError(
                f"hp_space gives {key!r}; write phases.0.lr, phases.{len(found) - 1}.epochs and so "
                "on, or phases alone"
            )
        known = [field.name for field in fields(PhaseSpec)]
        if name not in known:
            raise UserError(
                f"hp_space gives {key!r}: a phase has no {name!r}{nearest(name, known)}"
            )
        other = {"epochs": "steps", "steps": "epochs"}.get(name)
        length: dict[str, Any] = {other: None} if other else {}
        found[int(place)] = replace(found[int(place)], **length, **{name: value})
    return found


def usual_space(trial: Any, phases: Sequence[Phase]) -> dict[str, float]:
    """Return a rate for each phase that has steps, from a tenth to ten times its own."""
    found = {}
    for place, phase in enumerate(phases):
        if phase.spec.solve is None and phase.spec.lr_ends is None:
            name, rate = f"phases.{place}.lr", phase.spec.head_lr
            found[name] = trial.suggest_float(name, rate / 10, rate * 10, log=True)
    return found


def leading(metrics: Mapping[str, float], task: str) -> float:
    """Return the metric that runs of a task are compared by; more of it is better."""
    name = TASKS[task].headline
    if name in metrics:
        return metrics[name]
    known = [name for name in metrics if not stopping.lower_is_better(name)]
    if known:
        return metrics[known[0]]
    return -metrics.get("loss", torch.inf)


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError:
        raise UserError(
            "hyperparameter_search needs optuna; pip install 'hf-transfer-learning[search]'"
        ) from None
    return optuna
