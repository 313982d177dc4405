"""Recorded layouts: equal to a fresh trace, adapted to the labels, read without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hf_transfer.planning.groups import group_layers
from hf_transfer.planning.recorded import recorded_layout, recorded_names

FRESH = (  # one of each source, size and kind; hf_transfer.backbones.record writes them all
    "timm/resnet10t",
    "timm/vit_tiny_patch16_224",
    "timm/mobilenetv3_small_100",
    "timm/convnext_atto",
    "torchvision/alexnet",
    "torchvision/mobilenet_v3_small",
    "transformers/google/vit-base-patch16-224-in21k",
)


@pytest.mark.xdist_group("other loaders")  # one worker alone loads their libraries
@pytest.mark.parametrize("name", FRESH)
def test_a_recorded_layout_equals_a_fresh_trace_but_for_the_pixels_settings(name: str) -> None:
    from hf_transfer.backbones.record import fresh_layout

    recorded = recorded_layout(name, 7)
    assert recorded is not None
    fresh = fresh_layout(name, 7, recorded.image["size"])
    assert {**recorded.to_dict(), "image": 0} == {**fresh.to_dict(), "image": 0}


def test_every_recorded_backbone_is_grouped_and_ends_in_its_head() -> None:
    names = recorded_names()
    assert len(names) >= 50
    for name in names:
        layout = recorded_layout(name, 5)
        assert layout is not None, name
        groups = group_layers(layout)
        assert groups.names[-1] == "head", name
        assert groups.total == sum(layout.sizes.values()), name
        assert any(5 in shape for key, shape in layout.parameters if key in layout.head), name


def test_a_tag_brings_its_own_pixels() -> None:
    plain = recorded_layout("timm/vit_base_patch16_224.orig_in21k", 3)
    augreg = recorded_layout("timm/convnext_base.fb_in22k_ft_in1k_384", 3)
    assert plain is not None
    assert plain.image["size"] == 224
    assert augreg is not None
    assert augreg.image["size"] == 384
    assert sum(augreg.macs) > 2 * sum(recorded_layout("timm/convnext_base", 3).macs)  # type: ignore[union-attr]


def test_a_recorded_layout_is_what_planning_would_trace() -> None:
    from hf_transfer.backbones.load import layout_of

    for name in ("timm/resnet10t.c3_in1k", "torchvision/alexnet", "torchvision/resnet18"):
        assert recorded_layout(name, 5) == layout_of(name, 5), name


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("timm/resnet50", ["layer1", "layer2", "layer3", "layer4"]),
        ("torchvision/resnet18", ["layer1", "layer2", "layer3", "layer4"]),
        ("timm/convnext_tiny", [f"stages.{i}" for i in range(4)]),
        ("timm/swin_tiny_patch4_window7_224", [f"layers.{i}" for i in range(4)]),
        ("timm/densenet121", [f"features.denseblock{i}" for i in range(1, 5)]),
        ("timm/regnety_016", [f"s{i}" for i in range(1, 5)]),
        ("timm/vit_tiny_patch16_224", [f"blocks.{i}" for i in range(12)]),
        ("timm/mobilenetv3_small_100", [f"blocks.{i}" for i in range(5)]),
        ("timm/efficientnet_b0", [f"blocks.{i}" for i in range(7)]),
        ("transformers/microsoft/resnet-50", [f"encoder.stages.{i}" for i in range(4)]),
    ],
)
def test_stages_are_called_as_people_call_them(name: str, stages: list[str]) -> None:
    layout = recorded_layout(name, 5)
    assert layout is not None
    assert list(group_layers(layout).stages) == ["stem", *stages, "head"]


@pytest.mark.parametrize(
    "name",
    [
        "timm/resnet50.no_such_tag",
        "timm/no_such_network",
        "resnet50",
        "torchvision/resnet50.NO_SUCH_TAG",
        "../recorded/timm/resnet50",
        "transformers/someone/else",
    ],
)
def test_what_is_not_recorded_is_none(name: str) -> None:
    assert recorded_layout(name, 3) is None


def test_an_input_size_that_is_not_recorded_is_none() -> None:
    assert recorded_layout("timm/resnet10t", 3, image_size=64) is not None
    assert recorded_layout("timm/resnet10t", 3, image_size=71) is None


def _folder(path: Path, **changes: object) -> Path:
    config = {
        "architecture": "resnet10t",
        "num_classes": 200,
        "model_args": {"num_classes": 200, "in_chans": 3, "global_pool": "avg"},
        "pretrained_cfg": {"input_size": [3, 64, 64], "crop_pct": 1.0, "mean": [0.1, 0.2, 0.3]},
    }
    (path / "config.json").write_text(json.dumps({**config, **changes}))
    return path


def test_a_timm_folder_resolves_with_its_own_pixels(tmp_path: Path) -> None:
    layout = recorded_layout(str(_folder(tmp_path)), 3)
    assert layout is not None
    assert (layout.image["size"], layout.image["mean"]) == (64, (0.1, 0.2, 0.3))
    assert layout.image["crop_pct"] == 1.0


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "no_such_network"},
        {"model_args": {"in_chans": 1}},
        {"model_args": {"stem_type": "deep"}},
        {"model_type": "vit"},
        {"pretrained_cfg": {"input_size": [1, 64, 64]}},
        {"pretrained_cfg": None},
        {"pretrained_cfg": {"input_size": [3]}},
        {"pretrained_cfg": {"input_size": 64}},
        {"model_args": ["in_chans"]},
        {"architecture": ["resnet10t"]},
    ],
)
def test_a_folder_of_another_network_is_none(tmp_path: Path, changes: dict[str, object]) -> None:
    assert recorded_layout(str(_folder(tmp_path, **changes)), 3) is None


def test_a_folder_with_a_broken_config_is_none(tmp_path: Path) -> None:
    for text in ("{", "[]", "5", '{"a":' * 100_000, "\x00"):
        (tmp_path / "config.json").write_text(text)
        assert recorded_layout(str(tmp_path), 3) is None


def test_the_shared_backbone_resolves(resnet10t: Path) -> None:
    layout = recorded_layout(str(resnet10t), 5)
    assert layout is not None
    assert layout.image["size"] == 64
    assert layout.head == ("fc.weight", "fc.bias")


def test_no_torch_is_imported() -> None:
    code = (
        "import sys; from hf_transfer.planning.recorded import recorded_layout; "
        "from hf_transfer.planning.groups import group_layers; "
        "group_layers(recorded_layout('timm/resnet50.a1_in1k', 5)); "
        "heavy = {'torch', 'numpy', 'timm', 'transformers', 'torchvision'} & set(sys.modules); "
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
