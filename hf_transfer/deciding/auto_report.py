"""The report of `auto`: what to expect on new images, next to what needs no search."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from hf_transfer.backbones.saving import save_model
from hf_transfer.base.files import write_text
from hf_transfer.data.image_set import ImageData
from hf_transfer.deciding import bag, taken
from hf_transfer.deciding.attempts import Attempts
from hf_transfer.deciding.choosing import expected_accuracy
from hf_transfer.deciding.tried import Clock, facts_of
from hf_transfer.deciding.uneven import metric_of
from hf_transfer.recipe.load import dump_recipe
from hf_transfer.recipe.specs import Recipe
from hf_transfer.recipe.tasks import CLASSIFICATION, TASKS
from hf_transfer.results import facts, run_folder
from hf_transfer.results.examples import examples
from hf_transfer.results.metrics.by_name import measure
from hf_transfer.results.metrics.resampling import widen
from hf_transfer.results.report import PhaseReport, RunReport
from hf_transfer.results.words import metric_with_article, over_time
from hf_transfer.serving.familiar import keep_familiar

NAME = "auto"


@dataclass(frozen=True)
class Found:
    """What `auto` comes to: the model, what it is expected to reach, and what was tried."""

    model: PreTrainedModel
    data: ImageData
    chosen: str
    rows: np.ndarray  # of the labelled images, those that say what to expect
    logits: np.ndarray  # of these, from what had no part of them; or numbers
    metrics: dict[str, Any]  # of these
    phases: tuple[PhaseReport, ...]
    facts: dict[str, Any]
    recipe: Recipe
    notes: tuple[str, ...] = ()


def judged(
    work: Attempts, chosen: str, rows: np.ndarray, outputs: np.ndarray
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the metrics of what is expected on new images, and what the report says of the search:
    what to expect, next to what needs no search."""
    leads, first = work.metric, next(iter(work.ways.values()))[rows]
    metrics, parts = work.measured(outputs, rows), taken.parts(work, chosen)
    if parts > 1:
        widen(metrics, parts)
    if work.task is CLASSIFICATION:
        groups = None if work.groups is None else work.groups[rows]
        spread = expected_accuracy(outputs, work.truth[rows], groups, parts)[1]
        metrics["intervals"]["accuracy"] = list(spread)
    expected = {leads: metrics[leads], "n": len(rows)}
    if leads in metrics["intervals"]:
        expected["interval"] = metrics["intervals"][leads]
    found = {
        "expected": expected,
        "exact_head": work.measured(first, rows, bootstrap=0, tables=False)[leads],
        "parts": parts,
        "tried": facts_of(work.tried),
        "tried_lines": tuple(work.tried),
        "budget_seconds": work.clock.seconds,
    }
    if work.task is CLASSIFICATION:
        counts = np.bincount(work.truth[rows])
        even = leads == "balanced_accuracy"
        share = 1 / np.count_nonzero(counts) if even else counts.max() / len(rows)
        found["majority"] = float(share)
    return metrics, found


def written(found: Found, folder: Path, clock: Clock) -> RunReport:
    """Write the run's folder as any run's, and return its report."""
    here, data, test = run_folder.RunFolder(folder), found.data, found.data.test
    task = TASKS[found.recipe.task]
    metrics = {**found.metrics, "said": told(found.facts, metric_of(found.recipe))}
    shown = found.facts.pop("examples", {})
    if test is not None:
        logits = bag.model_logits(found.model, test)
        of_test = test.labels, test.names, test.scale
        metrics["test"] = measure(task.name, logits, *of_test, groups=test.groups)
        if shown:
            shown = examples(task.name, logits, test, data.audit.findings, [data.train])
    save_model(found.model.cpu(), here.model)
    keep_familiar(here.model, data)
    write_text(here.recipe, dump_recipe(found.recipe))
    wall = time.monotonic() - clock.began
    report = RunReport(
        name=NAME,
        recipe=dataclasses.asdict(found.recipe),
        backbone=facts.backbone_facts(found.model, str(found.recipe.backbone)),
        data=facts.data_facts(data),
        phases=found.phases,
        metrics=metrics,
        seconds={"wall": wall, "training": wall},
        environment=facts.environment(),
        seed=found.recipe.seed,
        warnings=(*found.notes, *over_time(wall, clock.seconds)),
        created=facts.now(),
        examples=shown,
        auto={k: v for k, v in found.facts.items() if k != "tried_lines"},
    )
    return run_folder.finish(report, folder)


def told(facts: dict[str, Any], leads: str) -> list[str]:
    """Return what came out and what was tried, in sentences: the page has them, too."""
    expected = facts["expected"]
    bounds = expected.get("interval")
    within = f" (95% interval {bounds[0]:.3f} to {bounds[1]:.3f})" if bounds else ""
    metric, value = metric_with_article(leads), _shown(expected[leads])
    first = (
        f"Expect {metric} of {value} on new images{within}, measured on {expected['n']} labelled "
        "images that took no part in any choice. On these the exact head reaches "
        f"{_shown(facts['exact_head'])}"
    )
    if "majority" in facts:
        first += f", the most common class {facts['majority']:.3f}"
    return [f"{first}.", *(f"{line}." for line in map(str, facts["tried_lines"]))]


def _shown(value: float | None) -> str:
    return "a value that is not defined" if value is None else f"{value:.3f}"
