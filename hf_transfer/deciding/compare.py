"""A comparison: several ways to train, on the same images, with the same seeds and starts.

Whether transfer helps, and how much of the network to train, is a question about one's own images.
Each way is a recipe. For each number of labelled images per class and each seed all ways get the
same training images, start from the same weights and are tested on the same other images, which
chose nothing.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from hf_transfer.base.errors import UserError
from hf_transfer.base.files import write_text
from hf_transfer.base.machine import kept_memory, nothing_to_collect
from hf_transfer.base.outputs import folder_to_write
from hf_transfer.base.signatures import checked
from hf_transfer.base.threads import fitting
from hf_transfer.data.image_set import ImageData, load_data
from hf_transfer.data.scan import Scan
from hf_transfer.data.sources import scan
from hf_transfer.deciding.auto import TEXT, UNUSED
from hf_transfer.deciding.auto_report import NAME
from hf_transfer.deciding.compare_page import comparison_page
from hf_transfer.deciding.compare_text import format_comparison
from hf_transfer.deciding.presets import check_amount
from hf_transfer.deciding.trials import Trial, Way, trials_of
from hf_transfer.recipe.load import load_recipe, parse_recipe
from hf_transfer.recipe.specs import DataSpec
from hf_transfer.recipe.tasks import TASKS
from hf_transfer.results.words import listed

USUAL = (
    "scratch",
    "exact_head",
    "feature_extraction",
    "lp_ft",
    "gradual",
    "discriminative",
    "full",
    "auto",
)
TEST = 0.2  # share of the images that test, where the data has no test split of its own
VALIDATION = 0.2  # share of the labelled images that choose epochs
MOST_SEEDS = 1000
OWN = ("image_size", "fit", "channels", "unlabelled")  # of its data what a recipe may have alone
SHARED = tuple(f.name for f in dataclasses.fields(DataSpec) if f.name not in OWN)
DRAWS = 2000  # of the bootstrap over test images

Say = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One way at one number of images per class, over the seeds.

    `behind` is how far its mean is below the best way's, with a 95% interval over the test images
    (paired: the same images); None for the best way itself, and where there is no paired test.
    """

    way: str
    per_class: int | None
    values: tuple[float, ...]
    seconds: float  # mean
    parameters: int
    behind: tuple[float, float, float] | None = None

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.values))


