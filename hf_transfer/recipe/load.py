"""Recipes: YAML to specs and back; all mistakes at once, each with its line."""

from __future__ import annotations

import dataclasses
import errno
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from hf_transfer.base.errors import RecipeError, UserError
from hf_transfer.base.files import read_limited
from hf_transfer.base.nearest import nearest
from hf_transfer.base.signatures import checked
from hf_transfer.recipe import yaml_nodes
from hf_transfer.recipe.mistakes import Problem, Reading, schema_of
from hf_transfer.recipe.shipped import shipped_recipes
from hf_transfer.recipe.specs import (
    AUGMENTS,
    AnyPhase,
    Augment,
    DataSpec,
    GradualSpec,
    HeadSpec,
    PhaseSpec,
    Recipe,
    SourceSpec,
)
from hf_transfer.recipe.tasks import PRETEXTS
from hf_transfer.recipe.yaml_nodes import Mistakes, Node

MAPPINGS = ("lrs", "class_weights", "thresholds")  # keys whose pairs are a mapping in a file
LARGEST_BYTES = 1_000_000  # of a recipe's file
Phase = TypeVar("Phase", PhaseSpec, GradualSpec, PhaseSpec | GradualSpec)


# --- load, parse, dump -----------------------------------------------------------------------


@checked
def load_recipe(
    name_or_path: str | Path, overrides: Sequence[str] = (), *, allow_code: bool = False
) -> Recipe:
    """Return a shipped recipe, or the one in a file, with overrides such as "phases.0.lr=1e-4".

    `name_or_path` is a name that `hf-transfer recipes` lists, or a YAML file.

    A recipe is data: metrics that are Python files would run, and need `allow_code`. Raises
    RecipeError for what is wrong in it, UserError for a recipe that cannot be found or read.
    """
    shipped = shipped_recipes()
    path = shipped.get(str(name_or_path)) or _path(name_or_path)
    if not path.exists():
        raise UserError(
            f"there is no recipe {str(name_or_path)!r}{nearest(str(name_or_path), shipped)}; "
            f"give a path or one of {', '.join(shipped) or '(none is installed)'}"
        )
    recipe = parse_recipe(_text(path), path.name, overrides)
    code = [name for name in recipe.metrics if _is_code(name)]
    if code and not allow_code:
        raise RecipeError(
            [
                f"{path.name}: metrics: {name} is code that would run; if you trust it, add "
                "--allow-code (in Python: allow_code=True)"
                for name in code
            ]
        )
    return recipe


def _is_code(metric: str) -> bool:
    """Whether a metric is a program of its own, and not one of the `evaluate` library by name."""
    return re.fullmatch(r"\w+", metric) is None or Path(metric).exists()


def asked(
    recipe: str | Path | Recipe,
    data: str | Path | None = None,
    backbone: str | Path | None = None,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    allow_code: bool = False,
    unlabelled: str | Path | None = None,
) -> Recipe:
    """Return a recipe with what a call changes in it; `overrides` and `allow_code` as for
    `load_recipe`.

    Raises UserError as `load_recipe` does.
    """
    changes = {
        "data.path": data,
        "source.data.path": unlabelled,
        "backbone": backbone,
        "seed": seed,
    }
    given = [f"{key}={_as_yaml(value)}" for key, value in changes.items() if value is not None]
    if isinstance(recipe, Recipe):
        recipe_text = dump_recipe(recipe)
        return parse_recipe(recipe_text, f"{recipe.name}.yaml", [*given, *overrides])
    return load_recipe(recipe, [*given, *overrides], allow_code=allow_code)


def _as_yaml(value: str | Path | int) -> str:
    """Return a value as YAML: a text in quotes, with escapes for bytes that are not UTF-8."""
    if isinstance(value, int):
        return str(value)
    text: str = yaml.safe_dump(str(value), default_style='"', allow_unicode=True, width=math.inf)
    return text.rstrip()


def _path(name: str | Path) -> Path:
    """Return a path with `~` as the home folder; as it is where there is none."""
    try:
        path = Path(name).expanduser()
        path.exists()
    except (RuntimeError, ValueError, OSError):  # no home, no such user, a NUL, a name too long
        raise UserError(f"there is no recipe {str(name)!r}; give its name or its path") from None
    return path


def _text(path: Path) -> str:
    try:
        return read_limited(path, LARGEST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"recipe {path} is not text in UTF-8; a recipe is a YAML file") from None
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise UserError(
                f"recipe {path} has over a megabyte; a recipe is a short YAML file"
            ) from None
        raise UserError(f"recipe {path} cannot be read: {error.strerror}") from None


