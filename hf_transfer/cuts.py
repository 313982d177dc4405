"""Where a network can be cut: all that happens before the first operation that trains is replayed.

The network's own forward runs once while every operation on tensors is watched, and again with the
operations before the cut answered by what they gave: stored values where something crosses the
cut, empty tensors of the right shape elsewhere. So any network can be cut at any layer, with skip
connections, position embeddings and masks; nothing is known here of a particular architecture.
What does not replay to the same logits is not cut: `find_cut` says why.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hf_transfer.objective import logits_of

TOLERANCE = 1e-5  # of the logits' scale: replayed and live differ by float rounding only
LOW_TOLERANCE = 0.02  # the same in half precision
PROBES = (2, 3)  # images in the two batches that show which sides follow the batch

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

Context = Callable[[], AbstractContextManager[Any]]


class CutError(RuntimeError):
    """A network that does not run the same way again: it cannot be cut here."""


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
class Cut:
    """What happens before the first operation that trains, and what crosses to it."""

    operations: tuple[Any, ...]
    results: tuple[Any, ...]  # of each operation: slots in their places, or a Python value
    shapes: tuple[tuple[tuple[int, int], ...], ...]  # of each slot: sides as (per image, fixed)
    dtypes: tuple[torch.dtype, ...]
    crossings: tuple[Crossing, ...]
    program: str  # digest of the operations, their arguments and how they hang together
    uses: tuple[str, ...]  # parameters and buffers that take part before the cut

    @property
    def stored(self) -> tuple[Crossing, ...]:
        """Return what differs from image to image, and is to be stored."""
        return tuple(crossing for crossing in self.crossings if crossing.constant is None)

    @property
    def image_bytes(self) -> int:
        """Return the bytes that one image's crossing values take."""
        return sum(
            torch.Size(crossing.shape).numel() * crossing.dtype.itemsize for crossing in self.stored
        )


def find_cut(
    model: nn.Module,
    still: Collection[nn.Module],
    probe: Callable[[int], Tensor],
    context: Context = nullcontext,
) -> Cut | str:
    """Return where the network depends on what trains for the first time, or why it has no cut.

    `probe(n)` gives n images as the model takes them; `still` are the modules that stay in
    evaluation mode; what trains has `requires_grad`. The cut is tried in evaluation and in training
    mode. Modes, statistics and random numbers stay as they are.
    """
    few, more = (probe(count) for count in PROBES)
    try:
        with _unchanged(model) as restore, torch.no_grad(), context():
            _to_training(model, still)
            torch.manual_seed(0)
            search = _Search(model)
            trained = search.run(model, more)
            restore()
            model.eval()
            records = [_Record(model, search.count) for _ in PROBES]
            records[0].run(model, few)
            evaluated = records[1].run(model, more)
            if any(record.count < search.count for record in records):
                raise CutError("training and evaluation differ before what trains")
            cut = _joined(records)
            player = Player(model, cut, strict=True)
            features = records[1].values(cut)
            _same(logits_of(player.forward(features=features)), evaluated, "evaluation")
            _to_training(model, still)
            torch.manual_seed(0)
            _same(logits_of(player.forward(features=features)), trained, "training")
    except CutError as error:
        return str(error)
    return cut


@torch.no_grad()
def crossing_values(model: nn.Module, cut: Cut, pixels: Tensor) -> tuple[Tensor, ...]:
    """Return what crosses the cut for a batch (B, C, H, W): a tensor (B, …) for each of
    `cut.stored`. The model must be in evaluation mode; nothing after the cut is computed."""
    taker = _Taker(cut, pixels)
    try:
        with taker:
            model(pixel_values=pixels)
    except _Reached:
        return tuple(crossing.packed(taker.kept[crossing.slot]) for crossing in cut.stored)
    raise CutError("the network ended before its cut")


class Player:
    """Runs a model's forward from the cut on; `forward` takes the place of the model's own."""

    def __init__(self, model: nn.Module, cut: Cut, strict: bool = False) -> None:
        self.own, self.cut, self.strict = model.forward, cut, strict
        self._empty: dict[tuple[int, torch.device], list[Tensor]] = {}

    def forward(self, *args: Any, features: Sequence[Tensor] | None = None, **kwargs: Any) -> Any:
        """Return what the model's own forward gives for the images whose values these are.

        Without `features` it is the model's own forward.
        """
        if features is None:
            return self.own(*args, **kwargs)
        values = self._values(features)
        with _Replay(self.cut, values, self.strict):
            return self.own(pixel_values=values[0], **kwargs)

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


# --- watching ----------------------------------------------------------------------------------


class _Reached(Exception):
    """The forward pass has come to the cut."""


