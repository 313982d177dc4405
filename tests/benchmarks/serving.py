"""A finished model in use: what predict and embed cost, and what exported files gain and lose.

    python tests/benchmarks/serving.py --data FOLDER --backbone ID [--images 1000] [--size 224]

One process, one table. The floor of predict and of embed is what cannot be saved: one decode of
every image in threads, and one bare forward pass. Exported files and torch take turns on one
thread, from uint8 pixels to probabilities. The head is solved on 50 images a class; accuracy is
that on others. Each figure is the least of some rounds: `cpu` counts the seconds of all threads,
which other programs disturb less than the seconds on the clock.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command line does

import numpy as np
import torch

from hf_transfer.backbones.load import load_backbone
from hf_transfer.base.threads import allowed_cores
from hf_transfer.data.decoding import decode_noted
from hf_transfer.inputs.model_input import to_model_input
from hf_transfer.serving.embed import embed
from hf_transfer.serving.export import export
from hf_transfer.serving.export_formats import Whole, onnx_answers, openvino_answers
from hf_transfer.serving.export_int8 import write_int8
from hf_transfer.serving.pictures import batches
from hf_transfer.serving.predict import predict
from hf_transfer.training.solver import solve_head

TRAIN = 50  # images of each class that the head is solved on, and int8 is calibrated on
BATCH = 32
Answer = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]


def main() -> None:
    """Measure, and print one table."""
    given = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    given.add_argument("--data", type=Path, required=True, help="folder of class folders")
    given.add_argument("--backbone", required=True)
    given.add_argument("--images", type=int, default=1000)
    given.add_argument("--tested", type=int, default=100, help="images of each class to test on")
    given.add_argument("--size", type=int, default=224)
    given.add_argument("--rounds", type=int, default=2)
    given.add_argument("--only", choices=("passes", "exported"))
    options = given.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_TRANSFER_CACHE"] = str(Path(folder) / "cache")
        bench = Bench(options, Path(folder))
        print(f"{options.backbone}, {options.size} px, {int(allowed_cores())} cores", flush=True)
        if options.only != "exported":
            bench.passes()
        if options.only != "passes":
            bench.exported()


class Bench:
    """The files, and a model whose head was solved on some of them."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        places = sorted(place for place in options.data.iterdir() if place.is_dir())
        files = {place.name: sorted(place.iterdir()) for place in places}
        self.labels = tuple(files)
        self.train = folder / "train"
        for name, own in files.items():
            (self.train / name).mkdir(parents=True)
            for file in own[:TRAIN]:
                (self.train / name / file.name).symlink_to(file.resolve())
        self.tested = [f for own in files.values() for f in own[TRAIN:][: options.tested]]
        every = [file for own in files.values() for file in own]
        self.files = every[:: max(1, len(every) // options.images)][: options.images]
        self.model = load_backbone(options.backbone, self.labels, image_size=options.size).eval()
        self.solve()

    def solve(self) -> None:
        """Give the model the best head for its training images."""
        found = embed(self.model, self.train)
        classes = np.array([self.labels.index(Path(file).parent.name) for file in found.files])
        solution = solve_head(found.features, classes, len(self.labels))
        backbone = self.model.backbone
        values = {2: solution.weight, 1: solution.bias}
        with torch.no_grad():
            for name in backbone.layout.head:
                parameter = self.model.get_parameter(f"{backbone.prefix}{name}")
                parameter.copy_(torch.from_numpy(values[parameter.ndim]))

    def timed(self, call: Callable[[], Any]) -> tuple[float, float]:
        """Return the seconds of the clock and of all threads."""
        clock, cpu = time.perf_counter(), time.process_time()
        call()
        return time.perf_counter() - clock, time.process_time() - cpu

    # --- predict and embed -------------------------------------------------------------------

    def floor(self) -> None:
        """Decode every image once, and pass it through the network once."""
        image = self.model.backbone.image

        def decoded(file: Path) -> np.ndarray[Any, Any]:
            return decode_noted(file, image, reduced=False).pixels

        with ThreadPoolExecutor(max(1, int(allowed_cores()))) as pool, torch.inference_mode():
            for first in range(0, len(self.files), BATCH):
                rows = list(pool.map(decoded, self.files[first : first + BATCH]))
                pixels = torch.from_numpy(np.stack(rows))
                self.model(pixel_values=to_model_input(pixels, image))

    def passes(self) -> None:
        """Print what predict and embed cost of the floor."""
        calls: dict[str, Callable[[], Any]] = {
            "decode + forward": self.floor,
            "predict": lambda: predict(self.model, self.files),
            "predict, 2 workers": lambda: predict(self.model, self.files, workers=2),
            "embed": lambda: self.embedded(fresh=True),
            "embed, a second time": lambda: self.embedded(fresh=False),
        }
        self.floor()
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
        for _ in range(self.options.rounds):
            for name, call in calls.items():
                found[name].append(self.timed(call))
        least = {name: np.min(times, axis=0) for name, times in found.items()}
        base = least["decode + forward"]
        print(f"\n{len(self.files):,} images          clock s   cpu s   of the floor: clock, cpu")
        for name, (clock, cpu) in least.items():
            ratios = f"{clock / base[0]:15.2f} {cpu / base[1]:7.2f}"
            print(f"{name:22} {clock:9.2f} {cpu:7.2f} {ratios}", flush=True)

    def embedded(self, fresh: bool) -> None:
        """Embed all images, from a model that is not among those kept yet if `fresh`."""
        if fresh:
            with torch.no_grad():  # other weights by nothing that matters: another entry
                next(self.model.parameters()).flatten()[0] += 1e-6
        embed(self.model, self.files)

    # --- exported files ----------------------------------------------------------------------

    def exported(self) -> None:
        """Print the time for an image and the accuracy of torch and of each exported file."""
        answers, bytes_of = self.runtimes()
        pixels = self.pixels(self.tested)
        truth = np.array([self.labels.index(file.parent.name) for file in self.tested])
        print(f"\none thread            ms, batch 1   ms, batch {BATCH}   accuracy   MB", end="")
        print(f"   ({len(truth)} test images)")
        times: dict[str, list[list[float]]] = {name: [] for name in answers}
        torch.set_num_threads(1)
        for _ in range(self.options.rounds + 2):
            for name, answer in answers.items():
                times[name].append([self.each(answer, pixels, size) for size in (1, BATCH)])
        for name, answer in answers.items():
            parts = [answer(pixels[at : at + BATCH]) for at in range(0, len(pixels), BATCH)]
            right = (np.concatenate(parts).argmax(axis=1) == truth).mean()
            one, many = np.min(times[name], axis=0)
            megabytes = bytes_of.get(name, 0) / 2**20
            print(f"{name:20} {one:12.2f} {many:14.2f} {right:10.4f} {megabytes:6.1f}", flush=True)

    def runtimes(self) -> tuple[dict[str, Answer], dict[str, int]]:
        """Return the answers of each runtime on one thread, and the bytes of its file."""
        whole = Whole(self.model).eval()

        @torch.inference_mode()
        def ours(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return whole(torch.from_numpy(pixels))["probabilities"].numpy()

        full, half = self.folder / "model.onnx", self.folder / "half.onnx"
        export(self.model, full)
        export(self.model, half, half=True)
        small = write_int8(full, self.model.backbone, self.train)
        vino = self.folder / "model.xml"
        export(self.model, vino, to="openvino")
        found: dict[str, Answer] = {"torch": ours, "ONNX Runtime": onnx_answers(full, 1)}
        found |= {"ONNX, 16 bits": onnx_answers(half, 1), "ONNX, 8 bits": onnx_answers(small, 1)}
        found["OpenVINO"] = openvino_answers(vino, 1)
        files = {"ONNX Runtime": full, "ONNX, 16 bits": half, "ONNX, 8 bits": small}
        files["OpenVINO"] = vino.with_suffix(".bin")
        return found, {name: path.stat().st_size for name, path in files.items()}

    def each(self, answer: Answer, pixels: np.ndarray[Any, Any], size: int) -> float:
        """Return the milliseconds of processor time for an image, in batches of so many."""
        rows = np.ascontiguousarray(pixels[:size])
        answer(rows)
        count = max(3, 60 // size)
        start = time.process_time()
        for _ in range(count):
            answer(rows)
        return 1000 * (time.process_time() - start) / (count * size)

    def pixels(self, files: list[Path]) -> np.ndarray[Any, Any]:
        """Return the squares of pixels uint8 (N, S, S, C) that the network sees."""
        image = self.model.backbone.image
        rows = torch.cat([batch.pixels for batch in batches(files, image)]).numpy()
        start = image.middle(image.stored)
        return np.ascontiguousarray(rows[:, start : start + image.size, start : start + image.size])


if __name__ == "__main__":
    main()
