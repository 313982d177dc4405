"""`Phase`: a span of training in which a fixed set of groups trains."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from hf_transfer.planning.adapters import Adapters
from hf_transfer.planning.groups import LayerGroups
from hf_transfer.recipe.specs import PhaseSpec


@dataclass(frozen=True)
class Phase:
    """A span of training in which a fixed set of parameters trains."""

    index: int  # from 1
    name: str  # unique in its recipe, fit for a folder's name
    groups: tuple[str, ...]  # groups in which something trains, input to output
    parameters: tuple[str, ...]  # all that trains, in execution order
    spec: PhaseSpec
    frozen_prefix: int  # leading groups in which nothing trains: the index of the cut
    adapters: Adapters | None = None  # what trains beside frozen layers

    @property
    def folder(self) -> str:
        """Return the name of the phase's folder, such as phase-1-head."""
        return f"phase-{self.index}-{self.name}"


def span(names: Collection[str], groups: LayerGroups) -> str:
    """Return group names in short: neighbours as "layer4.0 … head", at most three such runs."""
    runs: list[list[str]] = []
    before = -2
    for i, name in enumerate(groups.names):
        if name not in names:
            continue
        if i == before + 1:
            runs[-1].append(name)
        else:
            runs.append([name])
        before = i
    shown = [f"{run[0]} … {run[-1]}" if len(run) > 2 else ", ".join(run) for run in runs]
    if len(shown) > 3:
        left = sum(len(run) for run in runs[2:])
        shown = [*shown[:2], f"{left} more"]
    return ", ".join(shown)
