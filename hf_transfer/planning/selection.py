"""Selectors: words such as `last 2 stages` to the names of parameters.

Counts and shares speak of the backbone below the head, so that one recipe fits many backbones.
A part of nothing but normalisation is passed over in counting: `last 1 stage` of a ViT is its last
block with the final norm, not the final norm alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from hf_transfer.base.errors import UserError
from hf_transfer.planning.groups import LayerGroups

COUNT = re.compile(r"(first|last) (\d+) (stage|block|group)s?")
SHARE = re.compile(r"(first|last) (\d+(?:\.\d+)?) ?%")
KEYWORDS = ("head", "all", "norms", "biases")
FORMS = (
    "head, all, last N stages|blocks, first N stages|blocks, last P%, from NAME, norms, biases, "
    "not SELECTOR, a name or a pattern, lora(r=8) SELECTOR"
)


class SelectorError(UserError):
    """A selector that means nothing, or matches nothing in this backbone."""


def select(selector: str | Sequence[str], groups: LayerGroups) -> tuple[str, ...]:
    """Return the names of the selected parameters in execution order, at least one.

    Of several selectors it is the union, less what those with "not " select; with "not " alone it
    is everything else. Parameters that forward never uses are never selected. Raises SelectorError.
    """
    selectors = [selector] if isinstance(selector, str) else list(selector)
    words = [" ".join(text.split()) for text in selectors]
    plus = [text for text in words if not text.startswith("not ")]
    minus = [text.removeprefix("not ") for text in words if text.startswith("not ")]
    chosen = set().union(*(_matched(text, groups) for text in plus or ["all"]))
    for text in minus:
        chosen -= _matched(text, groups)
    names = tuple(name for name in groups.layout.used if name in chosen)
    if not names:
        raise SelectorError(f"{', '.join(words)!r} leaves nothing to train")
    return names


def parts(grain: str, groups: LayerGroups) -> tuple[tuple[str, ...], ...]:
    """Return the backbone's "stages" or "blocks" as names of parameters, input to output.

    What is nothing but normalisation goes with the part before it (the first: with the next).
    """
    found: list[list[str]] = []
    keys: list[str] = []
    for group in groups.groups:
        if not groups.head.isdisjoint(group.parameters):
            continue
        key = group.stage if grain.startswith("stage") else group.name
        if keys and keys[-1] == key:
            found[-1].extend(group.parameters)
        else:
            keys.append(key)
            found.append(list(group.parameters))
    merged: list[list[str]] = []
    weights = groups.layout.weights
    for names in found:
        light = weights.isdisjoint(names)
        if merged and (light or weights.isdisjoint(merged[-1])):
            merged[-1].extend(names)
        else:
            merged.append(names)
    return tuple(tuple(names) for names in merged)


def share_of(count: int, percent: float) -> int:
    """Return that percentage of `count` to the nearest whole number, at least 1."""
    return max(1, int(count * percent / 100 + 0.5))


def _matched(text: str, groups: LayerGroups) -> set[str]:
    """Return what one selector selects, at least one name; may hold unused parameters."""
    used = set(groups.layout.used)
    if found := COUNT.fullmatch(text):
        return used & _counted(text, found[1], int(found[2]), found[3], groups)
    if found := SHARE.fullmatch(text):
        return used & _share(text, found[1], float(found[2]), groups)
    if text.startswith("from "):
        return used & _from(text.removeprefix("from "), groups)
    chosen = _keyword(text, groups) if text in KEYWORDS else _named(text, groups)
    if chosen and not chosen & used:
        raise SelectorError(
            f"{text!r} matches only parameters that the network never uses ({min(chosen)})"
        )
    if not chosen:
        raise SelectorError(_no_match(text, groups))
    return chosen & used


def _keyword(word: str, groups: LayerGroups) -> set[str]:
    shapes = dict(groups.layout.parameters)
    if word == "head":
        return set(groups.head)
    if word == "norms":
        return {name for name in shapes if _is_inside(name, groups.layout.norms)}
    if word == "biases":
        last = {name: name.rpartition(".")[2] for name in shapes}
        return {n for n, end in last.items() if end.endswith("bias") and len(shapes[n]) <= 1}
    return set(shapes)


def _is_inside(name: str, modules: Collection[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:i]) in modules for i in range(1, len(parts)))


def _counted(text: str, end: str, count: int, grain: str, groups: LayerGroups) -> set[str]:
    known = parts("stages" if grain == "stage" else "blocks", groups)
    if not 1 <= count <= len(known):
        raise SelectorError(
            f"{text!r}: this backbone has 1 to {len(known)} {grain}s below the head; "
            f"write {end} {len(known)} {grain}s or all"
        )
    return _ends(known, end, count, groups)


def _share(text: str, end: str, percent: float, groups: LayerGroups) -> set[str]:
    if not 0 < percent <= 100:
        raise SelectorError(f"{text!r}: a share must be above 0% and at most 100%")
    blocks = parts("blocks", groups)
    return _ends(blocks, end, share_of(len(blocks), percent), groups)


def _ends(known: Sequence[Sequence[str]], end: str, count: int, groups: LayerGroups) -> set[str]:
    """Return the first or the last parts; the last ones with the head."""
    if end == "first":
        return {name for part in known[:count] for name in part}
    chosen = {name for part in known[len(known) - count :] for name in part}
    return chosen | groups.head


def _from(name: str, groups: LayerGroups) -> set[str]:
    start = next(
        (
            i
            for i, group in enumerate(groups.groups)
            if name in (group.name, group.stage) or group.name.startswith(f"{name}.")
        ),
        None,
    )
    if start is None:
        raise SelectorError(_no_match(name, groups, parameters=False))
    chosen = {n for group in groups.groups[start:] for n in group.parameters}
    return chosen | groups.head


def _named(text: str, groups: LayerGroups) -> set[str]:
    """Return what a group, stage, parameter, module or pattern of these names."""
    wild = any(mark in text for mark in "*?[")
    chosen: set[str] = set()
    for group in groups.groups:
        if text in (group.name, group.stage) or (wild and fnmatchcase(group.name, text)):
            chosen.update(group.parameters)
    if chosen and not wild:
        return chosen
    for name, _ in groups.layout.parameters:
        if name == text or name.startswith(f"{text}.") or (wild and fnmatchcase(name, text)):
            chosen.add(name)
    return chosen


def _no_match(text: str, groups: LayerGroups, parameters: bool = True) -> str:
    """Return the message for a selector that matches nothing, with the nearest names."""
    if text == "norms":
        return "'norms' matches nothing: this backbone has no normalisation with parameters"
    names = [*KEYWORDS, *groups.stages, *groups.names]
    near = get_close_matches(text, dict.fromkeys(names), n=3, cutoff=0.6)
    if parameters and len(near) < 3:
        stem = text.rstrip("*?.")
        more = get_close_matches(stem, list(groups.layout.sizes), n=3 - len(near), cutoff=0.5)
        near += [name for name in more if name not in near]
    if near:
        return f"{text!r} matches nothing in this backbone; nearest: {', '.join(near)}"
    stages = list(groups.stages)
    some = ", ".join(stages if len(stages) <= 8 else [*stages[:3], "…", *stages[-3:]])
    return f"{text!r} matches nothing in this backbone; its stages: {some}; selectors: {FORMS}"
