"""A torchvision network as a transformers model, so that it is trained, saved and loaded like one.

This file and configuration_torchvision.py travel with every model that is saved from a torchvision
backbone (as its remote code), so they need nothing but torch, torchvision and transformers.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from .configuration_torchvision import TorchvisionConfig


def network_of(
    architecture: str, labels: int, arguments: dict[str, Any], channels: int = 3
) -> nn.Module:
    """Return torchvision's network with random weights for these numbers of labels and channels."""
    import torchvision  # takes seconds, and not all who import this file build a network

    # Regnets compute their widths with tensors, which have no values on the meta device.
    device = torch.device("cpu") if architecture.startswith("regnet") else nullcontext()
    with device:
        network = torchvision.models.get_model(
            architecture, weights=None, num_classes=labels, **arguments
        )
        if channels != 3:
            _set_channels(network, channels)
    return network


def _set_channels(network: nn.Module, channels: int) -> None:
    """Replace the network's first convolution by one for this number of input channels."""
    path, old = next((p, m) for p, m in network.named_modules() if isinstance(m, nn.Conv2d))
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,
        old.stride,
        old.padding,
        old.dilation,
        bias=old.bias is not None,
        padding_mode=old.padding_mode,
    )
    outer, _, name = path.rpartition(".")
    setattr(network.get_submodule(outer), name, new)


class TorchvisionForImageClassification(PreTrainedModel):
    """The network `torchvision.models.get_model(architecture)` with the loss of its labels."""

    config_class = TorchvisionConfig
    base_model_prefix = "network"
    main_input_name = "pixel_values"
    accepts_loss_kwargs = False

    def __init__(self, config: TorchvisionConfig, network: nn.Module | None = None) -> None:
        super().__init__(config)
        if network is None:
            network = network_of(
                config.architecture, config.num_labels, config.network_args, config.num_channels
            )
        self.network = network
        self.num_labels = config.num_labels
        for module in network.modules():
            # torchvision has initialised what it made; from_pretrained does what is then missing.
            own = next(module.parameters(recurse=False), None)
            module._is_hf_initialized = own is None or not own.is_meta
        self.post_init()

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> ImageClassifierOutput:
        """Return loss (where labels (B,) are given) and logits (B, labels) of (B, C, H, W)."""
        logits = self.network(pixel_values)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(loss=loss, logits=logits)
