"""Weights into a network that is not quite theirs: other labels, channels or input size."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor, nn

from hf_transfer.base.download import BackboneError, one_line

FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
FEW = 0.1  # share of a network's scalars that a checkpoint of its architecture may lack


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors by name of a .safetensors, or of a .pt, .pth or .bin with nothing else.

    Raises BackboneError; nothing in a file is ever executed.
    """
    if not path.is_file():
        raise BackboneError(f"weights file {path} does not exist")
    with one_line(str(path)):
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model"):
        state = state.get(key, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise BackboneError(f"{path} holds no tensors by name; save a network's state_dict")
    return state


def weights_in(folder: Path) -> Path:
    """Return the file with a saved model's weights, safetensors first. Raises BackboneError."""
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    raise BackboneError(
        f"{folder} has no model.safetensors; save the model again, or set pretrained: false for "
        "random weights"
    )


def bare(state: dict[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Return the state under the network's own names: without what wrappers put before them all."""
    while state and not set(names) & set(state):
        firsts = {name.partition(".")[0] for name in state}
        if len(firsts) > 1 or not all("." in name for name in state):
            break
        state = {name.partition(".")[2]: value for name, value in state.items()}
    return state


def fill(network: nn.Module, state: dict[str, Tensor], head: Collection[str], place: str) -> None:
    """Load a state into a network of its own architecture; what of the head is lacking stays new.

    Raises BackboneError where anything else is lacking or has another shape.
    """
    own = network.state_dict()
    state = bare(state, own)
    fits = {name: v for name, v in state.items() if name in own and own[name].shape == v.shape}
    lacking = [
        name
        for name in own
        if name not in fits and name not in head and not name.endswith("num_batches_tracked")
    ]
    if lacking:
        raise BackboneError(
            f"{place}: {len(lacking)} of the network's {len(own)} tensors are not there or have "
            f"another shape ({', '.join(lacking[:3])}); these are weights of another architecture"
        )
    network.load_state_dict(fits, strict=False)


@torch.no_grad()
def transfer(network: nn.Module, donor: nn.Module, new: Collection[str], place: str) -> None:
    """Copy all but `new` from a network with pretrained weights to one that differs in its input.

    The first layer follows the number of channels, position embeddings the input size; a layer
    of which every parameter is new keeps its own statistics too. Raises BackboneError.
    """
    renewed = _whole_layers(network, new)
    given = donor.state_dict()
    for name, own in network.state_dict().items():
        if name in new or name.rpartition(".")[0] in renewed:
            continue
        value = given.get(name)
        fitted = None if value is None else _fitted(value, own)
        if fitted is None:
            shapes = f"{tuple(own.shape)}, not {None if value is None else tuple(value.shape)}"
            raise BackboneError(
                f"{place}: {name} would have to be {shapes}, and cannot be made so from the "
                "pretrained one; keep the backbone's own input size and channels"
            )
        own.copy_(fitted)


def _whole_layers(network: nn.Module, new: Collection[str]) -> set[str]:
    """Return the modules all of whose own parameters are new."""
    return {
        path
        for path, module in network.named_modules()
        if path
        and (own := [name for name, _ in module.named_parameters(recurse=False)])
        and all(f"{path}.{name}" in new for name in own)
    }


def _fitted(value: Tensor, like: Tensor) -> Tensor | None:
    """Return a pretrained tensor in another's shape, None where nothing sensible does that."""
    if value.shape == like.shape:
        return value
    if value.ndim != like.ndim:
        return None
    if value.ndim == 4 and value.shape[::2] == like.shape[::2] and value.shape[3] == like.shape[3]:
        from timm.models import adapt_input_conv

        return adapt_input_conv(like.shape[1], value, base_chans=value.shape[1])
    if value.ndim == 3 and value.shape[::2] == like.shape[::2]:
        return _positions(value, like.shape[1])
    return None


def _positions(value: Tensor, tokens: int) -> Tensor | None:
    """Return position embeddings (1, T, D) for another number of tokens: class tokens as they are,
    the square of the others interpolated."""
    from timm.layers import resample_abs_pos_embed

    for prefix in range(min(value.shape[1], tokens)):
        old, new = math.isqrt(value.shape[1] - prefix), math.isqrt(tokens - prefix)
        if old * old + prefix == value.shape[1] and new * new + prefix == tokens:
            return resample_abs_pos_embed(value, [new, new], [old, old], prefix)
    return None
