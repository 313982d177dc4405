"""The reference of keys and the JSON schema: they say of every key what reading says of it."""

from dataclasses import fields

import jsonschema
import pytest
import yaml

from hf_transfer.recipe.reference import SECTIONS, json_schema, keys, keys_markdown, schema_text
from hf_transfer.recipe.shipped import shipped_recipes
from hf_transfer.recipe.specs import PhaseSettings
from hf_transfer.recipe.yaml_nodes import NUMBER

FOUND = list(keys())


def test_every_key_is_there_once_with_values_default_and_meaning():
    names = [(section, key) for section, key, *_ in FOUND]
    assert len(set(names)) == len(names)
    shared = {field.name for field in fields(PhaseSettings)}
    for title, before, kind in SECTIONS:
        own = {field.name for field in fields(kind)} - {"place"}
        if "gradual" in own:
            own -= shared
        listed = {key.removeprefix(before) for section, key in names if section == title}
        assert listed == own
    for _, key, values, default, meaning in FOUND:
        assert values != "something else", key
        assert default, key
        assert meaning == meaning.strip(" .") != "", key


def test_what_a_file_needs_is_its_phases_and_what_they_train():
    assert [key for _, key, _, default, _ in FOUND if default == "needed"] == [
        "phases", "phases[].train", "phases[].gradual", "source.backbone", "source.phases",
        "compare.per_class",
    ]  # fmt: skip


def test_the_table_has_a_row_a_key():
    text = keys_markdown()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == len(FOUND)
    assert text.startswith("## A recipe\n\n| key | values | default | meaning |\n")
    assert "| `phases[].lr` | a number above 0 and at most 1,000,000, or two: " in text
    assert "`place`" not in text


# --- the schema that editors use -------------------------------------------------------------

CHECK = jsonschema.Draft202012Validator(json_schema())


def read(text: str) -> object:
    """Return YAML as an editor reads it: with YAML 1.2's numbers."""
    loader = type("Loader", (yaml.SafeLoader,), {})
    loader.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+.0123456789"))
    return yaml.load(text, loader)


def test_it_is_a_json_schema():
    jsonschema.Draft202012Validator.check_schema(json_schema())
    assert schema_text().startswith('{\n  "$schema": "https://json-schema.org/')


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_is_right_by_the_schema(name):
    text = shipped_recipes()[name].read_text(encoding="utf-8")
    assert [error.message for error in CHECK.iter_errors(read(text))] == []


@pytest.mark.parametrize(
    "text",
    [
        "phases: []",
        "phases: [{train: head, epochs: -1}]",
        "phases: [{train: head, epochs: 1, optimizer: adamm}]",
        "phases: [{train: head, epochs: 1, place: here}]",
        "phases: [{gradual: 1 stage, train: all, epochs: 1}]",
        "phases: [{train: head, epochs: 1}]\nsed: 3",
        "phases: [{train: head, epochs: 1}]\npretrained: 3",
        "seed: 3",
    ],
)
def test_what_reading_refuses_of_a_key_an_editor_marks(text):
    assert list(CHECK.iter_errors(read(text)))
