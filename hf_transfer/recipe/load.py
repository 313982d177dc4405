"""Recipes: strict YAML to frozen dataclasses and back; all problems at once, with their lines."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields as fields_of
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from hf_transfer.base.errors import RecipeError, UserError
from hf_transfer.recipe import yaml_nodes
from hf_transfer.recipe.phase_schema import read_phase
from hf_transfer.recipe.schema import read_recipe
from hf_transfer.recipe.shipped import shipped_recipes
from hf_transfer.recipe.specs import AUGMENTS, Augment, DataSpec, GradualSpec, PhaseSpec, Recipe
from hf_transfer.recipe.yaml_nodes import Mistakes

__all__ = [
    "RecipeError",
    "dump_recipe",
    "load_recipe",
    "parse_phase",
    "parse_recipe",
    "shipped_recipes",
    "source_recipe",
]


# --- load, parse, dump -----------------------------------------------------------------------


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return a shipped recipe, or the one in a file, with overrides such as "phases.0.lr=1e-4".

    Raises RecipeError for what is wrong in it, UserError for a recipe that cannot be found or read.
    """
    shipped = shipped_recipes()
    path = shipped.get(name_or_path) or Path(name_or_path).expanduser()
    if not path.exists():
        found = difflib.get_close_matches(name_or_path, list(shipped), n=1)
        near = f"; nearest: {found[0]}" if found else ""
        raise UserError(
            f"there is no recipe {name_or_path!r}{near}; "
            f"give a path or one of {', '.join(shipped) or '(none is installed)'}"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"recipe {path} is not text in UTF-8; a recipe is a YAML file") from None
    except OSError as error:
        raise UserError(f"recipe {path} cannot be read: {error.strerror}") from None
    return parse_recipe(text, path.name, overrides)


def parse_recipe(text: str, place: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe in a YAML text; `place` is its file's name, for messages and as its name.

    Raises RecipeError with all problems, in the order of their lines.
    """
    problems: list[tuple[int, str]] = []
    try:
        tree = yaml_nodes.parse(text, place)
        for setting in overrides:
            try:
                tree = yaml_nodes.override(tree, setting)
            except Mistakes as mistakes:
                problems.extend(mistakes.problems)
        recipe = read_recipe(tree, Path(place).stem)
    except Mistakes as mistakes:
        problems.extend(mistakes.problems)
    if problems:
        raise RecipeError([text for _, text in sorted(problems, key=lambda problem: problem[0])])
    return recipe


def parse_phase(phase: Mapping[str, Any], place: str = "phase") -> PhaseSpec | GradualSpec:
    """Return the phase that a mapping with the keys of a recipe's phase describes.

    Optimizers and schedules may be any that transformers knows. Raises RecipeError.
    """
    try:
        return read_phase(yaml_nodes.from_python(phase, place, place), any_name=True)
    except Mistakes as mistakes:
        raise RecipeError([text for _, text in mistakes.problems]) from None


def dump_recipe(recipe: Recipe) -> str:
    """Return a recipe as YAML without what has its default; reading it gives an equal recipe."""
    return yaml.dump(
        _plain(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000
    )


class _Dumper(yaml.SafeDumper):
    """Quotes what our reader would take for a number, such as the text 1e-3."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", yaml_nodes.NUMBER, list("-+0123456789."))


def source_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe of a recipe's source task, by which its backbone is trained first."""
    source = recipe.source
    if source is None:
        raise UserError(f"recipe {recipe.name} has no source")
    return replace(
        recipe,
        name=f"{recipe.name}, source",
        task="classification",
        loss="cross_entropy" if recipe.task != "classification" else recipe.loss,
        metrics=recipe.metrics if recipe.task == "classification" else (),
        backbone=source.backbone,
        pretrained=False,
        weights=None,
        data=source.data or DataSpec(image_size=recipe.data.image_size),
        phases=source.phases,
        source=None,
        compare=None,
        seeds=1,
    )


def _plain(value: Any) -> Any:
    """Return a recipe's part as plain lists and mappings, in the form of a recipe file."""
    if isinstance(value, GradualSpec):
        unit = value.grain.removesuffix("s") if value.count == 1 else value.grain
        step = f"{value.count}%" if unit == "%" else f"{value.count} {unit}"
        own = {"gradual": step, "lr_drop": value.lr_drop, "thaws": value.thaws}
        own = {k: v for k, v in own.items() if v is not None}
        return {**own, **{k: v for k, v in _plain(value.each).items() if k != "train"}}
    if isinstance(value, Augment):
        named = next((name for name, known in AUGMENTS.items() if known == value), None)
        if named:
            return named
    if is_dataclass(value):
        plain = {}
        for field in fields_of(value):
            if not field.compare:
                continue
            item = getattr(value, field.name)
            default = getattr(type(value), field.name, None)
            if item != default and item != _made(field):
                plain[field.name] = _plain(item)
        return _phase_keys(plain)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _made(field: Any) -> Any:
    return field.default_factory() if callable(field.default_factory) else None


def _phase_keys(plain: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a phase with `lr: [first, last]` and `lrs: {selector: rate}`."""
    if "lr_geometric" in plain:
        plain["lr"] = plain.pop("lr_geometric")
    if "lrs" in plain:
        plain["lrs"] = dict(plain["lrs"])
    return plain
