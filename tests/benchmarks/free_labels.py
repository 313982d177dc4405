"""What images without labels are worth: the same labelled images with and without each pretext.

    python tests/benchmarks/free_labels.py flowers --data FOLDER --out DIR [--labels 20 --seeds 3]
    python tests/benchmarks/free_labels.py video --out DIR

`flowers` takes any folder of class folders: of each class some images are labelled, others validate
and test, and `--unlabelled` more, with the labelled ones, are a folder without labels. `video`
renders objects that move and turn; the labels say which object it is. One JSON line per run goes to
DIR/rows.jsonl; what is there is not run again, and a run that was cut off is resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from transformers import TrainerCallback

from hf_transfer.base.errors import UserError
from hf_transfer.plans import plans_of
from hf_transfer.recipe.load import parse_recipe
from hf_transfer.recipe.specs import Recipe
from hf_transfer.recipe.tasks import PRETEXTS
from hf_transfer.run import run

TARGET = """
data: {path: PATH, image_size: SIZE}
precision: bf16
ends_with: last
seed: SEED
phases:
"""
ALL = "{train: all, epochs: 60, lr: RATE, warmup: 0.1, batch_size: 16, augment: light, best: last}"
PLAIN = "backbone: BACKBONE\npretrained: START"
SOURCE = """
source:
  pretext: PRETEXT
  backbone: BACKBONE
  start: START
  data: {path: UNLABELLED, validation: 0.02}
  phases:
    - {train: all, cold_head: true, epochs: EPOCHS, lr: 2e-3, warmup: 0.1, batch_size: 64,
       augment: AUGMENT, best: last}
"""
VARIED = "{crop: [0.2, 1], flip: true, color: 0.2}"
AUGMENTS = {
    "motion": "none",
    "rotation": "{crop: [0.35, 1], flip: true, color: 0.3}",
    "slow": "none",
}


def main() -> None:
    """Run every pretext with every seed that DIR does not have yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=("flowers", "video"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbone", default="timm/resnet10t")
    parser.add_argument("--start", default="random", choices=("random", "pretrained"))
    parser.add_argument("--pretexts", default=f"none,{','.join(PRETEXTS)}")
    parser.add_argument("--labels", type=int, default=20, help="of each class")
    parser.add_argument("--unlabelled", type=int, default=3000)
    parser.add_argument("--epochs", type=float, default=24)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--rate", default="1e-3", help="of the target's fine-tuning")
    parser.add_argument("--scratch-rate", default="2e-3", help="the same, with nothing before it")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    rows = args.out / "rows.jsonl"
    args.out.mkdir(parents=True, exist_ok=True)
    known = (
        {key_of(json.loads(line)) for line in rows.read_text().splitlines()}
        if rows.exists()
        else set()
    )
    for seed in range(args.seeds):
        for pretext in args.pretexts.split(","):
            asked = {**vars(args), "pretext": pretext, "seed": seed}
            if key_of(asked) not in known:
                row = one(args, pretext, seed)
                with rows.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)


KEYS = ("case", "backbone", "start", "pretext", "labels", "unlabelled", "epochs", "size", "rate")


def key_of(row: dict[str, Any]) -> tuple[str, ...]:
    """Return what tells one row from another."""
    return tuple(str(row[key]) for key in (*KEYS, "seed"))


