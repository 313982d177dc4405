"""Networks without numbers: what they are made of is known before any weight is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

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
