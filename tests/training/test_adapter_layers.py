"""Adapters, trained: peft's, beside layers that stay bit for bit what they were, then merged."""

from __future__ import annotations

import json
import signal

import pytest
import torch
from children import ended, start, together, train
from small import ALL, CONVNEXT, HEAD, NAMES, RESNET, VIT, changed, network, state, trained
from small import trainer as make
from torch import nn

from hf_transfer.backbones.access import bare_names
from hf_transfer.backbones.load import load_model
from hf_transfer.backbones.saving import save_model
from hf_transfer.base.errors import UserError
from hf_transfer.planning.adapters import parameters_of
from hf_transfer.planning.phases import make_phases
from hf_transfer.recipe.specs import PhaseSpec
from hf_transfer.training import adapter_layers
from hf_transfer.training.proof import fingerprint

KINDS = ["lora(r=4)", "dora(r=3, dropout=0.1)", "loha(r=2 alpha=4)", "lokr(r=2)", "lokr(r=64)"]
NETWORKS = [RESNET, VIT, CONVNEXT, "torchvision/vit_b_16"]
LORA = {**ALL, "train": "lora(r=4)", "epochs": 2, "lr": 1e-2}


def alive(backbone, **options):
    """Return a small network whose residual branches are not shut, as those new from timm are."""
    model = network(backbone, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.fill_(1.0)
    return model


def phase_of(model, train):
    specs = [PhaseSpec("head", epochs=1), PhaseSpec(train, epochs=1)]
    return make_phases(specs, model.backbone.groups)[-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backbone", NETWORKS[:3])
def test_peft_makes_what_was_planned_and_the_logits_are_what_they_were(backbone, kind):
    model = alive(backbone).eval()
    before, pixels = state(model), torch.randn(2, 3, 32, 32)
    logits, phase = model(pixels).logits, phase_of(model, kind)
    there = adapter_layers.inject(model, model.backbone, phase, seed=3)
    named = bare_names(model, model.backbone.prefix)
    assert {n: tuple(p.shape) for n, p in named.items()} == dict(there.layout.parameters)
    assert torch.allclose(model(pixels).logits, logits, atol=1e-5)
    values = fingerprint(model, model.backbone.prefix)
    adapter_layers.inject(model, model.backbone, phase, seed=3)  # again: nothing is added
    assert fingerprint(model, model.backbone.prefix) == values
    adapter_layers.remove(model)
    assert changed(before, state(model)) == set()
    assert not hasattr(model, "peft_config")


@pytest.mark.parametrize("kind", KINDS)
def test_merging_gives_the_same_logits_from_plain_layers(kind):
    model = alive(CONVNEXT).eval()
    names = set(state(model))
    phase = phase_of(model, kind)
    adapter_layers.inject(model, model.backbone, phase, seed=0)
    with torch.no_grad():
        own = parameters_of(phase.adapters, model.backbone.layout)
        for name, parameter in bare_names(model, model.backbone.prefix).items():
            if name in own:
                parameter.add_(torch.randn_like(parameter) * 0.02)
        pixels = torch.randn(2, 3, 32, 32)
        logits = model(pixels).logits
        adapter_layers.merge(model)
        assert torch.allclose(model(pixels).logits, logits, atol=1e-4, rtol=1e-4)
    assert set(state(model)) == names


def test_layers_that_are_used_by_their_weights_alone_have_no_adapters():
    layers = network("torchvision/vit_b_16", size=224).backbone.layout.adaptable
    assert not any("self_attention" in path for path in layers)  # MultiheadAttention reads weights
    assert sum(".mlp." in path for path in layers) == 24


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backbone", [RESNET, VIT])
def test_a_phase_of_adapters_moves_them_and_the_head_and_no_bit_of_the_base(
    tmp_path, backbone, kind
):
    model = alive(backbone)
    made = make(tmp_path, [HEAD, {**LORA, "train": kind}], model)
    seen = {}
    merge = adapter_layers.merge

    def look(network):  # what there is at the end of a phase, before its adapters are merged
        seen.setdefault("phases", []).append(fingerprint(network, model.backbone.prefix))
        merge(network)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter_layers, "merge", look)
        made.train()
    first, second = seen["phases"]
    head = set(model.backbone.layout.head)
    assert first.changed(second) == head
    phase = made.phases[1]
    assert set(second.values) - set(first.values) == set(phase.parameters) - head
    assert made.reports[1].checks["unmoved"] == []
    end = fingerprint(model, model.backbone.prefix)
    assert second.changed(end) - set(phase.parameters) == {
        f"{path}.weight" for path in phase.adapters.layers
    }
    assert made.reports[1].trainable_parameters == sum(
        p.numel() for n, p in bare_names(model, model.backbone.prefix).items() if n in head
    ) + sum(
        torch.Size(shape).numel()
        for shape in parameters_of(phase.adapters, model.backbone.layout).values()
    )


def test_adapters_train_between_phases_that_train_the_layers_themselves(tmp_path):
    model = alive(CONVNEXT)
    phases = [HEAD, LORA, ALL, {**LORA, "train": ["dora last 1 stage", "norms"]}]
    made = trained(tmp_path, phases, model)
    assert [r.checks["unmoved"] for r in made.reports] == [[]] * 4
    assert set(dict(model.named_parameters())) == set(dict(network(CONVNEXT).named_parameters()))
    save_model(model, tmp_path / "model")
    pixels = torch.randn(1, 3, 32, 32)
    assert torch.equal(load_model(tmp_path / "model")(pixels).logits, model.eval()(pixels).logits)


def test_what_is_frozen_below_adapters_is_computed_once_with_equal_results(tmp_path):
    ends = []
    for features in ("cached", "live"):
        model = alive(VIT)
        spec = {**LORA, "train": "lora last 1 block", "features": features}
        made = trained(tmp_path / features, [HEAD, spec], model)
        assert made.reports[1].features == features
        ends.append(state(model))
    for name, value in ends[0].items():
        assert torch.allclose(value, ends[1][name], atol=2e-4), name


def test_after_a_phase_that_failed_the_same_trainer_begins_anew(tmp_path):
    model = alive(VIT)
    names = set(state(model))
    made = make(tmp_path, [HEAD, LORA], model)

    prove = made.runner.prove

    def fail(phase, before):
        if phase.phase is made.phases[1]:
            raise RuntimeError("no more")
        return prove(phase, before)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made.runner, "prove", fail)
        with pytest.raises(RuntimeError, match="no more"):
            made.train()
    made.train()
    assert set(state(model)) == names
    assert made.backbone is model.backbone


