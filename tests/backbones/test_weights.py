"""Weights into networks that are not quite theirs, and what is refused."""

from __future__ import annotations

import argparse
import zipfile
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_folders import stir, tensors
from torch import nn
from torchvision.models import VisionTransformer

from hf_transfer.backbones.load import load_backbone
from hf_transfer.backbones.modeling_torchvision import network_of
from hf_transfer.backbones.weights import bare, fill, read_weights, transfer, weights_in
from hf_transfer.base.download import BackboneError

torch.set_num_threads(1)


def refused(call, *arguments) -> str:
    """Return the one line with which a call is refused."""
    with pytest.raises(BackboneError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["net.safetensors", "net.pth", "net.pt", "pytorch_model.bin"])
def test_tensors_are_read_from_every_usual_file(name, tmp_path):
    state = {"a.weight": torch.arange(6.0).reshape(2, 3)}
    save = save_file if name.endswith("safetensors") else torch.save
    save(state, tmp_path / name)
    assert torch.equal(read_weights(tmp_path / name)["a.weight"], state["a.weight"])


NET = {"conv.weight": torch.ones(2), "fc.bias": torch.zeros(1)}
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(1)}}, "param_groups": [{"lr": 0.1}]}
CHECKPOINTS = {
    "state_dict": {"state_dict": NET, "epoch": 3},
    "model": {"model": NET, "optimizer": OPTIMIZER},
    "model_state_dict": {"epoch": 1, "model_state_dict": NET, "optimizer_state_dict": OPTIMIZER},
    "net": {"net": NET, "acc": 0.5, "loss": torch.ones(())},
    "an own word": {"classifier": NET, "step": 7},
    "timm's train.py": {
        "epoch": 3,
        "arch": "resnet10t",
        "state_dict": NET,
        "optimizer": OPTIMIZER,
        "args": argparse.Namespace(lr=0.1, data_dir=Path("data"), betas=(0.9, 0.99)),
        "state_dict_ema": NET,
        "metric": 71.2,
    },
    "metadata between": {**NET, "epoch": 3, "note": "fine"},
}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (CHECKPOINTS["timm's train.py"], "2 times (state_dict, state_dict_ema); those in state_d"),
        ({"model": NET, "model_ema": NET}, "2 times (model, model_ema); those in model are used"),
        ({"state_dict": NET, "optimizer": OPTIMIZER, "loss": {"w": torch.ones(1)}}, ""),
        ({f"{kind}.{key}": v for kind in ("net", "ema") for key, v in NET.items()}, "those under "),
    ],
)
def test_of_several_copies_of_the_weights_it_is_said_which_is_used(
    content, words, tmp_path, caplog
):
    torch.save(content, tmp_path / "c.pth")
    bare(read_weights(tmp_path / "c.pth"), NET)
    assert words in caplog.text if words else not caplog.text


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_checkpoint_gives_the_weights_in_it(kind, tmp_path):
    torch.save(CHECKPOINTS[kind], tmp_path / "c.pth")
    assert list(read_weights(tmp_path / "c.pth")) == list(NET)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"student": NET, "teacher": NET}, "student, teacher"),
        ({"epoch": 3, "optimizer": OPTIMIZER}, "epoch, optimizer"),
        ([torch.ones(2)], "a list"),
        (7, "an int"),
    ],
)
def test_a_refusal_says_what_was_found(content, words, tmp_path):
    torch.save(content, tmp_path / "c.pth")
    assert words in refused(read_weights, tmp_path / "c.pth")


class Danger:
    """A pickle of it opens a file in the working folder when it is read."""

    def __reduce__(self):
        return open, ("opened", "w")


def test_what_lies_beside_the_tensors_is_neither_needed_nor_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = [Danger(), np.float64(0.5), np.arange(3), datetime(2020, 1, 1), SimpleNamespace(a=1)]
    torch.save({"state_dict": NET, "more": more}, tmp_path / "net.pth")
    assert list(read_weights(tmp_path / "net.pth")) == list(NET)
    torch.save([Danger()], tmp_path / "net.pth")
    assert "io.open" in refused(read_weights, tmp_path / "net.pth")
    assert not (tmp_path / "opened").exists()


def test_a_file_is_read_by_what_it_holds_not_by_its_name(tmp_path):
    save_file(NET, tmp_path / "net.pth")
    torch.save(NET, tmp_path / "net.safetensors")
    for name in ("net.pth", "net.safetensors"):
        assert read_weights(tmp_path / name).keys() == NET.keys()
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:  # as torch.jit.save writes it
        archive.writestr("net/constants.pkl", b"")
    assert "TorchScript" in refused(read_weights, tmp_path / "net.pt")
    assert "is not a file" in refused(read_weights, tmp_path)


def test_what_a_trainer_keeps_beside_a_network_of_timms_is_left(tmp_path):
    own = stir(timm.create_model("test_resnet", num_classes=3)).state_dict()
    torch.save({**own, "criterion.weight": torch.ones(3)}, tmp_path / "net.pth")
    model = load_backbone("timm/test_resnet", ("a", "b"), weights=tmp_path / "net.pth")
    assert torch.equal(tensors(model)["conv1.0.weight"], own["conv1.0.weight"])


