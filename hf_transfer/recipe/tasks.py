"""Tasks: what a model answers of an image, and the words and metrics that go with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_transfer.base.errors import UserError

SHIFTS = 5  # steps of `motion` to the left or right, and up or down
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
    outputs: int = 0  # of a pretext's head; other tasks have as many as the data has labels
    views: int = 1  # pictures that a pretext makes of each image it is measured on
    varies: bool = False  # whether a pretext is about variations of an image, so needs `augment`
    moves: bool = False  # whether it varies images itself, so takes no `augment`
    known: bool = False  # whether it is measured on images that it trained on, varied otherwise
    compares: bool = False  # whether its loss compares the images of a batch, so needs two
    video: bool = False  # whether the images of a folder are frames in the order of their names

    @property
    def is_pretext(self) -> bool:
        """Whether its targets come from the images themselves, without labels."""
        return self.outputs > 0

    @property
    def kind(self) -> str:
        """Its name; of all pretexts `pretext`."""
        return "pretext" if self.is_pretext else self.name


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


def _pretext(name: str, title: str, outputs: int, **more: Any) -> Task:
    return Task(
        name=name,
        problem_type=None,
        loss="pretext",
        metrics=("loss", "accuracy"),
        headline="accuracy",
        noun="image",
        nouns="images",
        title=title,
        hub_type="image-feature-extraction",
        outputs=outputs,
        **more,
    )


# Tasks whose targets cost nothing; `inputs.pretexts` makes them, `training.pretext_loss` has the
# papers. The heads are dropped when the target's own task begins.
ROTATION = _pretext("rotation", "Learning from rotations", 4)
CONTRASTIVE = _pretext(
    "contrastive", "Contrastive learning", 128, views=2, varies=True, compares=True
)
REDUNDANCY = _pretext(
    "redundancy", "Redundancy reduction", 128, views=2, varies=True, compares=True
)
EXEMPLAR = _pretext("exemplar", "Telling images apart", 64, views=2, varies=True, known=True)
SLOW = _pretext("slow", "Learning what changes slowly", 128, views=2, compares=True, video=True)
MOTION = _pretext("motion", "Learning from motion", 4 * SHIFTS, views=2, moves=True)
PRETEXTS = {task.name: task for task in (ROTATION, CONTRASTIVE, REDUNDANCY, EXEMPLAR, SLOW, MOTION)}
TASKS = {task.name: task for task in (CLASSIFICATION, MULTI_LABEL, REGRESSION)} | PRETEXTS


PROBED = 2000  # labelled images of each split that probe a pretext, at most
PROBES = {task.name: f"probe_{task.headline}" for task in (CLASSIFICATION, MULTI_LABEL, REGRESSION)}


def labels_of(task: str, labels: tuple[str, ...]) -> tuple[str, ...]:
    """Return what the outputs of a task's head are called: the data's labels, or numbers."""
    outputs = TASKS[task].outputs
    return tuple(map(str, range(outputs))) if outputs else labels


def check_task(task: str) -> None:
    """Raise UserError for a name that no task has."""
    if task not in TASKS:
        raise UserError(f"there is no task {task!r}; there are {', '.join(TASKS)}")


def task_of(problem_type: str | None, pretext: Any = None) -> str:
    """Return the name of the task behind a config's problem_type, or its `pretext`."""
    if isinstance(pretext, str) and pretext in PRETEXTS:
        return pretext
    found = [task.name for task in TASKS.values() if problem_type == task.problem_type]
    return found[0] if found and problem_type else CLASSIFICATION.name
