"""What is wrong with a recipe, in words: the value got, the values allowed, where, the remedy.

The words come from the JSON schema of the specs, so nothing is declared twice. Values are looked
up in the tree of nodes, which knows the line of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from hf_transfer.base.nearest import nearest
from hf_transfer.recipe.values import Conflict
from hf_transfer.recipe.yaml_nodes import Node, Pairs, from_python

Problem = tuple[int, str]  # a line (0 = none), and "place: what; remedy"
Schema = Mapping[str, Any]
PARTS = {"PhaseSpec": "a phase: phases.0", "DataSpec": "data: data"}


@cache
def schema_of(kind: Any) -> dict[str, Any]:
    """Return the JSON schema of what is read as this type."""
    return TypeAdapter(kind).json_schema()


# --- nodes to plain values -------------------------------------------------------------------


class Reading:
    """One tree of nodes read by one schema: plain values for pydantic, and all that is wrong."""

    def __init__(self, tree: Node, schema: Schema) -> None:
        self.tree, self.schema = tree, schema
        self.defs: Schema = schema.get("$defs", {})
        self.problems: list[Problem] = []
        self._spoiled: set[int] = set()  # ids of mappings whose keys are wrong
        self.values = self._plain(tree, schema)

    def _plain(self, node: Node, schema: Schema) -> Any:
        """Return a node as plain values, without what is no key of the schema or there twice."""
        is_other = node.raw is not None and not isinstance(node.value, str | None)
        if is_other and _is_text(schema, self.defs):  # --set name=3 means the text 3
            return node.raw
        schema = _branch(schema, self.defs, node)
        if isinstance(node.value, Pairs):
            return self._mapping(node, schema)
        if isinstance(node.value, tuple):
            return tuple(self._plain(n, _item(schema, i)) for i, n in enumerate(node.value))
        return node.value

    def _mapping(self, node: Node, schema: Schema) -> dict[str, Any]:
        known = schema.get("properties", {})
        values: dict[str, Any] = {}
        seen: dict[str, Node] = {}
        for key, child in node.value:
            wrong = ""
            if key in seen:
                wrong = f"{key} is there twice, first at {seen[key].place}; remove one of them"
            elif known and key not in known:
                wrong = f"unknown key {key!r} in {node.name}{self._remedy(key, known)}"
            if wrong:
                self.problems += child.wrong(wrong).problems
                self._spoiled.add(id(node))
            else:
                values[key] = self._plain(child, _value(schema, key))
            seen.setdefault(key, child)
        return values

    def _remedy(self, key: str, known: Mapping[str, Any]) -> str:
        """Return what to do about an unknown key, which may be one of another part."""
        for part, place in PARTS.items():
            if key in self.defs.get(part, {}).get("properties", {}):
                return f"; it is a key of {place}.{key}"
        if key in self.schema.get("properties", {}):
            return f"; it is a key of the recipe itself: {key}"
        return _remedy(key, known)

    # --- what pydantic finds, in words -------------------------------------------------------

    def explain(self, error: ValidationError) -> None:
        """Add what pydantic found to the problems; of a union's branches what lies deepest."""
        found = [each for item in error.errors(include_url=False) for each in self._found(item)]
        paths = {path for path, *_ in found}
        for path, node, text, is_certain in found:
            is_outer = any(len(p) > len(path) and p[: len(path)] == path for p in paths)
            problem = (node.line, f"{node.place}: {text}")
            if text and (is_certain or not is_outer) and problem not in self.problems:
                self.problems.append(problem)

    def _found(self, error: Any) -> Iterator[tuple[tuple[str, ...], Node, str, bool]]:
        """Yield path, node, text and whether it stays though something deeper is wrong; the text
        is empty where the keys are wrong, which may be all that is."""
        kind, loc = error["type"], error["loc"]
        cause = error.get("ctx", {}).get("error")
        path, node, schema = self._at(loc)
        if kind == "default_factory_not_called":
            return
        if isinstance(cause, Conflict):
            for where, text in cause.problems:
                path, node, _ = self._at([*loc, *where])
                yield path, node, "" if id(node) in self._spoiled else text, True
        elif kind == "said":
            yield path, node, error["msg"], True
        elif kind == "missing" and isinstance(loc[-1], str):
            yield (*path, loc[-1]), node, f"{node.name} has no {loc[-1]}; add it", True
        elif kind == "unexpected_keyword_argument":  # of Python; those of a file are left out
            remedy = _remedy(loc[-1], self.schema.get("properties", {}))
            yield path, self.tree, f"unknown argument {loc[-1]!r}{remedy}", True
        else:
            yield path, node, self._refused(node, schema), False

    def _refused(self, node: Node, schema: Schema) -> str:
        text = f"{node.name} must be {allowed(schema, self.defs)}, got {node.shown()}"
        is_number = isinstance(node.value, int | float) and not isinstance(node.value, bool)
        if is_number and _is_text(schema, self.defs):
            text += f"; write it in quotes: '{node.shown()}'"
        return text

    def _at(self, loc: Sequence[str | int]) -> tuple[tuple[str, ...], Node, Schema]:
        """Return the path, the node and the schema at a place that pydantic names.

        Names of a union's branches are passed over: no node is called so.
        """
        path: tuple[str, ...] = ()
        node, schema = self.tree, self.schema
        for part in loc:
            below = _children(node, _branch(schema, self.defs, node))
            if part in below:
                node, schema = below[part]
                path = (*path, str(part))
        return path, node, schema


