"""A network's layout, seen by running it once: order of use, sequences, norms, cost.

Nothing of the network is changed.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge

from hf_transfer.backbones.access import same_random
from hf_transfer.backbones.meta_device import Shapes
from hf_transfer.backbones.uses import Uses
from hf_transfer.base.boundary import untrusted
from hf_transfer.planning.layout import GroupsError, Layout

logger = logging.getLogger(__name__)

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
BATCH_NORM = nn.modules.batchnorm._BatchNorm


def trace_layout(
    model: nn.Module,
    *,
    image: dict[str, Any],
    head: Collection[str] = (),
    prefix: str = "",
    labels: int = 0,
) -> Layout:
    """Return the layout of a network that maps pixels (B, C, H, W) to logits or an output object.

    `image` holds `size` and `channels` of the input; `head` names what is newly initialised;
    `prefix` is taken off all names. The forward pass runs on the meta device where the network
    can, else on its own; modes, weights, statistics and random numbers stay as they are.
    Raises GroupsError if it runs on neither.
    """
    named = dict(model.named_parameters())
    seen = _watched(model, (image.get("channels", 3), image["size"], image["size"]))
    used = [name for name in seen.order() if name not in seen.aside]
    crossing = seen.crossing()
    order = [*used, *(name for name in named if name not in set(used))]
    bare = lambda names: tuple(name.removeprefix(prefix) for name in names)  # noqa: E731
    new, spared = {name.removeprefix(prefix) for name in head}, exempt_from_decay(model)
    modules = dict(model.named_modules())
    return Layout(
        parameters=tuple((name.removeprefix(prefix), tuple(named[name].shape)) for name in order),
        unused=bare(order[len(used) :]),
        sequences=bare(p for p, m in modules.items() if isinstance(m, CONTAINERS) and len(m)),
        head=tuple(name for name in bare(order) if name in new),
        norms=bare(path for path, module in modules.items() if is_norm(module)),
        batch_norms=bare(path for path, m in modules.items() if isinstance(m, BATCH_NORM)),
        adaptable=bare(_adaptable(modules, seen.before, _shared(model))),
        loose=tuple((bare([path])[0], seen.before.get(path, 0)) for path in _loose(modules)),
        no_decay=bare(name for name in order if name in spared),
        shared=tuple(bare(names) for names in _shared(model)),
        macs=tuple(seen.macs.get(name, 0) for name in order),
        crossing=tuple(crossing.get(name, 0) for name in order),
        image=dict(image),
        labels=labels,
    )


def head_names(model: nn.Module, other: nn.Module) -> tuple[str, ...]:
    """Return what a checkpoint for other labels cannot fill: given one architecture for two numbers
    of labels, the parameters whose shapes differ, and the rest of those same layers."""
    shapes = {name: p.shape for name, p in other.named_parameters()}
    differ = {name for name, p in model.named_parameters() if shapes.get(name) != p.shape}
    owners = {name.rpartition(".")[0] for name in differ}
    layers = {path for path in owners if not any(model.get_submodule(path).children())}
    return tuple(
        name
        for name, _ in model.named_parameters()
        if name in differ or name.rpartition(".")[0] in layers
    )


def is_norm(module: nn.Module) -> bool:
    """Return whether a module itself normalises: by its class, whoever wrote it."""
    name = type(module).__name__.lower()
    if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
        return False  # NormLinear, a convolution with standardised weights
    holds = any(True for _ in module.parameters(recurse=False)) or any(
        True for _ in module.buffers(recurse=False)
    )
    bare = next(module.children(), None) is None
    return ("norm" in name or "filterresponse" in name) and (holds or bare)


def exempt_from_decay(model: nn.Module) -> set[str]:
    """Return the parameters that the network's own modules say have no weight decay."""
    names: set[str] = set()
    for path, module in model.named_modules():
        own = getattr(module, "no_weight_decay", None)
        if callable(own):
            names |= {f"{path}.{name}" if path else name for name in own()}
    return names


def _adaptable(
    modules: dict[str, nn.Module], ran: Collection[str], several: list[list[str]]
) -> list[str]:
    """Return the layers that can have adapters and merge them: those that run as plain
    modules, not by their weights alone, and neither grouped, dilated nor shared.
    """
    shared = {name.rpartition(".")[0] for names in several for name in names}
    plain = {"groups": 1, "dilation": (1, 1), "padding_mode": "zeros"}
    return [
        path
        for path, module in modules.items()
        if type(module) in (nn.Linear, nn.Conv2d)
        and path in ran
        and path not in shared
        and all(getattr(module, key, value) == value for key, value in plain.items())
    ]


def _loose(modules: dict[str, nn.Module]) -> list[str]:
    """Return dropout, stochastic depth and norms without parameters: modules that training mode
    changes and that no parameter places in a group."""
    return [
        path
        for path, module in modules.items()
        if path and next(module.parameters(), None) is None and varies(module)
    ]


