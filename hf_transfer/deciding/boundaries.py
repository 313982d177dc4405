"""What arrives at every group of a network, pooled: one pass gives the features of every depth.

The features at group k are what the frozen groups before it hand on, so a probe on them says what
freezing up to there gives. Statistics of BatchNorm layers are the checkpoint's, or re-estimated
from images, or between the two (Schneider et al., arXiv:2006.16971, section 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_transfer.backbones.access import evaluating
from hf_transfer.base.bars import bar
from hf_transfer.base.cache import StoreError, cache_folder
from hf_transfer.base.errors import UserError
from hf_transfer.base.shards import Column, Write
from hf_transfer.base.store import open_rows
from hf_transfer.data.image_set import ImageSet
from hf_transfer.inputs.arriving import arriving, at_once, input_of
from hf_transfer.inputs.feature_key import feature_key
from hf_transfer.inputs.passage import digest
from hf_transfer.training.norm_statistics import BATCH as STATISTICS_BATCH
from hf_transfer.training.norm_statistics import layers, reestimate

Statistics = dict[str, tuple[Tensor, Tensor]]  # by layer: mean and variance (C,)


@dataclass(frozen=True)
class Boundaries:
    """Pooled features float32 (N, D) of images, by the group at which they arrive, in order.

    The last group is the head: its features are what the head reads.
    """

    features: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.head)

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups at which features arrive, from input to output; each would train first."""
        return tuple(self.features)

    @property
    def head(self) -> np.ndarray:
        """What the head reads, (N, D)."""
        return next(reversed(self.features.values()))

    def take(self, rows: np.ndarray) -> Boundaries:
        """Return the features of these images."""
        return replace(self, features={name: x[rows] for name, x in self.features.items()})


def boundary_features(
    model: PreTrainedModel,
    images: ImageSet,
    *,
    statistics: Statistics | None = None,
    weight: float = 1.0,
    keep: bool = True,
) -> Boundaries:
    """Return the features of all images at every group, by one pass in evaluation mode.

    With `statistics` BatchNorm layers use them, at `weight` against the checkpoint's. With `keep`
    the features are stored in the cache, and read from there the next time. Raises UserError where
    nothing arrives at the head.
    """
    with using(model, statistics or {}, weight), evaluating(model):
        columns = _columns(model, images)
        work = _Pass(model, images, tuple(columns))
        if keep:
            try:
                return Boundaries(work.stored(columns))
            except StoreError:  # no room for them: computed in memory, as those that are not kept
                pass
        return Boundaries(work.in_memory())


def statistics_of(
    model: PreTrainedModel, images: ImageSet, rows: Sequence[int] | np.ndarray | None = None
) -> Statistics:
    """Return the BatchNorm statistics of these images (of all, without `rows`).

    The model is left as it was. Empty for a network without such layers.
    """
    places = np.arange(len(images)) if rows is None else np.asarray(rows)
    found = layers(model)
    if not found or not len(places):
        return {}
    parts = np.array_split(places, -(-len(places) // STATISTICS_BATCH))
    batches = ({"pixel_values": input_of(model, images, part)} for part in parts)
    with kept_statistics(model):
        reestimate(model, batches)
        return {name: _statistics(layer) for name, layer in found.items()}


@contextmanager
def using(model: nn.Module, statistics: Statistics, weight: float = 1.0) -> Iterator[None]:
    """Let BatchNorm layers use `weight` of these statistics and the rest of their own, until the
    block ends."""
    with kept_statistics(model) if statistics else ExitStack():
        for name, layer in layers(model).items() if statistics else ():
            for own, other in zip(_buffers(layer), statistics[name], strict=True):
                own.lerp_(other.to(own), weight)
        yield


@contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Give BatchNorm layers their own statistics back when the block ends."""
    before = {name: _statistics(layer) for name, layer in layers(model).items()}
    try:
        yield
    finally:
        for name, layer in layers(model).items():
            for own, old in zip(_buffers(layer), before[name], strict=True):
                own.copy_(old)


def _buffers(layer: nn.Module) -> tuple[Tensor, Tensor]:
    return layer.running_mean, layer.running_var


def _statistics(layer: nn.Module) -> tuple[Tensor, Tensor]:
    mean, variance = _buffers(layer)
    return mean.detach().clone(), variance.detach().clone()


# --- a pass ----------------------------------------------------------------------------------


@dataclass
class _Pass:
    """One pass of images through a network, with what arrives at these groups."""

    model: PreTrainedModel
    images: ImageSet
    groups: tuple[str, ...]

    def stored(self, columns: dict[str, Column]) -> dict[str, np.ndarray]:
        """Return the features from the cache, computed if they are not there."""
        backbone = self.model.backbone
        bare = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        key = feature_key(
            self.images,
            program=f"pooled features at {self.groups} of {backbone.groups.layout.parameters}",
            weights=digest([bare[name] for name in sorted(bare) if not self._in_head(name)]),
            image=backbone.image,
            variation=(),
            device=self.model.device.type,
            precision="",
            columns=tuple(columns.values()),
        )
        rows = open_rows(
            key,
            tuple(columns.values()),
            len(self.images),
            self.run,
            root=cache_folder("features"),
            about=f"{backbone.id}, every depth, {len(self.images)} images",
        )
        return {name: rows.whole(number) for number, name in enumerate(columns)}

    def in_memory(self) -> dict[str, np.ndarray]:
        """Return the features, computed."""
        parts: list[Sequence[np.ndarray]] = []
        self.run([range(len(self.images))], lambda arrays: parts.append(arrays))
        return {
            name: np.concatenate(arrays)
            for name, arrays in zip(self.groups, zip(*parts, strict=True), strict=True)
        }

    def run(self, spans: Iterable[range], write: Write) -> None:
        """Write the features of these rows, a batch at a time, and none across two spans."""
        size = at_once(self.model)
        with bar(len(self.images), "features") as progress:
            for span in spans:
                for first in range(span.start, span.stop, size):
                    rows = np.arange(first, min(first + size, span.stop))
                    found = arriving(self.model, input_of(self.model, self.images, rows))
                    write([found[name].cpu().numpy() for name in self.groups])
                    progress.update(len(rows))

    def _in_head(self, name: str) -> bool:
        return name.removeprefix(self.model.backbone.prefix) in self.model.backbone.groups.head


def _columns(model: PreTrainedModel, images: ImageSet) -> dict[str, Column]:
    """Return the array of each group at which features arrive, by a look at two images."""
    rows = [0, len(images) - 1]  # two: the side of the images in a tensor is seen by its length
    found = arriving(model, input_of(model, images, rows))
    head = model.backbone.groups.names[-1]
    if head not in found:
        raise UserError(
            f"{model.backbone.id}: no features arrive at its head, so none are compared"
        )
    return {name: Column(tuple(x.shape[1:]), "float32") for name, x in found.items()}
