"""Where a network can be cut: at the modules that train first, whose arguments are stored.

The frozen part runs once for each image, up to those modules; what arrives there is stored. In
every epoch the network's own forward runs again: the modules before the cut return at once, and the
stored values arrive at the cut. So skip connections, position embeddings and several heads need no
knowledge of an architecture. A network whose replay gives other logits is not cut, and `find_cut`
says why.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_transfer.backbones.access import logits_of, same_random
from hf_transfer.backbones.trace import is_leaf, varies
from hf_transfer.backbones.watching import name_of
from hf_transfer.base.boundary import untrusted
from hf_transfer.inputs.passage import READS, CutError, Passage, Record, Step, unknown
from hf_transfer.inputs.replay import Player

TOLERANCE = 1e-5  # of the values' scale: what is the same differs by float rounding only
LOW_TOLERANCE = 0.02  # the same in half precision
PROBES = 4  # images that a cut is tried with
NOTHING_FROZEN = "no frozen layer runs before what trains"

Context = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Crossing:
    """One tensor that arrives at the cut, with a row for each image."""

    shape: tuple[int, ...]  # of one image's part, in the order of memory
    order: tuple[int, ...]  # of the tensor's sides in memory, the images' first
    dtype: torch.dtype

    def packed(self, value: Tensor) -> Tensor:
        """Return the tensor as it is stored: (B, *shape), in the order of memory."""
        return value.permute(self.order).contiguous()

    def unpacked(self, stored: Tensor) -> Tensor:
        """Return the tensor as it arrived, from (B, *shape)."""
        return stored.permute([self.order.index(side) for side in range(len(self.order))])


@dataclass(frozen=True)
class Cut:
    """What happens before the modules at `paths`, and what arrives there."""

    # By module at the cut: its arguments' tensors; None for one that is the same for all images.
    arrivals: dict[str, tuple[Crossing | None, ...]]
    steps: tuple[Step, ...]  # the operations before the cut: the same for every batch
    answers: dict[str, Any]  # what outermost modules before the cut give, without its numbers
    nothing: Tensor  # (1, C, H, W): stands for an image
    program: str  # digest of the operations, their arguments and how they hang together
    uses: tuple[str, ...]  # parameters and buffers that take part before the cut
    largest: int  # bytes of the largest tensor before the cut, of one image

    @property
    def stored(self) -> tuple[Crossing, ...]:
        """What differs from image to image, and is stored."""
        every = (crossing for one in self.arrivals.values() for crossing in one)
        return tuple(crossing for crossing in every if crossing is not None)


def find_cut(
    model: nn.Module,
    still: Collection[nn.Module],
    images: Tensor,
    context: Context = nullcontext,
) -> Cut | str:
    """Return where the network can be cut, or why it cannot.

    `images` are some of those to train on, (B, C, H, W) with B at least 2, as the model takes them;
    `still` are the modules that stay in evaluation mode; what trains has `requires_grad`. A cut is
    tried in evaluation and in training mode. Modes, statistics and random numbers stay as they are.
    """
    try:
        with (
            untrusted("the network", verb="run", kind=CutError),
            _unchanged(model) as restore,
            torch.no_grad(),
            context(),
        ):
            return _found(model, still, images, restore)
    except CutError as error:
        return str(error)


@torch.no_grad()
def settle(model: nn.Module, images: Tensor) -> None:
    """Let the network compute what it stores in its first evaluation pass, such as LeViT's biases,
    before the passes that are compared."""
    model(pixel_values=images[:1])


@torch.no_grad()
def crossing_values(model: nn.Module, cut: Cut, pixels: Tensor) -> tuple[Tensor, ...]:
    """Return what arrives at the cut for a batch (B, C, H, W): a tensor (B, …) for each of
    `cut.stored`. The model must be in evaluation mode; nothing after the cut is computed.

    Raises CutError if the network fails, or takes another path than when it was cut.
    """
    passage = Passage(tuple(cut.arrivals))
    arrived = passage.run(model, pixels)
    _check_steps(cut.steps, passage.steps)
    return tuple(
        crossing.packed(value)
        for path, crossings in cut.arrivals.items()
        for crossing, value in zip(crossings, arrived[path], strict=True)
        if crossing is not None
    )


def check_same(
    found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = TOLERANCE
) -> None:
    """Raise CutError unless an image's values are the same as in another batch."""
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape or not _apart(one, other) <= max(tolerance, _rounding(one)):
            raise CutError("an image's features depend on the other images of its batch")


