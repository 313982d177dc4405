"""How it grows: memory, time and disk for 10,000, 100,000 and 1,000,000 generated images.

    python tests/benchmarks/scale.py [--images 10000 100000] [--live 10000] [--virtual 1000000]

Each size runs in a process of its own, from the image files to a trained head and its metrics:
scanned, decoded once into the store, run through a frozen network once, trained for two epochs on
stored features. The network is one convolution, so that what is seen is this project's own cost.
`--images` are as many small JPEG files. `--virtual` images have no files: their pixels are made
when asked for, and all that follows is the same. `--live` decodes the files in every epoch, in
workers, as where the decoded pixels are larger than the limit.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
CLASSES, PX, SEEN_PX = 10, 40, 32


def memory() -> float:
    """Return the megabytes that are this process's own: resident, without mapped files."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / 1024


class Peak(threading.Thread):
    """Looks at `memory` a hundred times a second, and keeps the most that it saw."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0.0
        self.start()

    def run(self) -> None:
        while True:
            self.most = max(self.most, memory())
            time.sleep(0.01)


def write_images(folder: Path, count: int) -> None:
    """Write `count` JPEG files in class folders, all different; a class has its colour."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(count):
        label = number % CLASSES
        place = folder / f"class-{label}"
        if number < CLASSES:
            place.mkdir(parents=True)
        coarse = random.integers(0, 200, (5, 5, 3), np.uint8)
        coarse[..., label % 3] += 55
        image = Image.fromarray(coarse).resize((PX, PX), Image.Resampling.BICUBIC)
        image.save(place / f"{number:08d}.jpg", quality=90)


class Made:
    """Pixels that are made when asked for: a class's colour under noise. No files, no memory."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self.rows), SEEN_PX, SEEN_PX, 3)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: Any) -> Any:
        import numpy as np

        rows = np.atleast_1d(self.rows[places])
        random = np.random.default_rng(int(rows[0]) if len(rows) else 0)
        pixels = random.integers(0, 200, (len(rows), *self.shape[1:]), np.uint8)
        pixels[np.arange(len(rows)), :, :, rows % 3] += 55
        return pixels

    def take(self, places: Any) -> Made:
        return Made(self.rows[places])


def one(count: int, folder: Path, kind: str, workers: int) -> None:
    """Run one size and print its row."""
    import numpy as np
    import torch
    from transformers import TrainingArguments

    from hf_transfer.backbones.from_object import describe
    from hf_transfer.data.image_set import ImageSet, load_data
    from hf_transfer.data.image_settings import ImageSettings
    from hf_transfer.recipe.specs import DataSpec
    from hf_transfer.training.trainer import TransferTrainer

    warnings.simplefilter("ignore")
    logging.getLogger("hf_transfer").setLevel(logging.ERROR)
    names = tuple(f"class-{number}" for number in range(CLASSES))
    os.environ["HF_TRANSFER_CACHE"] = str(folder / "cache")

    class Thin(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.top = torch.nn.Conv2d(3, 16, 8, 8), torch.nn.Linear(16, CLASSES)

        def forward(self, pixel_values: Any) -> Any:
            return self.top(self.body(pixel_values).relu().mean((2, 3)))

    model = Thin()
    model.backbone = describe(model, ["top.*"], image=ImageSettings(SEEN_PX))  # type: ignore
    start, began, peak = memory(), time.perf_counter(), Peak()
    if kind == "virtual":
        rows = np.arange(count)
        labels = rows % CLASSES
        images = ImageSet(Made(rows), labels, names)  # type: ignore[arg-type]
        few = np.arange(0, count, max(1, count // 2000))
        train, validation = images, images.subset(few)
    else:
        spec = DataSpec(str(folder / "images"), validation=0.1, image_size=SEEN_PX)
        limit = 1000 if kind == "live" else None
        data = load_data(spec, ImageSettings(SEEN_PX), 0, limit_bytes=limit)
        train, validation = data.train, data.validation
    read = time.perf_counter() - began
    features = "live" if kind == "live" else "cached"
    phase = {"train": "head", "epochs": 1 if kind == "live" else 2, "lr": 1e-2, "batch_size": 256}
    arguments = TrainingArguments(
        str(folder / "run"), save_strategy="no", report_to="none", disable_tqdm=True,
        use_cpu=True, per_device_eval_batch_size=256,
        dataloader_num_workers=workers if kind == "live" else 0,
    )  # fmt: skip
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    trainer = TransferTrainer(
        model,
        arguments,
        [{**phase, "features": features}],
        train_dataset=train,
        eval_dataset=validation,
    )
    trainer.train()
    whole = time.perf_counter() - began
    disk = sum(path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file())
    cells = (
        f"{count:,}", kind, f"{read:.0f} s", f"{whole:.0f} s", f"{whole / count * 1e6:.0f} µs",
        f"{memory() - start:,.0f} MB", f"{peak.most - start:,.0f} MB", f"{disk / 1e6:,.0f} MB",
        f"{disk / count:,.0f} B",
    )  # fmt: skip
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Print the table, a row for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--live", type=int, nargs="*", default=[10_000])
    parser.add_argument("--virtual", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--workers", type=int, default=2, help="that decode live")
    parser.add_argument("--one", nargs=3, metavar=("COUNT", "FOLDER", "KIND"), help="a single row")
    options = parser.parse_args()
    if options.one:
        return one(int(options.one[0]), Path(options.one[1]), options.one[2], options.workers)
    heading = (
        "images", "kind", "read", "all", "an image", "memory grown", "at most", "disk",
        "disk an image",
    )  # fmt: skip
    print("| " + " | ".join(heading) + " |\n|" + " --- |" * len(heading), flush=True)
    for kind in ("images", "live", "virtual"):
        for count in getattr(options, kind):
            with tempfile.TemporaryDirectory() as folder:
                if kind != "virtual":
                    write_images(Path(folder) / "images", count)
                row = [sys.executable, __file__, "--workers", str(options.workers)]
                subprocess.run([*row, "--one", str(count), folder, kind], check=True)


if __name__ == "__main__":
    sys.exit(main())
