"""Other tools on the same few images: transformers' Trainer, fastai and Lightning.

    python tests/benchmarks/other_tools.py rows.jsonl --env FOLDER --data FOLDER --backbone FOLDER \
        --image-size 96 --per-class 20,100 --seeds 1 [--group PATTERN]

FOLDER of --env is a virtual environment of their own, made here if it is not there. The rows go
into the file of few_labels.py, which draws the same images, and into its table. Each tool trains on
the labelled images that recipes train on (the fifth that validates chooses nothing here), from the
same weights, a timm folder, for EPOCHS epochs in batches of BATCH, with the same random crop and
flip, and otherwise as its documentation shows:

- Trainer: timm's head alone for half of the epochs (1e-3), then everything (1e-4);
- fastai: `vision_learner` and `fine_tune`, one epoch with the body frozen, then the others, at its
  own rates;
- Lightning: a linear head on the features, `BackboneFinetuning` from the middle of the epochs on,
  Adam at 1e-3.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

EPOCHS, BATCH = 10, 32
NEEDED = (  # fastprogress 1.1 needs a web framework
    "torch", "torchvision", "timm", "transformers", "accelerate", "lightning", "fastai",
    "fastprogress<1.1",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path, help="file of rows, JSON Lines")
    parser.add_argument("--env", type=Path, required=True, help="virtual environment of the others")
    parser.add_argument("--data", required=True, help="folder of class folders")
    parser.add_argument("--backbone", required=True, help="folder of timm's form")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--per-class", default="5,20,100")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--group", help="pattern of what stays together")
    args = parser.parse_args()
    python = environment(args.env)
    done = {tuple(row[key] for key in few_labels.KEY) for row in few_labels.read(args.rows)}
    for count in map(int, args.per_class.split(",")):
        for seed in range(args.seeds):
            about = few_labels.about_of(args, count, seed)
            ways = [way for way in TOOLS if (*about.values(), way) not in done]
            if not ways:
                continue
            with tempfile.TemporaryDirectory() as scratch:
                write_images(args, count, seed, Path(scratch) / "images.npz")
                for way in ways:
                    command = [python, __file__, "--inside", way, scratch, args.backbone, str(seed)]
                    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                    row = {**about, "way": way, **json.loads(said.stdout.splitlines()[-1])}
                    with args.rows.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(json.dumps(row), flush=True)
    print("\n".join(few_labels.table(few_labels.read(args.rows))))


def environment(folder: Path) -> str:
    """Return the interpreter of the others' environment, which is made where it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *NEEDED], check=True)
    return str(python)


def write_images(args: argparse.Namespace, count: int, seed: int, path: Path) -> None:
    """Write what few_labels.py draws: pixels uint8 (N, S, S, 3) as the model sees them in
    evaluation, and labels."""
    spec = few_labels.spec_of(args)
    labels = scan(spec, seed).labels
    model = load_backbone(args.backbone, labels, image_size=args.image_size, seed=seed)
    data, image = few_labels.drawn(spec, model, count, seed), model.backbone.image
    found: dict[str, Any] = {"mean": image.mean, "std": image.std, "classes": len(labels)}
    for split, images in (("train", data.train), ("test", data.test)):
        pixels = images.pixels[np.arange(len(images))]
        start = image.middle(pixels.shape[1])
        found[split] = pixels[:, start : start + image.size, start : start + image.size]
        found[f"{split}_labels"] = images.labels
    np.savez(path, **found)


# --- in the others' environment ----------------------------------------------------------------


def inside(way: str, scratch: str, backbone: str, seed: str) -> None:
    """Train with one of the tools and print what it reaches, a line of JSON."""
    import torch

    torch.manual_seed(int(seed))
    found = dict(np.load(Path(scratch) / "images.npz"))
    varied = crops(found["train"].shape[1])
    norm = [torch.tensor(found[key], dtype=torch.float32)[:, None, None] for key in ("mean", "std")]

    def shown(pixels: Any, train: bool) -> Any:
        x = torch.from_numpy(pixels).permute(2, 0, 1)
        return ((varied(x) if train else x) / 255 - norm[0]) / norm[1]

    sets = {
        split: Pixels(found[split], found[f"{split}_labels"], shown, split == "train")
        for split in ("train", "test")
    }
    began = time.monotonic()
    weights = f"local-dir:{backbone}"
    trained = TOOLS[way](weights, int(found["classes"]), sets["train"], Path(scratch))
    seconds = time.monotonic() - began
    trained.eval()
    with torch.no_grad():
        batches = torch.utils.data.DataLoader(sets["test"], BATCH)
        right = torch.cat([trained(x).argmax(1) == y for x, y in batches])
    print(
        json.dumps({"accuracy": right.float().mean().item(), "n": len(right), "seconds": seconds})
    )