# --- finding -----------------------------------------------------------------------------------


def _found(
    model: nn.Module, still: Collection[nn.Module], images: Tensor, restore: Callable[[], None]
) -> Cut:
    _to_training(model, still)
    torch.manual_seed(0)
    candidates, trained = _candidates(model, images)
    restore()
    model.eval()
    evaluated = logits_of(model(pixel_values=images))
    why = CutError("no layer that trains takes part in the forward pass")
    for paths in candidates:
        try:
            with untrusted("the network from its cut on", verb="run", kind=CutError):
                settle(model, images)
                cut = _cut_at(model, paths, images)
                features = crossing_values(model, cut, images)
                with Player(model, cut) as player:
                    _check_logits(player.forward(features=features), evaluated, "evaluation")
                    _to_training(model, still)
                    torch.manual_seed(0)
                    _check_logits(player.forward(features=features), trained, "training")
            return cut
        except CutError as error:
            if paths == candidates[0] or str(error) != NOTHING_FROZEN:
                why = error
        finally:
            restore()
            model.eval()
    raise why


def _candidates(model: nn.Module, images: Tensor) -> tuple[list[tuple[str, ...]], Tensor]:
    """Return where a cut is worth trying, the best first, and the logits.

    First the module that trains first and those that contain it, from the inside to the outside: a
    residual connection goes around the inner ones. Then all outermost modules that train as a
    whole: several heads.
    """
    running: list[str] = []
    around: dict[str, list[str]] = {}  # the first layer, or module, that trains, and its parents
    whole: list[str] = []

    def enter(path: str) -> Any:
        def note(module: nn.Module, args: Any) -> None:
            running.append(path)
            own = any(p.requires_grad for p in module.parameters(recurse=False))
            if is_leaf(module) and (own or module.training and varies(module)):
                around.setdefault("layer", running[::-1])
            elif own:
                around.setdefault("module", running[::-1])
            parameters = list(module.parameters())
            inside = any(path.startswith(f"{outer}.") for outer in whole)
            if parameters and all(p.requires_grad for p in parameters) and not inside:
                whole.append(path)

        return note

    def leave(module: nn.Module, args: Any, result: Any) -> None:
        running.pop()

    named = [(path, module) for path, module in model.named_modules() if path]
    hooks = [module.register_forward_pre_hook(enter(path)) for path, module in named]
    hooks += [module.register_forward_hook(leave) for _, module in named]
    try:
        logits = logits_of(model(pixel_values=images))
    finally:
        for hook in hooks:
            hook.remove()
    one = [(path,) for path in (*around.get("layer", ()), *around.get("module", ()))]
    several = [tuple(dict.fromkeys(whole))] if len(whole) > 1 else []
    return list(dict.fromkeys(one + several)), logits


