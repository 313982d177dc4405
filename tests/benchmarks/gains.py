"""What fine-tuning gains on the exact head where images are few: the priors of `auto`.

    python tests/benchmarks/gains.py rows.jsonl --flowers FOLDER --backbone ID --image-size 64 \
        [--per-class 5,12,30] [--seeds 1] [--tasks gray,digits]

The tasks are altered copies of photos in class folders, digits, and rendered shapes and textures;
half of the images of each class test. Each row is one draw of labelled images: the accuracy of the
exact head, and of each point of both ways that `auto` tries, each trained on all of them. What is
there is not run again. At the end comes the gain of each point: mean and standard deviation.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import few_labels
import numpy as np
from free_labels import SIDES, frames
from PIL import Image, ImageFilter, ImageOps

from hf_transfer.backbones.load import load_backbone
from hf_transfer.data.image_set import joined
from hf_transfer.data.sources import list_source
from hf_transfer.deciding import auto, bag, tuning
from hf_transfer.deciding.attempts import Attempts
from hf_transfer.deciding.tried import Clock
from hf_transfer.progress import quiet

SIDE, EACH = 112, 130  # pixels of an image, and images of a class
HEAD = "exact head"
ALTERED: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "gray": lambda image, _: ImageOps.grayscale(image).convert("RGB"),
    "blurred": lambda image, _: image.filter(ImageFilter.GaussianBlur(3)),
    "rotated": lambda image, rng: image.rotate(rng.uniform(0, 360), fillcolor=(128,) * 3),
    "edges": lambda image, _: (
        ImageOps.grayscale(image).filter(ImageFilter.FIND_EDGES).convert("RGB")
    ),
}
TASKS = (*ALTERED, "digits", "shapes", "textures")


def main() -> None:
    """Measure what is not there yet, and print the gains."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path, help="file of rows, JSON Lines")
    parser.add_argument("--flowers", type=Path, help="photos in class folders, to alter")
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--per-class", default="5,12,30")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tasks", default=",".join(TASKS))
    args = parser.parse_args()
    quiet()
    done = {tuple(row["key"]) for row in few_labels.read(args.rows)}
    with tempfile.TemporaryDirectory() as scratch:
        for task in args.tasks.split(","):
            drawn(task, Path(scratch) / task, args.flowers)
        for seed in range(args.seeds):
            for count in map(int, args.per_class.split(",")):
                for task in args.tasks.split(","):
                    key = (task, Path(args.backbone).name, args.image_size, count, seed)
                    if key in done:
                        continue
                    row = {"key": key, **measured(Path(scratch) / task, *key[2:], args.backbone)}
                    with args.rows.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(json.dumps(row), flush=True)
    print("\n".join(gains(few_labels.read(args.rows))))


def measured(folder: Path, size: int, count: int, seed: int, backbone: str) -> dict[str, float]:
    """Return the accuracy of the exact head, and of each point of each way."""
    args = argparse.Namespace(data=str(folder), image_size=size, group=None)
    recipe = auto.recipe_of(folder, backbone, size, None, seed, ["precision=bf16"])
    spec = dataclasses.replace(few_labels.spec_of(args), test=0.5)
    recipe, listed = dataclasses.replace(recipe, data=spec), list_source(spec)
    model = load_backbone(backbone, listed.labels, image_size=size, seed=seed).eval()
    data = few_labels.drawn(spec, model, count, seed)
    pool = joined(data.train, data.validation)
    data = dataclasses.replace(data, train=pool, validation=pool.subset([]))
    work = Attempts(model, recipe, data, pool, None, Clock(1e6), lambda _: None)
    work.start = bag.head_start(model, pool, work.folds)
    everything = np.arange(len(pool))

    def accuracy(trained: Any) -> float:
        return float((bag.model_logits(trained, data.test).argmax(1) == data.test.labels).mean())

    found = {}
    for way in tuning.candidates():
        tuned = work.trained(way, everything, time.monotonic() + 1e6)
        for point in way.points:
            found[f"{way.what}, {point}"] = accuracy(tuned.at(point, pool, everything))
    work.start.put(model)
    return {HEAD: accuracy(model), **found}