def test_a_model_that_has_adapters_already_is_asked_to_merge_them(tmp_path):
    from peft import LoraConfig, inject_adapter_in_model

    model = network(VIT)
    inject_adapter_in_model(LoraConfig(target_modules=["qkv"]), model)
    with pytest.raises(UserError, match="has adapters; merge them"):
        make(tmp_path, [HEAD], model)


# --- going on, and together ------------------------------------------------------------------

PHASES = [HEAD, {**LORA, "train": "lora(r=2 dropout=0.1)"}, {**ALL, "epochs": 1}]


def test_a_run_killed_in_a_phase_of_adapters_ends_with_every_bit_of_the_unbroken_one(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    assert ended(start(train, whole / "log", whole, PHASES, {"save_strategy": "no"})) == 0
    options = {"checkpoint_seconds": 0}
    for moment in (
        ("transformers:Trainer.training_step", 11),
        ("hf_transfer.training.proof:prove", 1),
        ("hf_transfer.training.recovery.checkpoints:write_phase", 1),
        ("transformers:Trainer.training_step", 2),
    ):
        child = start(train, broken / "log", broken, PHASES, {**options, "kill": moment})
        assert ended(child) == -signal.SIGKILL, (broken / "log").read_text()
    assert ended(start(train, broken / "log", broken, PHASES, options)) == 0
    assert "going on from" in (broken / "log").read_text()
    one, two = (torch.load(out / "end.pt") for out in (whole, broken))
    assert changed(one, two) == set()
    assert json.loads((whole / "end.json").read_text()) == json.loads(
        (broken / "end.json").read_text()
    )


def test_two_processes_agree_on_adapters_bit_for_bit(tmp_path):
    out = tmp_path / "out"
    options = {"checkpoint_seconds": 1000, "mute": (1,)}
    log = "\n".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert together(2, out, PHASES, options) == [0, 0], log
    facts = json.loads((out / "end.json").read_text())
    assert [check["ranks"] for check in facts["checks"]] == [2] * 3


# --- kept ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks it
@pytest.mark.parametrize("kind", ["lora(r=4)", "dora(r=3)", "loha(r=2)", "lokr(r=2)"])
@pytest.mark.parametrize("backbone", [RESNET, VIT])
def test_kept_adapters_open_in_peft_beside_the_same_base_with_equal_logits(
    tmp_path, backbone, kind
):
    from peft import PeftModel

    model, base = alive(backbone), alive(backbone)
    spec = {**LORA, "train": [kind, "norms"], "keep_adapters": True}
    trained(tmp_path, [HEAD, spec], model, checkpoint_seconds=1000.0)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    pixels = torch.randn(2, 3, 32, 32)
    logits = model.eval()(pixels).logits
    assert torch.allclose(loaded(pixels).logits, logits, atol=1e-4)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == backbone
    assert not list(tmp_path.glob(".adapter*"))


def test_adapters_are_merged_and_not_kept_unless_asked(tmp_path):
    trained(tmp_path, [HEAD, LORA], alive(VIT), checkpoint_seconds=1000.0)
    assert not (tmp_path / "adapter").exists()


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(3 if i == 0 else 8, 8, 3), nn.ReLU()) for i in range(4))
        )
        self.fc = nn.Linear(8, len(NAMES))

    def forward(self, pixel_values):
        return self.fc(self.features(pixel_values).mean((2, 3)))


def test_a_users_own_module_has_adapters_too(tmp_path):
    model = Own()
    made = trained(
        tmp_path, [{**HEAD, "features": "live"}, LORA], model, head=["fc.*"],
        data_collator=_collated,
    )  # fmt: skip
    assert len(made.phases[1].adapters.layers) == 4
    assert made.reports[1].checks["unmoved"] == []


def _collated(rows):
    from hf_transfer.inputs.model_input import collate

    batch = collate(rows)
    pixels = batch["pixels"].permute(0, 3, 1, 2).float() / 255
    return {"pixel_values": pixels, "labels": batch["labels"]}
