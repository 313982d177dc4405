"""The best weights of a phase so far: kept on the device, and what it ends with."""

from __future__ import annotations

import torch
from torch import nn

from hf_transfer.base.processes import Processes
from hf_transfer.training import freezing
from hf_transfer.training.machine import sharding
from hf_transfer.training.phase_state import PhaseState


def moving(model: nn.Module, state: PhaseState) -> dict[str, torch.Tensor]:
    """Return what may change in a phase: trained parameters, statistics not frozen."""
    sharding.gather_none(model)
    return freezing.moving(model, state.backbone.prefix, state.still)


def keep(model: nn.Module, state: PhaseState) -> None:
    """Keep the weights that there are as the best of the phase so far."""
    state.best = {name: t.detach().clone() for name, t in moving(model, state).items()}


@torch.no_grad()
def bring_back(model: nn.Module, state: PhaseState) -> None:
    """Give the model the best weights of the phase, where some were kept."""
    now = moving(model, state) if state.best else {}
    for name, value in (state.best or {}).items():
        now[name].copy_(value)
    state.best = None


def share_statistics(model: nn.Module, state: PhaseState, processes: Processes) -> None:
    """Give all processes the first one's statistics; DDP leaves each with its last batch's."""
    if processes.count > 1:
        found = moving(model, state).values()
        processes.take_first(t for t in found if not isinstance(t, nn.Parameter))
