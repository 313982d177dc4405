"""The exact head: what the solver finds, written into the network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerState
from transformers.trainer_utils import TrainOutput

from hf_transfer.backbones.access import bare_names, logits_of
from hf_transfer.base.processes import Processes
from hf_transfer.inputs.features import Replay
from hf_transfer.planning.phase import Phase
from hf_transfer.training import checks
from hf_transfer.training.loss import Objective
from hf_transfer.training.phase_state import PhaseState
from hf_transfer.training.seam import Seam
from hf_transfer.training.solver import Solution, solve_head
from hf_transfer.training.solver_targets import solve_labels, solve_numbers

TOLERANCE = 1e-3  # of the logits' scale, between the solution's and those of the model with it


def fit_head(
    model: nn.Module,
    prefix: str,
    phase: Phase,
    replay: Replay,
    *,
    objective: Objective | None = None,
    seed: int = 0,
) -> Solution:
    """Write the exact head into the model and return it.

    `replay` has taken the model's forward. Class weights and the classes' shares of the
    `objective` count; its focal form is not one that is solved for. Raises UserError, and changes
    nothing, where the logits are not the head's own.
    """
    named = bare_names(model, prefix)
    weight, bias = sorted((named[name] for name in phase.parameters), key=lambda p: -p.ndim)
    features, labels, images = replay.training_rows()
    objective = objective or Objective("classification")
    weights = None if objective.weights is None else objective.weights.numpy()
    rows: dict[str, Any] = {"images": images, "seed": seed}
    if objective.task == "regression":
        solution = solve_numbers(features, labels, **rows)
    elif objective.task == "multi_label":
        solution = solve_labels(features, labels, presence_weights=weights, **rows)
    else:
        solution = solve_head(features, labels, len(bias), class_weights=weights, **rows)
    if objective.log_prior is not None:  # with it the solution is that of the plain loss
        found = solution.bias - objective.log_prior.double().numpy()
        solution = replace(solution, bias=found)
    before = weight.detach().clone(), bias.detach().clone()
    with torch.no_grad():
        weight.copy_(torch.from_numpy(solution.weight).reshape(weight.shape))
        bias.copy_(torch.from_numpy(solution.bias))
        apart = _apart(model, replay, features, solution, weight.device)
        if apart > TOLERANCE:
            weight.copy_(before[0])
            bias.copy_(before[1])
            raise checks.unsolvable(
                phase,
                f"logits that come straight from the head's layer, and they differ by {apart:.0e}",
            )
    return solution


def solve_phase(trainer: Seam, state: PhaseState, here: Processes) -> TrainOutput:
    """Write the exact head into the Trainer's network, logged as training by steps is logged."""
    assert state.replay is not None  # a head is solved for on features
    solution = fit_head(
        trainer.model,
        state.backbone.prefix,
        state.phase,
        state.replay,
        objective=trainer.loss.objective,
        seed=state.args.seed,
    )
    here.take_first(p for p in trainer.model.parameters() if p.requires_grad)
    first = trainer.is_local_process_zero(), trainer.is_world_process_zero()
    trainer.state = trained_state(solution, first)
    strength = {"regularisation": 1 / solution.strength, "cross_validated": solution.validated}
    trainer.log({"loss": solution.loss, **strength})
    if trainer.eval_dataset is not None:
        trainer.evaluate()
    return TrainOutput(solution.steps, solution.loss, {})


def trained_state(solution: Solution, first: tuple[bool, bool]) -> TrainerState:
    """Return Trainer's state after a solution; `first` says whether this process is the first of
    its machine, and of all."""
    return TrainerState(
        epoch=1.0,  # the images were looked at once, however many steps the solver took
        global_step=solution.steps,
        max_steps=solution.steps,
        is_local_process_zero=first[0],
        is_world_process_zero=first[1],
    )


def _apart(
    model: nn.Module, replay: Replay, features: np.ndarray, solution: Solution, device: torch.device
) -> float:
    """Return how far the model's logits are from the solution's, as a share of their scale."""
    rows = list(range(min(16, len(replay.train))))
    batch = replay.batch(replay.train.__getitems__(rows), 0)
    training = model.training
    model.eval()
    values = [value.float().to(device) for value in batch["features"]]  # as they were solved for
    found = logits_of(model(features=values))
    model.train(training)
    expected = features[rows] @ solution.weight.T + solution.bias
    scale = max(float(np.abs(expected).max()), np.finfo(np.float32).eps)  # numbers may all be alike
    return float(np.abs(found.double().cpu().numpy() - expected).max()) / scale
