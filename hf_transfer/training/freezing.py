"""Freezing, applied and proved: what trains, what is still, what moved.

Still means: no gradient, no update, no change of running statistics, no dropout. `requires_grad`
is set on every parameter each time, so applying a phase twice changes nothing more.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from weakref import WeakSet

import torch
from torch import nn

from hf_transfer.backbones.access import bare_name, bare_names
from hf_transfer.planning.groups import LayerGroups
from hf_transfer.planning.phase import Phase

logger = logging.getLogger(__name__)

OURS: WeakSet[nn.Module] = WeakSet()  # models whose `requires_grad` a phase has set


class FreezingError(RuntimeError):
    """The network did not do what the plan says: a defect, never a user's mistake."""


def freeze_all_but(model: nn.Module, prefix: str, trainable: Collection[str]) -> None:
    """Set `requires_grad` on every parameter: True for those named, False for all others."""
    OURS.add(model)
    parameters, trainable = bare_names(model, prefix), set(trainable)
    missing = trainable - set(parameters)
    if missing:
        raise FreezingError(f"the model has no parameter {sorted(missing)[0]!r}")
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trainable)


def frozen_by_hand(model: nn.Module, prefix: str) -> tuple[str, ...]:
    """Return the parameters that do not require gradients although no phase has said so."""
    if model in OURS:
        return ()
    return tuple(n for n, p in bare_names(model, prefix).items() if not p.requires_grad)


def still_modules(
    model: nn.Module,
    prefix: str,
    groups: LayerGroups,
    trainable: Collection[str],
    still_norms: bool | None = False,
) -> tuple[str, ...]:
    """Return the full names of all modules that stay in evaluation mode, children included.

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
    for path in groups.layout.norms:
        module = modules.get(prefix + path)
        own = {f"{path}.{name}" for name, _ in module.named_parameters()} if module else set()
        if still_norms or (own and trainable.isdisjoint(own)):
            still.append(prefix + path)
    found: dict[str, None] = {}
    for name in still:
        if name in modules:
            found |= dict.fromkeys(path for path, _ in modules[name].named_modules(prefix=name))
    return tuple(found)


def free_buffers(model: nn.Module, prefix: str, still: Collection[str]) -> set[str]:
    """Return the bare names of the buffers that may change: those of modules that are not still."""
    held = set(still)
    return {
        bare_name(f"{path}.{name}" if path else name, prefix)
        for path, module in model.named_modules()
        if path not in held
        for name, _ in module.named_buffers(recurse=False)
    }


def moving(model: nn.Module, prefix: str, still: Collection[str]) -> dict[str, torch.Tensor]:
    """Return what may change: parameters that train, and buffers of modules that are not still."""
    free = free_buffers(model, prefix, still)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return trained | {n: b for n, b in model.named_buffers() if bare_name(n, prefix) in free}


# --- proof -----------------------------------------------------------------------------------


def tell_of_thawed(model: nn.Module, prefix: str, phases: Sequence[Phase]) -> None:
    """Warn of parameters that a user froze and a phase trains all the same."""
    held = frozen_by_hand(model, prefix)
    for phase in phases:
        thawed = [name for name in held if name in phase.parameters]
        if thawed:
            text = "%d parameters do not require gradients, the first is %s, and phase %s "
            text += "trains them all the same: what trains is what a phase says in train"
            logger.warning(text, len(thawed), thawed[0], phase.name)
            return
