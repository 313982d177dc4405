"""YAML as nodes that know their place, and the readers that turn nodes into checked values.

YAML is data here: scalars, lists and mappings as in YAML 1.2 (`1e-3` is a number, `yes` a text);
no anchors, tags or documents. Readers raise Mistakes; a mapping collects those of all its keys.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

Reader = Callable[["Node"], Any]

_SCALARS: tuple[tuple[str, Callable[[str], Any]], ...] = (
    (r"|~|null|Null|NULL", lambda text: None),
    (r"true|True|TRUE", lambda text: True),
    (r"false|False|FALSE", lambda text: False),
    (r"[-+]?[0-9]{1,18}", int),
    (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?", float),
)
NUMBER = re.compile(_SCALARS[-1][0] + r"$")


class Mistakes(Exception):
    """Problems in a recipe, each with its line (0 = none) and text "place: what; remedy"."""

    def __init__(self, problems: Sequence[tuple[int, str]]) -> None:
        super().__init__("\n".join(text for _, text in problems))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Node:
    """A value, where it stands and what it is called; mappings keep duplicate keys.

    `value` is a scalar, a tuple of nodes, a Pairs, or any Python object handed in as such.
    """

    value: Any
    place: str  # "recipe.yaml:14" or "--set seed=x"
    name: str  # "lr", "phases[0]"
    line: int = 0
    raw: str | None = None  # what was written, where a text may be meant

    def wrong(self, text: str) -> Mistakes:
        """Return the exception that says what is wrong at this place."""
        return Mistakes([(self.line, f"{self.place}: {text}")])

    def shown(self) -> str:
        """Return the value as a message shows it, at most 40 characters."""
        if isinstance(self.value, Pairs):
            return "a mapping"
        if isinstance(self.value, tuple):
            return f"a list of {len(self.value)}"
        if self.value is None:
            return "nothing"
        text = repr(self.value) if isinstance(self.value, str) else str(self.value)
        return text if len(text) <= 40 else text[:39] + "…"


class Pairs(tuple[tuple[str, Node], ...]):
    """The items of a mapping as written."""


# --- text to nodes ---------------------------------------------------------------------------


def parse(text: str, place: str) -> Node:
    """Return the node of a YAML text. Raises Mistakes for bad YAML and for more than data."""
    try:
        _refuse_features(text, place)
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        what = str(error.problem).replace("\t", "\\t")
        raise Mistakes([(line, f"{place}:{line}: this is not YAML: {what}")]) from None
    except yaml.YAMLError:
        raise Mistakes([(1, f"{place}:1: this is not text in UTF-8")]) from None
    except RecursionError:
        raise Mistakes([(1, f"{place}:1: brackets are nested too deeply")]) from None
    if tree is None:
        raise Mistakes([(1, f"{place}:1: the file is empty; start with the line 'phases:'")])
    return _node(tree, place, "the recipe", 0)


def _refuse_features(text: str, place: str) -> None:
    found = {
        yaml.AnchorToken: "an anchor (&)",
        yaml.AliasToken: "an alias (*); write a text that starts with * in quotes",
        yaml.TagToken: "a tag (!)",
        yaml.DirectiveToken: "a directive (%)",
        yaml.DocumentStartToken: "a document mark (---)",
    }
    problems = [
        (mark.line + 1, f"{place}:{mark.line + 1}: a recipe is plain data and has no {what}")
        for token in yaml.scan(text, Loader=yaml.SafeLoader)
        if (what := found.get(type(token))) and (mark := token.start_mark)
    ]
    if problems:
        raise Mistakes(problems)


def _node(tree: yaml.Node, file: str, name: str, line: int) -> Node:
    line = line or tree.start_mark.line + 1
    place = f"{file}:{line}"
    if isinstance(tree, yaml.MappingNode):
        items = []
        for key, child in tree.value:
            at = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise Mistakes([(at, f"{file}:{at}: a key must be a single word")])
            items.append((str(key.value), _node(child, file, str(key.value), at)))
        return Node(Pairs(items), place, name, line)
    if isinstance(tree, yaml.SequenceNode):
        children = [_node(item, file, f"{name}[{i}]", 0) for i, item in enumerate(tree.value)]
        return Node(tuple(children), place, name, line)
    quoted = isinstance(tree, yaml.ScalarNode) and tree.style is not None
    return Node(tree.value if quoted else scalar(tree.value), place, name, line)


def scalar(text: str) -> Any:
    """Return what an unquoted scalar means: None, a bool, an int, a float or the text."""
    for pattern, make in _SCALARS:
        if re.fullmatch(pattern, text):
            return make(text)
    return text


def from_python(value: Any, place: str, name: str) -> Node:
    """Return the node of a plain Python value; lists and mappings become nodes throughout."""
    if isinstance(value, Mapping):
        items = [(str(key), from_python(item, place, str(key))) for key, item in value.items()]
        return Node(Pairs(items), place, name)
    if isinstance(value, list | tuple):
        children = [from_python(item, place, f"{name}[{i}]") for i, item in enumerate(value)]
        return Node(tuple(children), place, name)
    return Node(value, place, name)


# --- overrides -------------------------------------------------------------------------------


def override(tree: Node, setting: str) -> Node:
    """Return the tree with "a.b=c" or "phases.*.epochs=1" set. Raises Mistakes."""
    key, equals, text = setting.partition("=")
    key = key.strip()
    place = f"--set {setting}"
    if not equals or not key or not all(key.split(".")):
        example = "write KEY=VALUE, such as phases.0.lr=1e-4 or data.image_size=96"
        raise Mistakes([(0, f"{place}: this sets nothing; {example}")])
    name = key.rpartition(".")[2]
    try:
        value = parse(text, place).value if text.strip() else ""
    except Mistakes:
        value = text  # not YAML by itself: a text, such as a path with a colon
    return _set(tree, key.split("."), Node(_placed(value, place), place, name, raw=text), [])


def _placed(value: Any, place: str) -> Any:
    """Return the value of a node with all nodes in it at the override's place."""
    if isinstance(value, Pairs):
        return Pairs(
            (key, replace(child, place=place, line=0, value=_placed(child.value, place)))
            for key, child in value
        )
    if isinstance(value, tuple):
        return tuple(
            replace(child, place=place, line=0, value=_placed(child.value, place))
            for child in value
        )
    return value


