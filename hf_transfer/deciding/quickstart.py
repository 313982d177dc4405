"""The quickstart: where transfer pays and where it stops to, seen offline in about a minute.

A small backbone learns drawn letters, whose labels cost nothing. Then three ways learn real
handwritten digits from the same few labelled images: from scratch, on frozen features, and probe
then fine-tune. What is printed is measured, and the conclusion follows from the numbers.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_transfer.backbones.load import load_backbone
from hf_transfer.backbones.saving import save_model
from hf_transfer.base.errors import UserError
from hf_transfer.base.files import write_text
from hf_transfer.data.digits import DIGITS, Digits, load_digits, write_examples
from hf_transfer.data.image_set import ImageSet
from hf_transfer.data.letters import LETTERS, contact_sheet, letters_set
from hf_transfer.deciding.quickstart_text import QuickstartResult, Row, format_quickstart
from hf_transfer.inputs.model_input import to_model_input
from hf_transfer.planning.phase import Phase
from hf_transfer.planning.phases import make_phases
from hf_transfer.recipe.specs import Recipe
from hf_transfer.results import facts, run_folder
from hf_transfer.results.metrics.classification import classification_metrics
from hf_transfer.results.report import PhaseReport, RunReport
from hf_transfer.training.arguments import training_arguments
from hf_transfer.training.trainer import TransferTrainer

__all__ = ["QuickstartResult", "format_quickstart", "run_quickstart"]

SAVED = 10  # images per class of the model that is saved, where they are among those compared
HELD_OUT = 20  # images of each letter, for the accuracy of the source


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
    model, letters, held_out = _source(recipe)
    digits = load_digits(model.backbone.image)
    digits.draw(max(recipe.compare.per_class), recipe.seed)
    run_folder.open_folder(out, recipe, resume=False)
    contact_sheet(letters.pixels, letters.labels).save(out / "letters.png")
    with _nothing_to_collect():
        source_accuracy = _train_source(recipe, model, letters, held_out)
        save_model(model, out / "source")
        say(f"{len(letters):,} letters: {source_accuracy:.3f} of new ones right")
        found = _trials(recipe, out / "source", digits, say)
    result = QuickstartResult(
        rows=tuple(_row(count, trials) for count, trials in found.items()),
        seeds=_seeds(recipe),
        test_images=len(digits.test),
        source_images=len(letters),
        source_accuracy=source_accuracy,
        seconds=time.monotonic() - started,
        out=out,
    )
    write_text(out / "comparison.json", json.dumps(result.to_dict(), indent=1) + "\n")
    write_examples(digits, out / "examples")
    kept = found.get(SAVED) or found[max(found)]
    _write_run(recipe, result, digits, kept[0])
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
            f"recipe {recipe.name}: a comparison does not heed {', '.join(ignored)}; leave "
            f"{'it' if len(ignored) == 1 else 'them'} out (its seeds are compare.seeds)"
        )


# --- the three ways -------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """The three ways on the same images; `model` is the fine-tuned one, `logits` its (N, 10)."""

    images: ImageSet
    scratch: float
    frozen: float
    tuned: float
    model: PreTrainedModel
    logits: np.ndarray
    reports: tuple[PhaseReport, ...]

    def __str__(self) -> str:
        return (
            f"from scratch {self.scratch:.3f}, frozen features {self.frozen:.3f}, "
            f"fine-tuned {self.tuned:.3f}"
        )


@dataclass(frozen=True)
class _Starts:
    """What a seed's trials start from: random weights, the letters' weights, and the phases."""

    recipe: Recipe
    random: PreTrainedModel
    trained: PreTrainedModel
    scratch: tuple[Phase, ...]
    transfer: tuple[Phase, ...]

    @classmethod
    def load(cls, recipe: Recipe, source: Path) -> _Starts:
        options: dict[str, Any] = {"image_size": recipe.data.image_size, "seed": recipe.seed}
        random = load_backbone(recipe.source.backbone, DIGITS, pretrained=False, **options)
        trained = load_backbone(str(source), DIGITS, **options)
        transfer = _transfer(recipe, trained)
        # From scratch: the fine-tuning phase itself, without what is about pretrained weights.
        whole = dataclasses.replace(
            transfer[-1].spec,
            train="all",
            cold_head=True,
            layer_decay=None,
            lrs=(),
            lr_geometric=None,
            l2_sp=0.0,
            still_norms=False,
        )
        scratch = make_phases([whole], random.backbone.groups)
        return cls(recipe, random, trained, scratch, transfer)


def _seeds(recipe: Recipe) -> tuple[int, ...]:
    return tuple(range(recipe.seed, recipe.seed + recipe.compare.seeds))


def _trials(
    recipe: Recipe, source: Path, digits: Digits, say: Callable[[str], None]
) -> dict[int, list[Trial]]:
    """Return, for each number of images per class, one trial per seed."""
    found: dict[int, list[Trial]] = {count: [] for count in recipe.compare.per_class}
    for seed in _seeds(recipe):
        starts = _Starts.load(dataclasses.replace(recipe, seed=seed), source)
        for count, trials in found.items():
            trials.append(_trial(starts, digits, count))
            say(f"digits, {count} per class, seed {seed}: {trials[-1]}")
    return found


def _trial(starts: _Starts, digits: Digits, count: int) -> Trial:
    """Train the three ways on `count` digits per class, drawn with the recipe's seed."""
    images = digits.draw(count, starts.recipe.seed)
    truth = digits.test.labels

    def accuracy(logits: np.ndarray) -> float:
        return float((logits.argmax(axis=1) == truth).mean())

    fresh, model = copy.deepcopy(starts.random), copy.deepcopy(starts.trained)
    _train(fresh, starts.scratch, images, starts.recipe)
    reports = _train(model, starts.transfer[:1], images, starts.recipe)
    frozen = accuracy(logits_of(model, digits.test))
    reports += _train(model, starts.transfer[1:], images, starts.recipe)
    logits = logits_of(model, digits.test)
    return Trial(
        images=images,
        scratch=accuracy(logits_of(fresh, digits.test)),
        frozen=frozen,
        tuned=accuracy(logits),
        model=model,
        logits=logits,
        reports=reports,
    )