def one(args: argparse.Namespace, pretext: str, seed: int) -> dict[str, Any]:
    """Return the row of one run."""
    drawn = flowers if args.case == "flowers" else video
    place = args.out / f"{args.case}-{args.labels}-{args.unlabelled}-{seed}"
    if not place.is_dir():
        drawn(args, place, seed)
    recipe = recipe_of(args, pretext, seed, place)
    planned = sum(plan.seconds or 0.0 for plan in plans_of(recipe))
    name = "-".join(str(vars(args).get(key, "")).replace("/", "_") for key in KEYS)
    out = args.out / "runs" / f"{name}-{pretext}-{seed}"
    began, clock = time.monotonic(), Clock()
    report = run(recipe, out, resume=out.is_dir(), callbacks=[clock])
    source = report.source
    return {
        **{key: str(vars(args)[key]) for key in KEYS if key != "pretext"},
        "pretext": pretext,
        "seed": seed,
        "test": report.metrics["test"]["accuracy"],
        "probe": [source["before"]["probe_accuracy"], source["metrics"]["probe_accuracy"]]
        if source
        else None,
        "rank": source["metrics"]["rank"] if source else None,
        "planned_seconds": round(planned, 1),
        "steps_processor_seconds": round(clock.seconds, 1),
        "seconds": round(time.monotonic() - began, 1),
    }


class Clock(TrainerCallback):
    """Adds up the processor seconds of the phases' steps and evaluations."""

    def __init__(self) -> None:
        self.seconds = self.began = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.process_time()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seconds += time.process_time() - self.began


def recipe_of(args: argparse.Namespace, pretext: str, seed: int, place: Path) -> Recipe:
    """Return the recipe of one run."""
    phases = [ALL] if pretext == "none" else ["{train: head, solve: lbfgs}", ALL]
    text = (PLAIN if pretext == "none" else SOURCE) + TARGET
    text += "".join(f"  - {phase}\n" for phase in phases)
    start = args.start if pretext != "none" else str(args.start == "pretrained").lower()
    values = {
        "PRETEXT": pretext,
        "BACKBONE": args.backbone,
        "START": start,
        "UNLABELLED": place / "unlabelled",
        "EPOCHS": f"{args.epochs:g}",
        "AUGMENT": AUGMENTS.get(pretext, VARIED),
        "PATH": place / "labelled",
        "SIZE": args.size,
        "SEED": seed,
        "RATE": args.scratch_rate if pretext == "none" else args.rate,
    }
    for key, value in values.items():
        text = text.replace(key, str(value))
    return parse_recipe(text, f"{pretext}.yaml")


# --- images ----------------------------------------------------------------------------------


def flowers(args: argparse.Namespace, place: Path, seed: int) -> None:
    """Lay out real photos: labelled ones in splits, and a folder without labels, as links."""
    if args.data is None:
        raise UserError("flowers needs --data, a folder of class folders")
    rng, left = np.random.default_rng(seed), []
    for folder in sorted(path for path in args.data.iterdir() if path.is_dir()):
        files = sorted(path for path in folder.iterdir() if path.is_file())
        files = [files[row] for row in rng.permutation(len(files))]
        counts = {"train": args.labels, "validation": 20, "test": 100}
        for split, count in counts.items():
            for path in files[:count]:
                link(path, place / "labelled" / split / folder.name / path.name)
            left += files[:count] if split == "train" else []
            files = files[count:]
        left += files
    rng.shuffle(left)
    for number, path in enumerate(left[: args.unlabelled]):
        link(path, place / "unlabelled" / f"{number:05d}{path.suffix}")


def link(path: Path, new: Path) -> None:
    """Link a file at a new place."""
    new.parent.mkdir(parents=True, exist_ok=True)
    os.symlink(path.resolve(), new)


SIDES = {"triangle": 3, "square": 4, "pentagon": 5, "star": 10, "circle": 40}


def video(args: argparse.Namespace, place: Path, seed: int) -> None:
    """Render films of one object each; the labelled frames are single ones of other films."""
    rng = np.random.default_rng(seed)
    for film in range(args.unlabelled // 30):
        kind = list(SIDES)[film % len(SIDES)]
        for number, frame in enumerate(frames(rng, kind, 30, args.size)):
            save(frame, place / "unlabelled" / f"film-{film:03d}" / f"{number:03d}.png")
    for split, count in {"train": args.labels, "validation": 20, "test": 100}.items():
        for kind in SIDES:
            for number in range(count):
                (frame,) = frames(rng, kind, 1, args.size)
                save(frame, place / "labelled" / split / kind / f"{number:03d}.png")


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