def _set(tree: Node, keys: list[str], new: Node, done: list[str]) -> Node:
    if not keys:
        return new
    key, rest = keys[0], keys[1:]
    done = [*done, key]
    if isinstance(tree.value, tuple) and not isinstance(tree.value, Pairs):
        count = len(tree.value)
        chosen = range(count) if key == "*" else [int(key)] if key.isdecimal() else []
        if not chosen or chosen[-1] >= count:
            allowed = f"0 to {count - 1}, or *" if count else "none: the list is empty"
            raise new.wrong(f"there is no {'.'.join(done)}; the numbers are {allowed}")
        children = [
            _set(child, rest, replace(new, name=_name(new, child, rest)), done)
            if i in chosen
            else child
            for i, child in enumerate(tree.value)
        ]
        return replace(tree, value=tuple(children))
    if tree.value is None:
        tree = replace(tree, value=Pairs())
    if not isinstance(tree.value, Pairs):
        raise new.wrong(f"{'.'.join(done[:-1])} is {tree.shown()} and has no keys to set")
    old = dict(tree.value).get(key, Node(None, new.place, key))
    items = [(k, child) for k, child in tree.value if k != key]
    at = next((i for i, (k, _) in enumerate(tree.value) if k == key), len(items))
    items.insert(at, (key, _set(old, rest, new, done)))
    return replace(tree, value=Pairs(items))


def _name(new: Node, child: Node, rest: list[str]) -> str:
    return new.name if rest else child.name


# --- readers ---------------------------------------------------------------------------------


def nearest(name: str, known: Collection[str]) -> str:
    """Return "; nearest: a, b" for the known names that are like this one, or nothing."""
    found = difflib.get_close_matches(name, list(known), n=2, cutoff=0.5)
    return f"; nearest: {', '.join(found)}" if found else ""