def _source(recipe: Recipe) -> tuple[PreTrainedModel, ImageSet, ImageSet]:
    """Return the untrained backbone, its letters and some to test it on; checks all phases."""
    model = load_backbone(
        recipe.source.backbone,
        tuple(LETTERS),
        pretrained=False,
        image_size=recipe.data.image_size,
        seed=recipe.seed,
    )
    _transfer(recipe, model)
    _source_phases(recipe, model)
    wanted, more = recipe.source.letters, HELD_OUT * len(LETTERS)
    pixels, labels, names = letters_set(
        dataclasses.replace(wanted, images=wanted.images + more),
        model.backbone.image.stored,
        recipe.seed,
    )
    return (
        model,
        ImageSet.from_arrays(pixels[:-more], labels[:-more], names),
        ImageSet.from_arrays(pixels[-more:], labels[-more:], names),
    )


def _train_source(
    recipe: Recipe, model: PreTrainedModel, letters: ImageSet, held_out: ImageSet
) -> float:
    """Train the backbone on letters; return its accuracy on those held out."""
    _train(model, _source_phases(recipe, model), letters, recipe)
    return float((logits_of(model, held_out).argmax(axis=1) == held_out.labels).mean())


def _source_phases(recipe: Recipe, model: PreTrainedModel) -> tuple[Phase, ...]:
    return make_phases(recipe.source.phases, model.backbone.groups)


def _transfer(recipe: Recipe, model: PreTrainedModel) -> tuple[Phase, ...]:
    """Return the recipe's phases for this model: first the head's, then what fine-tunes."""
    backbone = model.backbone
    phases = make_phases(recipe.phases, backbone.groups)
    if len(phases) < 2 or not set(phases[0].parameters) <= set(backbone.layout.head):
        raise UserError(
            f"recipe {recipe.name}: compare needs a phase of the head alone, then fine-tuning"
        )
    return phases


def _train(
    model: PreTrainedModel, phases: Sequence[Phase], images: ImageSet, recipe: Recipe
) -> tuple[PhaseReport, ...]:
    """Train a model in place; what TransferTrainer writes of each phase is not kept."""
    model.to(memory_format=torch.channels_last)  # small convolutions are 1.4 times as fast on CPU
    with tempfile.TemporaryDirectory() as scratch:
        arguments = training_arguments(recipe, Path(scratch))
        trainer = TransferTrainer(model, arguments, phases=phases, train_dataset=images)
        trainer.train()
    return tuple(trainer.reports)


@contextlib.contextmanager
def _nothing_to_collect() -> Iterator[None]:
    """Keep what is loaded out of garbage collections: each phase's Trainer asks for several, and
    going through the modules in memory takes 0.3 s, as much as a third of such a phase."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@torch.no_grad()
def logits_of(model: PreTrainedModel, images: ImageSet, batch_size: int = 250) -> np.ndarray:
    """Return float32 logits (N, labels) of all images, in order, in evaluation mode."""
    model.eval()
    rows = []
    for start in range(0, len(images), batch_size):
        pixels = images.__getitems__(range(start, min(start + batch_size, len(images))))["pixels"]
        inputs = to_model_input(pixels.to(model.device), model.backbone.image)
        rows.append(model(pixel_values=inputs).logits.float().cpu().numpy())
    return np.concatenate(rows)


# --- what is written ------------------------------------------------------------


def _row(count: int, trials: Sequence[Trial]) -> Row:
    return Row(
        count,
        scratch=tuple(trial.scratch for trial in trials),
        frozen=tuple(trial.frozen for trial in trials),
        tuned=tuple(trial.tuned for trial in trials),
    )


def _write_run(recipe: Recipe, result: QuickstartResult, digits: Digits, kept: Trial) -> None:
    """Write the fine-tuned model and its report, as a run does."""
    save_model(kept.model, result.out / "model")
    counts = {"train": kept.images, "test": digits.test}
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
        phases=kept.reports,
        metrics={"test": classification_metrics(kept.logits, digits.test.labels, DIGITS)},
        seconds={"wall": result.seconds, "training": sum(one.seconds for one in kept.reports)},
        environment=facts.environment(),
        seed=recipe.seed,
        created=facts.now(),
    )
    run_folder.finish(report, result.out)