def _children(node: Node, schema: Schema) -> dict[str | int, tuple[Node, Schema]]:
    """Return the nodes in a node with their schemas, by what pydantic calls them."""
    if isinstance(node.value, Pairs):
        pairs = [(key, (child, _value(schema, key))) for key, child in node.value]
        found: dict[str | int, tuple[Node, Schema]] = dict(pairs)
        if "properties" not in schema:  # a mapping that is read as a list of pairs
            found |= {i: below for i, (_, below) in enumerate(pairs)}
        return found
    if isinstance(node.value, tuple) and (not schema or schema.get("type") == "array"):
        return {i: (child, _item(schema, i)) for i, child in enumerate(node.value)}
    return {}  # also a list where a mapping is due: it is wrong itself, whatever is in it


def _remedy(key: str, known: Mapping[str, Any]) -> str:
    if key.endswith(")") and "(" not in key:  # a comma has parted the settings of adapters
        return "; write 'lora(r=8, alpha=16)' in quotes, or no comma"
    return nearest(key, known) or f"; the keys are {', '.join(known)}"


def python_problems(kind: type, given: Mapping[str, Any], error: ValidationError) -> list[str]:
    """Return what is wrong with the arguments from which a spec was to be made in Python."""
    name = kind.__name__
    schema = schema_of(kind)
    known = {key: value for key, value in given.items() if key in schema["properties"]}
    reading = Reading(from_python(known, name, name), schema)
    reading.explain(error)
    return [text for _, text in reading.problems]


# --- schemas ---------------------------------------------------------------------------------


def resolved(schema: Schema, defs: Schema) -> Schema:
    """Return a schema in place of a reference to it, with the keys beside the reference."""
    if "$ref" not in schema:
        return schema
    return {
        **defs[schema["$ref"].rpartition("/")[2]],
        **{k: v for k, v in schema.items() if k != "$ref"},
    }


def _value(schema: Schema, key: str) -> Schema:
    """Return the schema of a mapping's value."""
    below = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
    return below if isinstance(below, dict) else {}


def _item(schema: Schema, i: int) -> Schema:
    """Return the schema of a list's item."""
    first: Sequence[Schema] = schema.get("prefixItems", ())
    below = first[i] if i < len(first) else schema.get("items")
    return below if isinstance(below, dict) else {}


def _is_text(schema: Schema, defs: Schema) -> bool:
    """Whether a value can only be a text."""
    kinds = {each.get("type") for each in _branches(schema, defs)}
    return kinds - {"null"} == {"string"}


def _branches(schema: Schema, defs: Schema) -> list[Schema]:
    """Return the alternatives that a schema has, at least itself."""
    schema = resolved(schema, defs)
    alternatives = schema.get("anyOf") or schema.get("oneOf")
    if not alternatives:
        return [schema]
    return [branch for each in alternatives for branch in _branches(each, defs)]


def _branch(schema: Schema, defs: Schema, node: Node) -> Schema:
    """Return the alternative that a node is meant for: of its kind, with its needed keys."""
    branches = _branches(schema, defs)
    if len(branches) == 1:
        return branches[0]
    if isinstance(node.value, Pairs):
        keys = {key for key, _ in node.value}
        mappings = [each for each in branches if each.get("type") == "object"]
        fitting = [each for each in mappings if keys.issuperset(each.get("required", ()))]
        return next(iter([*fitting, *mappings[::-1]]), schema)
    if isinstance(node.value, tuple):
        return next((each for each in branches if each.get("type") == "array"), schema)
    return resolved(schema, defs)


def allowed(schema: Schema, defs: Schema | None = None) -> str:
    """Return in words what values a schema allows, such as "a number above 0"."""
    defs = schema.get("$defs", {}) if defs is None else defs
    return either(list(dict.fromkeys(_choices(schema, defs))))


def _choices(schema: Schema, defs: Schema) -> list[str]:
    """Return the values and kinds of values that a schema allows, each in words."""
    schema = resolved(schema, defs)
    if "allowed" in schema:
        return [str(schema["allowed"])]
    if "enum" in schema or "const" in schema:
        return [str(value) for value in schema.get("enum", [schema.get("const")])]
    alternatives = [each for each in _branches(schema, defs) if each.get("type") != "null"]
    if len(alternatives) > 1 or alternatives[0] is not schema:
        return [choice for each in alternatives for choice in _choices(each, defs)]
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return [_number(schema)]
    if kind == "array":
        return [f"a list of {allowed(schema.get('items', {}), defs)}"]
    if kind == "object":
        first = next(iter([*schema.get("required", ()), *schema.get("properties", ())]), "key")
        return [f"a mapping such as {{{first}: …}}"]
    return {"boolean": ["true", "false"], "string": ["a text"]}.get(str(kind), ["something else"])


def _number(schema: Schema) -> str:
    what = "a whole number" if schema["type"] == "integer" else "a number"
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f"{what} from {low:,g} to {_shown(high)}"
    words = {
        "at least": low,
        "above": schema.get("exclusiveMinimum"),
        "at most": high,
        "below": schema.get("exclusiveMaximum"),
    }
    limits = [f"{word} {_shown(limit)}" for word, limit in words.items() if limit is not None]
    return f"{what} {' and '.join(limits)}".strip()


def _shown(limit: float) -> str:
    return f"{limit:,.0f}" if limit == int(limit) else f"{limit:g}"


def either(choices: Sequence[str]) -> str:
    """Return choices as "a, b or c"."""
    *first, last = choices
    return f"{', '.join(first)} or {last}" if first else last
