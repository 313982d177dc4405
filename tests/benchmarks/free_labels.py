"""What images without labels are worth: the same labelled images with and without each pretext.

    python tests/benchmarks/free_labels.py photos --data FOLDER --out DIR --backbone ID \
        --start pretrained --labels 5,20,100 --seeds 3 [--group PATTERN] [--unlabelled 3000]
    python tests/benchmarks/free_labels.py video --out DIR --start random --pretexts none,slow
    python tests/benchmarks/free_labels.py table --out DIR    # what is there, as a table

`photos` takes any folder of class folders: of each class some images are labelled, fewer ones among
more, others validate and test, and `--unlabelled` more, with the labelled ones, are a folder
without labels. Images of a `--group` (a pattern on their names) stay on one side. `video` renders
objects that move and turn; the labels say which object it is. A pretext is trained once for all
numbers of labels, to its last epoch, so that no label has a part in it; then each number goes on
from there with the phases of the recipe free_labels. One JSON line per number goes to
DIR/rows.jsonl; what is there is not run again, and a run that was cut off is resumed.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from hf_transfer.base.errors import UserError
from hf_transfer.plans import plans_of
from hf_transfer.recipe.load import asked, source_recipe
from hf_transfer.recipe.specs import Recipe
from hf_transfer.recipe.tasks import PRETEXTS
from hf_transfer.run import run

KEY = ("case", "backbone", "start", "size", "unlabelled", "epochs", "pretext", "seed", "labels")
NONE, PSEUDO = "none", "pseudo"
AUGMENTS = {  # where the recipe's own is not for a pretext
    "motion": "none",
    "rotation": "{crop: [0.35, 1], flip: true, color: 0.3}",
    "slow": "none",
}
# From random weights, as docs/free-labels.md says
RANDOM_SOURCE = ["source.phases.0.lr=2e-3", "source.phases.0.layer_decay=1"]
RANDOM = ["lr=1e-3", "layer_decay=1", "still_norms=false", "reestimate_norms=true"]


def main() -> None:
    """Run every pretext with every seed that DIR does not have yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=("photos", "video", "table"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--group", help="pattern of what stays together, on the images' names")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbone", default="timm/resnet10t")
    parser.add_argument("--start", default="pretrained", choices=("random", "pretrained"))
    parser.add_argument("--pretexts", default=",".join([NONE, *PRETEXTS, PSEUDO]))
    parser.add_argument("--labels", default="5,20,100", help="of each class")
    parser.add_argument("--validation", type=int, default=10, help="images of each class")
    parser.add_argument("--test", type=int, default=100, help="images of each class")
    parser.add_argument("--unlabelled", type=int, default=3000)
    parser.add_argument("--epochs", type=float, default=4, help="of the pretext")
    parser.add_argument("--steps", type=int, default=150, help="of it, at least")
    parser.add_argument("--fine-steps", type=int, default=100, help="of what follows, at least")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seeds if args.case != "table" else 0):
        for pretext in args.pretexts.split(","):
            run_pretext(args, pretext, seed)
    print("\n".join(table(read(args.out))))


