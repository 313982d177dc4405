"""Forty architectures of three libraries: each phase of `gradual`, for one step, moves exactly what
it should, and what is still is still, whatever kind of layer it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small import arguments, changed, state
from tiny_folders import stir
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification

from hf_transfer.backbones.load import load_backbone
from hf_transfer.training.phase_run import PhaseRunner
from hf_transfer.training.trainer import TransferTrainer

TIMM = {
    "test_resnet": 32, "test_vit": 32, "test_vit4": 32, "test_byobnet": 32, "test_efficientnet": 32,
    "test_efficientnet_gn": 32, "test_efficientnet_ln": 32, "test_efficientnet_evos": 32,
    "test_nfnet": 32, "test_convnext": 32, "test_convnext2": 32, "test_mambaout": 32,
    "resnet10t": 32, "mobilenetv3_small_050": 32, "mobilenetv4_conv_small_035": 32,
    "convnext_atto": 32, "convnextv2_atto": 32, "edgenext_xx_small": 64, "lcnet_035": 32,
    "repghostnet_050": 32, "efficientvit_b0": 32, "mnasnet_small": 32, "mobilevit_xxs": 64,
    "pvt_v2_b0": 64, "starnet_s050": 32, "regnetx_002": 32, "dla46_c": 32,
    "levit_128s": 224,
}  # fmt: skip
TORCHVISION = {
    "mobilenet_v2": 32, "mobilenet_v3_small": 32, "shufflenet_v2_x0_5": 32, "mnasnet0_5": 32,
    "resnet18": 32, "regnet_y_400mf": 32,
}  # fmt: skip
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
PATCHES = {**SMALL, "patch_size": 8, "intermediate_size": 32}
SIDES = {"hidden_sizes": [8, 16], "depths": [1, 1], "image_size": 32}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "vit": PATCHES,
    "dinov2": {**SMALL, "patch_size": 8},
    "beit": PATCHES,
    "deit": PATCHES,
    "resnet": {**SIDES, "embedding_size": 8, "layer_type": "basic"},
    "convnext": {**SIDES, "num_stages": 2},
}
NAMES = [
    *(f"timm/{name}" for name in TIMM),
    *(f"torchvision/{name}" for name in TORCHVISION),
    *(f"transformers/{name}" for name in TRANSFORMERS),
]
STEP = {
    "steps": 1,
    "lr": 1e-3,
    "label_smoothing": 0.1,
    "weight_decay": 0.0,
    "batch_size": 4,
    "best": "last",
}


def test_there_are_forty():
    assert len(NAMES) == 40


def made(name: str) -> tuple[nn.Module, int]:
    """Return a network whose random weights all act on the logits, and its images' side."""
    source, _, rest = name.partition("/")
    if source == "transformers":
        config = AutoConfig.for_model(rest, num_labels=3, **TRANSFORMERS[rest])
        config.architectures = []  # else deit, which has two heads, is not told apart
        return stir(AutoModelForImageClassification.from_config(config)), 32
    size = (TIMM if source == "timm" else TORCHVISION)[rest]
    model = load_backbone(name, ("a", "b", "c"), pretrained=False, image_size=size)
    return stir(model), size


class Noting(PhaseRunner):
    """Notes what there was before each phase, and after it."""

    def apply(self, *args: Any) -> Any:
        self.trainer.modes = {}
        return super().apply(*args)

    def prove(self, phase: Any, before: Any) -> Any:
        trainer = self.trainer
        trainer.ends.append((phase.phase, state(trainer.model), trainer.modes))
        return super().prove(phase, before)


class Seen(TransferTrainer):
    """Notes in which mode each module runs while training."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ends: list[Any] = []
        self.modes: dict[str, bool] = {}
        self.runner.__class__ = Noting

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        def note(path: str) -> Any:
            return lambda module, inputs: self.modes.__setitem__(path, module.training)

        hooks = [m.register_forward_pre_hook(note(p)) for p, m in self.model.named_modules()]
        try:
            return super().training_step(*args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()


@pytest.mark.parametrize("name", NAMES)
def test_each_phase_of_gradual_moves_what_it_should_and_nothing_else(name, tmp_path):
    torch.manual_seed(0)
    model, size = made(name)
    images = [
        {"pixel_values": torch.randn(3, size, size), "labels": torch.tensor(i % 3)}
        for i in range(4)
    ]
    phases = [{"gradual": "2 stages", **STEP}]
    trainer = Seen(model, arguments(tmp_path), phases=phases, train_dataset=images)
    before, backbone = state(model), trainer.backbone
    trainer.train()
    shapes = dict(backbone.layout.parameters)
    assert len(trainer.ends) >= 3
    assert set(trainer.phases[-1].parameters) == set(shapes) - set(backbone.layout.unused)
    for phase, after, modes in trainer.ends:
        moved = {key.removeprefix(backbone.prefix) for key in changed(before, after)}
        before = after
        assert moved & set(shapes) == set(phase.parameters)
        frozen = [
            f"{backbone.prefix}{path}"
            for group in backbone.groups.groups
            if group.name not in phase.groups
            for path in group.modules
        ]
        for path, training in modes.items():
            below = any(path == outer or path.startswith(f"{outer}.") for outer in frozen)
            assert not (below and training), path
        for key in moved - set(shapes):  # statistics, of layers that train
            owner = key.rpartition(".")[0]
            assert modes[f"{backbone.prefix}{owner}"], key
            assert any(f"{owner}.{end}" in phase.parameters for end in ("weight", "bias")), key