def gains(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a line for each backbone, number of images and point: its gain over the draws."""
    for backbone, count in dict.fromkeys((row["key"][1], row["key"][3]) for row in rows):
        mine = [row for row in rows if (row["key"][1], row["key"][3]) == (backbone, count)]
        for point in [name for name in mine[0] if name not in ("key", HEAD)]:
            gained = [100 * (row[point] - row[HEAD]) for row in mine]
            yield (
                f"{backbone}, {count} per class, {point}: {np.mean(gained):+.1f} ± "
                f"{np.std(gained):.1f} points over {len(gained)} draws, {min(gained):+.1f} to "
                f"{max(gained):+.1f}"
            )


# --- images ----------------------------------------------------------------------------------


def drawn(task: str, folder: Path, photos: Path | None) -> None:
    """Write the images of a task into class folders."""
    rng = np.random.default_rng(0)
    for label, images in kinds(task, rng, photos):
        (folder / label).mkdir(parents=True)
        for number, image in enumerate(images):
            image.save(folder / label / f"{number:03d}.png")


def kinds(
    task: str, rng: np.random.Generator, photos: Path | None
) -> Iterator[tuple[str, Iterator[Image.Image]]]:
    """Yield each class of a task, and its images."""
    if task in ALTERED:
        assert photos is not None, "altered copies need --flowers"
        for label in sorted(path for path in photos.iterdir() if path.is_dir()):
            files = sorted(label.iterdir())
            some = [files[row] for row in rng.permutation(len(files))[:EACH]]
            yield label.name, (ALTERED[task](small(path), rng) for path in some)
    elif task == "digits":
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        for digit in range(10):
            mine = pixels[labels == digit][:EACH].reshape(-1, 8, 8) * 15.9
            yield (
                str(digit),
                (Image.fromarray(one.astype(np.uint8)).resize((96, 96)) for one in mine),
            )
    elif task == "shapes":
        for shape in SIDES:
            yield shape, (frames(rng, shape, 1, 96)[0] for _ in range(EACH))
    else:
        for texture in TEXTURES:
            yield texture, (pattern(texture, rng) for _ in range(EACH))


def small(path: Path) -> Image.Image:
    """Return a photo whose shorter side has SIDE pixels."""
    with Image.open(path) as image:
        return ImageOps.contain(image.convert("RGB"), (2 * SIDE, SIDE))


TEXTURES: dict[str, Callable[..., np.ndarray]] = {
    "stripes": lambda u, v, a, b: np.sin(u + a),
    "checks": lambda u, v, a, b: np.sin(u + a) * np.sin(v + b),
    "dots": lambda u, v, a, b: np.sin(u + a) + np.sin(v + b) - 1,
    "rings": lambda u, v, a, b: np.sin(np.hypot(u - u.mean(), v - v.mean()) + a),
    "waves": lambda u, v, a, b: np.sin(u + 2 * np.sin(v / 4 + b)),
}


def pattern(texture: str, rng: np.random.Generator, side: int = 96) -> Image.Image:
    """Return a texture in random colours, scale and direction, with noise."""
    one, two = rng.integers(0, 255, (2, 3))
    turn, scale = rng.uniform(0, np.pi), rng.uniform(0.15, 0.6)
    down, across = np.mgrid[:side, :side] * scale
    u = across * np.cos(turn) + down * np.sin(turn)
    v = down * np.cos(turn) - across * np.sin(turn)
    mixed = 1 / (1 + np.exp(-4 * TEXTURES[texture](u, v, *rng.uniform(0, 6, 2))))
    pixels = one + (two - one) * mixed[..., None] + rng.normal(0, 40, (side, side, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


if __name__ == "__main__":
    main()
