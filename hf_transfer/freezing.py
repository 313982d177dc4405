"""Freezing, applied and proved: what trains, what is still, what moved.

Still means: no gradient, no update, no change of running statistics, no dropout. `requires_grad`
is set on every parameter each time, so applying a phase twice changes nothing more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from hf_transfer.groups import LayerGroups, Layout


class FreezingError(RuntimeError):
    """The network did not do what the plan says: a defect, never a user's mistake."""


def bare_names(model: nn.Module, prefix: str) -> dict[str, nn.Parameter]:
    """Return the parameters by the names that the bare network has, without wrappers' prefixes."""
    return {
        name.removeprefix("module.").removeprefix("_orig_mod.").removeprefix(prefix): parameter
        for name, parameter in model.named_parameters()
    }


def freeze_all_but(model: nn.Module, prefix: str, trainable: Collection[str]) -> None:
    """Set `requires_grad` on every parameter: True for those named, False for all others."""
    parameters = bare_names(model, prefix)
    missing = set(trainable) - set(parameters)
    if missing:
        raise FreezingError(f"the model has no parameter {sorted(missing)[0]!r}")
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trainable)


def still_modules(
    model: nn.Module,
    prefix: str,
    layout: Layout,
    groups: LayerGroups,
    trainable: Collection[str],
    still_norms: bool = False,
) -> tuple[str, ...]:
    """Return the full names of the modules that stay in evaluation mode, outermost first.

    They are: all modules of a group in which nothing trains; elsewhere a normalisation layer
    none of whose own parameters trains; with `still_norms` every normalisation layer.
    """
    trainable = set(trainable)
    modules = dict(model.named_modules())
    bare = prefix.rstrip(".")
    still: list[str] = []
    for group in groups.groups:
        if trainable.isdisjoint(group.parameters):
            still.extend(f"{prefix}{path}" if path else bare for path in group.modules)
    for path in layout.norms:
        full = prefix + path
        own = (
            {f"{path}.{name}" for name, _ in modules[full].named_parameters()}
            if full in modules
            else set()
        )
        if still_norms or (own and trainable.isdisjoint(own)):
            still.append(full)
    chosen = [name for name in dict.fromkeys(still) if name in modules]
    return tuple(sorted(chosen, key=lambda name: name.count(".")))


def hold_still(model: nn.Module, names: Iterable[str]) -> None:
    """Put the named modules, each by itself, into evaluation mode (children are named too)."""
    for name in names:
        model.get_submodule(name).training = False


@dataclass(frozen=True)
class Fingerprints:
    """Two checksums of every parameter and buffer, by name: equal when no bit has changed."""

    values: dict[str, tuple[int, int]]

    def changed(self, other: Fingerprints) -> set[str]:
        """Return the names whose values differ between the two."""
        return {name for name, value in self.values.items() if other.values.get(name) != value}


@torch.no_grad()
def fingerprint(model: nn.Module, prefix: str) -> Fingerprints:
    """Return checksums of all parameters and buffers, computed where they live."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    bare = lambda name: name.removeprefix("module.").removeprefix("_orig_mod.").removeprefix(prefix)  # noqa: E731
    return Fingerprints({bare(name): _checksum(tensor) for name, tensor in tensors.items()})


def _checksum(tensor: torch.Tensor) -> tuple[int, int]:
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    bits = local.detach().contiguous().reshape(-1)
    if bits.numel() == 0:
        return (0, 0)
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[bits.element_size()]
    bits = bits.view(width)
    return (int(torch.hash_tensor(bits).view(torch.int64)), int(bits.sum(dtype=torch.int64)))


@dataclass(frozen=True)
class Proof:
    """What a phase was seen to do, against its plan."""

    moved: int  # parameters that were to move and did
    unmoved: tuple[str, ...]  # were to move and did not: no gradient reached them
    still: int  # parameters and buffers that were to stay and did
    ranks: int  # processes that agree bit for bit


def prove(
    before: Fingerprints,
    after: Fingerprints,
    trainable: Collection[str],
    groups: LayerGroups,
    free_buffers: Collection[str],
    ranks: int = 1,
) -> Proof:
    """Return the proof of a phase, or raise FreezingError with the names that broke it.

    `free_buffers` are the statistics of layers that train. A group with trainable parameters of
    which none moved is an error; a single parameter that did not move is reported.
    """
    changed = before.changed(after)
    allowed = set(trainable) | set(free_buffers)
    broken = sorted(changed - allowed)
    if broken:
        raise FreezingError(
            f"{len(broken)} frozen tensors changed, the first of them {', '.join(broken[:3])}"
        )
    for group in groups.groups:
        planned = set(group.parameters) & set(trainable)
        if planned and planned.isdisjoint(changed):
            raise FreezingError(f"group {group.name} was to train and nothing in it moved")
    moved = set(trainable) & changed
    return Proof(
        moved=len(moved),
        unmoved=tuple(sorted(set(trainable) - moved)),
        still=len(set(before.values) - allowed),
        ranks=ranks,
    )


def free_buffers(model: nn.Module, prefix: str, still: Collection[str]) -> set[str]:
    """Return the bare names of the buffers that may change: those of modules that are not still."""
    held = set(still)
    names = set()
    for path, module in model.named_modules():
        if path in held:
            continue
        for name, _ in module.named_buffers(recurse=False):
            full = f"{path}.{name}" if path else name
            names.add(full.removeprefix(prefix))
    return names
