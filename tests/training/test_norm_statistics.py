"""Statistics estimated anew: equal to direct computation, and nothing else moves."""

from __future__ import annotations

import json

import pytest
import torch
from children import together
from small import ALL, HEAD, RESNET, VIT, Pixels, changed, images, network, state, trained, trainer
from torch import nn
from transformers import TrainerCallback

from hf_transfer.base.errors import UserError
from hf_transfer.training import norm_statistics
from hf_transfer.training.freezing import FreezingError
from hf_transfer.training.norm_statistics import STATISTICS, layers, reestimate

ANEW = {**HEAD, "reestimate_norms": True}


class Interrupt(TrainerCallback):
    """Ends training at the first checkpoint, as a kill would."""

    def on_save(self, *args, **kwargs):
        raise KeyboardInterrupt


class Own(nn.Module):
    """Two normalised layers: what comes to the second follows the statistics of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm1d(3, momentum=None)
        self.unused = nn.BatchNorm1d(2)
        self.loose = nn.BatchNorm2d(3, track_running_stats=False)
        self.drop = nn.Dropout(0.5)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.two(self.drop(self.one(pixel_values)).mean((2, 3)))


def test_statistics_are_mean_and_variance_over_all_values():
    torch.manual_seed(0)
    model, pixels = Own(), torch.randn(10, 3, 4, 4) * 3 + 1
    batches = [{"pixel_values": part, "labels": None} for part in pixels.split([4, 4, 2])]
    before = state(model)
    reestimate(model, batches)
    flat = pixels.transpose(0, 1).flatten(1)
    assert torch.allclose(model.one.running_mean, flat.mean(1), atol=1e-6)
    assert torch.allclose(model.one.running_var, flat.var(1), atol=1e-5)
    inner = torch.cat(
        [
            nn.functional.batch_norm(part, None, None, training=True).mean((2, 3))
            for part in pixels.split([4, 4, 2])
        ]
    )
    assert torch.allclose(model.two.running_mean, inner.mean(0), atol=1e-6)
    assert torch.allclose(model.two.running_var, inner.var(0), atol=1e-6)
    assert changed(before, state(model)) == {
        f"{name}.{kind}" for name in ("one", "two") for kind in STATISTICS
    }
    assert all(module.training for module in model.modules())


def test_a_phase_that_goes_on_takes_its_statistics_from_the_checkpoint(tmp_path, monkeypatch):
    """Another processor would estimate them otherwise, in the last bits."""
    phases = [{**ANEW, "epochs": 3}]
    options = {"save_strategy": "epoch"}
    unbroken = trained(tmp_path / "unbroken", phases, network(RESNET), **options)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "out", phases, network(RESNET), callbacks=[Interrupt()], **options)

    def elsewhere(model, batches):
        reestimate(model, batches)
        for layer in layers(model).values():
            layer.running_mean.mul_(1 + 1e-6)

    monkeypatch.setattr(norm_statistics, "reestimate", elsewhere)
    resumed = trainer(tmp_path / "out", phases, network(RESNET), **options)
    resumed.train(resume_from_checkpoint=True)
    assert changed(state(unbroken.model), state(resumed.model)) == set()


def test_a_head_phase_begins_with_the_statistics_of_the_whole_training_set(tmp_path):
    model = network(RESNET)
    before = state(model)
    made = trained(tmp_path, [ANEW], model)
    after = state(model)
    prefix = model.backbone.prefix
    statistics = {f"{path}.{name}" for path in layers(model) for name in STATISTICS}
    head = {prefix + name for name in model.backbone.layout.head}
    assert changed(before, after) == statistics | head
    direct = network(RESNET)
    pixels = Pixels(images(), direct)
    reestimate(direct, [{"pixel_values": pixels.pixels}])  # 24 images are one batch
    for name in statistics:
        assert torch.allclose(direct.state_dict()[name], after[name], atol=1e-5), name
    assert made.reports[0].features == "cached"  # of the network as it is now
    assert made.reports[0].checks["unmoved"] == []


def test_features_are_those_of_the_new_statistics(tmp_path):
    ends = []
    for features in ("cached", "live"):
        model = network(RESNET)
        trained(tmp_path / features, [{**ANEW, "features": features}], model)
        ends.append(state(model))
    plain = network(RESNET)
    trained(tmp_path / "plain", [{**HEAD, "features": "cached"}], plain)
    head = [plain.backbone.prefix + name for name in plain.backbone.layout.head]
    for name in head:
        assert torch.allclose(ends[0][name], ends[1][name], atol=1e-5)
        assert not torch.allclose(ends[0][name], state(plain)[name], atol=1e-3)


def test_the_images_are_counted_and_chosen_by_the_seed(tmp_path):
    seen = []
    for count, seed in ((4, 7), (4, 7), (4, 8), (24, 7)):
        model = network(RESNET)
        phase = {**HEAD, "reestimate_norms": count, "epochs": 1}
        trained(tmp_path, [phase], model, seed=seed)
        seen.append(next(iter(layers(model).values())).running_mean.clone())
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[3])


def test_more_images_than_a_batch_are_parted_evenly(tmp_path):
    model = network(RESNET)
    phase = {**HEAD, "reestimate_norms": True, "epochs": 1}
    trained(tmp_path, [phase], model, train_dataset=images(65))
    direct, pixels = network(RESNET), Pixels(images(65), model).pixels
    reestimate(direct, [{"pixel_values": pixels}])
    one, two = (next(iter(layers(m).values())) for m in (model, direct))
    assert torch.allclose(one.running_var, two.running_var, rtol=1e-4)


def test_statistics_of_layers_that_train_go_on_from_there(tmp_path):
    phases = [HEAD, {**ALL, "reestimate_norms": True, "still_norms": True}]
    model, direct = network(RESNET), network(RESNET)
    trained(tmp_path, phases, model)
    reestimate(direct, [{"pixel_values": Pixels(images(), direct).pixels}])
    for path, layer in layers(direct).items():
        assert torch.allclose(layer.running_mean, layers(model)[path].running_mean, atol=1e-5)


def test_two_processes_have_the_same_statistics(tmp_path):
    out = tmp_path / "out"
    options = {"backbone": RESNET, "checkpoint_seconds": 1000, "mute": (1,)}
    phases = [{**ANEW, "epochs": 1}, {**ALL, "reestimate_norms": 8}]
    assert together(2, out, phases, options) == [0, 0]
    facts = json.loads((out / "end.json").read_text())
    assert [check["ranks"] for check in facts["checks"]] == [2, 2]


def test_anything_else_that_changes_stops_the_run(tmp_path):
    def careless(model, batches):
        reestimate(model, batches)
        with torch.no_grad():
            next(model.parameters()).add_(1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norm_statistics, "reestimate", careless)
        with pytest.raises(FreezingError, match="1 frozen tensors changed"):
            trained(tmp_path, [ANEW], network(RESNET))


def test_a_network_without_such_statistics_is_refused_before_training(tmp_path):
    with pytest.raises(UserError, match="phase head: reestimate_norms: this network keeps no"):
        trained(tmp_path, [ANEW], network(VIT))
