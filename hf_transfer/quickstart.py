"""The quickstart: where transfer pays and where it stops to, seen offline in about a minute.

A small backbone learns drawn letters, whose labels cost nothing. Then three ways learn real
handwritten digits from the same few labelled images: from scratch, on frozen features, and probe
then fine-tune. What is printed is measured, and the conclusion follows from the numbers.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_transfer import facts, folder
from hf_transfer.arguments import training_arguments
from hf_transfer.backbone import load_backbone, save_model
from hf_transfer.data import ImageSet
from hf_transfer.digits import DIGITS, Digits, load_digits, write_examples
from hf_transfer.images import to_model_input
from hf_transfer.letters import LETTERS, contact_sheet, letters_set
from hf_transfer.metrics import classification_metrics
from hf_transfer.phases import Phase, make_phases
from hf_transfer.recipe import Recipe, UserError
from hf_transfer.report import PhaseReport, RunReport, write_text
from hf_transfer.trainer import TransferTrainer

SAVED = 10  # images per class of the model that is saved, where they are among those compared
FRESH_LETTERS = 20  # per letter, for the accuracy of the source


@dataclass(frozen=True)
class Row:
    """Accuracies on the test images, one per seed, of the three ways at one number of images."""

    per_class: int
    scratch: tuple[float, ...]
    frozen: tuple[float, ...]
    tuned: tuple[float, ...]


@dataclass(frozen=True)
class QuickstartResult:
    """What the comparison measured; `source_accuracy` is on letters that were not trained on."""

    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    test_images: int
    source_images: int
    source_accuracy: float
    seconds: float
    out: Path

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON values, and its conclusion."""
        values = dataclasses.asdict(self)
        return {**values, "out": str(self.out), "conclusion": conclusion(self.rows)}


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
    digits = load_digits(model.backbone.image)
    digits.draw(max(recipe.compare.per_class), recipe.seed)
    folder.open_folder(out, recipe, resume=False)
    contact_sheet(letters.pixels, letters.labels).save(out / "letters.png")
    source_accuracy = _train_source(recipe, model, letters)
    save_model(model, out / "source")
    say(f"{len(letters):,} letters: {source_accuracy:.3f} of new ones right")
    seeds = tuple(range(recipe.seed, recipe.seed + recipe.compare.seeds))
    found: dict[int, list[Trial]] = {count: [] for count in recipe.compare.per_class}
    for seed in seeds:
        starts = _Starts.load(dataclasses.replace(recipe, seed=seed), out / "source")
        for count, trials in found.items():
            trials.append(_trial(starts, digits, count))
            say(f"digits, {count} per class, seed {seed}: {trials[-1]}")
    result = QuickstartResult(
        rows=tuple(_row(count, trials) for count, trials in found.items()),
        seeds=seeds,
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
        )
        scratch = make_phases([whole], random.backbone.groups, random.backbone.layout)
        return cls(recipe, random, trained, scratch, transfer)


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


def _source(recipe: Recipe) -> tuple[PreTrainedModel, ImageSet]:
    """Return the untrained backbone and its letters, the recipe's phases having been checked."""
    model = load_backbone(
        recipe.source.backbone,
        tuple(LETTERS),
        pretrained=False,
        image_size=recipe.data.image_size,
        seed=recipe.seed,
    )
    _transfer(recipe, model)
    stored = model.backbone.image.stored
    return model, ImageSet.from_arrays(*letters_set(recipe.source.letters, stored, recipe.seed))


def _train_source(recipe: Recipe, model: PreTrainedModel, letters: ImageSet) -> float:
    """Train the backbone on letters; return its accuracy on letters that it has not seen."""
    backbone = model.backbone
    phases = make_phases(recipe.source.phases, backbone.groups, backbone.layout)
    _train(model, phases, letters, recipe)
    fewer = dataclasses.replace(recipe.source.letters, images=FRESH_LETTERS * len(LETTERS))
    fresh = ImageSet.from_arrays(*letters_set(fewer, backbone.image.stored, recipe.seed + 1))
    return float((logits_of(model, fresh).argmax(axis=1) == fresh.labels).mean())


def _transfer(recipe: Recipe, model: PreTrainedModel) -> tuple[Phase, ...]:
    """Return the recipe's phases for this model: first the head's, then what fine-tunes."""
    backbone = model.backbone
    phases = make_phases(recipe.phases, backbone.groups, backbone.layout)
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


# --- what is written and printed ------------------------------------------------------------


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
            "weights": f"trained on {result.source_images:,} drawn letters",
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
    folder.finish(report, result.out)


def format_quickstart(result: QuickstartResult) -> str:
    """Return the printed table, the conclusion and what to try next."""
    seeds = len(result.seeds)
    heads = ("images per class", "from scratch", "frozen features", "probe, then fine-tune")
    lines = [
        f"Accuracy on the same {result.test_images:,} handwritten digits: mean and range of "
        f"{seeds} seed{'s' * (seeds > 1)}.",
        f"The backbone of the last two columns has seen {result.source_images:,} drawn letters "
        f"({result.source_accuracy:.0%} of new ones right), and no digit.",
        "",
        "  ".join([f"{heads[0]:>16}", *(f"{head:<22}" for head in heads[1:])]).rstrip(),
    ]
    for row in result.rows:
        cells = [f"{_spread(values):<22}" for values in (row.scratch, row.frozen, row.tuned)]
        lines.append("  ".join([f"{row.per_class:>16}", *cells]).rstrip())
    return "\n".join(
        [
            *lines,
            "",
            conclusion(result.rows),
            f"{result.seconds:.0f} s in all.",
            "",
            f"Try it: hf-transfer predict {result.out / 'model'} {result.out / 'examples'}",
        ]
    )


def conclusion(rows: Sequence[Row]) -> str:
    """Return one to three sentences that follow from the numbers.

    One way is ahead of another where its worst seed beats the other's best; else they meet.
    """
    ahead = [row for row in rows if min(row.tuned) > max(row.scratch)]
    behind = [row for row in rows if max(row.tuned) < min(row.scratch)]
    level = [row for row in rows if row not in ahead and row not in behind]
    below = [row for row in rows if max(row.frozen) < min(row.tuned)]
    said = []
    if ahead:
        said.append(
            f"Transfer pays at {_counts(ahead)} per class, where its worst seed beats the best "
            f"from scratch ({_gains(ahead)})"
        )
    if level:
        said.append(f"at {_counts(level)} the two meet within the spread ({_gains(level)})")
    if behind:
        said.append(f"at {_counts(behind)} training from scratch is ahead ({_gains(behind)})")
    sentences = ["; ".join(said) + "."]
    if below:
        sentences.append(f"Frozen features fall behind fine-tuning at {_counts(below)}.")
    else:
        sentences.append("Frozen features keep up with fine-tuning everywhere.")
    if len(rows[0].tuned) == 1:
        sentences.append("One seed shows no spread: take more before trusting small differences.")
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ({min(values):.3f}..{max(values):.3f})"


def _counts(rows: Sequence[Row]) -> str:
    words = [str(row.per_class) for row in rows]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _gains(rows: Sequence[Row]) -> str:
    return ", ".join(f"{np.mean(row.tuned) - np.mean(row.scratch):+.3f}" for row in rows)
