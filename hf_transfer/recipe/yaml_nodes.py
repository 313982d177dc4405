"""YAML as a tree of nodes that know their place.

YAML is data here: scalars, lists and mappings as in YAML 1.2 (`1e-3` is a number, `yes` a text);
no anchors, tags or documents.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from hf_transfer.recipe.conflicts import UNSOLVED

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
            return "a mapping" if self.value else "an empty mapping"
        if isinstance(self.value, tuple):
            return f"a list of {len(self.value)}" if self.value else "an empty list"
        if self.value is None:
            return "nothing"
        text = repr(self.value) if isinstance(self.value, str) else str(self.value)
        return text if len(text) <= 40 else text[:39] + "…"


class Pairs(tuple[tuple[str, Node], ...]):
    """The items of a mapping as written."""


# --- text to nodes ---------------------------------------------------------------------------


OPENING = (yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken)
CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken)
DEEPEST = 50  # brackets within brackets; a recipe has four


def parse(text: str, place: str, name: str = "the recipe") -> Node:
    """Return the node of a YAML text, called `name`. Raises Mistakes for bad YAML and for more than
    data."""
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
    return _node(tree, place, name, 0)


def _refuse_features(text: str, place: str) -> None:
    found = {
        yaml.AnchorToken: "anchors (&)",
        yaml.AliasToken: "aliases (*); write a text that starts with * in quotes",
        yaml.TagToken: "tags (!)",
        yaml.DirectiveToken: "directives (%)",
        yaml.DocumentStartToken: "document marks (---)",
    }
    problems, depth = [], 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        line = token.start_mark.line + 1
        if what := found.get(type(token)):
            problems.append((line, f"{place}:{line}: a recipe is plain data, without {what}"))
        depth += isinstance(token, OPENING) - isinstance(token, CLOSING)
        if depth > DEEPEST:  # each level makes all that follows slower to read
            raise Mistakes([(line, f"{place}:{line}: brackets are nested too deeply")])
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
    place = f"--set {setting if len(setting) <= 80 else setting[:79] + '…'}"
    if not equals or not key or not all(key.split(".")):
        example = "write KEY=VALUE, such as phases.0.lr=1e-4 or data.image_size=96"
        raise Mistakes([(0, f"{place}: this sets nothing; {example}")])
    name = key.rpartition(".")[2]
    try:
        value = parse(text, place, name).value if text.strip() else ""
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
        chosen = _all(tree.value, rest) if key == "*" else [int(key)] if key.isdecimal() else []
        if not chosen or chosen[-1] >= count:
            allowed = f"the numbers are 0 to {count - 1}, or *" if count else "the list is empty"
            if count == 1:
                allowed = "the only number is 0"
            raise new.wrong(f"there is no {'.'.join(done)}; {allowed}")
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
    given = key == "epochs" and not rest  # a length of one's own: it replaces the recipe's floor
    replaced = {key, "min_steps"} if given else {key}
    items = [(k, child) for k, child in tree.value if k not in replaced]
    at = next((i for i, (k, _) in enumerate(tree.value) if k == key), len(items))
    items.insert(at, (key, _set(old, rest, new, done)))
    return replace(tree, value=Pairs(items))


def _all(phases: Sequence[Node], rest: Sequence[str]) -> Sequence[int]:
    """Return which of a list `*` stands for: all, but for a setting of steps no phase that is
    solved, unless there are no others."""
    steps = len(rest) == 1 and rest[0] in UNSOLVED
    others = [i for i, phase in enumerate(phases) if not (steps and _is_solved(phase))]
    return others or range(len(phases))


def _is_solved(phase: Node) -> bool:
    solve = dict(phase.value).get("solve") if isinstance(phase.value, Pairs) else None
    return solve is not None and solve.value is not None


def _name(new: Node, child: Node, rest: list[str]) -> str:
    return new.name if rest else child.name
