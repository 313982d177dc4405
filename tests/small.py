"""Small networks and images made in memory, for tests that train."""

from __future__ import annotations

import atexit
import copy
import functools
import gc
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from hf_transfer.backbones.load import load_backbone
from hf_transfer.data.image_set import ImageSet
from hf_transfer.inputs.model_input import to_model_input
from hf_transfer.training.trainer import TransferTrainer

torch.set_num_threads(1)
gc.freeze()  # every phase collects garbage: what is imported need not be gone through
atexit.register(gc.unfreeze)

NAMES = ("cat", "dog", "fox")
RESNET, VIT, CONVNEXT = "timm/test_resnet", "timm/test_vit", "timm/test_convnext"
HEAD = {"train": "head", "epochs": 2, "lr": 1e-2, "batch_size": 8}
ALL = {"train": "all", "epochs": 1, "lr": 1e-3, "batch_size": 8}
COLD = {**ALL, "cold_head": True}
SOLVE = {"train": "head", "solve": "lbfgs"}


def images(count: int = 24, size: int = 40, seed: int = 0) -> ImageSet:
    """Return images whose class shows in their colour, under noise."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % len(NAMES)
    pixels = random.integers(0, 256, (count, size, size, 3))
    pixels[np.arange(count), :, :, labels % 3] += 60
    return ImageSet.from_arrays(pixels.clip(0, 255).astype(np.uint8), labels, NAMES)


class Pixels(torch.utils.data.Dataset):
    """The same images as a user's own data set of pixel_values and labels."""

    def __init__(self, stored: ImageSet, model: PreTrainedModel) -> None:
        batch = stored.__getitems__(range(len(stored)))
        self.pixels = to_model_input(batch["pixels"], model.backbone.image)
        self.labels = batch["labels"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pixels[index], "labels": self.labels[index]}


@functools.cache
def _network(backbone: str, size: int, dropout: float) -> PreTrainedModel:
    model = load_backbone(backbone, NAMES, pretrained=False, image_size=size)
    for module in model.modules():
        if isinstance(module, nn.Dropout) and dropout:
            module.p = dropout
    return model


def network(backbone: str = RESNET, size: int = 32, dropout: float = 0.0) -> PreTrainedModel:
    """Return a small network with random weights, the same each time."""
    return copy.deepcopy(_network(backbone, size, dropout))


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    """Return quiet arguments for a CPU that write nothing."""
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
    quiet |= {"dataloader_pin_memory": False, "seed": 7}
    return TrainingArguments(str(folder), **{**quiet, **options})


class Explode(TrainerCallback):
    """Spoils the weights after some epochs wherever the rate is above a limit."""

    def __init__(self, limit: float, after: float = 1) -> None:
        self.limit, self.after = limit, after

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.epoch > self.after and args.learning_rate > self.limit:
            with torch.no_grad():
                next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))


OWN = (
    "train_dataset", "eval_dataset", "head", "groups", "class_weights", "checkpoint_seconds",
    "callbacks", "compute_metrics", "compute_loss_func", "data_collator", "sync_batchnorm",
    "ends_with", "loss", "unlabelled",
)  # fmt: skip


def trainer(folder: Path, phases: Any, model: Any = None, **options: Any) -> TransferTrainer:
    """Return a trainer of a small network on a few images; the rest of the options go to its
    arguments."""
    model = network() if model is None else model
    own = {"train_dataset": images(), "eval_dataset": images(12, seed=1), "ends_with": "last"}
    own |= {key: options.pop(key) for key in OWN if key in options}
    return TransferTrainer(model, arguments(folder, **options), phases=phases, **own)


def trained(folder: Path, phases: Any, model: Any = None, **options: Any) -> TransferTrainer:
    """Return the same after training."""
    made = trainer(folder, phases, model, **options)
    made.train()
    return made


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of every parameter and buffer."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Return the names of tensors that differ in any bit."""
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def untimed(history: Any) -> list[dict[str, Any]]:
    """Return a Trainer's log or a report's history without what a clock says."""
    timed = ("_runtime", "_per_second", "_preparation_time")
    rows = [{k: v for k, v in row.items() if not k.endswith(timed)} for row in history]
    return [row for row in rows if "train_loss" not in row]


def features_of(model: Any, stored: ImageSet) -> tuple[np.ndarray, torch.Tensor]:
    """Return what the head of a network gets for each image, and what it makes of it."""
    model.eval()
    found = []
    head = model.get_submodule(f"{model.backbone.prefix}fc")
    hook = head.register_forward_pre_hook(lambda module, args: found.append(args[0].detach()))
    with torch.no_grad():
        logits = model(pixel_values=Pixels(stored, model).pixels).logits
    hook.remove()
    return found[0].double().numpy(), logits


def alexnet_like() -> nn.Module:
    """Return a small network in AlexNet's form: dropout between the layers below the head."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 4, 7, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(3))
            self.classifier = nn.Sequential(
                nn.Dropout(), nn.Linear(36, 16), nn.ReLU(),
                nn.Dropout(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3),
            )  # fmt: skip

        def forward(self, pixel_values):
            return self.classifier(self.features(pixel_values).flatten(1))

    torch.manual_seed(0)
    return Small()
