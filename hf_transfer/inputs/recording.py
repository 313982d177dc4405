"""Operations on tensors, watched while a network runs: which train, what they give, who uses it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hf_transfer.backbones.access import logits_of

# Operations whose answer is a Python value that follows the tensor's content, not its shape.
_VALUES = {
    "item", "tolist", "numpy", "equal", "allclose", "is_nonzero",
    "__bool__", "__int__", "__float__", "__index__", "__contains__",
}  # fmt: skip
_RANDOM = {
    "bernoulli", "bernoulli_", "rand", "rand_like", "randn", "randn_like", "randint",
    "randint_like", "randperm", "normal", "normal_", "uniform_", "random_", "exponential_",
    "multinomial", "trunc_normal_", "rrelu", "gumbel_softmax",
}  # fmt: skip
# Operations that training mode changes, with the places of their `training` and rate arguments.
_MODAL: dict[str, tuple[int | None, int | None]] = {
    "batch_norm": (5, None),
    "dropout": (2, 1), "dropout1d": (2, 1), "dropout2d": (2, 1), "dropout3d": (2, 1),
    "alpha_dropout": (2, 1), "feature_alpha_dropout": (2, 1), "feature_dropout": (2, 1),
    "dropout_": (2, 1), "scaled_dot_product_attention": (None, 4),
    "multi_head_attention_forward": (13, 11),
}  # fmt: skip
_RATES = {
    "scaled_dot_product_attention": ("dropout_p", 0.0),
    "multi_head_attention_forward": ("dropout_p", 0.0),
}


class CutError(RuntimeError):
    """A network that does not run the same way again: it cannot be cut here."""


class Counter(TorchFunctionMode):
    """Counts the operations that give tensors, up to number `end`."""

    def __init__(self, end: int) -> None:
        super().__init__()
        self.end, self.count = end, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.reached(func, args, kwargs):
            return self.after(func, args, kwargs)
        result = func(*args, **kwargs)
        if counts(func, result):
            self.before(func, args, kwargs, result)
            self.count += 1
        return result

    def reached(self, func: Any, args: Any, kwargs: Any) -> bool:
        """Return whether an operation comes after the cut."""
        return self.count == self.end

    def before(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Take note of an operation before the cut."""

    def after(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run, or not, what comes from the cut on."""
        return func(*args, **kwargs)


class Search(Counter):
    """Counts the operations before the first that trains."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(-1)
        self.state = {id(buffer) for buffer in model.buffers()}
        self.found = False

    def reached(self, func: Any, args: Any, kwargs: Any) -> bool:
        name = name_of(func)
        changes = name.endswith("_") and not name.endswith("__") and args
        self.found = (
            self.found or (changes and id(args[0]) in self.state) or trains(func, args, kwargs)
        )
        return self.found

    def run(self, model: nn.Module, pixels: Tensor) -> Tensor:
        """Run all of the model and return its logits."""
        with self:
            logits = logits_of(model(pixel_values=pixels))
        if not self.found:
            raise CutError("nothing that trains takes part")
        return logits


class Record(Counter):
    """Notes what each operation before the cut gives, and what of it is used after the cut."""

    def __init__(self, model: nn.Module, end: int) -> None:
        super().__init__(end)
        named = [*model.named_parameters(), *model.named_buffers()]
        self.names = {id(tensor): name for name, tensor in named}
        self.made: dict[int, int] = {}
        self.tensors: list[Tensor] = []  # kept, so that no two have one id
        self.places: list[tuple[int, int]] = []
        self.crossed: dict[int, Tensor] = {}
        self.operations: list[Any] = []
        self.results: list[Any] = []
        self.program: list[str] = []
        self.uses: dict[str, None] = {}
        self.answers: list[Any] = []  # Python values that followed from numbers in tensors
        self.over = False  # something after the cut has run
        # By module: its first operation, one past its last, and its result; None: not before the
        # cut, not called once, or its result is more than tensors.
        self.calls: dict[str, tuple[int, int, Any] | None] = {}

    def run(self, model: nn.Module, pixels: Tensor) -> Tensor:
        """Run all of the model and return its logits."""
        self._slot(pixels, -1, 0)
        hooks = [hook for path, m in model.named_modules() if path for hook in self._hooks(path, m)]
        try:
            with self:
                return logits_of(model(pixel_values=pixels))
        finally:
            for hook in hooks:
                hook.remove()

    def _hooks(self, path: str, module: nn.Module) -> list[Any]:
        """Note where in the order of operations a module's call begins and ends."""
        began: list[int] = []

        def before(module: nn.Module, args: Any) -> None:
            began.append(self.count)

        def after(module: nn.Module, args: Any, result: Any) -> None:
            plain = _plain(result) and all(id(t) in self.made for t in tensors_in(result))
            whole = not self.over and plain and path not in self.calls
            slots = mapped(result, lambda tensor: Slot(self.made[id(tensor)])) if whole else None
            self.calls[path] = (began[-1], self.count, slots) if whole else None

        return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]

    def before(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        text = self._text((args, kwargs))
        for number, tensor in enumerate(tensors_in(result)):
            self._slot(tensor, self.count, number)
        self.operations.append(func)
        self.results.append(mapped(result, lambda tensor: Slot(self.made[id(tensor)])))
        if not any(True for _ in tensors_in(result)):
            self.answers.append(result)
        self.program.append(f"{name_of(func)}{text} {self._text(result)}")

    def after(self, func: Any, args: Any, kwargs: Any) -> Any:
        self.over = True
        for tensor in tensors_in((args, kwargs)):
            slot = self.made.get(id(tensor))
            if slot is not None and slot not in self.crossed and not asks(func):
                self.crossed[slot] = tensor.detach().clone(memory_format=torch.preserve_format)
        return func(*args, **kwargs)

    def _slot(self, tensor: Tensor, operation: int, number: int) -> None:
        if id(tensor) in self.names:
            raise CutError(f"{self.names[id(tensor)]} is handed on as it is")
        if id(tensor) not in self.made:
            self.made[id(tensor)] = len(self.tensors)
            self.tensors.append(tensor)
            self.places.append((operation, number))

    def _text(self, value: Any) -> str:
        """Return arguments as text: tensors by their slot, name, or content."""

        def named(tensor: Tensor) -> str:
            if id(tensor) in self.made:
                return f"#{self.made[id(tensor)]}{tuple(tensor.shape)}"
            if id(tensor) in self.names:
                self.uses[self.names[id(tensor)]] = None
                return self.names[id(tensor)]
            return digest([tensor])

        return repr(mapped(value, lambda tensor: _Text(named(tensor))))


class Slot(int):
    """The number of a tensor, in the place where the tensor was."""


class _Text(str):
    """Text that stands for a tensor among the arguments."""

    __repr__ = str.__str__


def counts(func: Any, result: Any) -> bool:
    """Return whether an operation's result follows from numbers in tensors."""
    if isinstance(result, Tensor):
        return True
    return any(True for _ in tensors_in(result)) or name_of(func) in _VALUES


def asks(func: Any) -> bool:
    """Return whether an operation looks at a tensor's shape or kind alone."""
    owner = getattr(func, "__self__", None)
    name = getattr(owner, "__name__", "") if name_of(func) == "__get__" else name_of(func)
    return name in ("shape", "device", "dtype", "size", "dim", "ndim", "stride", "is_contiguous")


def trains(func: Any, args: Any, kwargs: Any) -> bool:
    """Return whether an operation uses what trains, is random, or gathers statistics."""
    name = name_of(func)
    if name in _RANDOM:
        return True
    if name in _MODAL and _varies(name, args, kwargs):
        return True
    return any(tensor.requires_grad for tensor in tensors_in((args, kwargs)))


def _varies(name: str, args: Any, kwargs: Any) -> bool:
    """Return whether an operation that has a training mode is in it, with a rate above zero."""
    training, rate = _MODAL[name]
    if training is not None and not _argument(args, kwargs, training, "training", True):
        return False
    return rate is None or bool(_argument(args, kwargs, rate, *_RATES.get(name, ("p", 0.5))))


def _argument(args: Any, kwargs: Any, place: int, name: str, default: Any) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


def name_of(func: Any) -> str:
    return getattr(func, "__name__", str(func))


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


def _plain(value: Any) -> bool:
    """Return whether a value is made of tensors, in tuples and lists at most."""
    if type(value) in (list, tuple):
        return all(_plain(item) for item in value)
    return value is None or isinstance(value, Tensor)


def mapped(value: Any, change: Callable[[Any], Any], kind: type = Tensor) -> Any:
    """Return the value with everything of a kind in it changed; containers stay what they are."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(item, change, kind) for item in value))
    if type(value) in (list, tuple):
        return type(value)(mapped(item, change, kind) for item in value)
    if type(value) is dict:
        return {key: mapped(item, change, kind) for key, item in value.items()}
    return value


def digest(tensors: Sequence[Tensor]) -> str:
    """Return 32 hexadecimal digits that stand for the tensors' shapes, types and every bit."""
    found = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    return found.hexdigest()