class _Counter(TorchFunctionMode):
    """Counts the operations that give tensors, up to number `end`."""

    def __init__(self, end: int) -> None:
        super().__init__()
        self.end, self.count = end, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.reached(func, args, kwargs):
            return self.after(func, args, kwargs)
        result = func(*args, **kwargs)
        if _counts(func, result):
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


class _Search(_Counter):
    """Counts the operations before the first that trains."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(-1)
        self.state = {id(buffer) for buffer in model.buffers()}
        self.found = False

    def reached(self, func: Any, args: Any, kwargs: Any) -> bool:
        name = _name(func)
        changes = name.endswith("_") and not name.endswith("__") and args
        self.found = (
            self.found or (changes and id(args[0]) in self.state) or _trains(func, args, kwargs)
        )
        return self.found

    def run(self, model: nn.Module, pixels: Tensor) -> Tensor:
        """Run all of the model and return its logits."""
        with self:
            logits = logits_of(model(pixel_values=pixels))
        if not self.found:
            raise CutError("nothing that trains takes part")
        return logits


class _Record(_Counter):
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

    def run(self, model: nn.Module, pixels: Tensor) -> Tensor:
        """Run all of the model and return its logits."""
        self._slot(pixels, -1, 0)
        with self:
            return logits_of(model(pixel_values=pixels))

    def values(self, cut: Cut) -> tuple[Tensor, ...]:
        """Return what crossed the cut as `crossing_values` does."""
        return tuple(crossing.packed(self.crossed[crossing.slot]) for crossing in cut.stored)

    def before(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        text = self._text((args, kwargs))
        for number, tensor in enumerate(_tensors(result)):
            self._slot(tensor, self.count, number)
        self.operations.append(func)
        self.results.append(_mapped(result, lambda tensor: _Slot(self.made[id(tensor)])))
        if not any(True for _ in _tensors(result)):
            self.answers.append(result)
        self.program.append(f"{_name(func)}{text} {self._text(result)}")

    def after(self, func: Any, args: Any, kwargs: Any) -> Any:
        for tensor in _tensors((args, kwargs)):
            slot = self.made.get(id(tensor))
            if slot is not None and slot not in self.crossed and not _asks(func):
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

        return repr(_mapped(value, lambda tensor: _Text(named(tensor))))


class _Taker(_Counter):
    """Keeps what crosses the cut, and nothing else, and stops there."""

    def __init__(self, cut: Cut, pixels: Tensor) -> None:
        super().__init__(len(cut.operations))
        self.cut = cut
        self.wanted = {crossing.made: crossing.slot for crossing in cut.stored}
        self.operations = {operation for operation, _ in self.wanted}
        self.kept: dict[int, Tensor] = {}
        if (-1, 0) in self.wanted:
            self.kept[self.wanted[-1, 0]] = pixels

    def before(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        if func != self.cut.operations[self.count]:
            raise CutError(f"{_name(func)} came where another operation was")
        if self.count in self.operations:
            for number, tensor in enumerate(_tensors(result)):
                if (self.count, number) in self.wanted:
                    self.kept[self.wanted[self.count, number]] = tensor

    def after(self, func: Any, args: Any, kwargs: Any) -> Any:
        raise _Reached


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
            if self.empty and not _asks(func):
                for tensor in _tensors((args, kwargs)):
                    if id(tensor) in self.empty:
                        raise CutError("training uses what evaluation does not")
            return func(*args, **(kwargs or {}))
        if func != self.operations[self.count]:
            result = func(*args, **(kwargs or {}))
            if _counts(func, result):
                raise CutError(f"{_name(func)} came where another operation was")
            return result
        result = self.results[self.count]
        self.count += 1
        if type(result) is _Slot:
            return self.values[result]
        return _mapped(result, lambda slot: self.values[slot], _Slot)


class _Slot(int):
    """The number of a tensor, in the place where the tensor was."""


class _Text(str):
    """Text that stands for a tensor among the arguments."""

    __repr__ = str.__str__


def _counts(func: Any, result: Any) -> bool:
    """Return whether an operation's result follows from numbers in tensors."""
    if isinstance(result, Tensor):
        return True
    return any(True for _ in _tensors(result)) or _name(func) in _VALUES


def _asks(func: Any) -> bool:
    """Return whether an operation looks at a tensor's shape or kind alone."""
    owner = getattr(func, "__self__", None)
    name = getattr(owner, "__name__", "") if _name(func) == "__get__" else _name(func)
    return name in ("shape", "device", "dtype", "size", "dim", "ndim", "stride", "is_contiguous")


def _trains(func: Any, args: Any, kwargs: Any) -> bool:
    """Return whether an operation uses what trains, is random, or gathers statistics."""
    name = _name(func)
    if name in _RANDOM:
        return True
    if name in _MODAL and _varies(name, args, kwargs):
        return True
    return any(tensor.requires_grad for tensor in _tensors((args, kwargs)))


