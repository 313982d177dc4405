"""The forward pass through a frozen prefix, watched up to the modules that train."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from hf_transfer.backbones.watching import Watch, name_of, tensors_in
from hf_transfer.base.boundary import untrusted
from hf_transfer.base.errors import UserError

# Operations that read a tensor's numbers into Python, where a network may branch on them.
READS = {
    "item", "tolist", "numpy", "equal", "allclose", "is_nonzero", "__array__",
    "__bool__", "__int__", "__float__", "__complex__", "__index__", "__contains__",
}  # fmt: skip

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Step = tuple[Any, str]  # an operation, and what it read off a tensor, if it did


class CutError(UserError):
    """A network whose frozen prefix cannot be computed once and replayed."""


class _Arrived(BaseException):
    """The pass has come to the last module that it leads to; no `except Exception` stops it."""


class Passage(Watch):
    """One pass through what lies before the modules `ends`; what comes after is not computed.

    Afterwards `given` holds the arguments of each of them, and `steps` the operations in order.
    """

    def __init__(self, ends: Sequence[str]) -> None:
        super().__init__()
        self.ends = ends
        self.given: dict[str, Arguments] = {}
        self.steps: list[Step] = []
        self._beyond = 0  # how many of the modules at the ends are running

    def run(self, model: nn.Module, pixels: Tensor) -> dict[str, list[Tensor]]:
        """Return the tensors that arrive at each end, for pixels (B, C, H, W).

        Raises CutError if the network fails, or never comes to one of them.
        """
        with ExitStack() as hooks, torch.no_grad():
            for path in self.ends:
                module, arrive = model.get_submodule(path), self._arrival(path)
                hooks.enter_context(
                    module.register_forward_pre_hook(arrive, prepend=True, with_kwargs=True)
                )
                hooks.enter_context(module.register_forward_hook(self._leave))
            try:
                with untrusted("the network", verb="run", kind=CutError), self:
                    model(pixel_values=pixels)
            except _Arrived:
                return {path: list(tensors_in(given)) for path, given in self.given.items()}
        raise CutError("a layer that trains takes no part in the forward pass")

    def _arrival(self, path: str) -> Callable[..., None]:
        def arrive(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.given.setdefault(path, (args, kwargs))
            self._beyond += 1
            if len(self.given) == len(self.ends):
                raise _Arrived

        return arrive

    def _leave(self, module: nn.Module, args: Any, result: Any) -> Any:
        result = unknown(result)  # what arrives at another end must not follow from what trains
        self._beyond -= 1
        return result

    def note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Keep the operation, unless it belongs to what trains or looks at a shape alone."""
        if self._beyond:
            return
        if any(True for _ in tensors_in(result)):
            self.steps.append((func, ""))
            self.seen(func, args, kwargs, result)
        elif name_of(func) in READS:
            self.steps.append((func, _digest_of_value(result)))

    def seen(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Take note of an operation that gave tensors."""


class Record(Passage):
    """The same, of a single image, with all that a replay and the features' name need.

    `program` is a digest of the operations, their arguments and how they hang together, `uses`
    names the parameters and buffers that take part, `largest` is the size of the largest tensor in
    bytes, and `calls` holds what modules gave that ran once and to their end.
    """

    def __init__(self, model: nn.Module, ends: Sequence[str]) -> None:
        super().__init__(ends)
        named = [*model.named_parameters(), *model.named_buffers()]
        self.names = {id(tensor): name for name, tensor in named}
        self.uses: dict[str, None] = {}
        self.largest = 0
        self.calls: dict[str, Any] = {}
        self._numbers: dict[int, int] = {}
        self._kept: list[Tensor] = []  # so that no two have one id
        self._lines = hashlib.blake2b(digest_size=16)

    @property
    def program(self) -> str:
        """32 hexadecimal digits."""
        return self._lines.hexdigest()

    def run(self, model: nn.Module, pixels: Tensor) -> dict[str, list[Tensor]]:
        """Return the tensors that arrive at each end, for pixels (1, C, H, W)."""
        self._number(pixels)
        called: list[str] = []
        with ExitStack() as hooks:
            for path, module in model.named_modules():
                if path and path not in self.ends:
                    noted = module.register_forward_hook(self._called(path, called))
                    hooks.enter_context(noted)
            found = super().run(model, pixels)
        self.calls = {path: call for path, call in self.calls.items() if called.count(path) == 1}
        return found

    def _called(self, path: str, called: list[str]) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, result: Any) -> None:
            if not self.given:  # before what trains
                called.append(path)
                if _plain(result):
                    self.calls[path] = result

        return note

    def seen(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Add a line to the program."""
        text = repr(mapped((args, kwargs), self._text))
        for tensor in tensors_in(result):
            self.largest = max(self.largest, tensor.nbytes)
            self._number(tensor)
        self._lines.update(f"{name_of(func)}{text} {mapped(result, self._text)!r}\n".encode())

    def _number(self, tensor: Tensor) -> None:
        if id(tensor) not in self._numbers:
            self._numbers[id(tensor)] = len(self._numbers)
            self._kept.append(tensor)

    def _text(self, tensor: Tensor) -> _Text:
        """Return what stands for a tensor: its number, its name, or a digest of its content."""
        if name := self.names.get(id(tensor)):
            self.uses[name] = None
            return _Text(name)
        if (number := self._numbers.get(id(tensor))) is not None:
            return _Text(f"#{number}{tuple(tensor.shape)}")
        return _Text(digest([tensor]))


class _Text(str):
    """Text that stands for a tensor among the arguments."""

    __repr__ = str.__str__


def unknown(value: Any) -> Any:
    """Return a value with its tensors filled with NaN, so that whatever uses them shows; whole
    numbers, which have none, become 0."""

    def without(tensor: Tensor) -> Tensor:
        floats = tensor.is_floating_point() or tensor.is_complex()
        return torch.full_like(tensor, float("nan") if floats else 0)

    return mapped(value, without)


def mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Return the value with every tensor in it changed; containers stay what they are."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(item, change) for item in value))
    if type(value) in (list, tuple):
        return type(value)(mapped(item, change) for item in value)
    if type(value) is dict:
        return {key: mapped(item, change) for key, item in value.items()}
    return value


def _plain(value: Any) -> bool:
    """Return whether a value is made of tensors and numbers, in tuples and lists at most."""
    if type(value) in (list, tuple):
        return all(_plain(item) for item in value)
    return value is None or isinstance(value, Tensor | bool | int | float)


def digest(tensors: Sequence[Tensor]) -> str:
    """Return 32 hexadecimal digits that stand for the tensors' shapes, types and every bit."""
    found = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    return found.hexdigest()


def _digest_of_value(value: Any) -> str:
    if hasattr(value, "tobytes"):  # an array of numpy
        return hashlib.blake2b(value.tobytes(), digest_size=16).hexdigest()
    return repr(value)
