"""Precision and memory layout: measured for a few steps on this machine, the fastest kept."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_transfer.backbones.access import logits_of
from hf_transfer.base import launch
from hf_transfer.base.boundary import untrusted
from hf_transfer.base.files import read_limited, write_text
from hf_transfer.base.launch import mixed_precision
from hf_transfer.base.machine import kept_memory
from hf_transfer.base.processes import Processes
from hf_transfer.recipe.specs import Recipe
from hf_transfer.results.run_folder import RunFolder
from hf_transfer.training.arguments import joined
from hf_transfer.training.machine import precision as precision_module

logger = logging.getLogger(__name__)

WARM_STEPS, STEPS = 1, 2
IMAGES, DEVICE_IMAGES = 16, 32  # of a step at most, on a CPU and on an accelerator
GAIN = 1.05  # what another choice must be faster by, to be taken: less is noise
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
PRECISIONS = ("fp32", "bf16", "fp16")
USUAL = "channels_last"  # ResNet-10-T: 1.2 times as fast on a CPU


def settle(recipe: Recipe, model: nn.Module, out: Path) -> dict[str, Any]:
    """Set the model's memory layout; return {"precision", "layout"} and what was measured.

    Only `precision: auto` is measured, once in a run: the choice is written to its folder and read
    when the run is resumed. The setting of `accelerate launch --mixed_precision` replaces `auto`,
    and nothing else.
    """
    choice: dict[str, Any] = {"precision": recipe.precision, "layout": USUAL}
    if recipe.precision == "auto":
        choice = _chosen(recipe, model, out)
    for line in (
        precision_module.not_followed(recipe, choice["precision"]) if launch.is_main() else ()
    ):
        logger.warning("%s", line)
    model.to(memory_format=LAYOUTS[choice["layout"]])
    return choice


def _chosen(recipe: Recipe, model: nn.Module, out: Path) -> dict[str, Any]:
    """Return what was chosen before, what the launcher was told, or what is fastest here."""
    here, path = joined(recipe, out), RunFolder(out).precision
    choice: dict[str, Any] | None = here.all(_kept(path))[0]
    if choice is None:
        told = launch.mixed_precision()
        if told == "bf16" or (told == "fp16" and torch.accelerator.is_available()):
            choice = {"precision": told, "layout": USUAL}
        else:
            choice = _measured(model, _batch(recipe), here)
        if here.main:
            write_text(path, json.dumps(choice, indent=1) + "\n")
        logger.info("precision: auto is %s, %s", choice["precision"], choice["layout"])
    return choice


def _kept(path: Path) -> dict[str, Any] | None:
    """Return what was chosen before, None where nothing was."""
    if not path.is_file():
        return None
    with untrusted(str(path), "remove it to measure again"):
        found = json.loads(read_limited(path))
        if found["precision"] not in PRECISIONS or found["layout"] not in LAYOUTS:
            raise ValueError(f"it says {found}")
        return dict(found)


def _batch(recipe: Recipe) -> int:
    specs = recipe.phases
    most = DEVICE_IMAGES if torch.accelerator.is_available() else IMAGES
    return min(most, max(spec.batch_size for spec in specs))


def _measured(model: nn.Module, batch: int, here: Processes) -> dict[str, Any]:
    """Return the fastest of the choices; weights, modes and random numbers stay as they are.

    Several processes measure at the same time, as they train, and wait for the slowest of them.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    home = next(model.parameters()).device
    speeds = {}
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.random.fork_rng(), kept_memory():
            model.eval().to(device)  # statistics stay; the work is that of training all the same
            for layout in LAYOUTS:
                model.to(memory_format=LAYOUTS[layout])
                for precision in ("fp32", "bf16"):
                    here.wait()
                    speeds[f"{precision} {layout}"] = images_per_second(
                        model, batch, device, precision
                    )
    finally:
        model.to(home)
        for module, mode in modes:
            module.training = mode
        model.zero_grad(set_to_none=True)
    everyone = here.all(speeds)
    speeds = {name: min(each[name] for each in everyone) for name in speeds}
    best = f"fp32 {USUAL}"
    for name in sorted(speeds, key=lambda name: -speeds[name]):
        if speeds[name] > GAIN * speeds[best]:
            best = name
            break
    precision, layout = best.split()
    rounded = {name: round(speed, 1) for name, speed in speeds.items()}
    return {"precision": precision, "layout": layout, "images_per_second": rounded}


def images_per_second(model: nn.Module, batch: int, device: torch.device, precision: str) -> float:
    """Return images a second through forward and backward of the whole network; the best step.

    Gradients are added to what the parameters hold.
    """
    image = model.backbone.image
    pixels = torch.randn(batch, image.channels, image.size, image.size, device=device)
    low = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
    best = float("inf")
    for step in range(WARM_STEPS + STEPS):
        began = now(device)
        with low:
            loss = logits_of(model(pixel_values=pixels)).float().logsumexp(-1).mean()
        loss.backward()
        if step >= WARM_STEPS:
            best = min(best, now(device) - began)
    return batch / best


def now(device: torch.device) -> float:
    """Return seconds of a clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def not_followed(recipe: Recipe, precision: str) -> Iterator[str]:
    """Yield a line for each setting of accelerate launch that a run in this precision does not
    follow: its recipe decides."""
    told = mixed_precision()
    if told not in ("no", precision):
        yield (
            f"mixed_precision: {told} of accelerate launch is not used: this run is in "
            f"{precision}, by precision: {recipe.precision} in its recipe; change it there "
            "(--set precision=…)"
        )
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend != "no" and not recipe.compile:
        yield (
            f"dynamo_backend: {backend} of accelerate launch is not used, by compile: "
            f"{str(recipe.compile).lower()} in the recipe; change it there (--set compile=true)"
        )
