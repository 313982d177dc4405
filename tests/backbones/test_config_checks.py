"""Configs and weights that others wrote: what is absurd is one line, what is code is not run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_folders import resnet_folder, timm_folder, vit_folder

from hf_transfer.backbones.config_checks import check_config
from hf_transfer.backbones.load import load_backbone
from hf_transfer.backbones.saving import save_model
from hf_transfer.base.download import BackboneError

torch.set_num_threads(1)
ABC = ("a", "b", "c")


def refused(folder: Path) -> str:
    """Return the one line with which loading is refused."""
    with pytest.raises(BackboneError) as caught:
        load_backbone(str(folder), ABC)
    line = str(caught.value)
    assert "\n" not in line
    assert line.isprintable()
    assert len(line) < 600
    assert str(folder) in line
    return line


def change(path: Path, *keys: str, value: Any) -> None:
    """Set a value in a JSON file, at a path of keys."""
    config = inner = json.loads(path.read_text())
    for key in keys[:-1]:
        inner = inner.setdefault(key, {})
    inner[keys[-1]] = value
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("pretrained_cfg", "std"), [0, 0, 0]),
        (("pretrained_cfg", "std"), [0.2, -0.2, 0.2]),
        (("pretrained_cfg", "mean"), ["a", "b", "c"]),
        (("pretrained_cfg", "mean"), [float("nan")] * 3),
        (("pretrained_cfg", "input_size"), [3, -64, -64]),
        (("pretrained_cfg", "input_size"), [3, 10**9, 10**9]),
        (("pretrained_cfg", "input_size"), 64),
        (("pretrained_cfg", "crop_pct"), "wide"),
        (("pretrained_cfg", "interpolation"), ["bicubic"]),
        (("pretrained_cfg",), "none"),
        (("model_args",), ["in_chans"]),
        (("model_args", "in_chans"), "3"),
        (("num_classes",), "five"),
        (("label_names",), "abc"),
        (("architecture",), 5),
        (("architecture",), "\x1b[31mnet"),
        (("deep",), json.loads('{"a":' * 100 + "1" + "}" * 100)),
    ],
)
def test_an_absurd_timm_config_is_one_line(keys, value, tmp_path):
    folder = timm_folder(tmp_path / "own", "test_resnet")
    change(folder / "config.json", *keys, value=value)
    line = refused(folder)
    assert (
        keys[-1] in line or "has neither an architecture (timm) nor" in line or "\\x1b[31m" in line
    )


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("image_size",), -32),
        (("image_size",), "32"),
        (("image_size",), 10**12),
        (("num_channels",), 0),
        (("patch_size",), 0),
        (("hidden_size",), -8),
        (("num_hidden_layers",), 10**9),
        (("num_attention_heads",), "two"),
        (("id2label",), ["a", "b"]),
        (("id2label",), {"first": "a"}),
        (("hidden_act",), {"a": 1}),
        (("model_type",), ["vit"]),
        (("model_type",), "timm_wrapper"),
        (("_attn_implementation",), "alice/kernel"),
    ],
)
def test_an_absurd_transformers_config_is_one_line(keys, value, tmp_path):
    folder = vit_folder(tmp_path / "own")
    change(folder / "config.json", *keys, value=value)
    line = refused(folder)
    assert keys[-1] in line or "has neither an architecture (timm) nor" in line


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_std", [0, 0, 0]),
        ("image_mean", ["a", "b", "c"]),
        ("rescale_factor", 0),
        ("size", {"height": -5, "width": -5}),
        ("size", "large"),
        ("resample", "sharp"),
    ],
)
@pytest.mark.parametrize("kind", ["vit", "saved"])
def test_an_absurd_processor_is_one_line(kind, key, value, tmp_path):
    folder = tmp_path / "own"
    if kind == "vit":
        vit_folder(folder)
    else:
        model = load_backbone("torchvision/squeezenet1_1", ABC, pretrained=False, image_size=64)
        save_model(model, folder)
    change(folder / "preprocessor_config.json", key, value=value)
    assert key in refused(folder)


def test_a_config_that_is_nested_without_end_is_one_line(tmp_path):
    folder = timm_folder(tmp_path / "own", "test_resnet")
    (folder / "config.json").write_text('{"a":' * 100_000)
    assert "nested too deeply" in refused(folder)
    lists: list[Any] = [0]
    for _ in range(500):
        lists = [lists]
    with pytest.raises(BackboneError):
        check_config({"std": lists}, "here")


# --- code ------------------------------------------------------------------------------------


def test_code_that_comes_with_a_model_is_neither_run_nor_asked_about(tmp_path, monkeypatch):
    def asked(*_: object) -> str:
        raise AssertionError("a prompt")

    monkeypatch.setattr("builtins.input", asked)
    folder = vit_folder(tmp_path / "own")
    (folder / "code.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    auto = {"AutoConfig": "code.Config", "AutoModelForImageClassification": "code.Model"}
    change(folder / "config.json", "auto_map", value=auto)
    assert load_backbone(str(folder), ABC).backbone.source == "transformers"  # its own class
    change(folder / "config.json", "model_type", value="novel")
    assert "not run" in refused(folder)
    change(folder / "config.json", "model_type", value="vit")
    for kind in ("AutoImageProcessor", "AutoProcessor"):
        change(folder / "preprocessor_config.json", "auto_map", kind, value="code.Processor")
    change(folder / "preprocessor_config.json", "image_processor_type", value="Novel")
    assert "custom code" in refused(folder)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("checkpoint_path", "weights.pth"),
        ("pretrained_cfg_overlay", {"file": "weights.pth"}),
        ("pretrained_cfg", {"url": "http://127.0.0.1:9/x"}),
        ("pretrained", True),
        ("cache_dir", "somewhere"),
        ("features_only", True),
        ("scriptable", True),
    ],
)
@pytest.mark.parametrize("architecture", ["test_resnet", "test_byobnet"])
def test_arguments_of_timms_builders_do_not_pass(architecture, name, value, tmp_path):
    folder = timm_folder(tmp_path / "own", architecture)
    change(folder / "config.json", "model_args", name, value=value)
    assert name in refused(folder)


def test_arguments_of_the_networks_own_class_pass(tmp_path):
    arguments = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3, "init_values": 0.1}
    folder = timm_folder(tmp_path / "own", "test_vit", **arguments)
    assert load_backbone(str(folder), ABC).backbone.image.size == 32


# --- where weights lie -----------------------------------------------------------------------


def test_a_file_of_weights_is_a_backbone_where_a_config_lies_beside_it(tmp_path):
    folder = resnet_folder(tmp_path / "own")
    model = load_backbone(folder / "model.safetensors", ABC, seed=1)
    same = load_backbone(str(folder), ABC, seed=1)
    assert model.backbone.weights == str(folder / "model.safetensors")
    for value, other in zip(model.state_dict().values(), same.state_dict().values(), strict=True):
        assert torch.equal(value, other)
    (folder / "config.json").unlink()
    with pytest.raises(BackboneError, match="--set weights="):
        load_backbone(str(folder / "model.safetensors"), ABC)
    with pytest.raises(BackboneError, match="does not exist"):
        load_backbone("./nowhere.safetensors", ABC)


def test_a_run_that_is_not_finished_says_so(tmp_path):
    (tmp_path / "recipe.yaml").write_text("phases: []\n")
    (tmp_path / "phase-1-head").mkdir()
    line = refused(tmp_path)
    assert "not finished" in line
    assert "--resume" in line