def _cut_at(model: nn.Module, paths: tuple[str, ...], images: Tensor) -> Cut:
    """Return the cut there; raises CutError if what arrives also depends on other images."""
    record, last, whole = Record(model, paths), Passage(paths), Passage(paths)
    first = record.run(model, images[:1])
    others = last.run(model, images[-1:])
    together = whole.run(model, images)
    for passage in (last, whole):
        _check_steps(record.steps, passage.steps)
    if not record.uses:
        raise CutError(NOTHING_FROZEN)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    if trained & record.uses.keys():
        raise CutError("what trains is used before the frozen layers end")
    arrivals = {}
    for path, one in first.items():
        pairs = zip(one, together[path], strict=True)
        arrivals[path] = tuple(_crossing(*pair) for pair in pairs)
        for crossing, *values in zip(
            arrivals[path], one, others[path], together[path], strict=True
        ):
            _check_alone(crossing, *values)
    if not any(crossing for each in arrivals.values() for crossing in each):
        raise CutError("nothing of an image arrives at what trains")
    inner = tuple(f"{path}." for path in record.calls)
    return Cut(
        arrivals=arrivals,
        steps=tuple(record.steps),
        answers={
            path: unknown(given)
            for path, given in record.calls.items()
            if not any(path.startswith(outer) for outer in inner)
        },
        nothing=unknown(images[:1]),
        program=record.program,
        uses=tuple(sorted(record.uses)),
        largest=max(record.largest, images[:1].nbytes),
    )


def _check_alone(crossing: Crossing | None, first: Tensor, last: Tensor, whole: Tensor) -> None:
    """Raise CutError unless a batch's first and last image give the same values alone."""
    if crossing is None:
        check_same([first, last], [whole, whole])
    else:
        values = crossing.packed(whole)
        check_same([crossing.packed(first)], [values[:1]])
        check_same([crossing.packed(last)], [values[-1:]])


def _crossing(one: Tensor, several: Tensor) -> Crossing | None:
    """Return how a tensor of several images is stored, given that of one; None for a constant."""
    if one.shape == several.shape:
        return None
    pairs = zip(one.shape, several.shape, strict=False)
    sides = [side for side, (a, b) in enumerate(pairs) if a != b]
    if one.ndim != several.ndim or len(sides) != 1 or one.shape[sides[0]] != 1:
        raise CutError("what arrives at what trains has no row for each image")
    rest = [side for side in range(several.ndim) if side != sides[0]]
    rest.sort(key=lambda side: -several.stride(side))  # stable: as it lies in memory
    shape = tuple(several.shape[side] for side in rest)
    return Crossing(shape, (sides[0], *rest), several.dtype)


# --- checking ----------------------------------------------------------------------------------


def _check_steps(expected: Sequence[Step], found: Sequence[Step]) -> None:
    """Raise CutError unless a network took the same path for two batches."""
    if list(expected) == list(found):
        return
    pairs = zip(expected, found, strict=False)
    one, other = next((pair for pair in pairs if pair[0] != pair[1]), (None, None))
    if one and other and one[0] == other[0] and name_of(one[0]) in READS:
        raise CutError(f"its forward pass reads what the images hold ({name_of(one[0])})")
    raise CutError("its operations depend on the images or on their number")


def _check_logits(replayed: Any, live: Tensor, mode: str) -> None:
    """Raise CutError unless logits agree within float rounding."""
    logits = logits_of(replayed)
    if logits.shape != live.shape or not _apart(logits, live) <= _rounding(live):
        raise CutError(f"in {mode} mode the frozen layers give other logits when replayed")


def _apart(one: Tensor, other: Tensor) -> float:
    """Return the largest difference, as a share of the values' scale; NaN where there is one."""
    if not one.numel():
        return 0.0
    scale = other.float().abs().max().clamp(min=1e-6)
    return float((one.float() - other.float()).abs().max() / scale)


def _rounding(values: Tensor) -> float:
    return LOW_TOLERANCE if values.dtype in (torch.float16, torch.bfloat16) else TOLERANCE


def _to_training(model: nn.Module, still: Collection[nn.Module]) -> None:
    model.train()
    for module in still:
        module.training = False


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Restore modes, buffers and random state at the end; calls restore the buffers meanwhile."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def restore() -> None:
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])

    try:
        with same_random(model):
            yield restore
    finally:
        restore()
        for module, mode in modes:
            module.training = mode
