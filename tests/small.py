"""Small networks and images made in memory, for tests that train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, TrainingArguments

from hf_transfer.backbone import load_backbone
from hf_transfer.data import ImageSet
from hf_transfer.trainer import TransferTrainer

NAMES = ("cat", "dog", "fox")
RESNET, VIT, CONVNEXT = "timm/test_resnet", "timm/test_vit", "timm/test_convnext"
HEAD = {"train": "head", "epochs": 2, "lr": 1e-2, "batch_size": 8}
ALL = {"train": "all", "epochs": 1, "lr": 1e-3, "batch_size": 8}


def images(
    count: int = 24, size: int = 40, seed: int = 0, names: tuple[str, ...] = NAMES
) -> ImageSet:
    """Return images whose class shows in their colour, under noise."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % len(names)
    pixels = random.integers(0, 256, (count, size, size, 3))
    pixels[np.arange(count), :, :, labels % 3] += 60
    return ImageSet.from_arrays(pixels.clip(0, 255).astype(np.uint8), labels, names)


def network(backbone: str = RESNET, size: int = 32, **options: Any) -> PreTrainedModel:
    """Return a small network with random weights, the same each time."""
    options = {"pretrained": False, "image_size": size, **options}
    return load_backbone(backbone, NAMES, **options)


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    """Return quiet arguments for a CPU that write nothing."""
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
    quiet |= {"dataloader_pin_memory": False, "seed": 7}
    return TrainingArguments(str(folder), **{**quiet, **options})


def trainer(folder: Path, phases: Any, model: Any = None, **options: Any) -> TransferTrainer:
    """Return a trainer of a small network on a few images; `options` of arguments go to them."""
    model = network() if model is None else model
    sets = {"train_dataset": images(), "eval_dataset": images(12, seed=1)}
    own = {k: options.pop(k) for k in list(options) if k in OWN}
    return TransferTrainer(model, arguments(folder, **options), phases=phases, **{**sets, **own})


OWN = (
    "train_dataset", "eval_dataset", "head", "class_weights", "checkpoint_seconds", "callbacks",
    "compute_metrics", "compute_loss_func", "data_collator",
)  # fmt: skip


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of every parameter and buffer."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Return the names of tensors that differ in any bit."""
    return {name for name in before if not torch.equal(before[name], after[name])}


def untimed(history: Any) -> list[dict[str, Any]]:
    """Return a report's history without what a clock says."""
    timed = ("_runtime", "_per_second")
    return [{k: v for k, v in row.items() if not k.endswith(timed)} for row in history]
