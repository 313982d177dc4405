"""A cut network answers as the whole one, or says why it cannot be cut."""

import copy
import math
import re

import families
import numpy as np
import pytest
import torch
from small import network, state
from torch import nn

from hf_transfer.backbones.access import logits_of
from hf_transfer.inputs.cut import Cut, crossing_values, find_cut
from hf_transfer.inputs.replay import Player
from hf_transfer.planning.phases import make_phases
from hf_transfer.recipe.load import parse_phase
from hf_transfer.training.freezing import freeze_all_but, still_modules


def probe(count, size=families.SIZE):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def cut_at(model, train="last 1 stage"):
    """Return a model's cut below what a selector trains, frozen as for training, and its stills."""
    backbone = model.backbone
    spec = parse_phase({"train": train, "epochs": 1, "cold_head": True})
    (phase,) = make_phases([spec], backbone.groups)
    freeze_all_but(model, backbone.prefix, phase.parameters)
    named = still_modules(model, backbone.prefix, backbone.groups, phase.parameters)
    still = [model.get_submodule(name) for name in named]
    return find_cut(model, still, probe(4)), still


def replayed(model, cut, pixels):
    features = crossing_values(model, cut, pixels)
    with Player(model, cut) as player:
        return logits_of(player.forward(features=features))


@pytest.mark.parametrize("family", families.FAMILIES)
def test_replayed_logits_are_those_of_the_whole_network_for_any_batch(family):
    model = families.make(family)
    cut, _ = cut_at(model)
    assert isinstance(cut, Cut), cut
    model.eval()
    for count in (1, 5):
        pixels = probe(count) * 2 + 1  # other images than the probes
        with torch.no_grad():
            live = logits_of(model(pixel_values=pixels))
            found = replayed(model, cut, pixels)
        assert torch.allclose(found, live, atol=1e-5 * float(live.abs().max()))


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_layout_knows_how_many_numbers_cross_every_cut(family):
    """Also where pooling or flattening lies below what trains, or several values cross."""
    model = families.make(family)
    layout, groups = model.backbone.layout, model.backbone.groups
    crossing = dict(zip(layout.sizes, layout.crossing, strict=True))
    some = groups.groups[1::2] if len(groups.groups) > 8 else groups.groups[1:]
    for group in some:
        cut, _ = cut_at(model, f"from {group.name}")
        first = next(name for name in layout.sizes if name in group.parameters)
        assert sum(math.prod(each.shape) for each in cut.stored) == crossing[first], group.name


@pytest.mark.parametrize("family", ["timm resnet", "transformers swin"])
def test_looking_for_a_cut_changes_nothing(family):
    model = families.make(family)
    before, modes = state(model), [module.training for module in model.modules()]
    random = torch.get_rng_state()
    cut_at(model)
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)


def test_gradients_above_the_cut_are_those_of_the_whole_network():
    model = network()
    cut, still = cut_at(model)
    whole = copy.deepcopy(model).eval()
    pixels = probe(4)
    features = crossing_values(model.eval(), cut, pixels)
    logits_of(whole(pixel_values=pixels)).square().sum().backward()
    with Player(model, cut) as player:
        logits_of(player.forward(features=features)).square().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for name, parameter in whole.named_parameters():
        assert (parameter.grad is None) == (name not in grads)
        if parameter.grad is not None:
            assert torch.allclose(grads[name], parameter.grad, rtol=1e-4, atol=1e-6), name


def test_the_program_tells_networks_that_compute_differently_apart():
    names = [name for name in families.FAMILIES if name.startswith("transformers")]
    programs = {cut_at(families.make(name))[0].program for name in names}
    assert len(programs) == len(names)
    assert cut_at(network())[0].program == cut_at(network())[0].program
    assert cut_at(network())[0].program != cut_at(network(), "head")[0].program


def test_what_is_used_before_the_cut_is_named_and_nothing_else():
    model = network()
    uses = cut_at(model, "head")[0].uses
    head = {f"{model.backbone.prefix}{name}" for name in model.backbone.layout.head}
    assert set(uses) >= {name for name, _ in model.named_parameters()} - head
    assert not head & set(uses)
    assert any(name.endswith("running_mean") for name in uses)


def fails(x):
    raise ArithmeticError("one\ntwo")


