"""The reference of a recipe's keys, made from the specs: tables and a JSON schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from hf_transfer.recipe.mistakes import allowed, resolved, schema_of
from hf_transfer.recipe.specs import (
    Augment,
    CompareSpec,
    DataSpec,
    GradualSpec,
    HeadSpec,
    LettersSpec,
    PhaseSettings,
    PhaseSpec,
    Pseudo,
    Recipe,
    SourceSpec,
    Stop,
)

# A section's title, what stands before its keys, and the spec that declares them.
SECTIONS: tuple[tuple[str, str, type], ...] = (
    ("A recipe", "", Recipe),
    ("`data`", "data.", DataSpec),
    ("`head`", "head.", HeadSpec),
    ("A phase", "phases[].", PhaseSpec),
    ("A phase of gradual unfreezing", "phases[].", GradualSpec),
    ("`augment`", "phases[].augment.", Augment),
    ("`stop`", "phases[].stop.", Stop),
    ("`pseudo`", "phases[].pseudo.", Pseudo),
    ("`source`", "source.", SourceSpec),
    ("`source.letters`", "source.letters.", LettersSpec),
    ("`compare`", "compare.", CompareSpec),
)


def keys() -> Iterator[tuple[str, str, str, str, str]]:
    """Yield (section, key, type, default, meaning) of every key, in the order of a recipe."""
    shared = set(schema_of(PhaseSettings)["properties"])
    for title, before, kind in SECTIONS:
        schema = schema_of(kind)
        needed = set(_needed(kind))
        properties = schema["properties"]
        own = [*(k for k in properties if k in needed), *(k for k in properties if k not in needed)]
        for key in own:
            if kind is GradualSpec and key in shared:
                continue
            field = resolved(properties[key], schema.get("$defs", {}))
            default = "needed" if key in needed else _default(properties[key])
            values = allowed(properties[key], schema.get("$defs", {}))
            yield title, f"{before}{key}", values, default, field["description"]


def keys_markdown() -> str:
    """Return the reference of all keys as Markdown: a heading and a table for each section."""
    lines: list[str] = []
    section = ""
    for title, key, values, default, meaning in keys():
        if title != section:
            lines += [
                "",
                f"## {title}",
                "",
                "| key | values | default | meaning |",
                "|---" * 4 + "|",
            ]
            section = title
        lines.append(f"| `{key}` | {_cell(values)} | {_cell(default)} | {_cell(meaning)} |")
    return "\n".join(lines[1:]) + "\n"


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe's file, for editors that complete and check YAML."""
    schema = dict(schema_of(Recipe))
    schema["required"] = _needed(Recipe)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "A recipe of hf_transfer",
    }


def schema_text() -> str:
    """Return the JSON schema as text."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False)


def _needed(kind: type) -> list[str]:
    """Return the keys that a file must have: a recipe's name is its file's where it gives none."""
    return [key for key in schema_of(kind).get("required", ()) if (kind, key) != (Recipe, "name")]


def _default(schema: Mapping[str, Any]) -> str:
    value = schema.get("default")
    if value is None or value == [] or isinstance(value, dict):
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