def _varies(name: str, args: Any, kwargs: Any) -> bool:
    """Return whether an operation that has a training mode is in it, with a rate above zero."""
    training, rate = _MODAL[name]
    if training is not None and not _argument(args, kwargs, training, "training", True):
        return False
    return rate is None or bool(_argument(args, kwargs, rate, *_RATES.get(name, ("p", 0.5))))


def _argument(args: Any, kwargs: Any, place: int, name: str, default: Any) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


def _name(func: Any) -> str:
    return getattr(func, "__name__", str(func))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)


def _mapped(value: Any, change: Callable[[Any], Any], kind: type = Tensor) -> Any:
    """Return the value with everything of a kind in it changed; containers stay what they are."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(item, change, kind) for item in value))
    if type(value) in (list, tuple):
        return type(value)(_mapped(item, change, kind) for item in value)
    if type(value) is dict:
        return {key: _mapped(item, change, kind) for key, item in value.items()}
    return value


def digest(tensors: Sequence[Tensor]) -> str:
    """Return 32 hexadecimal digits that stand for the tensors' shapes, types and every bit."""
    found = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    return found.hexdigest()


# --- finding -----------------------------------------------------------------------------------


def _joined(records: Sequence[_Record]) -> Cut:
    """Return the cut that two recordings, with batches of different size, agree on."""
    first, second = records
    if first.operations != second.operations or first.places != second.places:
        raise CutError("its operations follow the size of the batch")
    if first.answers != second.answers:
        raise CutError("its operations follow what the images show")
    if first.crossed.keys() != second.crossed.keys():
        raise CutError("what crosses the cut follows the size of the batch")
    shapes = tuple(
        _sides(one.shape, two.shape) for one, two in zip(first.tensors, second.tensors, strict=True)
    )
    return Cut(
        operations=tuple(first.operations),
        results=tuple(first.results),
        shapes=shapes,
        dtypes=tuple(tensor.dtype for tensor in first.tensors),
        crossings=tuple(
            _crossing(slot, first.places[slot], shapes[slot], value, second.crossed[slot])
            for slot, value in sorted(first.crossed.items())
        ),
        program=hashlib.blake2b("\n".join(first.program).encode(), digest_size=16).hexdigest(),
        uses=tuple(sorted(first.uses)),
    )


def _sides(one: torch.Size, two: torch.Size) -> tuple[tuple[int, int], ...]:
    """Return each side of a shape as (per image, fixed), from the shapes in the two probes."""
    if len(one) != len(two):
        raise CutError("a shape follows the size of the batch")
    found = []
    for a, b in zip(one, two, strict=True):
        each = (b - a) // (PROBES[1] - PROBES[0])
        found.append((each, a - each * PROBES[0]))
    return tuple(found)


def _crossing(
    slot: int,
    made: tuple[int, int],
    sides: tuple[tuple[int, int], ...],
    value: Tensor,
    other: Tensor,
) -> Crossing:
    moving = [side for side, (each, _) in enumerate(sides) if each]
    if not moving:
        if not torch.equal(value, other):
            raise CutError("what crosses the cut is made of several images")
        return Crossing(slot, made, tuple(value.shape), (), value.dtype, value)
    batch = moving[0]
    each, fixed = sides[batch]
    if len(moving) > 1 or fixed or each < 1:
        raise CutError("what crosses the cut is not laid out image by image")
    rest = [side for side in range(value.ndim) if side != batch]
    rest.sort(key=lambda side: -value.stride(side))  # stable: as it lies in memory
    order = (batch, *rest)
    shape = tuple(value.shape[side] for side in rest)
    return Crossing(slot, made, (each, *shape) if each > 1 else shape, order, value.dtype)


def _same(replayed: Tensor, live: Tensor, mode: str) -> None:
    """Raise CutError unless logits agree within float rounding."""
    low = live.dtype in (torch.float16, torch.bfloat16)
    apart = float((replayed - live).abs().max() / live.abs().max().clamp(min=1e-6))
    if not apart <= (LOW_TOLERANCE if low else TOLERANCE):
        raise CutError(f"in {mode} replayed logits differ from live ones by {apart:.0e}")


def _to_training(model: nn.Module, still: Collection[nn.Module]) -> None:
    model.train()
    for module in still:
        module.training = False


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Give modes, buffers and random numbers back as they were; buffers at any time, by a call."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}

    def restore() -> None:
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])

    try:
        with torch.random.fork_rng(devices=sorted(d for d in devices if d is not None)):
            yield restore
    finally:
        restore()
        for module, mode in modes:
            module.training = mode
