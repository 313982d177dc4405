"""The quickstart: where transfer pays and where it stops paying, offline in a minute or two.

A small backbone learns drawn letters, whose labels cost nothing. Then three ways learn real
handwritten digits from the same few labelled images: from scratch, on frozen features, and probe
then fine-tune. It is a comparison like any other, over built-in data.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import PreTrainedModel

from hf_transfer.backbones.load import load_backbone
from hf_transfer.backbones.saving import save_model
from hf_transfer.base.errors import UserError
from hf_transfer.base.files import write_text
from hf_transfer.base.machine import kept_memory, nothing_to_collect
from hf_transfer.base.threads import fitting
from hf_transfer.data.audit import Audit
from hf_transfer.data.digits import DIGITS, Digits, load_digits, write_examples
from hf_transfer.data.image_set import ImageData, ImageSet
from hf_transfer.data.letters import LETTERS, contact_sheet, letters_set
from hf_transfer.deciding.bag import model_logits
from hf_transfer.deciding.quickstart_text import (
    QuickstartResult,
    Row,
    figure_of,
    format_quickstart,
)
from hf_transfer.deciding.trials import Trained, Trial, Way, trials_of
from hf_transfer.planning.phases import make_phases
from hf_transfer.recipe.load import load_recipe
from hf_transfer.recipe.specs import Recipe
from hf_transfer.results import facts, run_folder
from hf_transfer.results.examples import encoded, examples
from hf_transfer.results.metrics.classification import classification_metrics
from hf_transfer.results.report import RunReport
from hf_transfer.run import prepare

__all__ = ["QuickstartResult", "format_quickstart", "run_quickstart"]

SAVED = 10  # images per class of the model that is saved, where they are among those compared
SHEET_PX = 900  # longest side of the letters' picture on the page
HELD_OUT = 20  # images of each letter, for the accuracy of the source
SCRATCH, FROZEN, TUNED = "from scratch", "frozen features", "probe, then fine-tune"


@fitting()
@kept_memory()
def run_quickstart(
    recipe: Recipe, out: Path, on_progress: Callable[[str], None] | None = None
) -> QuickstartResult:
    """Run the comparison that `recipe.compare` asks for, and write it to the folder `out`.

    `out` gets a regular run's files for the fine-tuned model of SAVED images per class (first
    seed), the letters' backbone in source/, comparison.json, letters.png and digits in examples/.
    Raises UserError, before anything is trained, for a recipe that cannot be compared.
    """
    started, say = time.monotonic(), on_progress or (lambda _: None)
    _check(recipe)
    model, letters = _source(recipe)
    ways, digits = _ways(recipe, model, out / "source"), load_digits(model.backbone.image)
    digits.draw(max(recipe.compare.per_class), recipe.seed)
    run_folder.open_folder(out, recipe, resume=None)
    drawn = letters.train
    sheet = contact_sheet(np.asarray(drawn.pixels), np.asarray(drawn.labels, np.int64))
    sheet.save(out / "letters.png")
    with nothing_to_collect():
        source_accuracy = _train_source(recipe, model, letters)
        save_model(model, out / "source")
        say(f"{len(letters.train):,} letters: {source_accuracy:.3f} of new ones right")
        found = []
        draw = _drawn(digits)
        seeds = range(recipe.seed, recipe.seed + recipe.compare.seeds)
        for trained, _ in trials_of(ways, DIGITS, draw, recipe.compare.per_class, seeds):
            found.append(trained.trial)
            if len(found) % len(ways) == 0:
                say(_told(found[-len(ways) :]))
            if _is_kept(trained, recipe):
                kept = trained
    values = {
        count: {
            way.name: tuple(t.value for t in found if (t.way, t.per_class) == (way.name, count))
            for way in ways
        }
        for count in recipe.compare.per_class
    }
    result = QuickstartResult(
        rows=tuple(Row(n, v[SCRATCH], v[FROZEN], v[TUNED]) for n, v in values.items()),
        seeds=tuple(seeds),
        test_images=len(digits.test),
        source_images=len(letters.train),
        source_accuracy=source_accuracy,
        seconds=time.monotonic() - started,
        out=out,
    )
    write_text(out / "comparison.json", json.dumps(result.to_dict(), indent=1) + "\n")
    write_examples(digits, out / "examples")
    _write_run(recipe, result, digits, kept, sheet)
    return result


def _check(recipe: Recipe) -> None:
    if recipe.compare is None or recipe.source is None or recipe.source.letters is None:
        raise UserError(f"recipe {recipe.name}: compare needs source.letters, as in quickstart")
    if recipe.data.path is not None:
        raise UserError(
            f"recipe {recipe.name} compares on scikit-learn's digits and takes no data; for "
            f"{recipe.data.path} choose a recipe such as lp_ft"
        )
    plain = Recipe(name=recipe.name, phases=recipe.phases)
    ignored = [
        name
        for name in ("pretrained", "weights", "head", "loss", "metrics", "seeds")
        if getattr(recipe, name) != getattr(plain, name)
    ]
    if ignored:
        raise UserError(
            f"recipe {recipe.name}: a comparison does not use {', '.join(ignored)}; leave "
            f"{'it' if len(ignored) == 1 else 'them'} out (its seeds are compare.seeds)"
        )


# --- the source --------------------------------------------------------------------------------


@fitting()
def train_letters(out: Path, images: int) -> float:
    """Train the quickstart's backbone on so many drawn letters and save it in `out`; return its
    accuracy on new ones, in 0..1."""
    recipe = load_recipe("quickstart", [f"source.letters.images={images}"])
    model, letters = _source(recipe)
    accuracy = _train_source(recipe, model, letters)
    save_model(model, out)
    return accuracy


def _source(recipe: Recipe) -> tuple[PreTrainedModel, ImageData]:
    """Return the untrained backbone, and its letters with some to test it on."""
    model = load_backbone(
        recipe.source.backbone,
        tuple(LETTERS),
        pretrained=False,
        image_size=recipe.data.image_size,
        seed=recipe.seed,
    )
    wanted, more = recipe.source.letters, HELD_OUT * len(LETTERS)
    assert wanted is not None  # as the recipe was checked for
    pixels, labels, names = letters_set(
        dataclasses.replace(wanted, images=wanted.images + more),
        model.backbone.image.stored,
        recipe.seed,
    )
    train = ImageSet.from_arrays(pixels[:-more], labels[:-more], names)
    return model, _data(train, ImageSet.from_arrays(pixels[-more:], labels[-more:], names))


def _train_source(recipe: Recipe, model: PreTrainedModel, letters: ImageData) -> float:
    """Train the backbone on letters; return its accuracy on those held out."""
    of_source = dataclasses.replace(recipe, phases=recipe.source.phases)
    with tempfile.TemporaryDirectory() as scratch:
        trainer, _ = prepare(of_source, model, letters, Path(scratch))
        trainer.train()
    logits = model_logits(model, letters.test)
    return float((logits.argmax(axis=1) == letters.test.labels).mean())


# --- the three ways ----------------------------------------------------------------------------


def _ways(recipe: Recipe, model: PreTrainedModel, source: Path) -> tuple[Way, ...]:
    """Return the three ways. Raises UserError unless the first phase trains the head alone."""
    backbone = model.backbone
    phases = make_phases(recipe.phases, backbone.groups)
    if len(phases) < 2 or not set(phases[0].parameters) <= set(backbone.layout.head):
        raise UserError(
            f"recipe {recipe.name}: compare needs a phase of the head alone, then fine-tuning"
        )
    make_phases(recipe.source.phases, backbone.groups)
    # From scratch: the fine-tuning phase itself, without what is about pretrained weights.
    whole = dataclasses.replace(
        phases[-1].spec,
        train="all",
        cold_head=True,
        lr=phases[-1].spec.head_lr,
        layer_decay=None,
        lrs=(),
        l2_sp=0.0,
        still_norms=False,
    )
    plain = dataclasses.replace(recipe, source=None, compare=None)
    random = dataclasses.replace(plain, backbone=recipe.source.backbone, pretrained=False)
    trained = dataclasses.replace(plain, backbone=str(source))
    return (
        Way(SCRATCH, dataclasses.replace(random, phases=(whole,))),
        Way(FROZEN, dataclasses.replace(trained, phases=recipe.phases[:1])),
        Way(TUNED, trained),
    )


def _told(trials: Sequence[Trial]) -> str:
    """Return the ways on one draw of images in a line."""
    ways = ", ".join(f"{trial.way} {trial.value:.3f}" for trial in trials)
    return f"digits, {trials[0].per_class} per class, seed {trials[0].seed}: {ways}"


def _drawn(digits: Digits) -> Callable[[int | None, int, PreTrainedModel], ImageData]:
    return lambda count, seed, model: _data(digits.draw(count or 0, seed), digits.test)


def _data(train: ImageSet, test: ImageSet) -> ImageData:
    """Return images that train and images that test; none choose anything."""
    nothing = train.subset([])
    return ImageData(train.names, train, nothing, test, Audit(), "", "")


def _is_kept(trained: Trained, recipe: Recipe) -> bool:
    counts, trial = recipe.compare.per_class, trained.trial
    count = SAVED if SAVED in counts else max(counts)
    return (trial.way, trial.per_class, trial.seed) == (TUNED, count, recipe.seed)


# --- what is written ---------------------------------------------------------------------------


def _write_run(
    recipe: Recipe,
    result: QuickstartResult,
    digits: Digits,
    kept: Trained,
    sheet: Image.Image,
) -> None:
    """Write the fine-tuned model and its report with the comparison, as a run does."""
    save_model(kept.model, result.out / "model")
    assert kept.trial.per_class is not None
    trained = digits.draw(kept.trial.per_class, kept.trial.seed)
    counts = {"train": trained, "test": digits.test}
    report = RunReport(
        name=recipe.name,
        recipe=dataclasses.asdict(recipe),
        backbone={
            **facts.backbone_facts(kept.model, recipe.source.backbone),
            "weights": f"{result.source_images:,} drawn letters",
            "license": None,  # no checkpoint's weights are in it
        },
        data={
            "path": "scikit-learn load_digits",
            "labels": list(DIGITS),
            "counts": {
                name: dict(zip(DIGITS, images.class_counts, strict=True))
                for name, images in counts.items()
            },
            "fingerprint": digits.fingerprint,
            "audit": {},
        },
        phases=kept.phases,
        metrics={"test": classification_metrics(kept.logits, digits.test.labels, DIGITS)},
        seconds={"wall": result.seconds, "training": sum(one.seconds for one in kept.phases)},
        environment=facts.environment(),
        seed=recipe.seed,
        created=facts.now(),
        examples={
            **examples("classification", kept.logits, digits.test),
            "sheets": [
                {
                    "title": "The letters it learned first",
                    "note": f"{result.source_images:,} drawn letters, whose labels cost nothing; "
                    f"it reads {result.source_accuracy:.0%} of new ones.",
                    "picture": encoded(sheet, SHEET_PX),
                }
            ],
        },
        figures=(figure_of(result),),
    )
    run_folder.finish(report, result.out)
