"""How fast: this project against the plain Trainer doing the same phases, and against the floor.

    python tests/benchmarks/speed.py --data FOLDER --backbone ID [--images 1000] [--epochs 1.0]

One process, one table. The floor is what cannot be saved: one decode of every image, one forward
of what is frozen for each view, and per epoch the bare forward and backward of what trains, in
plain torch on tensors that are in memory already; where ours measures precisions and takes bf16,
the floor in bf16 is shown as well. No evaluation is timed. Rows are ratios of medians, of runs that
take turns; the plain Trainer, which takes most of the time, runs once for each phase.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# As the command line does: threads that wait by spinning starve each other on a busy machine.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainingArguments

from hf_transfer.backbones.load import load_backbone
from hf_transfer.data.decoding import decode
from hf_transfer.data.image_set import load_data
from hf_transfer.data.sources import scan
from hf_transfer.inputs.cut import PROBES, crossing_values, find_cut
from hf_transfer.inputs.model_input import to_model_input
from hf_transfer.planning.phase import Phase
from hf_transfer.planning.phases import make_phases
from hf_transfer.recipe.load import parse_phase
from hf_transfer.recipe.specs import DataSpec, Recipe
from hf_transfer.training.freezing import freeze_all_but, still_modules
from hf_transfer.training.machine import precision
from hf_transfer.training.trainer import TransferTrainer


@dataclass(frozen=True)
class Case:
    """A phase, and the ratios that it should keep below."""

    name: str
    phase: dict[str, Any]
    epochs: int  # of the plain Trainer; those of the phase, unless it is solved
    to_plain: float
    to_floor: float | None
    auto: bool = False  # ours measures precisions and takes the fastest


CASES = (
    Case("head, 20 epochs", {"train": "head", "epochs": 20}, 20, 1 / 12, 1.3),
    Case(
        "head, 10 epochs, 4 views",
        {"train": "head", "epochs": 10, "augment": "light", "views": 4},
        10, 1 / 2, 1.3,
    ),
    Case("last stage, 10 epochs", {"train": "last 1 stage", "epochs": 10}, 10, 1 / 3, 1.3),
    Case(
        "last stage, 10 epochs, precision: auto",
        {"train": "last 1 stage", "epochs": 10},
        10, 1 / 3, 1.3, auto=True,
    ),
    Case(
        "everything, 5 epochs, augmented",
        {"train": "all", "epochs": 5, "augment": "light"},
        5, 0.7, 1.15,
    ),
    Case(
        "everything, 5 epochs, augmented, precision: auto",
        {"train": "all", "epochs": 5, "augment": "light"},
        5, 0.7, 1.15, auto=True,
    ),
    Case("head, solve: lbfgs", {"train": "head", "solve": "lbfgs"}, 20, 1 / 15, None),
    Case(
        "head, solve: lbfgs, reestimate_norms: 256",
        {"train": "head", "solve": "lbfgs", "reestimate_norms": 256},
        20, 1 / 15, None,
    ),
)  # fmt: skip


class Bench:
    """What all cases share: the files, the backbone, the settings."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.done: dict[str, tuple[float, float]] = {}  # what the plain Trainer took
        self.low = options.bf16  # whether ours computed in bf16
        self.source = options.data or generated(folder / "generated", options.images * 3 // 2)
        per_class = options.images // len(scan(DataSpec(str(self.source))).labels)
        self.spec = DataSpec(
            str(self.source),
            validation=0.3,
            image_size=options.size,
            train_per_class=per_class,
            validation_per_class=max(2, per_class // 2),
        )
        self.labels = scan(self.spec, 0).labels
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        data = load_data(self.spec, self.model().backbone.image, 0, folder / "first")
        self.files = [Path(self.source) / name for name in data.train.files]
        self.targets, self.held_out = data.train.labels, data.validation
        self.images = folder / "images"  # those that train, and one a class that does not
        few = [
            np.flatnonzero(self.held_out.labels == label)[0] for label in range(len(self.labels))
        ]
        self._copy("train", self.files, self.targets)
        others = [Path(self.source) / self.held_out.files[row] for row in few]
        self._copy("validation", others, self.held_out.labels[few])

    def model(self) -> Any:
        """Return the backbone with a new head, the same each time."""
        model = load_backbone(
            str(self.options.backbone),
            self.labels if hasattr(self, "labels") else ("a", "b"),
            pretrained=not self.options.random,
            image_size=self.options.size,
        )
        return model.to(self.device)

    def phase(self, case: Case, model: Any) -> Phase:
        """Return a case's phase on the backbone, and freeze what it does not train."""
        words = {"batch_size": self.options.batch, "lr": 1e-3, "cold_head": True, "best": "last"}
        words = {} if "solve" in case.phase else words
        phase = dict(case.phase)
        if "epochs" in phase:
            phase["epochs"] = self.epochs(case)
        spec = parse_phase({**words, **phase})
        found = make_phases([spec], model.backbone.groups)[0]
        freeze_all_but(model, model.backbone.prefix, found.parameters)
        return found

    def epochs(self, case: Case) -> int:
        """Return the epochs of a case, fewer where a quick run is asked for."""
        return max(1, round(case.epochs * self.options.epochs))

    def arguments(self, **more: Any) -> TrainingArguments:
        """Return the arguments that both Trainers have."""
        return TrainingArguments(
            str(self.folder / "run"), save_strategy="no", report_to="none", disable_tqdm=True,
            dataloader_pin_memory=self.device.type == "cuda", use_cpu=self.device.type == "cpu",
            **more,
        )  # fmt: skip

    # --- the three -----------------------------------------------------------------------------

    def ours(self, case: Case) -> tuple[float, float]:
        """Return the seconds from files to a trained model, nothing cached, and its accuracy."""
        model = self.model().to(memory_format=torch.channels_last)
        cache = Path(tempfile.mkdtemp(dir=self.folder))
        os.environ["HF_TRANSFER_CACHE"] = str(cache)
        phase = self.phase(case, model)
        began = self.now()
        self.low = self.options.bf16 or (case.auto and self.chosen(phase, model, cache) == "bf16")
        data = load_data(
            DataSpec(str(self.images), image_size=self.options.size), model.backbone.image
        )
        arguments = self.arguments(bf16=self.low)
        trainer = TransferTrainer(model, arguments, [phase], train_dataset=data.train)
        trainer.train()
        seconds = self.now() - began
        shutil.rmtree(cache)
        return seconds, self.accuracy(trainer)

    def chosen(self, phase: Phase, model: Any, folder: Path) -> str:
        """Return the precision that is measured to be the fastest, for the model as it is then."""
        recipe = Recipe(
            "speed", (phase.spec,), backbone=str(self.options.backbone), precision="auto"
        )
        return str(precision.settle(recipe, model, folder)["precision"])

    def plain(self, case: Case) -> tuple[float, float]:
        """Return the seconds that the plain Trainer takes for the same phase, and the accuracy.

        A head that is solved for is compared with the same Trainer as the one that is not.
        """
        phase = {**case.phase, "epochs": self.epochs(case)}
        ours = ("solve", "views", "reestimate_norms")
        key = repr(sorted((k, v) for k, v in phase.items() if k not in ours))
        if key not in self.done:
            self.done[key] = self._plain(case)
        return self.done[key]

    def _plain(self, case: Case) -> tuple[float, float]:
        model = self.model()
        self.phase(case, model)
        augmented = "augment" in case.phase
        data = Files(self.files, self.targets, transforms_of(model.backbone.image, augmented))
        arguments = self.arguments(
            bf16=self.options.bf16,
            num_train_epochs=self.epochs(case),
            per_device_train_batch_size=self.options.batch,
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            logging_strategy="epoch",
            remove_unused_columns=False,
        )
        trainer = Trainer(model, arguments, train_dataset=data)
        trainer.remove_callback(PrinterCallback)
        began = self.now()
        trainer.train()
        return self.now() - began, self.accuracy(trainer)

    def floor(self, case: Case, low: bool = False) -> float:
        """Return the seconds of what must be done in any case; `low`: in bf16."""
        model = self.model().to(memory_format=torch.channels_last)
        phase, image = self.phase(case, model), model.backbone.image
        total = 0.0
        began = self.now()
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            pixels = torch.from_numpy(
                np.stack(list(pool.map(lambda f: decode(f, image), self.files)))
            )
        total += self.now() - began
        inputs = to_model_input(pixels, image).to(self.device)
        labels = torch.from_numpy(self.targets).to(self.device)
        run = self.above(model, phase)
        if phase.frozen_prefix:
            began = self.now()
            with torch.no_grad(), self.autocast(low):
                for _ in range(case.phase.get("views", 1)):
                    parts = [run.below(part) for part in inputs.split(64)]
            total += self.now() - began
            inputs = torch.cat(parts)
        model.train()
        order = torch.randperm(len(labels))
        began = self.now()
        for _ in range(self.epochs(case)):
            for rows in order.split(self.options.batch):
                with self.autocast(low):
                    logits = run.top(inputs[rows])
                    loss = nn.functional.cross_entropy(logits, labels[rows])
                loss.backward()
                model.zero_grad()
        return total + self.now() - began

    def above(self, model: Any, phase: Phase) -> Parts:
        """Return the network in two functions: what is frozen, and what trains."""
        if not phase.frozen_prefix:
            return Parts(lambda x: x, lambda x: model(pixel_values=x).logits)
        prefix, backbone = model.backbone.prefix, model.backbone
        named = still_modules(model, prefix, backbone.groups, phase.parameters)
        still = [model.get_submodule(name) for name in named]
        size = backbone.image.size
        cut = find_cut(model, still, torch.randn(PROBES, 3, size, size, device=self.device))
        model.eval()
        tops = [model.get_submodule(path) for path in self.tops(phase, model)]

        (crossing,) = cut.stored

        def below(x: torch.Tensor) -> torch.Tensor:
            (packed,) = crossing_values(model, cut, x)
            return crossing.unpacked(packed)

        def top(x: torch.Tensor) -> torch.Tensor:
            for module in tops:
                x = module(x)
            return x

        return Parts(below, top)

    def tops(self, phase: Phase, model: Any) -> list[str]:
        """Return the modules that the bare forward of what trains goes through, in order."""
        prefix = model.backbone.prefix
        head = prefix + model.backbone.layout.head[0].rpartition(".")[0]
        if len(phase.groups) == 1:
            return [head]
        stage = prefix + phase.groups[0].rpartition(".")[0]
        pool = [name for name, _ in model.named_modules() if name.endswith("global_pool")]
        return [stage, *pool, head]

    # --- measuring -----------------------------------------------------------------------------

    def _copy(self, split: str, files: list[Path], targets: np.ndarray) -> None:
        for file, target in zip(files, targets, strict=True):
            folder = self.images / split / self.labels[target]
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, folder / file.name)

    def accuracy(self, trainer: Trainer) -> float:
        """Return the share of the validation images that a trained model labels right."""
        model, right = trainer.model.eval(), 0
        for start in range(0, len(self.held_out), 64):
            rows = range(start, min(start + 64, len(self.held_out)))
            batch = self.held_out.__getitems__(rows)
            with torch.no_grad():
                x = to_model_input(batch["pixels"], model.backbone.image).to(self.device)
                right += int(
                    (model(pixel_values=x).logits.argmax(1).cpu() == batch["labels"]).sum()
                )
        return right / len(self.held_out)

    def autocast(self, low: bool) -> Any:
        """Return the precision that the floor computes in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=low or self.options.bf16)

    def now(self) -> float:
        """Return the time, when all that was asked of the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.process_time() if self.options.cpu_seconds else time.perf_counter()


@dataclass(frozen=True)
class Parts:
    """A network cut in two."""

    below: Callable[[torch.Tensor], torch.Tensor]
    top: Callable[[torch.Tensor], torch.Tensor]


class Files(Dataset[dict[str, Any]]):
    """Images decoded and varied one by one, as the examples of transformers do."""

    def __init__(self, files: list[Path], labels: np.ndarray, transform: Any) -> None:
        self.files, self.labels, self.transform = files, labels, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with Image.open(self.files[index]) as picture:
            pixels = self.transform(picture.convert("RGB"))
        return {"pixel_values": pixels, "labels": int(self.labels[index])}


def transforms_of(image: Any, augmented: bool) -> Any:
    """Return torchvision's transforms of an image."""
    from torchvision import transforms as T

    size, normal = image.size, T.Normalize(image.mean, image.std)
    if augmented:
        steps = [T.RandomResizedCrop(size, (0.6, 1.0)), T.RandomHorizontalFlip()]
    else:
        steps = [T.Resize(int(size / image.crop_pct)), T.CenterCrop(size)]
    return T.Compose([*steps, T.ToTensor(), normal])


def generated(folder: Path, count: int, px: int = 320) -> Path:
    """Write `count` JPEG files in 10 classes whose colours differ, and return their folder."""
    random = np.random.default_rng(0)
    for number in range(count):
        label = number % 10
        coarse = random.integers(0, 256, (8, 8, 3)) // 2 + np.array(
            [label * 12, 0, 100 - label * 9]
        )
        place = folder / f"class-{label}"
        place.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(coarse.clip(0, 255).astype(np.uint8))
        picture.resize((px, px), Image.Resampling.BICUBIC).save(place / f"{number}.jpg", quality=90)
    return folder