@dataclass(frozen=True)
class Comparison:
    """What a comparison measured; `rows` by numbers of images, then in the order of the ways."""

    metric: str
    labels: tuple[str, ...]
    seeds: tuple[int, ...]
    test_images: int  # in each seed
    rows: tuple[Row, ...]
    seconds: float
    notes: tuple[str, ...] = ()
    out: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain JSON values."""
        values = dataclasses.asdict(self)
        del values["out"]
        for row, plain in zip(self.rows, values["rows"], strict=True):
            plain["mean"] = row.mean
        return values


@fitting()
@kept_memory()
@nothing_to_collect()
@checked
def compare(
    recipes: Sequence[str] = (),
    *,
    data: str | Path,
    backbone: str | Path | None = None,
    per_class: Sequence[int] = (),
    seeds: int | Sequence[int] = 3,
    overrides: Sequence[str] = (),
    minutes: float = 5.0,
    epochs: float | None = None,
    image_size: int | None = None,
    group: str | None = None,
    out: str | Path | None = None,
    on_progress: Say | None = None,
) -> Comparison:
    """Compare recipes on a user's data; without names, the usual ways from scratch to auto.

    `per_class` are numbers of labelled images of each class, a fifth of which choose epochs; empty:
    all there are. `seeds` is how many seeds, from 0 on, or the seeds themselves. Images that test
    are set aside first, a fifth of each class unless the data has a test split. `minutes` is the
    budget of `auto` each time. `backbone` takes the place of the recipes' own. `epochs` are those
    of every phase that has any, and of fine-tuning by `auto`; `image_size` in pixels and `group`,
    which keeps a patient or video together, are those of all recipes, as are the settings of
    `overrides`, such as "task=multi_label". With `out` a folder, comparison.json, .txt and .html
    are written there. `on_progress` gets a line for each run. Raises UserError.
    """
    check_amount("minutes", minutes)
    check_amount("epochs", epochs)
    started, say = time.monotonic(), on_progress or (lambda _: None)
    place = folder_to_write(out) if out else None
    plain = {
        "backbone": backbone and json.dumps(str(backbone)),
        "data.image_size": image_size,
        "data.group": group and json.dumps(group),
    }
    changes = [f"data.path={json.dumps(str(data))}", *overrides]
    changes += [f"{key}={value}" for key, value in plain.items() if value is not None]
    numbers = _seeds(seeds)
    given = tuple(dict.fromkeys(map(str, recipes))) or USUAL
    ways = [_way(name, given, changes, minutes, epochs) for name in given]
    _check(ways, per_class)
    _check_epochs(ways, epochs)
    task = ways[0].recipe.task
    spec = ways[0].recipe.data
    if not scan(spec, numbers[0], task).counts.get("test"):
        spec = dataclasses.replace(spec, test=TEST)
    found = scan(spec, numbers[0], task)
    notes = [*_unused(ways), *_fewer(found, per_class)]
    for note in notes:
        say(f"note: {note}")
    errors: dict[str, UserError] = {}

    def leave_out(way: str, of_seed: int, error: UserError) -> None:
        errors[way] = error
        notes.append(f"{way} is left out; with seed {of_seed} it failed: {error}")
        say(f"note: {notes[-1]}")

    def draw(count: int | None, of_seed: int, model: PreTrainedModel) -> ImageData:
        few = spec
        if count is not None:
            held = max(1, round(count * VALIDATION))
            few = dataclasses.replace(spec, train_per_class=count - held, validation_per_class=held)
        return load_data(few, model.backbone.image, of_seed, task=task)

    trials, tested = [], 0
    order = per_class or (None,)
    for trained, images in trials_of(ways, found.labels, draw, order, numbers, leave_out):
        trials.append(trained.trial)
        tested = len(images)
        say(told(trained.trial, TASKS[task].headline))
    names = [way.name for way in ways if way.name not in errors]
    if not names:
        raise next(iter(errors.values()))
    comparison = Comparison(
        metric=TASKS[task].headline,
        labels=found.labels,
        seeds=numbers,
        test_images=tested,
        rows=rows_of(trials, names),
        seconds=time.monotonic() - started,
        notes=tuple(notes),
        out=place,
    )
    if comparison.out:
        _write(comparison, comparison.out)
    return comparison


def _write(comparison: Comparison, folder: Path) -> None:
    text = json.dumps(comparison.to_dict(), indent=1)
    write_text(folder / "comparison.json", text + "\n")
    write_text(folder / "comparison.txt", format_comparison(comparison) + "\n")
    write_text(folder / "comparison.html", comparison_page(comparison))


def _way(
    name: str, given: Sequence[str], changes: Sequence[str], minutes: float, epochs: float | None
) -> Way:
    """Return a recipe as a way; one's own is called as its file, where no other has that name."""
    if name == NAME:
        return Way(name, parse_recipe(TEXT, f"{NAME}.yaml", changes), minutes, epochs)
    stems = [Path(one).stem for one in given]
    shown = Path(name).stem if stems.count(Path(name).stem) == 1 else name
    way = Way(shown, load_recipe(name, changes))
    if epochs is None or way.is_solved:
        return way
    return Way(shown, load_recipe(name, [*changes, f"phases.*.epochs={epochs}"]))


def _seeds(given: int | Sequence[int]) -> tuple[int, ...]:
    """Return the seeds: so many from 0 on, or those given. Raises UserError."""
    if isinstance(given, int):
        given = range(min(max(given, 0), MOST_SEEDS + 1))
    numbers = tuple(given) if isinstance(given, list | tuple | range) else ()
    different = 0 < len(set(map(repr, numbers))) == len(numbers) <= MOST_SEEDS
    if different and all(isinstance(one, int) and 0 <= one < 2**32 for one in numbers):
        return numbers
    raise UserError(
        f"seeds must be a number from 1 to {MOST_SEEDS:,}, or a list of different seeds such as "
        "0,2,5"
    )


