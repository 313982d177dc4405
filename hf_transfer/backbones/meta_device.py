"""Networks without numbers: what they are made of is known before any weight is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from hf_transfer.backbones.watching import name_of, tensors_in

FILLS = """
add_ clamp_ constant_ copy_ div_ erfinv_ exponential_ fill_ kaiming_uniform_ mul_ normal_ sub_
uniform_ zero_
"""


@contextmanager
def on_meta() -> Iterator[None]:
    """Have networks built on the meta device, which holds no numbers, and not filled there."""
    with torch.device("meta"), _Unfilled():
        yield


class _Unfilled(TorchFunctionMode):
    """Passes over the filling of tensors on meta: most of the time, and nothing is filled."""

    fills = frozenset(FILLS.split())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensor = args[0] if args else kwargs.get("tensor")
        passed = getattr(func, "__name__", "") in self.fills
        if passed and isinstance(tensor, torch.Tensor) and tensor.is_meta:
            return tensor
        return func(*args, **kwargs)


class Shapes(TorchFunctionMode):
    """Gives on meta what norms, GELU, linear layers and LSTMs give, by shape alone: torch goes
    through their formulas there, in Python, and most of a forward pass is that."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], torch.Tensor) and args[0].is_meta:
            name = name_of(func)
            shape = _shape(name, *args)
            if shape is not None:
                made = _Made.apply(shape, *tensors_in((args, kwargs)))
                return (made, *args[1]) if name == "lstm" else made
        return func(*args, **kwargs)


def _shape(
    name: str, given: torch.Tensor, beside: Any = None, *others: Any
) -> Sequence[int] | None:
    """Return the shape of what an operation makes of a tensor; None where torch has to say, or to
    refuse what does not fit."""
    shape = given.shape
    if name == "linear" and isinstance(beside, torch.Tensor) and beside.shape[1:] == shape[-1:]:
        return (*shape[:-1], len(beside))
    if name == "lstm" and isinstance(beside, tuple):
        both = others[5]  # directions
        return (*shape[:-1], beside[0].shape[-1] * (2 if both else 1))
    if name == "batch_norm":
        same = isinstance(beside, torch.Tensor) and beside.shape == shape[1:2]
    else:
        same = name == "gelu" or (name == "layer_norm" and beside == (*shape[-1:],))
    return shape if same else None


class _Made(torch.autograd.Function):
    """An operation of which only the shape of its result is known, and what it is made of."""

    @staticmethod
    def forward(ctx: Any, shape: Sequence[int], given: torch.Tensor, *others: Any) -> torch.Tensor:
        return given.new_empty(shape)