def measured(bench: Bench, case: Case, repeats: int) -> list[str]:
    """Return a row of the table."""
    times: dict[str, list[float]] = {}
    accuracy, peak = {}, {}
    for _ in range(repeats):
        for name in ("ours", "plain", "floor", "floor in bf16"):
            gc.collect()
            if bench.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            if name in ("ours", "plain"):
                seconds, accuracy[name] = getattr(bench, name)(case)
                times.setdefault(name, []).append(seconds)
            elif case.to_floor is not None and (name == "floor" or (case.auto and bench.low)):
                times.setdefault(name, []).append(bench.floor(case, name == "floor in bf16"))
            if bench.device.type == "cuda":  # the plain Trainer runs in the first round only
                peak[name] = max(peak.get(name, 0), torch.cuda.max_memory_allocated() / 1e9)
    middle = {name: statistics.median(found) for name, found in times.items()}
    ours, plain = middle.pop("ours"), middle.pop("plain")
    words = {name: name.removeprefix("floor") for name in middle}
    floors = "; ".join(f"{floor:.1f}{words[name]}" for name, floor in middle.items())
    ratios = "; ".join(f"{ours / floor:.2f}{words[name]}" for name, floor in middle.items())
    seen = len(bench.files) * bench.epochs(case)
    return [
        case.name, f"{ours:.1f}", f"{plain:.1f}",
        floors,
        f"1/{plain / ours:.2f} (1/{1 / case.to_plain:.2f})",
        f"{ratios} ({case.to_floor:.2f})" if ratios else "",
        f"{accuracy['ours']:.3f} / {accuracy['plain']:.3f}", f"{seen / ours:,.0f}",
        f"{peak['ours']:.1f} / {peak['plain']:.1f} GB" if peak else "",
    ]  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of class folders; default: generated")
    parser.add_argument("--backbone", default="timm/resnet10t")
    parser.add_argument("--random", action="store_true", help="random weights")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size", type=int, default=96, help="of the images, in pixels")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=float, default=1.0, help="factor on all epochs")
    parser.add_argument("--repeats", type=int, default=3, help="of ours and of the floor")
    parser.add_argument("--cases", default="", help="only those whose names hold this")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument(
        "--cpu-seconds", action="store_true", help="of this process, for a machine that is busy"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("hf_transfer").setLevel(logging.ERROR)
    print(
        f"{options.backbone}, {options.images} images of {options.size} px, batch {options.batch},"
    )
    load = os.getloadavg()[0]
    print(f"{torch.get_num_threads()} threads, load {load:.1f}, torch {torch.__version__}")
    kind = "seconds of the processors" if options.cpu_seconds else "seconds"
    print(f"{kind}, ratios (and what they should stay below), images a second\n")
    heading = [
        "case",
        "ours",
        "plain",
        "floor",
        "to plain",
        "to floor",
        "accuracy",
        "images/s",
        "peak",
    ]
    print("| " + " | ".join(heading) + " |\n|" + " --- |" * len(heading))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        for case in CASES:
            if options.cases in case.name:
                print("| " + " | ".join(measured(bench, case, options.repeats)) + " |", flush=True)
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    sys.exit(main())
