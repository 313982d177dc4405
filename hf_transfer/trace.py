"""A network's layout, seen by running it once: order of use, sequences, norms, cost.

Every operation that touches a parameter is recorded, so position embeddings, class tokens and
layer scales are seen too, which hooks on modules miss. Nothing of the network is changed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from hf_transfer.groups import GroupsError, Layout

# Looking at a parameter is not using it: reads of its shape, type or device are passed over.
_LOOKS = ("__get__", "size", "dim", "numel", "is_floating_point", "is_complex", "stride", "__len__")
_LOOSE = ("drop", "stochasticdepth")


def trace_layout(
    network: nn.Module,
    *,
    image: dict[str, Any],
    head: Collection[str] = (),
    labels: int = 0,
) -> Layout:
    """Return the layout of a network that maps pixels (B, C, H, W) to logits or an output object.

    `image` holds `size` and `channels` of the input; `head` names what is newly initialised.
    The forward pass runs on the meta device where the network can, else on its own; modes,
    weights, statistics and random numbers stay as they are. Raises GroupsError.
    """
    named = dict(network.named_parameters())
    seen = _run(network, named, image)
    order = [*seen.order, *(name for name in named if name not in seen.order)]
    return Layout(
        parameters=tuple((name, tuple(named[name].shape)) for name in order),
        unused=tuple(name for name in named if name not in seen.order),
        sequences=tuple(path for path, module in network.named_modules() if _is_list(module)),
        head=tuple(name for name in order if name in set(head)),
        norms=tuple(path for path, module in network.named_modules() if is_norm(module)),
        loose=tuple((path, seen.called.get(path, 0)) for path in _loose(network)),
        no_decay=tuple(name for name in order if name in _exempt(network)),
        macs=tuple(seen.macs.get(name, 0) for name in order),
        resolution=tuple(seen.sides.get(name, 0) for name in order),
        image=dict(image),
        labels=labels,
    )


def head_names(one: nn.Module, other: nn.Module) -> tuple[str, ...]:
    """Return what a checkpoint for other labels cannot fill: given the same architecture for two
    numbers of labels, the parameters whose shapes differ, and the rest of those same layers."""
    shapes = {name: tuple(p.shape) for name, p in other.named_parameters()}
    differ = {n for n, p in one.named_parameters() if shapes.get(n) != tuple(p.shape)}
    owners = {name.rpartition(".")[0] for name in differ}
    return tuple(n for n, _ in one.named_parameters() if n.rpartition(".")[0] in owners and differ)


def is_norm(module: nn.Module) -> bool:
    """Return whether a module normalises: by its class, whoever wrote it."""
    name = type(module).__name__.lower()
    plain = next(module.children(), None) is None or "act" in name
    return plain and ("norm" in name or "evonorm" in name or "filterresponse" in name)


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)) and len(module) > 0


def _loose(network: nn.Module) -> list[str]:
    """Return dropout, stochastic depth and norms without parameters: modules that training mode
    changes and that no parameter places in a group."""
    return [
        path
        for path, module in network.named_modules()
        if path
        and next(module.parameters(), None) is None
        and next(module.children(), None) is None
        and (is_norm(module) or any(word in type(module).__name__.lower() for word in _LOOSE))
    ]


def _exempt(network: nn.Module) -> set[str]:
    names = getattr(network, "no_weight_decay", None)
    return set(names()) if callable(names) else set()


class _Recorder(TorchFunctionMode):
    """Records the first operation that uses each parameter, and what it costs."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names
        self.order: dict[str, None] = {}
        self.macs: dict[str, int] = {}
        self.sides: dict[str, int] = {}
        self.called: dict[str, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if getattr(func, "__name__", "") in _LOOKS:
            return result
        for tensor in _tensors((*args, *kwargs.values())):
            name = self.names.get(id(tensor))
            if name is not None:
                if name not in self.order:
                    self.order[name] = None
                    self.sides[name] = _side(result)
                self.macs[name] = self.macs.get(name, 0) + _macs(func, tensor, result)
        return result


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _side(result: Any) -> int:
    return result.shape[-1] if isinstance(result, torch.Tensor) and result.ndim == 4 else 0


def _macs(func: Any, weight: torch.Tensor, result: Any) -> int:
    """Return the multiply-adds of a convolution or a matrix product, per image; else 0."""
    name = getattr(func, "__name__", "")
    if weight.ndim < 2 or not isinstance(result, torch.Tensor):
        return 0
    if "conv" in name or name in ("linear", "matmul", "addmm", "bmm"):
        return result.numel() // max(1, result.shape[0]) * weight[0].numel()
    return 0


def _run(network: nn.Module, named: dict[str, nn.Parameter], image: dict[str, Any]) -> _Recorder:
    """Run the network once and return what was recorded; first on meta, else where it lives."""
    shape = (2, image.get("channels", 3), image["size"], image["size"])
    problems = []
    for device in ("meta", None):
        try:
            with _held(network):
                return _recorded(network, named, shape, device)
        except (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError) as error:
            problems.append(str(error).splitlines()[0] if str(error) else type(error).__name__)
    raise GroupsError(
        f"{type(network).__name__} does not run on images of {image['size']} px: {problems[-1]}"
    )


def _recorded(
    network: nn.Module, named: dict[str, nn.Parameter], shape: tuple[int, ...], device: str | None
) -> _Recorder:
    if device is None:
        recorder = _Recorder({id(p): name for name, p in named.items()})
        where = next(iter(named.values())).device
        with _calls(network, recorder), recorder:
            network(torch.zeros(shape, device=where))
        return recorder
    state = {**named, **dict(network.named_buffers())}
    ghosts = {name: torch.empty_like(tensor, device=device) for name, tensor in state.items()}
    recorder = _Recorder({id(ghosts[name]): name for name in named})
    pixels = torch.zeros(shape, device=device)
    with _calls(network, recorder), recorder:
        torch.func.functional_call(network, ghosts, (pixels,))
    return recorder


@contextmanager
def _calls(network: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Record at each module's first call how many parameters had been used before it."""

    def note(path: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            recorder.called.setdefault(path, len(recorder.order))

        return hook

    hooks = [m.register_forward_pre_hook(note(path)) for path, m in network.named_modules() if path]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _held(network: nn.Module) -> Iterator[None]:
    """Keep modes, buffers and random numbers as they were; nothing learns from the run."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            network.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode
