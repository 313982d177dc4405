"""A network's structure without the network: what planning needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isqrt, prod
from typing import Any

from hf_transfer.base.errors import UserError


class GroupsError(UserError):
    """A network in which no regular order of layers can be found."""


@dataclass(frozen=True)
class Layout:
    """A network's structure without the network, by the bare network's own names."""

    parameters: tuple[tuple[str, tuple[int, ...]], ...]  # (name, shape) by first use; unused last
    unused: tuple[str, ...] = ()  # never used by a forward pass: mask tokens, auxiliary heads
    sequences: tuple[str, ...] = ()  # modules whose children run one after the other
    head: tuple[str, ...] = ()  # newly initialised for the labels, as the loader reports
    norms: tuple[str, ...] = ()  # normalisation layers
    batch_norms: tuple[str, ...] = ()  # those of them that take statistics over a batch
    adaptable: tuple[str, ...] = ()  # linear and convolution layers that can have adapters
    loose: tuple[tuple[str, int], ...] = ()  # dropout and its kin: (path, parameters used before)
    no_decay: tuple[str, ...] = ()  # that the backbone itself exempts from weight decay
    macs: tuple[int, ...] = ()  # multiply-adds of one image, by parameter, as far as counted
    crossing: tuple[int, ...] = ()  # numbers of one image made before a parameter, used from it on
    shared: tuple[tuple[str, ...], ...] = ()  # other names of one parameter, after the one above
    head_kept: bool = False  # the head is the checkpoint's own, and trained
    random: bool = False  # no weight is pretrained
    refitted: tuple[str, ...] = ()  # first layers that were made to fit another number of channels
    image: dict[str, Any] = field(default_factory=dict)
    labels: int = 0

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Scalars in each parameter."""
        return {name: prod(shape) for name, shape in self.parameters}

    @cached_property
    def used(self) -> tuple[str, ...]:
        """Names of the parameters that a forward pass uses, by first use."""
        unused = set(self.unused)
        return tuple(name for name, _ in self.parameters if name not in unused)

    @cached_property
    def sides(self) -> dict[str, int]:
        """Side, in positions, of what each convolution or product gives; 0 for other parameters."""
        return {
            name: isqrt(macs // max(1, self.sizes[name]))
            for (name, _), macs in zip(self.parameters, self.macs, strict=False)
        }

    @cached_property
    def weights(self) -> frozenset[str]:
        """Parameters that layers multiply by: with costs, or (none counted) of two dimensions."""
        if any(self.macs):
            return frozenset(n for (n, _), m in zip(self.parameters, self.macs, strict=True) if m)
        return frozenset(name for name, shape in self.parameters if len(shape) > 1)

    def at(self, size: int) -> Layout:
        """Return the layout for images of `size` px: costs and numbers follow their area.

        Exact where sides are halved without rests. What runs once an image, on as many numbers as
        its weights' shape says, stays as it is: a head, a layer after pooling to a fixed size.
        """
        own = self.image.get("size", size)
        if size == own:
            return self
        area = (size / own) ** 2

        def scaled(counts: tuple[int, ...]) -> tuple[int, ...]:
            pairs = zip(self.parameters, counts, strict=False)
            return tuple(n if name in self._fixed else round(n * area) for (name, _), n in pairs)

        image = {**self.image, "size": size}
        return replace(self, macs=scaled(self.macs), crossing=scaled(self.crossing), image=image)

    @cached_property
    def _fixed(self) -> frozenset[str]:
        """Parameters that meet the same numbers whatever the size of the images."""
        costs = zip(self.parameters, self.macs, self.crossing, strict=False)
        return frozenset(
            name
            for (name, shape), macs, crossing in costs
            if crossing <= prod(shape[1:] or shape)
            and (len(shape) == 1 or macs == self.sizes[name])
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the layout as plain JSON values; `from_dict` gives an equal layout."""
        return {
            **{key: list(getattr(self, key)) for key in _LISTS},
            **{key: [list(entry) for entry in getattr(self, key)] for key in _PAIRS},
            "parameters": [[name, list(shape)] for name, shape in self.parameters],
            "image": dict(self.image),
            "labels": self.labels,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Layout:
        """Return the layout that `to_dict` wrote."""
        image = {k: tuple(v) if isinstance(v, list) else v for k, v in values["image"].items()}
        rest: dict[str, Any] = {key: tuple(values[key]) for key in _LISTS}
        rest |= {key: tuple(map(tuple, values[key])) for key in _PAIRS}
        return cls(
            parameters=tuple((name, tuple(shape)) for name, shape in values["parameters"]),
            image=image,
            labels=values["labels"],
            **rest,
        )


_LISTS = (
    *("unused", "sequences", "head", "norms", "batch_norms", "adaptable", "no_decay"),
    *("macs", "crossing"),
)
_PAIRS = ("loose", "shared")
