"""precision: auto is measured once, written down, read back, and changes nothing of the model."""

import json

import pytest
import torch
from children import ended, free_port, join, start
from drawn import photos
from safetensors.torch import load_file
from small import RESNET, changed, network, state

from hf_transfer.base.errors import UserError
from hf_transfer.base.processes import leave
from hf_transfer.recipe.specs import DataSpec, PhaseSpec, Recipe
from hf_transfer.run import run
from hf_transfer.training.machine import precision
from hf_transfer.training.machine.precision import GAIN, settle


def recipe(wanted="auto", **more):
    return Recipe("r", (PhaseSpec("head", epochs=1.0, batch_size=4),), precision=wanted, **more)


def speeds(monkeypatch, found):
    asked = []

    def speed(model, batch, device, wanted):
        p = next(x for x in model.parameters() if x.ndim == 4 and x.shape[1] > 1 and x.shape[2] > 1)
        last = p.is_contiguous(memory_format=torch.channels_last)
        asked.append(f"{wanted} {'channels_last' if last else 'contiguous'}")
        return found[asked[-1]]

    monkeypatch.setattr(precision, "images_per_second", speed)
    return asked


ALL = {"fp32 channels_last": 100.0, "bf16 channels_last": 80.0, "fp32 contiguous": 90.0}


@pytest.mark.parametrize(
    ("bf16_contiguous", "chosen"),
    [(150.0, ("bf16", "contiguous")), (100 * GAIN - 1, ("fp32", "channels_last"))],
)
def test_the_fastest_is_kept_unless_it_gains_next_to_nothing(
    tmp_path, monkeypatch, bf16_contiguous, chosen
):
    asked = speeds(monkeypatch, {**ALL, "bf16 contiguous": bf16_contiguous})
    model = network()
    found = settle(recipe(), model, tmp_path)
    assert (found["precision"], found["layout"]) == chosen
    assert sorted(asked) == sorted(found["images_per_second"])
    assert json.loads((tmp_path / "precision.json").read_text()) == found
    last = [p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters()
            if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]  # fmt: skip
    assert all(last) == (chosen[1] == "channels_last")


def test_measuring_changes_no_weight_statistic_mode_or_random_number(tmp_path):
    model = network()
    before, random = state(model), torch.get_rng_state()
    modes = [module.training for module in model.modules()]
    found = settle(recipe(), model, tmp_path)
    assert all(speed > 0 for speed in found["images_per_second"].values())
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())


def test_a_resumed_run_takes_the_choice_that_was_written(tmp_path, monkeypatch):
    (tmp_path / "precision.json").write_text(
        json.dumps({"precision": "bf16", "layout": "contiguous"})
    )
    asked = speeds(monkeypatch, {})
    assert settle(recipe(), network(), tmp_path)["precision"] == "bf16"
    assert asked == []
    for text in ('{"precision": "fp64", "layout": "contiguous"}', "[" * 100_000, "3"):
        (tmp_path / "precision.json").write_text(text)
        with pytest.raises(UserError, match=r"cannot read .*precision.json: .*; remove it to"):
            settle(recipe(), network(), tmp_path)


def settle_twice(rank, port, folder):
    """Be one of two processes, the second of which is slow at what is fastest in the first."""
    join(rank, 2, port)
    found = {**ALL, "bf16 channels_last": (140.0, 120.0)[rank]}
    found["bf16 contiguous"] = (150.0, 60.0)[rank]
    patch = pytest.MonkeyPatch()
    asked = speeds(patch, found)
    out = folder / str(rank)  # a folder that is not shared
    out.mkdir()
    choices = [settle(recipe(), network(), out) for _ in range(2)]
    (folder / f"{rank}.json").write_text(json.dumps([choices, len(asked)]))
    patch.undo()
    leave()


def test_several_processes_measure_together_and_agree_on_what_suits_the_slowest(tmp_path):
    port = free_port()
    children = [
        start(settle_twice, tmp_path / f"log-{rank}", rank, port, tmp_path) for rank in range(2)
    ]
    statuses = [ended(child) for child in children]
    assert statuses == [0, 0], "".join(path.read_text() for path in tmp_path.glob("log-*"))
    (choices, asked), other = (json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2))
    assert other == [choices, asked]
    assert choices[0]["images_per_second"]["bf16 channels_last"] == 120
    assert choices[0]["precision"] == "bf16"
    assert choices[0]["layout"] == "channels_last"
    assert choices[1] == choices[0]  # the second time as the first process has written
    assert asked == 4


@pytest.mark.parametrize(("told", "wanted"), [("bf16", "bf16"), ("no", "fp32"), ("fp8", "fp32")])
def test_auto_takes_what_the_launcher_was_told_and_else_measures(
    tmp_path, monkeypatch, caplog, told, wanted
):
    asked = speeds(monkeypatch, {**ALL, "bf16 contiguous": 1.0})
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", told)
    assert settle(recipe(), network(), tmp_path)["precision"] == wanted
    assert bool(asked) == (told != "bf16")
    assert ("mixed_precision: fp8 of accelerate launch is not used" in caplog.text) == (
        told == "fp8"
    )


def test_a_recipe_decides_against_its_launcher_and_a_line_names_both(tmp_path, monkeypatch, caplog):
    ends = []
    photos(tmp_path / "photos", classes=("cat", "dog"), count=8)
    data = DataSpec(str(tmp_path / "photos"), image_size=32)
    for told in ("no", "bf16"):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", told)
        assert "is not used" not in caplog.text
        made = recipe("fp32", backbone=RESNET, pretrained=False, data=data)
        run(made, tmp_path / told)
        ends.append(load_file(tmp_path / told / "model" / "model.safetensors"))
    assert "mixed_precision: bf16 of accelerate launch is not used" in caplog.text
    assert "this run is in fp32, by precision: fp32 in its recipe; change it th" in caplog.text
    assert changed(*ends) == set()


def test_a_precision_that_is_given_is_not_measured(tmp_path, monkeypatch):
    asked = speeds(monkeypatch, {})
    assert settle(recipe("fp32"), network(), tmp_path)["precision"] == "fp32"
    assert asked == []
    assert not (tmp_path / "precision.json").exists()


def test_the_report_says_what_was_chosen(tmp_path, monkeypatch):
    speeds(monkeypatch, {**ALL, "bf16 contiguous": 150.0})
    folder = photos(tmp_path / "photos", classes=("cat", "dog"), count=8)
    data = DataSpec(str(folder or tmp_path / "photos"), image_size=32)
    report = run(recipe(backbone=RESNET, pretrained=False, data=data), tmp_path / "run")
    assert report.environment["precision"] == "bf16"
    assert report.environment["images_per_second"]["bf16 contiguous"] == 150.0


def test_what_accelerate_was_told_and_the_recipe_says_otherwise_is_named(monkeypatch):
    def given(values):
        for key, value in values.items():
            monkeypatch.setenv(key, value)

    given({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"})
    assert list(precision.not_followed(recipe(), "fp32")) == []
    given({"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"})
    both = list(precision.not_followed(recipe(), "fp32"))
    assert [line.partition(" of accelerate launch is not used")[0] for line in both] == [
        "mixed_precision: bf16",
        "dynamo_backend: inductor",
    ]
    assert list(precision.not_followed(recipe(compile=True), "bf16")) == []
