"""The one way to watch a forward pass: every operation on tensors, with what it takes and gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Watch(TorchFunctionMode):
    """Runs every operation on tensors, also those that no module shows, and hands it to `note`.

    What an operation calls itself is not seen: a layer's function counts once.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.note(func, args, kwargs, result)
        return result

    def note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Take note of an operation that has run."""
        raise NotImplementedError


def name_of(func: Any) -> str:
    """Return the name of an operation."""
    return getattr(func, "__name__", str(func))


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in a value: itself, or those in lists, tuples and dictionaries."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