def read(out: Path) -> list[dict[str, Any]]:
    """Return the rows that are there."""
    rows = out / "rows.jsonl"
    return [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the mean test accuracy of each pretext over so many seeds, a column for each number of
    labels."""
    found = collections.defaultdict(list)
    for row in rows:
        found[tuple(row[key] for key in KEY if key != "seed")].append(row["test"])
    counts = sorted({row["labels"] for row in rows})
    cases = dict.fromkeys(key[:-1] for key in found)
    lines = [f"| case | pretext | {' | '.join(map(str, counts))} |"]
    for *case, pretext in cases:
        cells = []
        for count in counts:
            mine = found.get((*case, pretext, count), [])
            cells.append(f"{np.mean(mine):.3f} ({len(mine)})" if mine else "")
        lines.append(f"| {' '.join(map(str, case))} | {pretext} | {' | '.join(cells)} |")
    return lines


def run_pretext(args: argparse.Namespace, pretext: str, seed: int) -> None:
    """Add the rows of one pretext with one seed, of all numbers of labels."""
    name = args.case if args.case == "video" else args.data.name
    about = {
        "case": name,
        "backbone": Path(args.backbone).name,
        "start": args.start,
        "size": args.size,
        "unlabelled": args.unlabelled,
        "epochs": args.epochs,
        "pretext": pretext,
        "seed": seed,
    }
    known = {tuple(row[key] for key in KEY) for row in read(args.out)}
    counts = [int(text) for text in args.labels.split(",")]
    left = [count for count in counts if (*about.values(), count) not in known]
    if not left:
        return
    place = args.out / f"{name}-{args.unlabelled}-{args.size}-{seed}"
    if not place.is_dir():
        drawn = place.with_name(f"{place.name}.part{os.getpid()}")
        (photos if args.case == "photos" else video)(args, drawn, counts, seed)
        drawn.rename(place)
    runs = args.out / "runs" / "-".join(str(value) for value in about.values())
    backbone: str = args.backbone
    first: dict[str, Any] = {}
    if pretext in PRETEXTS:
        whole = recipe_of(args, pretext, seed, place, counts[0])
        backbone, first = learned_first(whole, runs / "source")
    for count in left:
        recipe = recipe_of(args, pretext, seed, place, count)
        if pretext in PRETEXTS:
            recipe = dataclasses.replace(recipe, source=None, backbone=backbone)
        report = run(recipe, runs / str(count), resume=(runs / str(count)).is_dir())
        row = {**about, "labels": count, "test": report.metrics["test"]["accuracy"], **first}
        with (args.out / "rows.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


def learned_first(recipe: Recipe, out: Path) -> tuple[str, dict[str, Any]]:
    """Train the pretext of a recipe; return its network's folder, and what its report says."""
    planned = next(iter(plans_of(recipe))).seconds
    source = source_recipe(recipe)
    report = run(source, out, resume=out.is_dir(), target=recipe)
    facts = {
        "probe": [found["probe_accuracy"] for found in (report.metrics["before"], report.metrics)],
        "planned_seconds": round(planned or 0.0, 1),
        "seconds": round(report.seconds["training"], 1),
    }
    return str(out / "model"), facts


def recipe_of(args: argparse.Namespace, pretext: str, seed: int, place: Path, count: int) -> Recipe:
    """Return the recipe of one pretext and one number of labels, both halves of it."""
    data, free = place / f"labelled-{count}", place / "unlabelled"
    settings = [f"data.image_size={args.size}", f"precision={args.precision}"]
    if pretext == NONE and args.start == "random":
        return asked("scratch", data, args.backbone, seed, settings)
    settings += [
        f"source.pretext={pretext if pretext in PRETEXTS else 'contrastive'}",
        f"source.start={args.start}",
        f"source.phases.0.epochs={args.epochs:g}",
        f"source.phases.0.min_steps={args.steps}",
        "source.phases.0.best=last",
        f"phases.1.min_steps={args.fine_steps}",
    ]
    if pretext in AUGMENTS:
        settings.append(f"source.phases.0.augment={AUGMENTS[pretext]}")
    if args.start == "random":
        settings += RANDOM_SOURCE + [f"phases.1.{setting}" for setting in RANDOM]
    if pretext == PSEUDO:
        settings += ["phases.1.pseudo=fixmatch", "phases.1.best=accuracy"]
        settings += [f"data.unlabelled={json.dumps(str(free))}"]
    recipe = asked("free_labels", data, args.backbone, seed, settings, unlabelled=free)
    if pretext in PRETEXTS:
        return recipe
    return dataclasses.replace(recipe, source=None, backbone=args.backbone)


# --- images ----------------------------------------------------------------------------------


def photos(args: argparse.Namespace, place: Path, counts: list[int], seed: int) -> None:
    """Lay out real images as links: labelled ones in splits, and a folder without labels, in which
    those that are labelled at most come first."""
    rng = np.random.default_rng(seed)
    held, left = sides(args, rng)
    for count in counts:
        train, _ = first_of_each(left, count)
        for split, files in {**held, "train": train}.items():
            for path in files:
                link(path, place / f"labelled-{count}" / split / path.parent.name / path.name)
    known, others = first_of_each(left, max(counts))
    free = (known + others)[: args.unlabelled]
    for number, row in enumerate(rng.permutation(len(free))):
        link(free[row], place / "unlabelled" / f"{number:05d}{free[row].suffix}")


def sides(
    args: argparse.Namespace, rng: np.random.Generator
) -> tuple[dict[str, list[Path]], list[Path]]:
    """Return the images that test and that validate, and the others, in a drawn order.

    Groups are drawn one by one: each to test until its class has its images there, then to
    validate, then to the others.
    """
    if args.data is None:
        raise UserError("photos needs --data, a folder of class folders")
    groups: dict[str, list[Path]] = collections.defaultdict(list)
    for path in sorted(args.data.glob("*/*")):
        found = re.search(args.group, path.name) if args.group else None
        groups[found[0] if found else str(path)].append(path)
    names = sorted(groups)
    wanted = {"test": args.test, "validation": args.validation}
    held: dict[str, list[Path]] = {split: [] for split in wanted}
    left: list[Path] = []
    for name in (names[row] for row in rng.permutation(len(names))):
        kind = groups[name][0].parent.name
        had = {split: sum(path.parent.name == kind for path in held[split]) for split in wanted}
        split = next((one for one, most in wanted.items() if had[one] < most), None)
        (held[split] if split else left).extend(groups[name])
    return held, left


def first_of_each(files: list[Path], count: int) -> tuple[list[Path], list[Path]]:
    """Return the first so many of each class, and the others."""
    had: collections.Counter[str] = collections.Counter()
    first: list[Path] = []
    others: list[Path] = []
    for path in files:
        had[path.parent.name] += 1
        (first if had[path.parent.name] <= count else others).append(path)
    return first, others


def link(path: Path, new: Path) -> None:
    """Link a file at a new place."""
    new.parent.mkdir(parents=True, exist_ok=True)
    os.symlink(path.resolve(), new)


SIDES = {"triangle": 3, "square": 4, "pentagon": 5, "star": 10, "circle": 40}


def video(args: argparse.Namespace, place: Path, counts: list[int], seed: int) -> None:
    """Render films of one object each; the labelled frames are single ones of other films."""
    rng = np.random.default_rng(seed)
    for film in range(args.unlabelled // 30):
        kind = list(SIDES)[film % len(SIDES)]
        for number, frame in enumerate(frames(rng, kind, 30, args.size)):
            save(frame, place / "unlabelled" / f"film-{film:03d}" / f"{number:03d}.png")
    for split, most in (
        ("train", max(counts)),
        ("validation", args.validation),
        ("test", args.test),
    ):
        for kind in SIDES:
            for number in range(most):
                (frame,) = frames(rng, kind, 1, args.size)
                for count in counts:
                    if split != "train" or number < count:
                        folder = place / f"labelled-{count}" / split / kind
                        save(frame, folder / f"{number:03d}.png")


def save(image: Image.Image, path: Path) -> None:
    """Write an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def frames(rng: np.random.Generator, kind: str, count: int, size: int) -> list[Image.Image]:
    """Return the frames of a film of one object, drawn at twice the size and reduced: it drifts,
    turns and changes its size, the light on it flickers, and what is behind it passes by."""
    big = 2 * size
    middle, angle, radius = rng.uniform(0.4, 0.6, 2), rng.uniform(0, 6.3), rng.uniform(0.22, 0.34)
    turn, found = rng.normal(0, 0.3), []
    for _ in range(count):
        coarse = rng.integers(0, 130, (3, 3, 3)).astype(np.uint8)
        image = Image.fromarray(coarse).resize((big, big), Image.Resampling.BICUBIC)
        light = tuple(int(value) for value in rng.integers(150, 255, 3))
        ImageDraw.Draw(image).polygon(outline(kind, middle * big, radius * big, angle), fill=light)
        noise = rng.normal(0, 8, (size, size, 3))
        pixels = np.asarray(image.resize((size, size), Image.Resampling.BOX), np.float64) + noise
        found.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
        middle = (middle + rng.normal(0, 0.03, 2)).clip(0.35, 0.65)
        angle += turn
        radius = float(np.clip(radius * rng.uniform(0.95, 1.05), 0.22, 0.34))
    return found


def outline(
    kind: str, middle: np.ndarray, radius: float, angle: float
) -> list[tuple[float, float]]:
    """Return the corners of a shape."""
    count = SIDES[kind]
    turns = angle + np.arange(count) * 2 * np.pi / count
    far = radius * np.where((np.arange(count) % 2 == 1) & (kind == "star"), 0.45, 1.0)
    return [
        (middle[0] + r * np.cos(t), middle[1] + r * np.sin(t))
        for r, t in zip(far, turns, strict=True)
    ]


if __name__ == "__main__":
    main()
