"""What a config.json of others may say, checked before a library builds a network from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hf_transfer.base.boundary import printable
from hf_transfer.base.download import BackboneError
from hf_transfer.recipe.tasks import THRESHOLD

# Whole numbers by key, wherever they stand, alone or in lists: the least and the largest allowed.
RANGES = {
    **dict.fromkeys(("image_size", "img_size", "input_size"), (1, 16_384)),
    **dict.fromkeys(("in_chans", "num_channels"), (1, 4_096)),
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_heads"), (1, 1_000)),
    **dict.fromkeys(("depths", "num_layers"), (0, 1_000)),
    **dict.fromkeys(("hidden_size", "hidden_sizes", "intermediate_size"), (1, 1_000_000)),
    **dict.fromkeys(("embed_dim", "patch_size"), (1, 1_000_000)),
    "num_classes": (-1, 10_000_000),
    "resample": (0, 5),  # Pillow's filters by number
    "size": (0, 10**9),
}
INPUT = "pretrained_cfg.input_size"
MAPPINGS = ("pretrained_cfg", "model_args", "id2label", "label2id")
STATISTICS = ("mean", "std", "image_mean", "image_std")
DEEPEST = 20  # levels of nesting
SHOWN = 40  # characters of a value in a message


def check_config(config: dict[str, Any], place: str) -> None:
    """Raise BackboneError, with the key, for a value that fits no network, or that would run code.
    `place` is how the message names the file."""
    for path, key, value in _values(config, "", place):
        wanted = _wanted(path, key, value)
        if wanted:
            said = printable(repr(value))
            said = said if len(said) <= SHOWN else f"{said[:SHOWN]}…"
            raise BackboneError(f"{place}: {path} is {said}, not {wanted}; save the model again")


def _wanted(path: str, key: str, value: Any) -> str:
    """Return in words what a key must hold, "" where its value is that."""
    if value is None:
        return ""
    if key in RANGES and path != INPUT:
        low, high = RANGES[key]
        fits = all(type(n) is int and low <= n <= high for n in _leaves(value))
        return "" if fits else f"a whole number from {low} to {high:,}"
    if key in MAPPINGS and not isinstance(value, dict):
        return "a mapping"
    if key in STATISTICS:
        least = 0.0 if key.endswith("std") else -math.inf
        fits = all(_is_number(n) and math.isfinite(n) and n > least for n in _leaves(value))
        return "" if fits else "a list of numbers" + " above 0" * key.endswith("std")
    if key.endswith("attn_implementation") and isinstance(value, str) and "/" in value:
        return "one of transformers' own; code from the Hub is not run"
    fits_own, words = OWN.get(path if path == INPUT else key, (lambda _: True, ""))
    return "" if fits_own(value) else words


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_factor(value: Any) -> bool:
    return _is_number(value) and 0 < value < math.inf


def _are_thresholds(value: Any) -> bool:
    found = list(value.values()) if isinstance(value, dict) else [None]
    return all(_is_number(n) and 0 < n < 1 for n in found)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_input(value: Any) -> bool:
    low, high = RANGES["input_size"]
    fits = isinstance(value, list) and len(value) == 3
    return fits and all(type(n) is int and low <= n <= high for n in value)


OWN: dict[str, tuple[Callable[[Any], bool], str]] = {  # of a key's value: does it fit, and to what
    INPUT: (_is_input, "[channels, height, width]"),
    "crop_pct": (_is_factor, "a number above 0"),
    "rescale_factor": (_is_factor, "a number above 0"),
    "interpolation": (lambda value: isinstance(value, str), "the name of a filter"),
    "id2label": (lambda value: all(str(k).isdecimal() for k in value), "numbers with names"),
    "label_names": (_are_names, "a list of names"),
    "thresholds": (_are_thresholds, "a mapping of labels to numbers between 0 and 1"),
    "tta": (lambda value: isinstance(value, bool), "true or false"),
}


def thresholds_of(config: dict[str, Any] | None, labels: Sequence[str]) -> tuple[float, ...]:
    """Return the threshold of each label of a saved model; one half where it says nothing."""
    found = (config or {}).get("thresholds") or {}
    return tuple(float(found.get(label, THRESHOLD)) for label in labels) if found else ()


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = [item for item in value.values() if item is not None]
    if not isinstance(value, list):
        yield value
        return
    for item in value:
        yield from _leaves(item)


def _values(
    config: dict[str, Any], path: str, place: str, depth: int = 0
) -> Iterator[tuple[str, str, Any]]:
    """Yield path, key and value of every setting, the nested ones too."""
    if depth > DEEPEST:
        raise BackboneError(f"{place} is nested too deeply; save the model again")
    for key, value in config.items():
        here = f"{path}.{key}" if path else key
        if depth == 0 or key not in MAPPINGS[2:]:
            yield here, key, value
        if isinstance(value, dict) and key not in MAPPINGS[2:]:
            yield from _values(value, here, place, depth + 1)