def varies(module: nn.Module) -> bool:
    """Return whether a module does another thing in training mode: it normalises, or drops."""
    name = type(module).__name__.lower()
    drops = is_leaf(module) and ("drop" in name or "stochasticdepth" in name)
    return is_norm(module) or drops


def is_leaf(module: nn.Module) -> bool:
    """Return whether no module lies in a module."""
    return next(module.children(), None) is None


def _shared(model: nn.Module) -> list[list[str]]:
    """Return the names of each parameter that has several, the one that counts first."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [several for several in names.values() if len(several) > 1]


# --- running ---------------------------------------------------------------------------------


def check_runs(model: nn.Module, shape: Sequence[int]) -> None:
    """Raise GroupsError, a line, unless a network runs on an image of `shape` (C, H, W)."""
    _watched(model, shape)


def _watched(model: nn.Module, shape: Sequence[int]) -> Uses:
    """Run the network on one image and return what was seen: a copy without weights where that
    runs, else the network itself, which comes first where it has no weights either."""
    shape = (1, *shape)
    bare = all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    ways = (_run_itself, _run_ghost) if bare else (_run_ghost, _run_itself)
    name = type(model).__name__
    with same_random(model), torch.no_grad():
        try:
            with untrusted(name, kind=GroupsError, verb="run"):
                return ways[0](model, shape)
        except GroupsError as error:
            logger.debug("without its weights: %s", error)
        with untrusted(f"{name} on images of {shape[1:]}", kind=GroupsError, verb="run"):
            return ways[1](model, shape)


def _run_itself(model: nn.Module, shape: tuple[int, ...]) -> Uses:
    with _evaluating(model):
        return _run(model, shape)[0]


def _run_ghost(model: nn.Module, shape: tuple[int, ...]) -> Uses:
    """Run a copy without numbers, and note what acts in it and reaches no output: the pooled token
    of a CLIP that classifies the mean of all others. No step would move it."""
    ghost = _ghost(model).eval()
    with torch.enable_grad():
        seen, outputs = _run(ghost, shape)
    reached = _reached(outputs)
    if reached:
        named = ghost.named_parameters()
        seen.aside |= {name for name, p in named if p.requires_grad and id(p) not in reached}
    return seen


def _reached(outputs: Any) -> set[int]:
    """Return the ids of the parameters that a gradient of the outputs would reach: by the graph
    alone, as computing it takes as long as the network itself."""
    made = [each for each in _tensors(outputs) if each.requires_grad]
    left = [get_gradient_edge(each).node for each in made]
    seen, found = set(left), set()
    while left:
        node = left.pop()
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        new = {before for before, _ in node.next_functions if before is not None} - seen
        seen |= new
        left.extend(new)
    return found


def _tensors(outputs: Any) -> Iterator[torch.Tensor]:
    """Return all tensors in what a network returns."""
    if isinstance(outputs, torch.Tensor):
        yield outputs
    elif isinstance(outputs, Mapping | tuple | list):
        for each in outputs.values() if isinstance(outputs, Mapping) else outputs:
            yield from _tensors(each)


def _ghost(model: nn.Module) -> nn.Module:
    """Return a copy of the network on the meta device: its structure, none of its numbers."""
    ghosts: dict[int, Any] = {}
    for module in model.modules():
        held = [*vars(module).values(), *module._parameters.values(), *module._buffers.values()]
        for value in held:
            if isinstance(value, torch.Tensor) and id(value) not in ghosts:
                ghost = torch.empty_like(value, device="meta")
                is_parameter = isinstance(value, nn.Parameter)
                ghosts[id(value)] = nn.Parameter(ghost) if is_parameter else ghost
    return copy.deepcopy(model, ghosts)


def _run(model: nn.Module, shape: tuple[int, ...]) -> tuple[Uses, Any]:
    like = next(p for p in model.parameters() if p.is_floating_point())
    pixels = torch.zeros(shape, device=like.device, dtype=like.dtype)
    named = "pixel_values" in inspect.signature(model.forward).parameters
    watch = Uses(model)
    with _calls(model, watch), Shapes(), watch:
        outputs = model(**{"pixel_values": pixels}) if named else model(pixels)
    return watch, outputs


@contextmanager
def _calls(model: nn.Module, watch: Uses) -> Iterator[None]:
    """Note at each module's first call how many parameters had acted before it."""

    def note(path: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            watch.before.setdefault(path, len(watch.acted))

        return hook

    hooks = [m.register_forward_pre_hook(note(path)) for path, m in model.named_modules() if path]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Keep the network in evaluation mode, then restore every module's own mode."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        # Through training mode both times: what some networks keep for evaluation goes with it.
        model.train()
        model.eval()
        yield
    finally:
        model.train()
        for module, mode in modes:
            module.training = mode
