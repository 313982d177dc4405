"""Pretrained folders in each library's own form, small enough to write in a moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from torch import nn
from transformers import (
    BitImageProcessor,
    ConvNextImageProcessor,
    Dinov2Config,
    Dinov2ForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hf_transfer.backbones.load import load_backbone
from hf_transfer.backbones.saving import save_model

WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def stir(network: nn.Module, seed: int = 7) -> nn.Module:
    """Give every weight and running statistic a value of its own; return the network in eval."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator) * 0.05
                tensor.add_(noise.abs() if "var" in name else noise)
    return network.eval()


def pixels(size: int, channels: int = 3, count: int = 2) -> torch.Tensor:
    """Return the same random images (count, channels, size, size) each time."""
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(3))


def timm_folder(folder: Path, architecture: str, classes: int = 3, **arguments: Any) -> Path:
    """Write a folder as timm itself does."""
    network = stir(timm.create_model(architecture, num_classes=classes, **arguments))
    save_for_hf(network, folder, model_args=arguments or None, safe_serialization=True)
    return folder


def _save(model: PreTrainedModel, processor: Any, folder: Path) -> Path:
    stir(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def vit_folder(folder: Path, model: Any = ViTForImageClassification, **settings: Any) -> Path:
    """Write a tiny ViT of 32 px whose processor squashes, or its kin by another class."""
    config = {"image_size": 32, "patch_size": 8, "intermediate_size": 64, "num_labels": 3}
    network = model(model.config_class(**WIDTH, **{**config, **settings}))
    return _save(network, ViTImageProcessor(size={"height": 32, "width": 32}), folder)


def resnet_folder(folder: Path, **settings: Any) -> Path:
    """Write a tiny ResNet (batch normalisation) with ConvNext's processor: 36 px, cut to 32."""
    config = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 3}
    network = ResNetForImageClassification(
        ResNetConfig(layer_type="basic", **{**config, **settings})
    )
    processor = ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=32 / 36)
    return _save(network, processor, folder)


def dinov2_folder(folder: Path, **settings: Any) -> Path:
    """Write a tiny DINOv2 of 56 px with Bit's processor: 32 px, cut to 28."""
    config = {"image_size": 56, "patch_size": 14, "num_labels": 3, "mlp_ratio": 2}
    network = Dinov2ForImageClassification(Dinov2Config(**WIDTH, **{**config, **settings}))
    cut = {"height": 28, "width": 28}
    return _save(network, BitImageProcessor(size={"shortest_edge": 32}, crop_size=cut), folder)


def torchvision_folder(path: Path, name: str = "squeezenet1_1", **options: Any) -> Path:
    """Write a folder as we do: torchvision has no form of its own."""
    model = load_backbone(
        f"torchvision/{name}", ("a", "b", "c"), pretrained=False, image_size=64, **options
    )
    save_model(stir(model), path)
    return path


FOLDERS = {
    "timm": lambda path: timm_folder(path, "test_resnet"),
    "transformers": vit_folder,
    "torchvision": torchvision_folder,
}


def tensors(model: Any) -> dict[str, torch.Tensor]:
    """Return everything in a model by the bare network's names."""
    prefix = model.backbone.prefix
    return {name.removeprefix(prefix): value for name, value in model.state_dict().items()}


def logits(model: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(x).logits
