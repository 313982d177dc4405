"""What leaves the frozen prefix: computed once, replayed in every epoch.

In a phase that trains nothing but the head, on images that do not vary, everything below the head
gives the same output in every epoch. It is computed once, and the head is trained on it through
the model's own forward, so that wrappers and losses stay what they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from hf_transfer import phases
from hf_transfer.backbone import Backbone
from hf_transfer.data import ImageSet
from hf_transfer.images import to_model_input
from hf_transfer.objective import logits_of
from hf_transfer.phases import Phase
from hf_transfer.recipe import UserError

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4  # of the logits' scale: replayed and live logits differ by float rounding only
BATCH = 64
MEMORY_BYTES = 4 * 2**30  # features that take more are not held: the prefix runs live


class FeatureSet(Dataset):
    """Inputs of the head (N, …) with labels (N,); batches like an ImageSet's."""

    def __init__(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        rows = torch.as_tensor(indices)
        return {"features": self.features[rows], "labels": self.labels[rows]}

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}


@dataclass(frozen=True)
class HeadModule:
    """The one module that holds the head, and the dropout that acts on its input."""

    path: str
    dropout: float


def why_live(phase: Phase, backbone: Backbone, train: Any, evaluation: Any) -> str | None:
    """Return why a phase's prefix must run in every epoch, or None where once may be enough."""
    reason = phases.why_live(phase, backbone.layout)
    if reason is None and not isinstance(train, ImageSet):
        return "the data set gives no stored pixels"
    if reason is None and not (evaluation is None or isinstance(evaluation, ImageSet)):
        return "the validation set gives no stored pixels"
    return reason


# --- the head, found and tried ---------------------------------------------------------------


def head_to_replay(
    model: nn.Module,
    backbone: Backbone,
    phase: Phase,
    still: Sequence[nn.Module],
    train: Any,
    evaluation: Any,
) -> HeadModule | None:
    """Return the head whose inputs a phase can train on; None where its prefix runs live.

    Raises UserError where the phase insists on cached features and cannot have them.
    """
    found: HeadModule | str | None = why_live(phase, backbone, train, evaluation)
    if found is None:
        found = head_module(model, backbone, still, len(train) + len(evaluation or ()))
    if isinstance(found, HeadModule):
        return found
    if phase.spec.features == "cached":
        raise UserError(
            f"phase {phase.name}: features: cached is not possible, because {found}; "
            "write auto or live"
        )
    return None


@torch.no_grad()
def head_module(
    model: nn.Module, backbone: Backbone, still: Sequence[nn.Module], images: int
) -> HeadModule | str:
    """Return the head's module, or why its inputs cannot be replayed.

    Tried on random pixels, with dropout and without: what the head makes of its own input is to
    be what the model says, and `images` such inputs are to fit into memory.
    """
    path = backbone.prefix + backbone.layout.head[0].rpartition(".")[0]
    head = dict(model.named_modules()).get(path)
    if head is None or head is model:
        return "the head is no module of its own"
    image = backbone.image
    random = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, image.channels, image.size, image.size, generator=random)
    pixels = pixels.to(next(model.parameters()).device)
    with _put_back(model):
        model.eval()
        seen = _seen(model, head, pixels)
        if isinstance(seen, str):
            return seen
        inputs = seen.inputs
        if not _close(head(inputs), seen.logits):
            return "the head does not replay to the same logits"
        model.train()
        for module in still:
            module.training = False
        seen = _seen(model, head, pixels)
        if isinstance(seen, str):
            return seen
        dropout = seen.dropout[0] if seen.dropout else 0.0
        torch.manual_seed(0)
        if not _close(head(F.dropout(inputs, dropout, training=True)), seen.logits):
            return "more than dropout on the head's input varies while it trains"
    size = inputs[0].numel() * inputs.element_size()
    if size * images > MEMORY_BYTES:
        return f"its inputs would take {size * images / 1e9:.1f} GB of memory"
    return HeadModule(path, dropout)


@dataclass(frozen=True)
class _Seen:
    inputs: torch.Tensor  # of the head
    logits: torch.Tensor
    dropout: list[float]  # probabilities of the dropout that acted


def _seen(model: nn.Module, head: nn.Module, pixels: torch.Tensor) -> _Seen | str:
    """Run the model once, from a fixed seed, and return what was seen of its head."""
    caught: list[Any] = []
    dropout: list[float] = []
    hooks = [head.register_forward_pre_hook(_catch(caught), with_kwargs=True)]
    for module in model.modules():
        if isinstance(module, nn.Dropout) and module.p and module.training:
            hooks.append(module.register_forward_hook(lambda m, *_: dropout.append(m.p)))
    torch.manual_seed(0)
    try:
        logits = logits_of(model(pixel_values=pixels))
    finally:
        for hook in hooks:
            hook.remove()
    if len(caught) != 1 or not isinstance(caught[0], torch.Tensor):
        return "the head is not called once, with one tensor"
    return _Seen(caught[0], logits, dropout)


def _catch(found: list[Any]) -> Callable[..., None]:
    """Return a hook that notes every argument of a module's call."""

    def hook(module: nn.Module, args: Sequence[Any], named: Mapping[str, Any]) -> None:
        found.extend([*args, *named.values()])

    return hook


@contextmanager
def _put_back(model: nn.Module) -> Iterator[None]:
    """Undo what happens to modes, buffers and random numbers inside."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {tensor.device for tensor in model.parameters() if tensor.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for buffer, value in buffers:
            buffer.copy_(value)


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape:
        return False
    scale = other.abs().max().clamp(min=1e-6)
    return bool((one - other).abs().max() <= TOLERANCE * scale)


# --- replay ----------------------------------------------------------------------------------


@torch.no_grad()
def head_inputs(
    model: nn.Module, path: str, images: ImageSet, backbone: Backbone, autocast: Any = nullcontext
) -> FeatureSet:
    """Return what reaches the head for every image of a set, in evaluation mode, in order."""
    device = next(model.parameters()).device
    rows: list[torch.Tensor] = []
    with _put_back(model):
        model.eval()
        for start in range(0, len(images), BATCH):
            batch = images.__getitems__(range(start, min(start + BATCH, len(images))))
            caught: list[torch.Tensor] = []
            hook = model.get_submodule(path).register_forward_pre_hook(
                _catch(caught), with_kwargs=True
            )
            try:
                with autocast():
                    model(pixel_values=to_model_input(batch["pixels"].to(device), backbone.image))
            finally:
                hook.remove()
            rows.append(caught[0].cpu())
    return FeatureSet(torch.cat(rows), torch.as_tensor(images.labels))


def replay(model: nn.Module, head: HeadModule) -> None:
    """Have the model's forward take the head's inputs, until its `forward` is put back."""
    module = model.get_submodule(head.path)

    def forward(features: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        return {"logits": module(F.dropout(features, head.dropout, training=model.training))}

    model.forward = forward
