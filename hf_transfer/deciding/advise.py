"""Advice: what to freeze and what to unfreeze for a user's images, from about two passes over them.

Nothing is trained. Whatever is estimated from images is judged by others.
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

from hf_transfer.base.errors import UserError
from hf_transfer.base.files import write_text
from hf_transfer.base.machine import kept_memory
from hf_transfer.base.outputs import folder_to_write
from hf_transfer.base.signatures import checked
from hf_transfer.base.threads import fitting
from hf_transfer.data.findings import Finding
from hf_transfer.data.sources import list_source
from hf_transfer.deciding.evidence import ANEW, WHOLE, Change
from hf_transfer.deciding.free_labels import images_in, on_unlabelled
from hf_transfer.deciding.label_noise import label_findings
from hf_transfer.deciding.looks import BackboneAdvice, Looks
from hf_transfer.deciding.probes import behind
from hf_transfer.plans import plans_of
from hf_transfer.recipe.load import asked, dump_recipe, load_recipe
from hf_transfer.recipe.specs import PhaseSpec, Recipe
from hf_transfer.recipe.tasks import CLASSIFICATION, PRETEXTS, REGRESSION, TASKS, Task
from hf_transfer.results.words import over_time, show_score

BASE = "lp_ft"  # the recipe whose settings the advised one takes over
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Advice:
    """What to do with these images, why, and the recipe that does it; `backbones` best first."""

    data: str
    labels: tuple[str, ...]
    counts: dict[str, int]  # labelled images of each class, label or number
    smallest: int  # labelled images of the smallest class; without classes, half of all
    images: int  # looked at
    of: int  # labelled
    groups: int | None  # patients, videos or the like; None: images stand for themselves
    backbones: tuple[BackboneAdvice, ...]
    findings: tuple[Finding, ...]
    recipe: Recipe
    cost_seconds: float | None  # of training the recipe here
    notes: tuple[str, ...]
    seconds: float
    out: Path | None = None

    @property
    def best(self) -> BackboneAdvice:
        """The backbone that is advised."""
        return self.backbones[0]

    @property
    def task(self) -> Task:
        """What the images are asked: their class, several labels, or numbers."""
        return TASKS[self.recipe.task]

    @property
    def baseline(self) -> float:
        """What answers without looking would score: the largest class, a ranking by chance, or the
        mean of the numbers."""
        if self.task is REGRESSION:
            return 0.0
        shares = [count / max(1, self.of) for count in self.counts.values()]
        return max(shares) if self.task is CLASSIFICATION else float(np.mean(shares))

    def show(self, value: float, places: int = 2, sign: str = "") -> str:
        """Return a score of the task as people read it; a gain with sign "+"."""
        return show_score(self.task.headline, value, places, sign)

    def to_dict(self) -> dict[str, Any]:
        """Return the advice as plain JSON values."""
        plain = dataclasses.asdict(self)
        for key in ("out", "recipe"):
            del plain[key]
        plain["recipe"] = dump_recipe(self.recipe)
        plain |= {"metric": self.task.headline, "baseline": self.baseline}
        for backbone, one in zip(plain["backbones"], self.backbones, strict=True):
            backbone["expected"] = [one.expected, *one.expected_interval]
            del backbone["evidence"]["right"]
            for suspect in backbone["evidence"]["suspects"]:
                del suspect["row"]
        return plain


@fitting()
@kept_memory()
@checked
def advise(
    data: str | Path,
    *,
    backbone: str | Path | Sequence[str | Path],
    unlabelled: str | Path | None = None,
    budget: str | float | None = None,
    overrides: Sequence[str] = (),
    seed: int = 0,
    out: str | Path | None = None,
    on_progress: Say | None = None,
) -> Advice:
    """Return what to freeze and what to unfreeze for a user's images; nothing is trained.

    `backbone` is one or several to rank on the same images; `budget` seconds or a text such as
    "10m", by which fewer images are looked at. Of images below a folder `unlabelled` it says
    whether to learn from them first. With `out` a folder, recipe.yaml, advice.json and
    advice.html are written there. `overrides` are settings of a recipe, such as
    "data.image_size=96"; `seed` draws the images. `on_progress` gets a line for each step. Raises
    UserError.
    """
    began, say = time.monotonic(), on_progress or (lambda _: None)
    names = [backbone] if isinstance(backbone, (str, Path)) else list(backbone)
    if not names:
        raise UserError("advise needs a backbone, such as timm/resnet50.a1_in1k")
    place = folder_to_write(out) if out else None
    seconds = seconds_of(budget)
    _check_task(overrides)
    free = images_in(unlabelled)
    wanted = asked(BASE, data, str(names[0]), seed, overrides)
    if not wanted.pretrained:
        raise UserError(
            "advise is about pretrained weights, and pretrained: false has none; remove it, or "
            "train all layers from random weights with the recipe scratch"
        )
    listed = list_source(wanted.data, wanted.task)
    looks = Looks(wanted, listed, seed, None if seconds is None else seconds / len(names))
    found = []
    for name in dict.fromkeys(map(str, names)):
        say(f"{name}: looking at the images …")
        found.append(looks.at(name))
    ranked = _ranked(found, looks.groups)
    best = ranked[0]
    recipe = recipe_of(wanted, best)
    suspects = best.evidence.suspects
    findings = (
        *looks.audited,
        *label_findings(suspects, looks.images.files, looks.images.names),
    )
    cost = list(plans_of(recipe))[-1].seconds
    took = time.monotonic() - began
    advice = Advice(
        data=str(data),
        labels=looks.images.names,
        counts=looks.counts,
        smallest=looks.smallest,
        images=len(looks.images),
        of=looks.labelled,
        groups=None if looks.groups is None else len(np.unique(looks.groups)),
        backbones=tuple(ranked),
        findings=findings,
        recipe=recipe,
        cost_seconds=cost,
        notes=(
            *looks.notes,
            *on_unlabelled(
                unlabelled,
                free,
                looks.labelled,
                looks.smallest,
                best.evidence.nearness,
                TASKS[wanted.task],
            ),
            *over_time(took, seconds),
        ),
        seconds=took,
        out=place,
    )
    if advice.out:
        _write(advice, advice.out)
    return advice


def _check_task(overrides: Sequence[str]) -> None:
    given = [text.partition("=")[2].strip() for text in overrides if text.startswith("task=")]
    if given and given[-1] in PRETEXTS:
        raise UserError(
            f"advise is for images with labels, not task: {given[-1]}; give the folder without "
            "labels as --unlabelled (in Python: unlabelled=)"
        )


def seconds_of(budget: str | float | None) -> float | None:
    """Return a budget in seconds; a text is a number with s, m or h (minutes without a unit)."""
    if budget is None or isinstance(budget, (int, float)):
        found = budget
    else:
        text = budget.strip().lower()
        number = text[:-1] if text[-1:] in UNITS else text
        try:
            found = float(number) * UNITS[text[-1:] if text[-1:] in UNITS else "m"]
        except ValueError:
            raise UserError(f"budget {budget!r} is no time; write one such as 10m or 90s") from None
    if found is not None and not 0 < found < float("inf"):
        raise UserError(f"budget {budget!r} is no time; write one such as 10m or 90s")
    return found


def _ranked(found: Sequence[BackboneAdvice], groups: np.ndarray | None) -> list[BackboneAdvice]:
    """Return the backbones, best first, each held against the best on the same images."""
    order = sorted(found, key=lambda one: -one.expected)
    best = order[0].evidence.right
    return [
        order[0],
        *(
            dataclasses.replace(one, behind=behind(best, one.evidence.right, groups))
            for one in order[1:]
        ),
    ]


# --- the recipe ------------------------------------------------------------------------------


def recipe_of(wanted: Recipe, best: BackboneAdvice) -> Recipe:
    """Return the recipe that does what is advised: the exact head first, then the advised depth at
    small rates."""
    head, rest = wanted.phases[0], wanted.phases[1:]
    if wanted.task == REGRESSION.name:  # its rates and steps; those of BASE made numbers worse
        rest = load_recipe(wanted.task).phases[1:]
    helps = {change.what for change in best.evidence.changes if clear(change)}
    if ANEW in helps:
        head = dataclasses.replace(head, reestimate_norms=True)
    data = wanted.data
    if WHOLE in helps:
        data = dataclasses.replace(data, fit="squash")
    train = best.choice.depth.train
    phases = [head]
    if train != ("head",):
        plain = [phase for phase in rest if isinstance(phase, PhaseSpec)]  # there are no others
        phases += [dataclasses.replace(phase, train=train) for phase in plain]
    return dataclasses.replace(
        wanted, name="advised", backbone=best.id, data=data, phases=tuple(phases)
    )


def clear(change: Change) -> bool:
    """Return whether a change gains more than chance would, by two standard errors."""
    return change.gain > 2 * change.error


def _write(advice: Advice, folder: Path) -> None:
    from hf_transfer.deciding.advise_page import advice_page
    from hf_transfer.deciding.advise_text import format_advice, recipe_text

    write_text(folder / "recipe.yaml", recipe_text(advice))
    write_text(folder / "advice.json", json.dumps(advice.to_dict(), indent=1) + "\n")
    write_text(folder / "advice.txt", format_advice(advice) + "\n")
    write_text(folder / "advice.html", advice_page(advice))