def parse_recipe(text: str, place: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe in a YAML text; `place` is its file's name, for messages and as its name.

    Raises RecipeError with all problems, in the order of their lines.
    """
    problems: list[Problem] = []
    try:
        tree = yaml_nodes.parse(text, place)
        for setting in overrides if isinstance(tree.value, yaml_nodes.Pairs) else ():
            try:
                tree = yaml_nodes.override(tree, _of_source(setting, tree))
            except Mistakes as mistakes:
                problems += mistakes.problems
        recipe = _read(Recipe, tree, problems, name=Path(place).stem)
    except Mistakes as mistakes:
        problems += mistakes.problems
    if problems:
        raise RecipeError([text for _, text in sorted(problems, key=lambda problem: problem[0])])
    return _placed(recipe, tree)


def _of_source(setting: str, tree: Node) -> str:
    """Return a setting; that of a backbone for the source, in a recipe that trains one first, and
    images without labels where its phases have them beside labelled ones (`pseudo`).

    Raises Mistakes for images without labels in a recipe that learns nothing from them.
    """
    sections = dict(tree.value) if isinstance(tree.value, yaml_nodes.Pairs) else {}
    found = sections.get("source")
    first = found is not None and found.value is not None
    if setting.startswith("source.data.path=") and not first:
        task = sections.get("task")
        if task is not None and task.value in PRETEXTS:
            text = f"--unlabelled: task: {task.value} learns from the images of --data; name them"
            raise Mistakes([(0, f"{text} there")])
        if _has_pseudo(sections.get("phases")):
            return setting.replace("source.data.path", "data.unlabelled", 1)
        text = "--unlabelled: this recipe learns nothing from images without labels; free_labels "
        raise Mistakes([(0, f"{text}does")])
    return f"source.{setting}" if first and setting.startswith("backbone=") else setting


def _has_pseudo(phases: Node | None) -> bool:
    """Whether any phase of a list, as far as it is one, has `pseudo`."""
    rows = phases.value if phases is not None and isinstance(phases.value, tuple) else ()
    kept = [row.value for row in rows if isinstance(getattr(row, "value", None), yaml_nodes.Pairs)]
    return any(key == "pseudo" for pairs in kept for key, _ in pairs)


def parse_phase(phase: Mapping[str, Any], place: str = "phase") -> PhaseSpec | GradualSpec:
    """Return the phase that a mapping with the keys of a recipe's phase describes.

    Optimizers and schedules may be any that transformers knows. Raises RecipeError.
    """
    problems: list[Problem] = []
    tree = yaml_nodes.from_python(phase, place, place)
    made: Any = _read(AnyPhase, tree, problems)
    if problems:
        raise RecipeError([text for _, text in problems])
    return made  # type: ignore[no-any-return]


def _read(kind: Any, tree: Node, problems: list[Problem], **more: Any) -> Any:
    """Return what a tree of nodes describes, or None with what is wrong added to `problems`.

    `more` are values for keys that a file may leave out; in Python there are none.
    """
    schema = schema_of(kind)
    needed = [key for key in schema.get("required", ()) if key not in more]
    reading = Reading(tree, {**schema, "required": needed})
    values, made = reading.values, None
    if isinstance(values, dict):
        values = {**more, **values}
    try:
        made = TypeAdapter(kind).validate_python(values, context={"file": True} if more else None)
    except ValidationError as error:
        reading.explain(error)
    problems += reading.problems
    return made


def _placed(recipe: Recipe, tree: Node) -> Recipe:
    """Return a recipe whose phases know their lines."""
    sections = dict(tree.value)
    source = recipe.source
    if source is not None:
        inner = dict(sections["source"].value)["phases"]
        source = dataclasses.replace(source, phases=_with_lines(source.phases, inner))
    phases = _with_lines(recipe.phases, sections["phases"])
    return dataclasses.replace(recipe, phases=phases, source=source)


def _with_lines(phases: Sequence[Phase], nodes: Node) -> tuple[Phase, ...]:
    pairs = zip(phases, nodes.value, strict=True)
    return tuple(
        dataclasses.replace(phase, place=_place_of(node) if node.line else "")
        for phase, node in pairs
    )


def _place_of(phase: Node) -> str:
    """Return where a phase stands, and what the command line has changed of it."""
    given = (child.place for _, child in phase.value if child.place.startswith("--"))
    return ", ".join(dict.fromkeys((phase.place, *given)))


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
    other = recipe.task != "classification"
    return dataclasses.replace(
        recipe,
        name=f"{recipe.name}, source",
        task=source.pretext or "classification",
        loss="pretext" if source.pretext else "cross_entropy" if other else recipe.loss,
        class_weights=(),  # of other labels
        thresholds=(),
        tta=False,
        metrics=() if other or source.pretext else recipe.metrics,
        backbone=source.backbone,
        pretrained=source.start == "pretrained",
        weights=None,
        head=HeadSpec() if source.pretext else recipe.head,
        data=_seen_alike(source, recipe.data),
        phases=source.phases,
        source=None,
        compare=None,
        seeds=1,
        folds=1,
    )


def _seen_alike(source: SourceSpec, target: DataSpec) -> DataSpec:
    """Return a source's data; letters, and images without labels whose form it leaves open, in the
    size, channels and form of the target's."""
    if source.data is not None and source.pretext is None:
        return source.data
    data = source.data or DataSpec()
    keys = ("image_size", "channels", "fit", "window", "frame")
    given = {key: getattr(data, key) or getattr(target, key) for key in keys}
    return dataclasses.replace(data, **given)


def _plain(value: Any) -> Any:
    """Return a recipe's part as plain lists and mappings, in the form of a recipe file."""
    if isinstance(value, Augment):
        named = next((name for name, known in AUGMENTS.items() if known == value), None)
        if named:
            return named
    if dataclasses.is_dataclass(value):
        return {
            name: dict(item) if name in MAPPINGS and not isinstance(item, str) else _plain(item)
            for name, item in _changed(value).items()
        }
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _changed(value: Any) -> dict[str, Any]:
    """Return the fields of a spec that do not have their defaults, those without one first."""
    given = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    fields = type(value).__pydantic_fields__
    changed = {
        name: given[name]
        for name, field in fields.items()
        if name != "place"
        and (
            field.is_required()
            or given[name] != field.get_default(call_default_factory=True, validated_data=given)
        )
    }
    return dict(sorted(changed.items(), key=lambda item: not fields[item[0]].is_required()))
