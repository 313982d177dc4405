"""torchvision's networks in transformers' clothes: built, initialised, opened and given a loss."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_folders import pixels
from torch import nn

from hf_transfer.backbones import configuration_torchvision, modeling_torchvision
from hf_transfer.backbones.load import layout_of, load_backbone
from hf_transfer.backbones.modeling_torchvision import (
    TorchvisionConfig,
    TorchvisionForImageClassification,
    network_of,
)
from hf_transfer.backbones.saving import save_model

torch.set_num_threads(1)
SMALL = {"architecture": "squeezenet1_1", "num_labels": 3, "image_size": 64}


def test_building_a_model_leaves_torchvisions_own_initialisation():
    torch.manual_seed(0)
    plain = network_of("resnet18", 3, {}).state_dict()
    torch.manual_seed(0)
    model = TorchvisionForImageClassification(
        TorchvisionConfig(architecture="resnet18", num_labels=3)
    )
    assert all(
        torch.equal(value, plain[name]) for name, value in model.network.state_dict().items()
    )


def test_what_a_checkpoint_lacks_is_initialised_on_opening(tmp_path):
    model = TorchvisionForImageClassification(TorchvisionConfig(**SMALL))
    model.save_pretrained(tmp_path)
    opened = TorchvisionForImageClassification.from_pretrained(
        tmp_path, num_labels=7, ignore_mismatched_sizes=True
    )
    head = opened.network.classifier[1]
    assert head.weight.shape[0] == 7
    assert 0.001 < head.weight.std() < 1
    assert torch.equal(head.bias, torch.zeros(7))
    first = model.network.features[0].weight
    assert torch.equal(opened.network.features[0].weight, first)


def test_the_loss_is_cross_entropy_of_the_logits():
    model = TorchvisionForImageClassification(TorchvisionConfig(**SMALL))
    labels = torch.tensor([2, 0])
    output = model(pixel_values=pixels(64), labels=labels)
    assert output.logits.shape == (2, 3)
    assert torch.equal(output.loss, nn.functional.cross_entropy(output.logits, labels))
    assert model(pixels(64)).loss is None


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("alexnet", "features.0"),
        ("densenet121", "features.conv0"),
        ("googlenet", "conv1.conv"),
        ("inception_v3", "Conv2d_1a_3x3.conv"),
        ("mnasnet0_5", "layers.0"),
        ("mobilenet_v3_small", "features.0.0"),
        ("regnet_x_400mf", "stem.0"),
        ("resnet18", "conv1"),
        ("shufflenet_v2_x0_5", "conv1.0"),
        ("squeezenet1_1", "features.0"),
        ("swin_t", "features.0.0"),
        ("vgg11_bn", "features.0"),
        ("vit_b_32", "conv_proj"),
    ],
)
def test_the_first_layer_takes_any_number_of_channels(name, path):
    arguments = (
        {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    )  # noqa: E501
    with torch.device("meta"):
        usual, other = (network_of(name, 3, arguments, channels) for channels in (3, 5))
    assert other.get_submodule(path).weight.shape[1] == 5
    shapes = {n: p.shape for n, p in usual.named_parameters()}
    differ = [n for n, p in other.named_parameters() if p.shape != shapes[n]]
    assert differ == [f"{path}.weight"]


def test_auxiliary_heads_are_left_out():
    for name in ("googlenet", "inception_v3"):
        layout = layout_of(f"torchvision/{name}", 3)
        assert layout.head == ("fc.weight", "fc.bias")
        assert layout.unused == ()


def test_the_files_that_travel_need_three_packages_only():
    roots = set()
    for module in (modeling_torchvision, configuration_torchvision):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if isinstance(node, ast.Import):
                roots |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                roots.add(str(node.module).partition(".")[0])
    assert roots - set(sys.stdlib_module_names) == {"torch", "torchvision", "transformers"}


OPENS = """
import gc, json, os, sys
gc.disable()  # what is imported is no garbage
# None of these is what the order of imports is about.
import accelerate, scipy.optimize, torch, torchvision
paths, orders = sys.argv[1:4], json.loads(sys.argv[4])

def opens(number, first, second):
    exec(first)
    exec(second)
    from transformers import AutoConfig, AutoModelForImageClassification
    for own in ({}, {"trust_remote_code": False}):
        config = AutoConfig.from_pretrained(paths[0], **own)
        model = AutoModelForImageClassification.from_pretrained(paths[0], **own)
        print(number, type(config).__module__, type(model).__module__, flush=True)

def travels():
    sys.modules["hf_transfer"] = None
    from transformers import AutoModelForImageClassification as Auto
    model = Auto.from_pretrained(paths[1], trust_remote_code=True).eval()
    print("travels", type(model).__module__, flush=True)
    torch.save(model(torch.ones(1, 3, 64, 64)).logits.detach(), paths[2])

for work in [lambda n=n, o=o: opens(n, *o) for n, o in enumerate(orders)] + [travels]:
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    os.waitpid(child, 0)
"""
ORDERS = [
    ("import hf_transfer", ""),
    ("import hf_transfer", "from transformers import Trainer, AutoImageProcessor"),
    ("import transformers.models.auto.configuration_auto", "import hf_transfer"),
    ("from transformers import AutoModelForImageClassification", "import hf_transfer"),
]
OURS = (
    "hf_transfer.backbones.configuration_torchvision",
    "hf_transfer.backbones.modeling_torchvision",
)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """What was opened in a child for each order of imports and one without the package; all are
    forked from a process that has imported torch alone."""
    folder = tmp_path_factory.mktemp("opened")
    TorchvisionForImageClassification(TorchvisionConfig(**SMALL)).save_pretrained(folder / "plain")
    model = load_backbone("torchvision/squeezenet1_1", ("a", "b"), pretrained=False, image_size=64)
    save_model(model, folder / "own")
    paths = [str(folder / name) for name in ("plain", "own", "logits.pt")]
    done = subprocess.run(
        [sys.executable, "-c", OPENS, *paths, json.dumps(ORDERS)],
        capture_output=True, text=True, timeout=120,
        env={**os.environ, "HF_MODULES_CACHE": str(folder / "code")},
    )  # fmt: skip
    return model, folder, done


@pytest.mark.parametrize("order", range(len(ORDERS)), ids=lambda number: "; ".join(ORDERS[number]))
def test_the_auto_classes_know_it_once_the_package_is_imported(order, opened):
    """Whichever of the two is imported first, and without trust_remote_code."""
    *_, done = opened
    lines = [line for line in done.stdout.splitlines() if line.startswith(f"{order} ")]
    assert lines == [f"{order} {' '.join(OURS)}"] * 2, done.stderr


def test_without_the_package_the_code_that_travels_opens_it(opened):
    model, folder, done = opened
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("travels ")]
    assert line.startswith("travels transformers_modules"), done.stderr
    expected = model.eval()(torch.ones(1, 3, 64, 64)).logits
    assert torch.allclose(torch.load(folder / "logits.pt"), expected, atol=1e-6)
