"""What leaves the frozen prefix: computed once, replayed in every epoch.

In a phase that trains nothing but the head, on images that do not vary, everything below the head
gives the same output in every epoch. It is computed once, and the head is trained on it through
the model's own forward, so that wrappers and losses stay what they are.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from hf_transfer.backbone import Backbone
from hf_transfer.data import ImageSet
from hf_transfer.images import to_model_input
from hf_transfer.phases import Phase

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4  # of the logits' scale: replayed and live logits differ by float rounding only


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


def why_live(phase: Phase, head: Collection[str], *datasets: Any) -> str | None:
    """Return why a phase's prefix must run in every epoch, or None where once is enough."""
    spec = phase.spec
    if not set(phase.parameters) <= set(head):
        return "more than the head trains"
    if len({name.rpartition(".")[0] for name in head}) != 1:
        return "the head has more than one layer"
    if spec.augment != type(spec.augment)() or spec.mixup or spec.cutmix:
        return "the images vary from epoch to epoch"
    if not all(dataset is None or isinstance(dataset, ImageSet) for dataset in datasets):
        return "the data set gives no stored pixels"
    return None


@torch.no_grad()
def head_module(
    model: nn.Module, backbone: Backbone, still: Sequence[nn.Module]
) -> HeadModule | None:
    """Return the head's module if its output on its own input is the model's logits, else None."""
    path = backbone.prefix + backbone.layout.head[0].rpartition(".")[0]
    module = model.get_submodule(path)
    size, channels = backbone.image.size, backbone.image.channels
    device = next(model.parameters()).device
    probe = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    caught: list[torch.Tensor] = []
    dropped: list[tuple[float, torch.Tensor]] = []
    hooks = [module.register_forward_pre_hook(lambda _, args: caught.append(args[0]))]
    for other in model.modules():
        if isinstance(other, nn.Dropout) and other.p and other not in still:
            hooks.append(other.register_forward_hook(lambda m, _, out: dropped.append((m.p, out))))
    try:
        logits = _logits(_evaluated(model, pixel_values=probe.to(device)))
    finally:
        for hook in hooks:
            hook.remove()
    if len(caught) != 1:
        return None
    replayed = module(caught[0])
    if replayed.shape != logits.shape:
        return None
    if (replayed - logits).abs().max() > TOLERANCE * logits.abs().max().clamp(min=1e-6):
        return None
    on_input = [p for p, out in dropped if out is caught[0]]
    if len(on_input) != len(dropped):
        return None  # dropout that acts elsewhere in what trains cannot be applied again
    return HeadModule(path, on_input[0] if on_input else 0.0)


@torch.no_grad()
def head_inputs(model: nn.Module, path: str, images: ImageSet, backbone: Backbone) -> FeatureSet:
    """Return what reaches the head for every image of a set, in evaluation mode, in order."""
    module = model.get_submodule(path)
    device = next(model.parameters()).device
    rows: list[torch.Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, args: rows.append(args[0].cpu()))
    try:
        for start in range(0, len(images), 64):
            batch = images.__getitems__(range(start, min(start + 64, len(images))))
            pixels = to_model_input(batch["pixels"].to(device), backbone.image)
            _evaluated(model, pixel_values=pixels)
    finally:
        hook.remove()
    return FeatureSet(torch.cat(rows), torch.as_tensor(images.labels))


class Replay:
    """Makes the model's forward take stored features, until `close` gives the data sets back."""

    def __init__(self, model: nn.Module, head: HeadModule, train: Any, evaluation: Any) -> None:
        self.model, self.head = model, head
        self.kept = (train, evaluation)
        backbone = model.backbone
        self.train = head_inputs(model, head.path, train, backbone)
        self.evaluation = (
            None if evaluation is None else head_inputs(model, head.path, evaluation, backbone)
        )
        module = model.get_submodule(head.path)

        def forward(
            features: torch.Tensor, labels: torch.Tensor | None = None, **_: Any
        ) -> dict[str, torch.Tensor]:
            logits = module(F.dropout(features, head.dropout, training=model.training))
            if labels is None:
                return {"logits": logits}
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

        model.forward = forward

    def close(self) -> tuple[Any, Any]:
        """Give the model its own forward back and return the data sets of images."""
        self.model.__dict__.pop("forward", None)
        return self.kept


def _evaluated(model: nn.Module, **inputs: torch.Tensor) -> Any:
    """Return the model's output in evaluation mode; every module's mode is put back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        return model.eval()(**inputs)
    finally:
        for module, mode in modes:
            module.training = mode


def _logits(outputs: Any) -> torch.Tensor:
    return outputs if isinstance(outputs, torch.Tensor) else outputs["logits"]