def _check(ways: Sequence[Way], per_class: Sequence[int]) -> None:
    tasks = {way.recipe.task for way in ways}
    if len(tasks) > 1:
        raise UserError(
            f"recipes of different tasks cannot be compared: {', '.join(sorted(tasks))}"
        )
    if any(count < 2 for count in per_class):
        raise UserError(
            f"per_class: {min(per_class)} is too few; a class needs one image to train on and one "
            "to choose epochs by, so at least 2"
        )
    if per_class and tasks != {"classification"}:
        raise UserError(
            f"per_class is for one class an image, not task: {tasks.pop()}; leave it out"
        )
    for way in ways:
        if way.recipe.source is not None:
            text = "has a source task and cannot be compared here; hf-transfer train it on the same"
            raise UserError(f"recipe {way.name} {text} images; hf-transfer runs lists the results")
        for key in SHARED:
            one, other = (getattr(each.recipe.data, key) for each in (ways[0], way))
            if one != other:
                raise UserError(
                    f"{ways[0].name} has data.{key} {one}, and {way.name} {other}: their images "
                    f"would not be the same; set it for both with --set data.{key}=…"
                )


def _check_epochs(ways: Sequence[Way], epochs: float | None) -> None:
    """Raise UserError for epochs that nothing trains by."""
    if epochs is not None and all(way.is_solved for way in ways):
        names = listed([way.name for way in ways], 6)
        raise UserError(f"epochs: {names} is solved for, not trained in epochs; leave it out")


def _unused(ways: Sequence[Way]) -> tuple[str, ...]:
    """Return in a sentence what `auto`, if it is compared, does not use of what is set."""
    own = next((way.recipe for way in ways if way.minutes is not None), None)
    if own is None:
        return ()
    usual = parse_recipe(TEXT, f"{NAME}.yaml")
    keys = [key for key in UNUSED if getattr(own, key) != getattr(usual, key)]
    also = ", which is set for the other recipes alone" if len(ways) > 1 else ""
    return tuple(f"auto does not use {key}{also}" for key in keys)


def _fewer(found: Scan, per_class: Sequence[int]) -> tuple[str, ...]:
    """Return in a sentence which classes have fewer labelled images than are asked for, if any.

    Raises UserError where none has as many: what is measured would not be what is said.
    """
    if not per_class or found.task != "classification":
        return ()
    labelled = [counts for split, counts in found.counts.items() if split != "test"]
    count_of = {label: sum(counts[label] for counts in labelled) for label in found.labels}
    most, largest = max(per_class), max(count_of.values())
    if most > largest:
        raise UserError(
            f"per_class: no class has {most} images but for those that test; ask for {largest} at "
            "most, or leave it out for all there are"
        )
    small = [f"{label} ({count})" for label, count in count_of.items() if count < most]
    if not small:
        return ()
    return (f"with {most} per class, all labelled images of {listed(small, 6)} are used",)


def told(trial: Trial, metric: str) -> str:
    """Return a trial in a line."""
    count = "" if trial.per_class is None else f"{trial.per_class} per class, "
    return (
        f"{count}seed {trial.seed}, {trial.way}: {metric} {trial.value:.3f}, {trial.seconds:.0f} s"
    )


def rows_of(trials: Sequence[Trial], ways: Sequence[str]) -> tuple[Row, ...]:
    """Return the trials by number of images and way, each way held against the best one."""
    rows = []
    for count in dict.fromkeys(trial.per_class for trial in trials):
        of_way = {way: [t for t in trials if t.way == way and t.per_class == count] for way in ways}
        best = max(ways, key=lambda way: np.mean([t.value for t in of_way[way]]))
        for way, mine in of_way.items():
            rows.append(
                Row(
                    way=way,
                    per_class=count,
                    values=tuple(trial.value for trial in mine),
                    seconds=float(np.mean([trial.seconds for trial in mine])),
                    parameters=mine[0].parameters,
                    behind=None if way == best else _behind(of_way[best], mine),
                )
            )
    return tuple(rows)


def _behind(best: Sequence[Trial], other: Sequence[Trial]) -> tuple[float, float, float] | None:
    """Return how much more the best way has right, and its 95% interval by a paired bootstrap.

    Test images are drawn again with replacement, within each seed, and by whole groups where they
    have groups; a seed's two answers to an image stay together.
    """
    if any(trial.right is None for trial in (*best, *other)):
        return None
    rng = np.random.default_rng(0)
    gains, draws = [], []
    for a, b in zip(best, other, strict=True):
        gain = a.right.astype(float) - b.right
        of = (
            np.arange(len(gain))
            if a.groups is None
            else np.unique(a.groups, return_inverse=True)[1]
        )
        sums, counts = np.bincount(of, gain), np.bincount(of)
        drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), DRAWS)
        gains.append(gain)
        draws.append(drawn @ sums / (drawn @ counts))
    means = np.mean(draws, axis=0)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(np.mean([g.mean() for g in gains])), float(low), float(high)
