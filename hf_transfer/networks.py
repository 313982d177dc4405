"""A torchvision network as a transformers model, so that it is trained, saved and loaded like one.

This file travels with every model that is saved from a torchvision backbone (as its remote code),
so it needs nothing but torch, torchvision and transformers.
"""

import torch
import torchvision
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput


class TorchvisionConfig(PretrainedConfig):
    """Which torchvision network, and for how many labels."""

    model_type = "hf_transfer_torchvision"

    def __init__(self, architecture="resnet18", network_args=None, image_size=224, **kwargs):
        super().__init__(**kwargs)
        self.architecture = architecture
        self.network_args = network_args or {}
        self.image_size = image_size


class TorchvisionForImageClassification(PreTrainedModel):
    """The network `torchvision.models.get_model(architecture)` with the loss of its labels."""

    config_class = TorchvisionConfig
    base_model_prefix = "network"
    main_input_name = "pixel_values"
    accepts_loss_kwargs = False

    def __init__(self, config):
        super().__init__(config)
        self.network = torchvision.models.get_model(
            config.architecture,
            weights=None,
            num_classes=config.num_labels,
            **config.network_args,
        )
        self.num_labels = config.num_labels
        self.post_init()

    def _init_weights(self, module):
        """torchvision has initialised its network already; from_pretrained fills it."""

    def forward(self, pixel_values, labels=None, **kwargs):
        """Return loss (where labels (B,) are given) and logits (B, labels) of (B, C, H, W)."""
        logits = self.network(pixel_values)
        if not isinstance(logits, torch.Tensor):  # googlenet, inception: (logits, auxiliary…)
            logits = logits[0]
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(loss=loss, logits=logits)