def crops(size: int) -> Any:
    """Return the variation of training images, as transformers' and timm's examples have it."""
    from torchvision.transforms import v2

    return v2.Compose(
        [v2.RandomResizedCrop(size, (0.5, 1.0), antialias=True), v2.RandomHorizontalFlip()]
    )


@dataclasses.dataclass
class Pixels:
    """Images and labels as tools take them."""

    pixels: Any
    labels: Any
    shown: Any
    train: bool

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        return self.shown(self.pixels[row], self.train), int(self.labels[row])


def with_trainer(weights: str, classes: int, images: Pixels, folder: Path) -> Any:
    """Train timm's head alone, then everything, with transformers' Trainer."""
    import timm
    import torch
    from transformers import Trainer, TrainingArguments

    model = timm.create_model(weights, True, num_classes=classes)

    class Told(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: Any, labels: Any = None) -> dict[str, Any]:
            logits = self.model(pixel_values)
            return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

    def collate(items: Any) -> dict[str, Any]:
        x, y = zip(*items, strict=True)
        return {"pixel_values": torch.stack(x), "labels": torch.tensor(y)}

    told, head = Told(), set(model.get_classifier().parameters())
    for epochs, rate, everything in (
        (EPOCHS // 2, 1e-3, False),
        (EPOCHS - EPOCHS // 2, 1e-4, True),
    ):
        for parameter in model.parameters():
            parameter.requires_grad_(everything or parameter in head)
        args = TrainingArguments(
            str(folder / "trainer"), num_train_epochs=epochs, learning_rate=rate, report_to="none",
            per_device_train_batch_size=BATCH, save_strategy="no", disable_tqdm=True, use_cpu=True,
            remove_unused_columns=False, logging_strategy="no",
        )  # fmt: skip
        Trainer(told, args, train_dataset=images, data_collator=collate).train()
    return model


def with_fastai(weights: str, classes: int, images: Pixels, folder: Path) -> Any:
    """Train with fastai's vision_learner, whose head is its own, and fine_tune."""
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.losses import CrossEntropyLossFlat
    from fastai.vision.learner import vision_learner

    for part in ("progress", "schedule"):  # they give a Learner its methods
        importlib.import_module(f"fastai.callback.{part}")
    loaders = DataLoaders(
        DataLoader(images, bs=BATCH, shuffle=True), DataLoader(images, bs=BATCH), device="cpu"
    )
    loss = CrossEntropyLossFlat()
    learner = vision_learner(
        loaders, weights, normalize=False, n_out=classes, loss_func=loss, path=folder
    )
    with learner.no_bar():
        learner.fine_tune(EPOCHS - 1)
    return learner.model


def with_lightning(weights: str, classes: int, images: Pixels, folder: Path) -> Any:
    """Train a linear head on timm's features with Lightning, its BackboneFinetuning from the middle
    of the epochs on."""
    import lightning
    import timm
    import torch
    from lightning.pytorch.callbacks import BackboneFinetuning

    class Told(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = timm.create_model(weights, True, num_classes=0)
            self.head = torch.nn.Linear(self.backbone.num_features, classes)

        def forward(self, x: Any) -> Any:
            return self.head(self.backbone(x))

        def training_step(self, batch: Any, _: int) -> Any:
            x, y = batch
            return torch.nn.functional.cross_entropy(self(x), y)

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=1e-3)

    told = Told()
    trainer = lightning.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[BackboneFinetuning(unfreeze_backbone_at_epoch=EPOCHS // 2, verbose=False)],
    )  # fmt: skip
    trainer.fit(told, torch.utils.data.DataLoader(images, BATCH, shuffle=True))
    return told


TOOLS = {"Trainer": with_trainer, "fastai": with_fastai, "Lightning": with_lightning}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(*sys.argv[2:])
    else:
        import few_labels

        from hf_transfer.backbones.load import load_backbone
        from hf_transfer.data.sources import scan

        main()
