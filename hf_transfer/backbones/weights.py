"""Weights into a network that is not quite theirs: other labels, channels or input size."""

from __future__ import annotations

import logging
import math
import pickle
import zipfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_transfer.backbones.origins import check_weights_file
from hf_transfer.base.boundary import printable
from hf_transfer.base.download import BackboneError, one_line

logger = logging.getLogger(__name__)

FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
FEW = 0.1  # share of a network's scalars that a checkpoint of its architecture may lack
# Under these names trainers keep a network's tensors in a checkpoint, the likelier first.
KEPT_AS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
)
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
SAVED = (b"PK", b"\x80")  # how what torch.save writes begins: a zip, before 1.6 a pickle


class Unread:
    """Stands for a value of any class beside the tensors: nothing of its class is imported or run.

    Trainers keep their arguments, numbers of numpy and more in a checkpoint.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors by name of a .safetensors, or those in a .pt, .pth, .bin or .ckpt.

    Raises BackboneError, which says what was found; nothing in a file is ever executed.
    """
    check_weights_file(path)
    with path.open("rb") as file:
        begins = file.read(9)
    if begins[8:] == b"{" or (path.suffix == ".safetensors" and not begins.startswith(SAVED)):
        with one_line(str(path)):
            from safetensors.torch import load_file

            found = load_file(path)
        if not found:
            raise BackboneError(f"{path} has no tensors; save a network's state_dict")
        return found
    found = _unpickled(path, begins)
    state = _tensors(found, str(path))
    if not state:
        keys = [printable(str(key)) for key in found] if isinstance(found, Mapping) else []
        if others := _classes(path):
            raise BackboneError(
                f"cannot read {path}: its weights are not tensors by name, but lie in "
                f"{_few(others)}, and opening that may run code; if you trust the file, save the "
                "network's state_dict alone"
            )
        kind = type(found).__name__
        what = _few(keys) if keys else f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
        raise BackboneError(
            f"{path} has no tensors by name that are one network's, but {what}; save a network's "
            "state_dict"
        )
    return state


def _unpickled(path: Path, begins: bytes) -> Any:
    """Return what torch.save wrote, with `Unread` in place of all but tensors and plain values."""
    why = None if begins else "it is empty"
    if begins and not begins.startswith(SAVED):
        why = "torch.save did not write it"
    elif begins.startswith(b"PK"):
        with one_line(str(path)), zipfile.ZipFile(path) as inside:
            names = [name.rpartition("/")[2] for name in inside.namelist()]
        if "constants.pkl" in names:
            why = "it is a TorchScript archive"
        elif "data.pkl" not in names:
            why = "torch.save did not write it"
    if why:
        raise BackboneError(f"{path} is not a file of weights: {why}; save a network's state_dict")
    unread: list[Any] = [(Unread, name) for name in _classes(path)]
    safe = torch.serialization.safe_globals(unread)
    with one_line(str(path)), path.open("rb") as file, safe:  # of a path torch asks its suffix
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if not unread:
                raise
            raise BackboneError(
                f"cannot read {path}: besides tensors it contains "
                f"{_few([name for _, name in unread])}, and opening that may run code; if you "
                "trust the file, save the network's state_dict alone"
            ) from error


def _classes(path: Path) -> list[str]:
    """Return the classes in a file that opening it would need; none where it is no such file."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (RuntimeError, ValueError, OSError, EOFError, pickle.UnpicklingError):
        return []


def _tensors(found: Any, place: str, depth: int = 2) -> dict[str, Tensor]:
    """Return the tensors by name in what a checkpoint holds: its own, or those that it keeps as
    one of KEPT_AS, or in the only other mapping with any. Of several copies, as of an average, it
    is said which one is used."""
    if not isinstance(found, Mapping):
        return {}
    state = {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, Tensor)}
    inner = {
        key: tensors
        for key, value in found.items()
        if depth and isinstance(value, Mapping) and (tensors := _tensors(value, place, depth - 1))
    }
    for key in KEPT_AS:
        if key in inner:
            copies = [other for other in inner if _shapes(inner[other]) == _shapes(inner[key])]
            if len(copies) > 1:
                logger.warning(
                    "%s has the weights %d times (%s); those in %s are used; to use others, save "
                    "them alone",
                    place,
                    len(copies),
                    printable(", ".join(map(str, copies))),
                    key,
                )
            return inner[key]
    return inner.popitem()[1] if not state and len(inner) == 1 else state


def _shapes(tensors: Mapping[str, Tensor]) -> Counter[torch.Size]:
    return Counter(tensor.shape for tensor in tensors.values())


def _few(names: Sequence[str]) -> str:
    """Return the first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def check_finite(network: nn.Module, place: object) -> None:
    """Raise BackboneError for a weight or a running statistic that is no finite number: whatever is
    trained from it or computed with it is none, either."""
    statistics = [
        each
        for each in network.named_buffers()
        if each[0].endswith(("running_mean", "running_var"))
    ]
    odd = [
        name
        for name, tensor in (*network.named_parameters(), *statistics)
        if tensor.is_floating_point() and not tensor.is_meta and not _is_finite(tensor.detach())
    ]
    if odd:
        more = f"; so do {len(odd) - 1} other tensors" if len(odd) > 1 else ""
        raise BackboneError(
            f"{place}: {odd[0]} holds nan or inf in place of numbers, as after a training that "
            f"diverged{more}; use other weights"
        )


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite; nearly always their sum says so, in 1/40 of the time."""
    total = tensor.sum(dtype=torch.float32)
    return bool(total.isfinite()) or bool(tensor.isfinite().all())


def weights_in(folder: Path | None) -> Path:
    """Return the file with a saved model's weights, safetensors first. Raises BackboneError."""
    assert folder is not None  # a name without one has its library's weights
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    raise BackboneError(
        f"{folder} has no model.safetensors; save the model again, or set pretrained: false for "
        "random weights"
    )


def bare(state: dict[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Return what of a state is the network's, under its own names.

    Wrappers put words before or into names (`module.`, `_orig_mod.`), and training code keeps a
    network as one of its parts (`backbone.` beside a head, a loss or metrics): the prefix that fits
    most names is taken off, and what is not below it is left out. A state none of whose prefixes
    fits half of the names stays as it is.
    """
    plain = {".".join(p for p in k.split(".") if p not in WRAPPERS): v for k, v in state.items()}
    known, fits = set(names), Counter[str]()
    for key in plain:
        parts = key.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in known:
                fits["".join(f"{part}." for part in parts[:i])] += 1
    best = max(fits, key=lambda prefix: (fits[prefix], -len(prefix)), default="")
    if 2 * fits[best] < len(known):
        return state
    copies = [prefix or "no prefix" for prefix in fits if fits[prefix] == fits[best]]
    if len(copies) > 1:
        logger.warning(
            "the weights hold the network %d times (%s); those under %s are used; to use others, "
            "save them alone",
            len(copies),
            printable(", ".join(copies)),
            best or "no prefix",
        )
    return {key.removeprefix(best): v for key, v in plain.items() if key.startswith(best)}


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
        others = [name for name in state if name not in own] or list(state)
        raise BackboneError(
            f"{place}: {len(lacking)} of the network's {len(own)} tensors are missing or have "
            f"another shape ({_few(lacking)}); the file has {_few(others)}: these are weights of "
            "another architecture"
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
