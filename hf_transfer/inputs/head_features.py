"""What the head reads of images: one vector of features each."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from hf_transfer.backbones.access import evaluating, logits_of
from hf_transfer.base.errors import UserError
from hf_transfer.inputs.model_input import to_model_input


@torch.no_grad()
def head_features(model: PreTrainedModel, pixels: torch.Tensor) -> np.ndarray:
    """Return float32 (B, D) of stored pixels uint8 (B, S', S', C): the input of the head's first
    layer, in evaluation mode, averaged over places or tokens where there are several."""
    return outputs_and_features(model, pixels)[1]


@torch.no_grad()
def outputs_and_features(
    model: PreTrainedModel, pixels: torch.Tensor
) -> tuple[torch.Tensor, np.ndarray]:
    """Return the outputs (B, C), float32 on the CPU, and the features of the same pass."""
    if not len(pixels):
        return torch.empty((0, len(model.backbone.labels))), np.zeros((0, 0), np.float32)
    caught: list[torch.Tensor] = []
    hook = first_of_head(model).register_forward_pre_hook(
        lambda _, given: caught.append(given[0].detach())
    )
    try:
        with evaluating(model):
            seen = to_model_input(pixels.to(model.device), model.backbone.image)
            outputs = logits_of(model(pixel_values=seen.to(model.dtype)))
    finally:
        hook.remove()
    if len(caught) != 1:
        raise UserError(f"the head of {model.backbone.id} runs {len(caught)} times for an image")
    return outputs.float().cpu(), _pooled(caught[0].float()).cpu().numpy()


def first_of_head(model: PreTrainedModel) -> nn.Module:
    """Return the layer of the head that runs first."""
    backbone = model.backbone
    head = set(backbone.layout.head)
    first = next((name for name, _ in backbone.layout.parameters if name in head), None)
    if first is None:
        raise UserError(f"{backbone.id} has no head, so nothing to take features before")
    return model.get_submodule(f"{backbone.prefix}{first}".rpartition(".")[0])


def _pooled(features: torch.Tensor) -> torch.Tensor:
    """Return (B, D) of (B, D), of tokens (B, N, D) or of places (B, D, H, W)."""
    if features.ndim == 4:
        return features.mean(dim=(2, 3))
    return features.mean(dim=1) if features.ndim == 3 else features.flatten(1)
