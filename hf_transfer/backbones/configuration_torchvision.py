"""The config of a torchvision network as a transformers model; travels with every such model."""

from typing import Any

from transformers import PretrainedConfig


class TorchvisionConfig(PretrainedConfig):
    """Which torchvision network, for what images, and for how many labels."""

    model_type = "hf_transfer_torchvision"

    def __init__(
        self,
        architecture: str = "resnet18",
        network_args: dict[str, Any] | None = None,
        image_size: int = 224,
        num_channels: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.architecture = architecture
        self.network_args = network_args or {}
        self.image_size = image_size
        self.num_channels = num_channels
