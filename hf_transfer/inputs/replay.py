"""A network run from its cut on: what is before the cut is answered, not computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hf_transfer.inputs.recording import CutError, Slot, asks, counts, mapped, name_of, tensors_in


@dataclass(frozen=True)
class Crossing:
    """A value that is computed before the cut and used after it."""

    slot: int
    made: tuple[int, int]  # by which operation (-1: it is the image itself), its how manieth result
    shape: tuple[int, ...]  # with the batch's side first, in the order of memory; of one image
    order: tuple[int, ...]  # of the value's sides in memory, the batch's first
    dtype: torch.dtype
    constant: Tensor | None = None  # the value, where it is the same for all images

    def packed(self, value: Tensor) -> Tensor:
        """Return the value as it is stored: (B, *shape), in the order of memory."""
        return value.permute(self.order).contiguous().reshape(-1, *self.shape)


@dataclass(frozen=True)
class Skip:
    """A module all of whose operations come before the cut: its call is answered as a whole."""

    path: str
    first: int  # of its operations
    last: int  # one past
    result: Any  # slots in their places


@dataclass(frozen=True)
class Cut:
    """What happens before the first operation that trains, and what crosses to it."""

    operations: tuple[Any, ...]
    results: tuple[Any, ...]  # of each operation: slots in their places, or a Python value
    shapes: tuple[tuple[tuple[int, int], ...], ...]  # of each slot: sides as (per image, fixed)
    dtypes: tuple[torch.dtype, ...]
    crossings: tuple[Crossing, ...]
    program: str  # digest of the operations, their arguments and how they hang together
    uses: tuple[str, ...]  # parameters and buffers that take part before the cut
    skips: tuple[Skip, ...] = ()  # outermost modules before the cut

    @property
    def stored(self) -> tuple[Crossing, ...]:
        """Return what differs from image to image, and is to be stored."""
        return tuple(crossing for crossing in self.crossings if crossing.constant is None)


class Player:
    """Runs a model's forward from the cut on: `forward` stands for the model's own.

    A context manager. Inside, modules that lie before the cut answer at once, and the model's
    `train` and `parameters` pass them by, which otherwise would take as long as a small head.
    """

    def __init__(self, model: nn.Module, cut: Cut, strict: bool = False) -> None:
        self.model, self.own, self.cut, self.strict = model, model.forward, cut, strict
        self._empty: dict[tuple[int, torch.device], list[Tensor]] = {}
        self._replay: _Replay | None = None
        self._changed: list[tuple[nn.Module, str]] = []

    def __enter__(self) -> Player:
        skipped: set[nn.Module] = set()
        for skip in self.cut.skips:
            module = self.model.get_submodule(skip.path)
            skipped.update(module.modules())
            self._set(module, "forward", self._answer(skip, module.forward))
        alive = [module for module in self.model.modules() if module not in skipped]
        trained = [p for p in self.model.parameters() if p.requires_grad]
        train = self.model.train

        def to_mode(mode: bool = True) -> nn.Module:
            if not mode:  # then images may come, too
                return train(mode)
            for module in alive:
                module.training = True
            return self.model

        def parameters(recurse: bool = True) -> Iterator[nn.Parameter]:
            return iter(trained)

        self._set(self.model, "train", to_mode)
        self._set(self.model, "parameters", parameters)
        return self

    def __exit__(self, *_: Any) -> None:
        for module, name in self._changed:
            module.__dict__.pop(name, None)
        self._changed = []

    def _set(self, module: nn.Module, name: str, value: Any) -> None:
        if name in module.__dict__:
            return  # somebody else's: left alone
        module.__dict__[name] = value
        self._changed.append((module, name))

    def _answer(self, skip: Skip, own: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            replay = self._replay
            return own(*args, **kwargs) if replay is None else replay.skipped(skip)

        return forward

    def forward(self, *args: Any, features: Sequence[Tensor] | None = None, **kwargs: Any) -> Any:
        """Return what the model's own forward gives for the images whose values these are.

        Without `features` it is the model's own forward.
        """
        if features is None:
            return self.own(*args, **kwargs)
        values = self._values(features)
        self._replay = _Replay(self.cut, values, self.strict)
        try:
            with self._replay:
                return self.own(pixel_values=values[0], **kwargs)
        finally:
            self._replay = None

    def _values(self, features: Sequence[Tensor]) -> list[Tensor]:
        count, device = len(features[0]), features[0].device
        if (count, device) not in self._empty:
            self._empty[count, device] = [
                torch.zeros((), dtype=dtype, device=device).expand(
                    [each * count + fixed for each, fixed in shape]
                )
                for shape, dtype in zip(self.cut.shapes, self.cut.dtypes, strict=True)
            ]
        values = list(self._empty[count, device])
        given = iter(features)
        for crossing in self.cut.crossings:
            if crossing.constant is not None:
                values[crossing.slot] = crossing.constant.to(device)
                continue
            stored = next(given)
            sides = [values[crossing.slot].shape[side] for side in crossing.order]
            back = [crossing.order.index(side) for side in range(len(sides))]
            values[crossing.slot] = stored.reshape(sides).permute(back)
        return values


class _Replay(TorchFunctionMode):
    """Answers the operations before the cut from `values`, and runs the rest."""

    def __init__(self, cut: Cut, values: list[Tensor], strict: bool) -> None:
        super().__init__()
        self.operations, self.results, self.values = cut.operations, cut.results, values
        self.count, self.end = 0, len(cut.operations)
        crossing = {each.slot for each in cut.crossings}
        self.empty = (
            {id(value) for slot, value in enumerate(values) if slot not in crossing}
            if strict
            else set()
        )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.count == self.end:
            if self.empty and not asks(func):
                for tensor in tensors_in((args, kwargs)):
                    if id(tensor) in self.empty:
                        raise CutError("training uses what evaluation does not")
            return func(*args, **(kwargs or {}))
        if func != self.operations[self.count]:
            result = func(*args, **(kwargs or {}))
            if counts(func, result):
                raise CutError(f"{name_of(func)} came where another operation was")
            return result
        self.count += 1
        return self._filled(self.results[self.count - 1])

    def skipped(self, skip: Skip) -> Any:
        """Return what a module gave, and count its operations as done."""
        if self.count != skip.first:
            raise CutError(f"{skip.path} came where another operation was")
        self.count = skip.last
        return self._filled(skip.result)

    def _filled(self, result: Any) -> Any:
        if type(result) is Slot:
            return self.values[result]
        return mapped(result, lambda slot: self.values[slot], Slot)
