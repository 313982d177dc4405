"""What leaves this machine: recipes and configurations that name no folder of it."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from hf_transfer.base.boundary import redacted, untrusted
from hf_transfer.results.places import place_name, places, without_places
from hf_transfer.results.report import RunReport

CONFIG_PLACES = ("_name_or_path", "name_or_path", "base_model_name_or_path")


def published_recipe(path: Path, report: RunReport) -> bytes:
    """Return a recipe file as YAML with the last part only of every path. Raises UserError."""
    with untrusted(str(path), "the run's recipe.yaml is damaged"):
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        told = without_places(tree, "", places([tree, report.to_dict()]))
        text = yaml.safe_dump(told, sort_keys=False, allow_unicode=True, width=1000)
    return text.encode()


def published_file(path: Path) -> Path | bytes:
    """Return a text file as it is, or its text without secrets and, of JSON, without the folder
    that it was loaded from."""
    with untrusted(str(path), "save the model again"):
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else None
    told = redacted(text)
    for key in CONFIG_PLACES if isinstance(values, dict) else ():
        if isinstance(place := values.get(key), str) and place_name(place) != place:
            values[key] = place_name(place)
            told = redacted(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    return path if told == text else told.encode()