TWISTS = {  # what a forward pass does between its frozen body and its head
    "none": lambda x: x,
    "branch": lambda x: x * 2 if x.sum() > 0 else x * 3,
    "number": lambda x: x * float(x.sum()),
    "numpy": lambda x: torch.from_numpy(np.sort(x.detach().numpy(), 1)),
    "list": lambda x: torch.tensor(x.tolist()),
    "fails": fails,
    "mean": lambda x: x - x.mean(0, keepdim=True),
    "largest": lambda x: x / x.abs().max(),
    "size": lambda x: x * len(x),
}


class Odd(nn.Module):
    """Networks that cannot be cut, each for its own reason."""

    def __init__(self, kind: str = "none") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.body, self.head = kind, nn.Conv2d(3, 4, 8, 8), nn.Linear(4, 3)
        self.calls = 0
        self.body.requires_grad_(False)

    def forward(self, pixel_values):
        x = TWISTS.get(self.kind, TWISTS["none"])(self.body(pixel_values).mean((2, 3)))
        self.calls += 1
        if self.kind == "calls" and self.calls % 2:
            x = x + 1
        if self.kind == "unused":
            return x[:, :3]
        if self.kind == "fails after the cut" and self.calls > 7:
            return None
        return self.head(x) + (x.mean(0).sum() if self.kind == "mean above" else 0)


def odd(kind):
    """Return what `find_cut` says of a network whose body is frozen."""
    model = Odd(kind)
    dark, bright = torch.full((2, 3, 32, 32), -9.0), torch.full((2, 3, 32, 32), 9.0)
    with torch.no_grad():
        model.body.weight.abs_()
    return find_cut(model, [model.body], torch.cat([bright, dark]) + probe(4))


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("branch", "reads what the images hold"),
        ("number", "reads what the images hold"),
        ("numpy", r"reads what the images hold \(numpy\)"),
        ("list", "reads what the images hold"),
        ("fails", "cannot run the network: one two$"),
        ("fails after the cut", "cannot run the network from its cut on: "),
        ("calls", "depend on the images or on their number"),
        ("unused", "no layer that trains takes part"),
        ("mean", "depend on the other images of its batch"),
        ("largest", "depend on the other images of its batch"),
        ("size", "depend on the other images of its batch"),
        ("mean above", "give other logits when replayed"),
    ],
)
def test_what_is_not_computed_alike_for_every_batch_is_not_cut_and_says_why(kind, why):
    """In one line, whatever the network raises."""
    found = odd(kind)
    assert isinstance(found, str)
    assert re.search(why, found), found
    assert "\n" not in found


def test_a_network_that_reads_its_own_constants_is_cut():
    class Scaled(Odd):
        def forward(self, pixel_values):
            scale = float(self.body.bias.sum()) if self.body.bias.any() else 1.0
            return self.head(self.body(pixel_values).mean((2, 3)) * scale)

    model = Scaled()
    assert isinstance(find_cut(model, [model.body], probe(4)), Cut)


def test_what_a_network_keeps_from_its_first_evaluation_on_is_no_other_way():
    """As LeViT keeps its biases until it trains again; and where an inner cut is tried first."""

    class Keeping(Odd):
        kept = None

        def train(self, mode=True):
            self.kept = None
            return super().train(mode)

        def forward(self, pixel_values):
            x = self.body(pixel_values).mean((2, 3))
            if self.training or self.kept is None:
                self.kept = self.body.bias * 2
            return self.top(x + self.kept)

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return x + self.inner(x)

    model = Keeping()
    model.top = Around()
    cut = find_cut(model, [model.body], probe(4))
    assert isinstance(cut, Cut), cut
    assert list(cut.arrivals) == ["top"]


def test_several_heads_each_get_what_arrives_at_them():
    class Two(Odd):
        def forward(self, pixel_values):
            x = self.body(pixel_values).mean(3)
            return (self.head(x.mean(2)) + self.other(x.amax(2))) / 2

    model = Two()
    model.other = nn.Linear(4, 3)
    cut = find_cut(model, [model.body], probe(4))
    assert isinstance(cut, Cut), cut
    assert list(cut.arrivals) == ["head", "other"]
    pixels, live = probe(7), model.eval()(pixel_values=probe(7))
    assert torch.allclose(replayed(model, cut, pixels), live, atol=1e-6)


def test_a_head_that_takes_what_another_head_gave_is_not_stored():
    class Chained(Odd):
        def forward(self, pixel_values):
            x = self.body(pixel_values).mean((2, 3))
            return self.other(torch.cat([x, self.head(x)], 1))

    model = Chained()
    model.other = nn.Linear(7, 3)
    assert isinstance(find_cut(model, [model.body], probe(4)), str)