@pytest.mark.parametrize("name", ["net.safetensors", "net.pth"])
@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 200])
def test_a_file_that_is_none_is_refused(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    line = refused(read_weights, tmp_path / name)
    assert name in line
    if name == "net.pth":
        assert ("torch.save did not write it" if content else "it is empty") in line


def test_a_file_without_tensors_is_refused(tmp_path):
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(BackboneError, match="has no tensors; save a network's state_dict"):
        read_weights(tmp_path / "empty.safetensors")


def test_a_file_cut_short_is_refused(tmp_path):
    save_file({"a": torch.ones(1000)}, tmp_path / "net.safetensors")
    whole = (tmp_path / "net.safetensors").read_bytes()
    (tmp_path / "net.safetensors").write_bytes(whole[:-100])
    assert "not whole" in refused(read_weights, tmp_path / "net.safetensors")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    assert "does not exist" in refused(read_weights, tmp_path / "gone.pth")


def test_safetensors_go_before_pickles(tmp_path):
    assert "model.safetensors" in refused(weights_in, tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    assert weights_in(tmp_path).name == "pytorch_model.bin"
    (tmp_path / "model.safetensors").touch()
    assert weights_in(tmp_path).name == "model.safetensors"


# --- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module.", "network.", "module.timm_model."])
def test_what_wrappers_put_before_all_names_is_taken_off(prefix):
    state = {f"{prefix}{name}": torch.ones(1) for name in ("conv1.weight", "fc.bias")}
    assert list(bare(state, ["conv1.weight", "fc.bias", "fc.weight"])) == [
        "conv1.weight",
        "fc.bias",
    ]


@pytest.mark.parametrize(
    "prefix", ["model.", "module.model._orig_mod.", "backbone.", "a.b._orig_mod."]
)
def test_a_network_among_other_parts_is_found(prefix):
    """Lightning keeps its loss and metrics beside the network, others a head of their own."""
    names = ("conv1.weight", "layer.0.weight", "fc.bias")
    state = {f"{prefix}{name}": torch.ones(1) for name in names}
    beside = ("criterion.weight", "train_acc.tp", "head.weight", "ema.model.conv1.weight")
    found = bare({**state, **{name: torch.zeros(1) for name in beside}}, [*names, "fc.weight"])
    assert list(found) == list(names)
    assert all(value.item() == 1 for value in found.values())


def test_names_of_another_network_are_left_as_they_are():
    state = {"a.b": torch.ones(1), "c.d": torch.ones(1)}
    assert bare(state, ["x.y"]) == state
    assert bare({}, ["x.y"]) == {}


def test_a_network_is_filled_but_for_its_head():
    network, donor = network_of("squeezenet1_1", 3, {}), stir(network_of("squeezenet1_1", 5, {}))
    head = ("classifier.1.weight", "classifier.1.bias")
    kept = network.classifier[1].weight.clone()
    fill(network, donor.state_dict(), head, "here")
    assert torch.equal(network.classifier[1].weight, kept)
    assert torch.equal(network.features[0].weight, donor.features[0].weight)
    line = refused(fill, network, network_of("squeezenet1_0", 3, {}).state_dict(), head, "here")
    assert "another architecture" in line


# --- shapes ----------------------------------------------------------------------------------


def vit(size: int, labels: int = 2) -> nn.Module:
    """Return torchvision's vision transformer, tiny, for images of this size."""
    return VisionTransformer(size, 8, 1, 2, 16, 32, num_classes=labels)


def test_position_embeddings_follow_the_size_and_class_tokens_stay():
    donor, network = stir(vit(64)), vit(32, 3)
    before = donor.encoder.pos_embedding.clone()
    transfer(network, donor, ["heads.head.weight", "heads.head.bias"], "here")
    after = network.encoder.pos_embedding
    assert after.shape == (1, 17, 16)
    assert torch.equal(after[:, 0], before[:, 0])
    assert torch.allclose(after[:, 1:].mean(), before[:, 1:].mean(), atol=0.01)
    assert torch.equal(network.conv_proj.weight, donor.conv_proj.weight)
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_flat_position_embeddings_stay_flat():
    donor, network = vit(64), vit(48)
    nn.init.constant_(donor.encoder.pos_embedding, 0.25)
    transfer(network, donor, [], "here")
    assert torch.allclose(network.encoder.pos_embedding, torch.full((1, 37, 16), 0.25))


def test_what_cannot_be_made_to_fit_is_named():
    line = refused(transfer, nn.Linear(4, 2), nn.Linear(5, 2), [], "alice/net")
    assert "alice/net: weight" in line
    assert "(2, 4), not (2, 5)" in line
    assert "bias" in refused(transfer, nn.Linear(5, 2), nn.Linear(5, 2, bias=False), [], "here")


def test_a_new_layer_keeps_its_own_statistics():
    donor, network = stir(nn.Sequential(nn.BatchNorm2d(3))), nn.Sequential(nn.BatchNorm2d(3))
    transfer(network, donor, ["0.weight", "0.bias"], "here")
    assert torch.equal(network[0].running_mean, torch.zeros(3))
    transfer(network, donor, ["0.bias"], "here")
    assert torch.equal(network[0].running_mean, donor[0].running_mean)


def test_the_folder_is_untouched_by_reading(tmp_path: Path):
    save_file({"a": torch.ones(2)}, tmp_path / "net.safetensors")
    read_weights(tmp_path / "net.safetensors")["a"].zero_()
    assert torch.equal(read_weights(tmp_path / "net.safetensors")["a"], torch.ones(2))
