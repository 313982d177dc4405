"""What the quickstart says: its table, and a conclusion that follows from the numbers."""

from __future__ import annotations

import dataclasses
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARGIN = 0.005  # of accuracy: less is no difference; 5 images of 1,000


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


def figure_of(result: QuickstartResult) -> dict[str, Any]:
    """Return the comparison as one of a report's figures: mean and range over the seeds."""
    ways = {"from scratch": "scratch", "frozen features": "frozen"}
    lines = [
        {
            "name": name,
            "points": [
                [row.per_class, statistics.mean(values), min(values), max(values)]
                for row in result.rows
                if (values := getattr(row, key))
            ],
        }
        for name, key in {**ways, "probe, then fine-tune": "tuned"}.items()
    ]
    return {
        "title": "With and without transfer",
        "note": f"{conclusion(result.rows)} Mean and range of {len(result.seeds)} seeds on the "
        f"same {result.test_images:,} test digits.",
        "x": "labelled digits per class",
        "y": "accuracy",
        "lines": lines,
    }


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
            textwrap.fill(conclusion(result.rows), 100),
            f"{result.seconds:.0f} s in all.",
            "",
            f"Try it: hf-transfer predict {result.out / 'model'} {result.out / 'examples'}",
        ]
    )


def conclusion(rows: Sequence[Row]) -> str:
    """Return sentences that follow from the numbers, seed by seed on the same images.

    One way is ahead of another where it is better by more than MARGIN with every seed; where
    neither is, the two meet.
    """
    tuned = {row.per_class: _gains(row.tuned, row.scratch) for row in rows}
    frozen = {row.per_class: _gains(row.frozen, row.scratch) for row in rows}
    ahead, level, behind = _verdicts(tuned)
    said = [
        f"{words} ({', '.join(f'{statistics.fmean(tuned[count]):+.3f}' for count in counts)})"
        for counts, words in (
            (ahead, f"transfer pays at {_and(ahead)} per class: fine-tuning beats from scratch"),
            (level, f"at {_and(level)} fine-tuning and from scratch meet"),
            (behind, f"at {_and(behind)} from scratch beats fine-tuning"),
        )
        if counts
    ]
    ahead, _, behind = _verdicts(frozen)
    alone = [
        f"{verb} from scratch at {_and(counts)}"
        for counts, verb in ((ahead, "beat"), (behind, "fall behind"))
        if counts
    ]
    sentences = [
        "; ".join(said) + ".",
        f"Frozen features alone {' and '.join(alone) or 'meet from scratch everywhere'}.",
    ]
    if len(rows[0].tuned) == 1:
        sentences.append("One seed shows no spread: take more before trusting small differences.")
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def _verdicts(gains: dict[int, list[float]]) -> tuple[list[int], list[int], list[int]]:
    """Return the numbers of images at which the one is ahead, level and behind."""
    ahead = [count for count, gain in gains.items() if min(gain) > MARGIN]
    behind = [count for count, gain in gains.items() if max(gain) < -MARGIN]
    return ahead, [count for count in gains if count not in ahead + behind], behind


def _gains(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(one, other, strict=True)]


def _and(counts: Sequence[int]) -> str:
    words = [str(count) for count in counts]
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.3f} ({min(values):.3f}..{max(values):.3f})"
