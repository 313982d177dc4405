"""Freezing: exactly what is named trains, the rest is still, and the proof sees every bit."""

import pytest
import torch
from small import CONVNEXT, RESNET, VIT, network
from torch import nn

from hf_transfer.backbones.from_object import describe
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.planning.phases import make_phases
from hf_transfer.recipe.specs import PhaseSpec
from hf_transfer.training.freezing import (
    FreezingError,
    free_buffers,
    freeze_all_but,
    moving,
    still_modules,
)
from hf_transfer.training.proof import NothingMovedError, check_agreement, fingerprint, prove

NETWORKS = [RESNET, VIT, CONVNEXT, "torchvision/efficientnet_b0"]
SELECTORS = ["head", "last 1 block", "last 2 stages", "norms", "biases", "all", "first 1 stages"]


def applied(model, selector, still_norms=False):
    """Freeze a model as a phase says; return the phase and the names of still modules."""
    backbone = model.backbone
    first = [] if selector == "head" else [PhaseSpec("head", epochs=1)]
    specs = [*first, PhaseSpec(selector, epochs=1)]
    phase = make_phases(specs, backbone.groups)[-1]
    freeze_all_but(model, backbone.prefix, phase.parameters)
    names = still_modules(model, backbone.prefix, backbone.groups, phase.parameters, still_norms)
    return phase, names


@pytest.mark.parametrize("backbone", NETWORKS)
def test_exactly_what_a_phase_names_trains_and_nothing_that_trains_is_still(backbone):
    model = network(backbone)
    for selector in [*SELECTORS, "head"]:  # the head again: what was thawed is frozen anew
        phase, still = applied(model, selector)
        trains = {n for n, p in model.named_parameters() if p.requires_grad}
        assert trains == {model.backbone.prefix + name for name in phase.parameters}
        for name in still:
            assert not any(p.requires_grad for p in model.get_submodule(name).parameters()), name


@pytest.mark.parametrize("backbone", NETWORKS)
def test_whatever_varies_below_the_head_is_still_in_a_head_phase(backbone):
    model = network(backbone, dropout=0.1)
    phase, still = applied(model, "head")
    head = {model.backbone.prefix + path for path in model.backbone.groups.groups[-1].modules}
    for name, module in model.named_modules():
        if any(True for _ in module.children()):
            continue
        kind = type(module).__name__.lower()
        if any(word in kind for word in ("dropout", "droppath", "stochasticdepth", "norm")):
            in_head = any(name == path or name.startswith(f"{path}.") for path in head)
            assert (name in still) != in_head, name
    assert free_buffers(model, model.backbone.prefix, still) == set()
    assert set(moving(model, model.backbone.prefix, still)) == {
        model.backbone.prefix + name for name in phase.parameters
    }


def test_still_norms_keeps_the_statistics_of_thawed_norms_too():
    model = network(RESNET)
    _, still = applied(model, "all", still_norms=True)
    assert free_buffers(model, model.backbone.prefix, still) == set()
    _, still = applied(model, "all")
    assert len(free_buffers(model, model.backbone.prefix, still)) == 3 * 15


def test_an_unknown_parameter_is_named():
    with pytest.raises(FreezingError, match="no parameter 'fc.wight'"):
        freeze_all_but(network(), "timm_model.", ["fc.wight"])


# --- the proof -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_fingerprint_sees_one_bit_a_swap_and_a_sign(dtype):
    model = nn.Linear(7, 5, bias=False).to(dtype)
    before = fingerprint(model, "")
    assert before == fingerprint(model, "")
    start = model.weight.detach().clone()
    changes = (
        lambda w: w[0, 0].copy_(torch.nextafter(w[0, 0], w[0, 0] + 1)),
        lambda w: w.copy_(w.flip(0)),
        lambda w: w[2, 3].neg_(),
        lambda w: w.copy_(w.roll(1)),
    )
    for change in changes:
        with torch.no_grad():
            model.weight.copy_(start)
            change(model.weight)
        assert before.changed(fingerprint(model, "")) == {"weight"}
    with torch.no_grad():
        model.weight.copy_(start)
    assert fingerprint(model, "").digest() == before.digest()


def test_a_fingerprint_does_not_depend_on_the_memory_format_or_on_chunks(monkeypatch):
    model = nn.Conv2d(8, 8, 3)
    before = fingerprint(model, "")
    assert fingerprint(model.to(memory_format=torch.channels_last), "") == before
    monkeypatch.setattr("hf_transfer.training.proof.CHUNK", 100)
    assert fingerprint(model, "") == before


def test_a_fingerprint_covers_buffers_empty_and_boolean_ones_too():
    model = nn.Module()
    model.register_buffer("mask", torch.zeros(3, dtype=torch.bool))
    model.register_buffer("none", torch.zeros(0))
    before = fingerprint(model, "")
    model.mask[1] = True
    assert before.changed(fingerprint(model, "")) == {"mask"}
    assert before.digest(without=["mask"]) == fingerprint(model, "").digest(without=["mask"])


def proved(change, trainable, free=()):
    model = network(RESNET)
    before = fingerprint(model, model.backbone.prefix)
    with torch.no_grad():
        change(model.timm_model)
    after = fingerprint(model, model.backbone.prefix)
    return prove(before, after, trainable, model.backbone.groups, free)


