"""The schema of a recipe: which keys there are, what each may be, and what goes with what."""

from __future__ import annotations

from hf_transfer.recipe import stopping, yaml_nodes
from hf_transfer.recipe.phase_schema import read_phase
from hf_transfer.recipe.specs import (
    CompareSpec,
    DataSpec,
    GradualSpec,
    HeadSpec,
    LettersSpec,
    PhaseSpec,
    Recipe,
    SourceSpec,
)
from hf_transfer.recipe.tasks import CLASSIFICATION, TASKS, phase_conflicts, recipe_conflicts
from hf_transfer.recipe.yaml_nodes import (
    Mistakes,
    Node,
    Reader,
    items,
    number,
    one_of,
    or_none,
    switch,
)
from hf_transfer.recipe.yaml_nodes import text as words


def read_recipe(tree: Node, name: str) -> Recipe:
    """Return the recipe that a tree of nodes describes. Raises Mistakes with all problems."""
    readers: dict[str, Reader] = {
        "name": words,
        "task": one_of(*TASKS),
        "backbone": or_none(words),
        "pretrained": switch,
        "weights": or_none(words),
        "head": _head,
        "data": _data,
        "phases": items(read_phase, "phases such as {train: head, epochs: 10}"),
        "loss": one_of("cross_entropy", "balanced", "squared_error"),
        "metrics": items(words, "metrics"),
        "seed": number(0, 2**31 - 1, whole=True),
        "seeds": number(1, whole=True),
        "precision": one_of("fp32", "bf16", "fp16", "auto"),
        "workers": number(0, whole=True),
        "sync_batchnorm": switch,
        "compile": switch,
        "ends_with": one_of("best", "last"),
        "gradient_checkpointing": switch,
        "source": or_none(_source),
        "compare": or_none(_compare),
    }
    values = yaml_nodes.fields(tree, readers, needs=("phases",))
    loss = TASKS[values.get("task", CLASSIFICATION.name)].loss
    recipe = Recipe(**{"name": name, "loss": loss, **values})
    _check_recipe(tree, recipe)
    return recipe


def _head(node: Node) -> HeadSpec:
    head = HeadSpec(**yaml_nodes.fields(node, {"replace": number(1, whole=True), "keep": switch}))
    if head.keep and head.replace > 1:
        raise node.wrong("keep and replace exclude each other; remove one of them")
    return head


def _data(node: Node) -> DataSpec:
    share = number(0, below=1)
    readers: dict[str, Reader] = {
        "path": or_none(words),
        "validation": share,
        "test": share,
        "image_size": or_none(number(8, 4096, whole=True)),
        "channels": or_none(number(1, 4096, whole=True)),
        "train_per_class": or_none(number(1, whole=True)),
        "validation_per_class": or_none(number(1, whole=True)),
        "image_column": words,
        "label_column": words,
        "label_columns": items(words, "columns, one for each label or target"),
        "config": or_none(words),
        "max_bad": number(0, 1),
        "min_per_class": number(1, whole=True),
    }
    data = DataSpec(**yaml_nodes.fields(node, readers))
    if data.validation + data.test >= 1:
        raise node.wrong(
            f"validation {data.validation:g} and test {data.test:g} leave nothing to train on; "
            "their sum must be below 1"
        )
    return data


def _source(node: Node) -> SourceSpec:
    readers: dict[str, Reader] = {
        "data": _data,
        "letters": _letters,
        "backbone": words,
        "phases": items(read_phase, "phases such as {train: all, epochs: 10, cold_head: true}"),
    }
    source = SourceSpec(**yaml_nodes.fields(node, readers, needs=("backbone", "phases")))
    if (source.data is None) == (source.letters is None):
        raise node.wrong("source needs one of data and letters, as what to learn first")
    return source


def _letters(node: Node) -> LettersSpec:
    readers = {"fonts": number(1, whole=True), "images": number(26, whole=True)}
    return LettersSpec(**yaml_nodes.fields(node, readers))


def _compare(node: Node) -> CompareSpec:
    readers = {
        "per_class": items(number(1, whole=True), "whole numbers such as [2, 5, 10]"),
        "seeds": number(1, whole=True),
    }
    return CompareSpec(**yaml_nodes.fields(node, readers, needs=("per_class",)))


# --- what goes with what ---------------------------------------------------------------------


def _check_recipe(tree: Node, recipe: Recipe) -> None:
    """Raise Mistakes where sections of a recipe contradict each other."""
    places = dict(tree.value)
    problems: list[tuple[int, str]] = []
    if recipe.weights is not None and not recipe.pretrained:
        problems += (
            places["weights"]
            .wrong("weights are not loaded with pretrained: false; remove one of them")
            .problems
        )
    if recipe.head.keep and not recipe.pretrained:
        problems += (
            places["head"].wrong("random weights have no head to keep; remove keep").problems
        )
    if recipe.source is not None and recipe.backbone is not None:
        problems += (
            places["backbone"]
            .wrong("the backbone is the one that source trains; write source.backbone instead")
            .problems
        )
    for key, what in recipe_conflicts(recipe):
        problems += (places.get(key) or places.get("task") or tree).wrong(what).problems
    for node, phase in zip(places["phases"].value, recipe.phases, strict=True):
        problems += _phase_problems(node, phase, recipe.metrics, recipe.task)
    if recipe.source is not None:
        inner = dict(places["source"].value)["phases"]
        for node, phase in zip(inner.value, recipe.source.phases, strict=True):
            problems += _phase_problems(node, phase, recipe.metrics, CLASSIFICATION.name)
    if problems:
        raise Mistakes(problems)


def _phase_problems(
    node: Node, phase: PhaseSpec | GradualSpec, extra: tuple[str, ...], task: str
) -> list[tuple[int, str]]:
    """Return what of a phase does not go with the task: settings, and the metrics that it stops
    at or keeps the best of.

    With the recipe's own `metrics` any name that says what is better may come up, and is looked
    for once they are loaded.
    """
    spec = phase.each if isinstance(phase, GradualSpec) else phase
    known = TASKS[task].metrics
    used = {"best": spec.best, "stop": spec.stop.metric if spec.stop else "loss"}
    wrong = [*phase_conflicts(phase, task)]
    wrong += [
        f"{key} knows no metric {metric!r}{yaml_nodes.nearest(metric, known)}; there are "
        f"{', '.join(known)}{' and last' * (key == 'best')}"
        for key, metric in used.items()
        if not extra and metric not in (*known, *(("last",) if key == "best" else ()))
    ]
    wrong += [
        f"{key}: {why}"
        for key, metric in used.items()
        if extra and (key, metric) != ("best", "last") and (why := stopping.unclear(metric))
    ]
    return [problem for what in wrong for problem in node.wrong(what).problems]
