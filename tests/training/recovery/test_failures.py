"""Failures while training are one line that says what to do; defects stay what they are."""

import shutil
import types

import numpy as np
import pytest
import torch
from PIL import Image
from small import COLD, trained, trainer

from hf_transfer.backbones.load import load_backbone
from hf_transfer.base.errors import UserError
from hf_transfer.base.processes import Processes
from hf_transfer.data.image_set import load_data
from hf_transfer.data.sources import scan
from hf_transfer.recipe.specs import DataSpec
from hf_transfer.training.recovery.failures import LostError, in_one_line

TWO = Processes(2, 0, None, ("one", "two"))


@pytest.fixture
def phase(tmp_path):
    return trainer(tmp_path, [{**COLD, "batch_size": 6, "accumulate": 2}]).phases[0]


def test_running_out_of_memory_suggests_a_batch_that_trains_the_same(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore lines")

    monkeypatch.setattr("hf_transfer.training.trainer.TransferTrainer.compute_loss", full)
    with pytest.raises(
        UserError, match=r"^phase all: out of memory at batch_size: 6; batch_size: 3 w"
    ) as e:
        trained(tmp_path, [{**COLD, "batch_size": 6, "accumulate": 2}])
    assert "accumulate: 4" in str(e.value)
    assert "\n" not in str(e.value)


def test_a_process_that_runs_out_of_memory_says_which_it_is(phase):
    error = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")
    assert str(in_one_line(error, phase, TWO)).startswith("phase all: process 0 is out of memory")


@pytest.mark.parametrize(
    "text",
    [
        "[/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:4242",
        "[/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 5000ms for recv operation",
    ],
)
def test_a_process_that_does_not_answer_is_named_by_its_machine(phase, text):
    found = in_one_line(RuntimeError(text + ". \nmore"), phase, TWO)
    assert isinstance(found, LostError)
    assert str(found).startswith("phase all: machine two does not answer any more (")
    assert "--resume" in str(found)
    assert "\n" not in str(found)
    assert "/gloo" not in str(found)
    here = Processes(3, 0, None, ("one", "one", "one"))
    assert "one of the processes 1, 2" in str(in_one_line(RuntimeError(text), phase, here))
    assert in_one_line(RuntimeError(text), phase, Processes()) is None  # not of another process


def test_batch_statistics_of_one_image_are_told_where_no_plan_can_see_them(tmp_path, monkeypatch):
    norms = torch.zeros(3), torch.ones(3)

    def forward(*args, **kwargs):  # as in a module that calls the function itself
        return torch.nn.functional.batch_norm(torch.zeros(1, 3, 1, 1), *norms, training=True)

    monkeypatch.setattr("hf_transfer.training.trainer.TransferTrainer.compute_loss", forward)
    with pytest.raises(UserError, match="^phase all: a batch of one image has no batch statistics"):
        trained(tmp_path, [COLD])


def test_a_defect_stays_what_it_is(phase):
    assert in_one_line(RuntimeError("shapes do not match"), phase, TWO) is None
    assert in_one_line(OSError(28, "No space left on device"), phase, TWO) is None


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_folder_that_disappears_while_it_is_streamed_is_named(
    tmp_path, monkeypatch, workers
):
    monkeypatch.setenv("HF_TRANSFER_CACHE", str(tmp_path / "cache"))  # of others' no room is made
    full = types.SimpleNamespace(free=0)  # nothing can be stored, so files are read live
    monkeypatch.setattr("shutil.disk_usage", lambda path: full)
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(8):
            pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    spec = DataSpec(str(tmp_path / "images"), validation=0.5, image_size=32)
    model = load_backbone("timm/test_vit", scan(spec).labels, pretrained=False, image_size=32)
    data = load_data(spec, model.backbone.image)
    sets = {"train_dataset": data.train, "eval_dataset": data.validation}
    made = trainer(tmp_path / "run", [COLD], model, dataloader_num_workers=workers, **sets)
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(UserError, match=r"\.png: .*; leave images as they are while a") as e:
        made.train()
    assert "\n" not in str(e.value)