def fields(
    node: Node, readers: Mapping[str, Reader], needs: Collection[str] = ()
) -> dict[str, Any]:
    """Return the values of a mapping's keys, each by its reader.

    Raises Mistakes with all of them: keys unknown, twice or missing, and what the readers find.
    """
    if not isinstance(node.value, Pairs):
        example = next(iter(needs), None) or next(iter(readers))
        raise node.wrong(
            f"{node.name} must be a mapping such as {{{example}: …}}, got {node.shown()}"
        )
    problems: list[tuple[int, str]] = []
    values: dict[str, Any] = {}
    seen: dict[str, Node] = {}
    for key, child in node.value:
        try:
            if key in seen:
                raise child.wrong(
                    f"{key} is there twice, first at {seen[key].place}; remove one of them"
                )
            seen[key] = child
            if key not in readers:
                known = nearest(key, readers) or f"; the keys are {', '.join(readers)}"
                raise child.wrong(f"unknown key {key!r} in {node.name}{known}")
            values[key] = readers[key](child)
        except Mistakes as mistakes:
            problems.extend(mistakes.problems)
    for key in needs:
        if key not in seen:
            problems += node.wrong(f"{node.name} has no {key}; add it").problems
    if problems:
        raise Mistakes(problems)
    return values


def items(read: Reader, what: str) -> Reader:
    """Return a reader of a list with at least one item, as a tuple; each item by `read`."""

    def reader(node: Node) -> tuple[Any, ...]:
        if not isinstance(node.value, tuple) or isinstance(node.value, Pairs) or not node.value:
            raise node.wrong(f"{node.name} must be a list of {what}, got {node.shown()}")
        problems: list[tuple[int, str]] = []
        values = []
        for child in node.value:
            try:
                values.append(read(child))
            except Mistakes as mistakes:
                problems.extend(mistakes.problems)
        if problems:
            raise Mistakes(problems)
        return tuple(values)

    return reader


def number(
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: float = -math.inf,
    below: float = math.inf,
    whole: bool = False,
) -> Reader:
    """Return a reader of a finite number in [low, high] and (above, below); int where `whole`."""
    limits = [
        f"{word} {limit:g}"
        for word, limit in (
            ("at least", low),
            ("above", above),
            ("at most", high),
            ("below", below),
        )
        if math.isfinite(limit)
    ]
    what = f"a {'whole ' * whole}number {' and '.join(limits)}".strip()

    def reader(node: Node) -> float | int:
        value = node.value
        kinds = (int,) if whole else (int, float)
        fits = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
        if not fits or not (low <= value <= high and above < value < below):
            raise node.wrong(f"{node.name} must be {what}, got {node.shown()}")
        return int(value) if whole else float(value)

    return reader


def text(node: Node) -> str:
    """Read a text that is not empty."""
    value = node.raw if node.raw is not None and not isinstance(node.value, str) else node.value
    if not isinstance(value, str) or not value.strip():
        quoted = f"; write it in quotes: '{node.value}'" if type(node.value) in (int, float) else ""
        raise node.wrong(f"{node.name} must be a text, got {node.shown()}{quoted}")
    return value


def switch(node: Node) -> bool:
    """Read true or false."""
    if not isinstance(node.value, bool):
        raise node.wrong(f"{node.name} must be true or false, got {node.shown()}")
    return node.value


def one_of(*choices: str) -> Reader:
    """Return a reader of one of the texts."""

    def reader(node: Node) -> str:
        if node.value not in choices or not isinstance(node.value, str):
            raise node.wrong(f"{node.name} must be {_either(choices)}, got {node.shown()}")
        return node.value

    return reader


def or_none(read: Reader) -> Reader:
    """Return a reader that also takes null, for what may be absent."""
    return lambda node: None if node.value is None else read(node)


def _either(choices: Sequence[str]) -> str:
    *first, last = choices
    return f"{', '.join(first)} or {last}" if first else last
