"""What the server of `children` has ready, so that no child loads or builds it by itself."""

import gc
import importlib

import small

from hf_transfer.recipe.load import parse_phase

for name in (
    "timm", "torch.utils.serialization", "torchvision.models.feature_extraction",
    "transformers.models.timm_wrapper.modeling_timm_wrapper", "hf_transfer.backbones.from_timm",
    "hf_transfer.backbones.from_torchvision", "hf_transfer.run", "hf_transfer.cli",
    "transformers.models.auto.processing_auto", "transformers.image_processing_backends",
    "logging.handlers",
):  # fmt: skip
    importlib.import_module(name)
for backbone in (small.RESNET, small.VIT, small.CONVNEXT):
    for dropout in (0.0, 0.2):
        small.network(backbone, dropout=dropout)
parse_phase(small.HEAD)  # makes the schema
gc.collect()
gc.freeze()
