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
from typing import Any

import torch
from torch import Tensor, nn

from hf_transfer.backbones.access import logits_of
from hf_transfer.inputs.recording import Counter, CutError, Record, Search, name_of, tensors_in
from hf_transfer.inputs.replay import Crossing, Cut, Player, Skip

TOLERANCE = 1e-5  # of the logits' scale: replayed and live differ by float rounding only
LOW_TOLERANCE = 0.02  # the same in half precision
PROBES = (2, 3)  # images in the two batches that show which sides follow the batch

Context = Callable[[], AbstractContextManager[Any]]


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
            search = Search(model)
            trained = search.run(model, more)
            restore()
            model.eval()
            records = [Record(model, search.count) for _ in PROBES]
            records[0].run(model, few)
            evaluated = records[1].run(model, more)
            if any(record.count < search.count for record in records):
                raise CutError("training and evaluation differ before what trains")
            cut = _joined(records)
            crossed = records[1].crossed
            features = [crossing.packed(crossed[crossing.slot]) for crossing in cut.stored]
            _check_alone(features, crossing_values(model, cut, more[: PROBES[0]]))
            with Player(model, cut, strict=True) as player:
                _check_same(logits_of(player.forward(features=features)), evaluated, "evaluation")
                _to_training(model, still)
                torch.manual_seed(0)
                _check_same(logits_of(player.forward(features=features)), trained, "training")
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


class _Reached(Exception):
    """The forward pass has come to the cut."""


class _Taker(Counter):
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
            raise CutError(f"{name_of(func)} came where another operation was")
        if self.count in self.operations:
            for number, tensor in enumerate(tensors_in(result)):
                if (self.count, number) in self.wanted:
                    self.kept[self.wanted[self.count, number]] = tensor

    def after(self, func: Any, args: Any, kwargs: Any) -> Any:
        raise _Reached


# --- finding -----------------------------------------------------------------------------------


def _joined(records: Sequence[Record]) -> Cut:
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
        skips=_skips(first),
    )


def _skips(record: Record) -> tuple[Skip, ...]:
    """Return the outermost modules that ran once, from first to last before the cut."""
    calls = {path: call for path, call in record.calls.items() if call is not None}
    return tuple(
        Skip(path, *call)
        for path, call in calls.items()
        if not any(path.startswith(f"{outer}.") for outer in calls) and call[1] > call[0]
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


def _check_alone(whole: Sequence[Tensor], part: Sequence[Tensor]) -> None:
    """Raise CutError unless a part of a batch gives what it gives as a part of the batch."""
    for batch, few in zip(whole, part, strict=True):
        if not _apart(few, batch[: len(few)]) <= _tolerance(batch):
            raise CutError("what crosses the cut is made of several images")


def _check_same(replayed: Tensor, live: Tensor, mode: str) -> None:
    """Raise CutError unless logits agree within float rounding."""
    apart = _apart(replayed, live)
    if not apart <= _tolerance(live):
        raise CutError(f"in {mode} replayed logits differ from live ones by {apart:.0e}")


def _apart(one: Tensor, other: Tensor) -> float:
    scale = other.float().abs().max().clamp(min=1e-6)
    return float((one.float() - other.float()).abs().max() / scale)


def _tolerance(values: Tensor) -> float:
    return LOW_TOLERANCE if values.dtype in (torch.float16, torch.bfloat16) else TOLERANCE


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
