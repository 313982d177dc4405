"""What a config.json of others may say, checked before a library builds a network from it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
}
MAPPINGS = ("pretrained_cfg", "model_args", "id2label", "label2id")
STATISTICS = ("mean", "std")
DEEPEST = 20  # levels of nesting
SHOWN = 40  # characters of a value in a message


def check_config(config: dict[str, Any], place: str) -> None:
    """Raise BackboneError, with the key, for a value that fits no network, or that would run code.
    `place` is how the message names the file."""
    for path, key, value in _values(config, ""):
        wanted = _wanted(key, value)
        if wanted:
            said = printable(repr(value))
            said = said if len(said) <= SHOWN else f"{said[:SHOWN]}…"
            raise BackboneError(f"{place}: {path} is {said}, not {wanted}; save the model again")


def _wanted(key: str, value: Any) -> str:
    """Return in words what a key must hold, "" where its value is that."""
    if value is None:
        return ""
    if key in RANGES:
        low, high = RANGES[key]
        fits = all(type(n) is int and low <= n <= high for n in _leaves(value))
        return "" if fits else f"a whole number from {low} to {high:,}"
    if key in MAPPINGS:
        return "" if isinstance(value, dict) else "a mapping"
    if key == "label_names":
        fits = isinstance(value, list) and all(isinstance(name, str) for name in value)
        return "" if fits else "a list of names"
    if key == "thresholds":
        found = list(value.values()) if isinstance(value, dict) else [None]
        fits = all(_is_number(n) and 0 < n < 1 for n in found)
        return "" if fits else "a mapping of labels to numbers between 0 and 1"
    if key == "tta":
        return "" if isinstance(value, bool) else "true or false"
    if key in STATISTICS:
        least = 0.0 if key == "std" else -math.inf
        fits = all(_is_number(n) and math.isfinite(n) and n > least for n in _leaves(value))
        return "" if fits else "a list of numbers" + " above 0" * (key == "std")
    if key.endswith("attn_implementation") and isinstance(value, str) and "/" in value:
        return "one of transformers' own; code from the Hub is not run"
    return ""


def thresholds_of(config: dict[str, Any] | None, labels: Sequence[str]) -> tuple[float, ...]:
    """Return the threshold of each label of a saved model; one half where it says nothing."""
    found = (config or {}).get("thresholds") or {}
    return tuple(float(found.get(label, THRESHOLD)) for label in labels) if found else ()


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        yield value
        return
    for item in value:
        yield from _leaves(item)


def _values(config: dict[str, Any], path: str, depth: int = 0) -> Iterator[tuple[str, str, Any]]:
    """Yield path, key and value of every setting, the nested ones too."""
    if depth > DEEPEST:
        raise BackboneError("a config is nested too deeply; save the model again")
    for key, value in config.items():
        here = f"{path}.{key}" if path else key
        if depth == 0 or key not in MAPPINGS[2:]:
            yield here, key, value
        if isinstance(value, dict) and key not in MAPPINGS[2:]:
            yield from _values(value, here, depth + 1)
