"""What moved and what did not: fingerprints before and after a phase, bit for bit."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from hf_transfer.backbones.access import bare_name
from hf_transfer.base.errors import UserError
from hf_transfer.planning.groups import LayerGroups
from hf_transfer.training.freezing import FreezingError

CHUNK = 2**20  # scalars that are summed at once: bounds the memory that a checksum takes
GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # odd, so that times it no place is lost


class NothingMovedError(UserError):
    """A group was to train and no bit of it changed: its rate is too small, or it had no step."""


@dataclass(frozen=True)
class Fingerprints:
    """Two checksums of every parameter and buffer, by bare name: equal when no bit has changed."""

    values: dict[str, tuple[int, int]]

    def changed(self, other: Fingerprints) -> set[str]:
        """Return the names whose values differ between the two."""
        return {name for name, value in self.values.items() if other.values.get(name) != value}

    def digest(self, without: Collection[str] = ()) -> str:
        """Return one sha256 (hex) of all values but those of the names in `without`."""
        rows = sorted((k, v) for k, v in self.values.items() if k not in without)
        return hashlib.sha256(repr(rows).encode()).hexdigest()


@torch.no_grad()
def fingerprint(model: nn.Module, prefix: str) -> Fingerprints:
    """Return checksums of all parameters and buffers, computed where they live."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    sums = {bare_name(name, prefix): _checksum(tensor) for name, tensor in tensors.items()}
    by_device: dict[torch.device, list[str]] = {}
    for name, pair in sums.items():
        by_device.setdefault(pair.device, []).append(name)
    values: dict[str, tuple[int, int]] = {}
    for names in by_device.values():  # one wait for a device, not one for each tensor
        rows = torch.stack([sums[name] for name in names]).cpu() * torch.tensor((1, GOLDEN))
        values |= {name: (one, two) for name, (one, two) in zip(names, rows.tolist(), strict=True)}
    return Fingerprints({name: values[name] for name in sums})


def _checksum(tensor: torch.Tensor) -> torch.Tensor:
    """Return int64 (2,): the sum of a tensor's bits as numbers, and that weighted by place, both
    modulo 2**64."""
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()]
    sums = []
    for number, bits in enumerate(flat.view(width).split(CHUNK)):
        part = bits.to(torch.int64)
        places = _places(CHUNK, part.device)[: len(part)]
        own = part.sum()
        placed = part.dot(places) if part.device.type == "cpu" else (part * places).sum()
        sums.append(torch.stack((own, placed + own * (number * CHUNK))))
    return sums[0] if len(sums) == 1 else torch.stack(sums).sum(dim=0)


@functools.cache
def _places(count: int, device: torch.device) -> torch.Tensor:
    """Return int64 (count,): the places of a chunk's scalars, from 1 on."""
    return torch.arange(1, count + 1, device=device)


@dataclass(frozen=True)
class Proof:
    """What a phase was seen to do, against its plan."""

    moved: int  # parameters that were to move and did
    unmoved: tuple[str, ...]  # were to move and did not: no gradient reached them
    still: int  # parameters and buffers that were to stay and did
    ranks: int  # processes that agree bit for bit


def check_agreement(everyone: Sequence[Fingerprints]) -> None:
    """Raise FreezingError, with names, unless all processes have the same bits."""
    for rank, other in enumerate(everyone):
        apart = sorted(everyone[0].changed(other))
        if apart:
            raise FreezingError(
                f"process {rank} differs from process 0 in {len(apart)} tensors, the first of them "
                f"{', '.join(apart[:3])}"
            )


def prove(
    before: Fingerprints,
    after: Fingerprints,
    trainable: Collection[str],
    groups: LayerGroups,
    free_buffers: Collection[str],
    ranks: int = 1,
) -> Proof:
    """Return the proof of a phase, or raise FreezingError with the names that broke it.

    `free_buffers` are the statistics of layers that train. A group with trainable parameters of
    which none moved is a NothingMovedError; a single parameter that did not move is reported.
    """
    changed = before.changed(after)
    allowed = set(trainable) | set(free_buffers)
    broken = sorted(changed - allowed)
    if broken:
        raise FreezingError(
            f"{len(broken)} frozen tensors changed, the first of them {', '.join(broken[:3])}"
        )
    for group in groups.groups:
        planned = set(group.parameters) & set(trainable)
        if planned and planned.isdisjoint(changed):
            raise NothingMovedError(
                f"group {group.name} was to train and nothing in it moved; raise lr, train for "
                "more steps, or shorten the warmup"
            )
    moved = set(trainable) & changed
    return Proof(
        moved=len(moved),
        unmoved=tuple(sorted(set(trainable) - moved)),
        still=len(set(before.values) - allowed),
        ranks=ranks,
    )
