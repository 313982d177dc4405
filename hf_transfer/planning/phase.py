"""`Phase`: a span of training in which a fixed set of groups trains."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from hf_transfer.planning.adapters import Adapters
from hf_transfer.planning.groups import LayerGroups
from hf_transfer.planning.layout import Layout
from hf_transfer.recipe.specs import PhaseSpec


@dataclass(frozen=True)
class Phase:
    """A span of training in which a fixed set of parameters trains, and the network as it is then.

    `network` has the phase's adapters, each in the group of its layer.
    """

    index: int  # from 1
    name: str  # unique in its recipe, fit for a folder's name
    spec: PhaseSpec
    parameters: tuple[str, ...]  # all that trains, in execution order
    network: LayerGroups
    adapters: Adapters | None = None  # what trains beside frozen layers

    @property
    def layout(self) -> Layout:
        """The network's structure, with the phase's adapters."""
        return self.network.layout

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups in which something trains, input to output."""
        pairs = zip(self.network.names, self._trains, strict=True)
        return tuple(name for name, trains in pairs if trains)

    @cached_property
    def frozen_prefix(self) -> int:
        """Number of leading groups in which nothing trains: the index of the cut."""
        return self._trains.index(True)

    @cached_property
    def _trains(self) -> list[bool]:
        trained = set(self.parameters)
        return [not trained.isdisjoint(group.parameters) for group in self.network.groups]

    @property
    def gentle(self) -> tuple[str, ...]:
        """How a phase spares what it starts from, in words; empty where it does nothing for it."""
        warmup, kept = self.spec.warmup or 0.0, self.spec.still_norms and self.layout.batch_norms
        share = f"{warmup:.0%} of its steps" if warmup < 1 else f"{warmup:.0f} steps"
        rise = (f"its rates rise during the first {share}",) if warmup else ()
        return (*rise, "it keeps the statistics of BatchNorm layers") if kept else rise

    @property
    def folder(self) -> str:
        """Name of the phase's folder, such as phase-1-head."""
        return f"phase-{self.index}-{self.name}"

    def to_dict(self) -> dict[str, Any]:
        """Return what a phase is, without its network and its place in a file, as plain values."""
        return {
            "index": self.index,
            "name": self.name,
            "spec": asdict(replace(self.spec, place="")),
            "groups": self.groups,
            "parameters": self.parameters,
            "frozen_prefix": self.frozen_prefix,
            "adapters": asdict(self.adapters) if self.adapters else None,
        }


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