def test_the_proof_counts_what_moved_and_names_what_did_not():
    found = proved(lambda m: m.fc.weight.add_(1), ["fc.weight", "fc.bias"])
    assert (found.moved, found.unmoved) == (1, ("fc.bias",))


def test_the_proof_names_a_frozen_tensor_that_changed_statistics_included():
    with pytest.raises(FreezingError, match=r"1 frozen tensors changed.*layer1\.0\.conv1\.weight"):
        proved(lambda m: (m.fc.weight.add_(1), m.layer1[0].conv1.weight.add_(1)), ["fc.weight"])
    with pytest.raises(FreezingError, match=r"bn1\.running_mean"):
        proved(lambda m: (m.fc.weight.add_(1), m.bn1.running_mean.add_(1)), ["fc.weight"])
    proved(
        lambda m: (m.fc.weight.add_(1), m.bn1.running_mean.add_(1)),
        ["fc.weight"],
        ["bn1.running_mean"],
    )


def test_a_group_of_which_nothing_moved_is_the_users_to_mend():
    with pytest.raises(NothingMovedError, match="group head was to train and nothing in it moved"):
        proved(lambda m: m.conv1[0].weight.add_(1), ["fc.weight", "conv1.0.weight"])


def test_processes_that_differ_are_named_with_the_tensor():
    one, other = network(RESNET), network(RESNET)
    with torch.no_grad():
        other.timm_model.fc.bias[0] += 1e-7
    prints = [fingerprint(model, "timm_model.") for model in (one, one, other)]
    check_agreement(prints[:2])
    with pytest.raises(FreezingError, match=r"process 2 differs.*1 tensors.*fc\.bias"):
        check_agreement(prints)


# --- kinds -----------------------------------------------------------------------------------


class Volume(nn.Module):
    """A layer for volumes or sequences, on images."""

    def __init__(self, inner, shape):
        super().__init__()
        self.inner, self.shape = inner, shape

    def forward(self, x):
        return self.inner(x.reshape(x.shape[0], x.shape[1], *self.shape)).reshape(x.shape)


def _kinds():
    """Return a fresh module of each kind that training mode changes, of three libraries."""
    from timm import layers
    from torchvision import ops
    from transformers.models.convnext.modeling_convnext import ConvNextDropPath

    return {
        "BatchNorm1d": Volume(nn.BatchNorm1d(4), (36,)),
        "BatchNorm2d": nn.BatchNorm2d(4),
        "BatchNorm3d": Volume(nn.BatchNorm3d(4), (4, 3, 3)),
        "SyncBatchNorm": nn.SyncBatchNorm(4),
        "BatchNorm2d without parameters": nn.BatchNorm2d(4, affine=False),
        "InstanceNorm2d": nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        "GroupNorm": nn.GroupNorm(2, 4),
        "LayerNorm": nn.LayerNorm((4, 6, 6)),
        "RMSNorm": nn.RMSNorm((4, 6, 6)),
        "LocalResponseNorm": nn.LocalResponseNorm(2),
        "FrozenBatchNorm2d": ops.FrozenBatchNorm2d(4),
        "BatchNormAct2d": layers.BatchNormAct2d(4),
        "GroupNormAct": layers.GroupNormAct(4, num_groups=2),
        "FrozenBatchNormAct2d": layers.FrozenBatchNormAct2d(4),
        "EvoNorm2dB0": layers.EvoNorm2dB0(4),
        "EvoNorm2dS0": layers.EvoNorm2dS0(4, groups=2),
        "FilterResponseNormTlu2d": layers.FilterResponseNormTlu2d(4),
        "Dropout": nn.Dropout(0.5),
        "Dropout2d": nn.Dropout2d(0.5),
        "AlphaDropout": nn.AlphaDropout(0.5),
        "DropPath": layers.DropPath(0.5),
        "DropBlock2d": layers.DropBlock2d(0.5),
        "StochasticDepth": ops.StochasticDepth(0.5, "row"),
        "ConvNextDropPath": ConvNextDropPath(0.5),
    }


class Around(nn.Module):
    """A network in which a module runs below the head."""

    def __init__(self, inner):
        super().__init__()
        self.one, self.inner, self.two = nn.Conv2d(3, 4, 3), inner, nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, pixel_values):
        return self.head(self.two(self.inner(self.one(pixel_values))).mean((2, 3)))


@pytest.mark.parametrize("kind", list(_kinds()))
def test_every_kind_of_layer_is_still_below_the_head_and_moves_when_all_trains(kind):
    torch.manual_seed(0)
    inner = _kinds()[kind]
    model = Around(inner)
    model.backbone = describe(model, head=["head"], image=ImageSettings(8))
    before, pixels = fingerprint(model, ""), torch.randn(8, 3, 8, 8)
    for selector in ("head", "all"):
        phase, still = applied(model, selector)
        model.train()
        for name in still:
            model.get_submodule(name).training = False
        free = free_buffers(model, "", still)
        leaves = [m for m in inner.modules() if not list(m.children())]
        if selector == "head":
            assert not any(module.training for module in leaves)
            assert torch.equal(model(pixels), model(pixels))
            assert before.changed(fingerprint(model, "")) == set()
            assert free == set()
        else:
            assert all(module.training for module in leaves)
            assert free == {name for name, _ in model.named_buffers()}
    _, still = applied(model, "all", still_norms=True)
    held = any(name.startswith("inner") for name in still)
    assert held == ("Norm" in kind or "norm" in kind.lower())
