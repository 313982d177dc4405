"""Depth: is what `advise` says to unfreeze the best or the second best of all depths?

    python tests/benchmarks/depths.py rows.jsonl --data FOLDER --backbone ID --image-size 96 \
        --per-class 20,100 --seeds 1 [--group PATTERN]
    python tests/benchmarks/depths.py rows.jsonl          # the table of what is there

Each row of the file is one draw of labelled images: what is advised for them, and what the advised
recipe reaches on other images with each of the depths that `advise` compares. What is there is not
run again. The bar: best or second best in 3 rows of 4.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
from few_labels import KEY, about_of, drawn, options, read, spec_of

from hf_transfer.backbones.load import load_backbone
from hf_transfer.data.image_set import ImageData, joined
from hf_transfer.data.sources import list_source, scan
from hf_transfer.deciding import advise, trials
from hf_transfer.deciding.depth import Choice, choose
from hf_transfer.deciding.evidence import evidence_of
from hf_transfer.deciding.folds import groups_of
from hf_transfer.deciding.looks import BackboneAdvice
from hf_transfer.progress import quiet
from hf_transfer.recipe.load import asked


def main() -> None:
    args = options(__doc__).parse_args()
    quiet()
    done = {tuple(row[key] for key in KEY[:5]) for row in read(args.rows)}
    for count in map(int, args.per_class.split(",")) if args.data else ():
        for seed in range(args.seeds):
            if tuple(about_of(args, count, seed).values()) not in done:
                row = {**about_of(args, count, seed), **measured(args, count, seed)}
                with args.rows.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
    print("\n".join(table(read(args.rows))))


def measured(args: argparse.Namespace, count: int, seed: int) -> dict[str, Any]:
    """Return the depth that is advised, and the accuracy of each by the stages that train."""
    spec, began = spec_of(args), time.monotonic()
    listed = list_source(spec)
    model = load_backbone(args.backbone, listed.labels, image_size=args.image_size, seed=seed)
    data = drawn(spec, model, count, seed)
    images = joined(data.train, data.validation)
    groups = groups_of(scan(spec, seed), images.files)
    evidence = evidence_of(model, images, groups, whole=None, seed=seed)
    choice = choose(evidence.depths, min(images.class_counts), evidence.early)
    took = time.monotonic() - began
    ways = []
    for depth in evidence.depths:
        one = BackboneAdvice(args.backbone, args.image_size, 0, evidence, Choice(depth, "", ""))
        size = f"data.image_size={args.image_size}"
        wanted = asked(advise.BASE, args.data, args.backbone, seed, [size])
        recipe = advise.recipe_of(wanted, one)
        ways.append(trials.Way(str(depth.stages), recipe))

    def draw(number: int | None, of_seed: int, other: Any) -> ImageData:
        return drawn(spec, other, int(number or 0), of_seed)

    found = list(trials.trials_of(ways, listed.labels, draw, (count,), (seed,)))
    return {
        "advised": str(choice.depth.stages),
        "why": choice.why,
        "accuracy": {trained.trial.way: trained.trial.value for trained, _ in found},
        "probe": {str(depth.stages): depth.value for depth in evidence.depths},
        "n": len(found[0][1]),
        "advice_seconds": took,
    }


def rank(row: dict[str, Any]) -> int:
    """Return the place of the advised depth by accuracy: 1 is the best."""
    mine = row["accuracy"][row["advised"]]
    return 1 + sum(value > mine for value in row["accuracy"].values())


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return a table in Markdown, and how the bar is met."""
    lines = ["| data, backbone, px, per class, seed | stages: accuracy | advised | place |"]
    lines.append("| --- | --- | --- | --- |")
    for row in rows:
        found = ", ".join(f"{stages}: {value:.3f}" for stages, value in row["accuracy"].items())
        about = ", ".join(str(row[key]) for key in KEY[:5])
        lines.append(f"| {about} | {found} | {row['advised']} | {rank(row)} |")
    if rows:
        near = np.sum([rank(row) <= 2 for row in rows])
        lines += ["", f"advised the best or second-best depth in {near} of {len(rows)} rows"]
    return lines


if __name__ == "__main__":
    main()
