"""Tasks: what a model answers of an image, and the words and metrics that go with it."""

from __future__ import annotations

from dataclasses import dataclass

THRESHOLD = 0.5  # probability from which a label of several counts as there


@dataclass(frozen=True)
class Task:
    """What is named differently for one class, several labels, and numbers."""

    name: str  # as `task:` in a recipe
    problem_type: str | None  # in a model's config; None: transformers' own default
    loss: str  # the recipe's `loss:` by default
    metrics: tuple[str, ...]  # what an evaluation gives without any of the recipe's own
    headline: str  # the metric that a report leads with
    noun: str  # one of what the model answers with
    nouns: str
    title: str  # of the task, for people and for the Hub
    hub_type: str  # the Hub's word for it


CLASSIFICATION = Task(
    name="classification",
    problem_type=None,
    loss="cross_entropy",
    metrics=("loss", "accuracy", "top5", "macro_f1", "balanced_accuracy", "auroc", "ece", "nll"),
    headline="accuracy",
    noun="class",
    nouns="classes",
    title="Image classification",
    hub_type="image-classification",
)
MULTI_LABEL = Task(
    name="multi_label",
    problem_type="multi_label_classification",
    loss="cross_entropy",
    metrics=("loss", "map", "auroc", "macro_f1", "micro_f1", "all_right"),
    headline="map",
    noun="label",
    nouns="labels",
    title="Multi-label image classification",
    hub_type="image-classification",
)
REGRESSION = Task(
    name="regression",
    problem_type="regression",
    loss="squared_error",
    metrics=("loss", "r2", "mae", "rmse"),
    headline="r2",
    noun="target",
    nouns="targets",
    title="Image regression",
    hub_type="other",  # the Hub has no word for numbers read off images
)
TASKS = {task.name: task for task in (CLASSIFICATION, MULTI_LABEL, REGRESSION)}


def task_of(problem_type: str | None) -> str:
    """Return the name of the task behind a config's problem_type."""
    found = [task.name for task in TASKS.values() if problem_type == task.problem_type]
    return found[0] if found and problem_type else CLASSIFICATION.name
