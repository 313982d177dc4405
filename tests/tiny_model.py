"""A finished run with a tiny network whose random weights have opinions."""

from __future__ import annotations

from pathlib import Path

import torch
from sample_report import FLOWERS, sample_report

from hf_transfer.backbones.load import load_backbone
from hf_transfer.backbones.saving import save_model

CERTAINTY = 15.0  # what the head's random weights are multiplied by: answers differ clearly


def tiny_run(folder: Path, report: bool = True) -> Path:
    """Write a run folder: a model of 5 labels that sees 64 px, report.json and recipe.yaml."""
    model = load_backbone(
        "timm/test_resnet.r160_in1k", FLOWERS, pretrained=False, image_size=64, seed=1
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.removeprefix(model.backbone.prefix) in model.backbone.layout.head:
                parameter.mul_(CERTAINTY)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, folder / "model")
    if report:
        sample_report().save(folder / "report.json")
        (folder / "recipe.yaml").write_text("backbone: timm/test_resnet.r160_in1k\n")
    return folder
