"""Sharded parameters (FSDP2): two processes do what one does, phase by phase, and after a kill.

accelerate shards among accelerators only; `children.shard` has it do so on CPUs, in the children.
"""

import functools
import json
import signal
from types import MethodType, SimpleNamespace

import pytest
import torch
from children import log, results, together
from safetensors.torch import load_file
from small import (
    ALL,
    COLD,
    CONVNEXT,
    HEAD,
    RESNET,
    VIT,
    Pixels,
    changed,
    images,
    network,
    state,
    trainer,
)
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from transformers import AutoModelForImageClassification

from hf_transfer.base.errors import UserError
from hf_transfer.inputs.extraction import FeaturesError
from hf_transfer.inputs.features import replay_of
from hf_transfer.planning.phases import make_phases
from hf_transfer.recipe.load import parse_phase
from hf_transfer.training.machine import sharding

OPTIONS = {"dropout": 0.0, "images": 22, "checkpoint_seconds": 1000}
PHASES = [
    HEAD,
    {"train": "last 1 stage", "epochs": 2, "lr": 1e-3, "augment": "light", "weight_decay": 0.05,
     "accumulate": 2},
    {**ALL, "epochs": 2, "augment": "light", "l2_sp": 0.1, "layer_decay": 0.75},
]  # fmt: skip
ADAPTERS = {"train": "lora(r=2)", "epochs": 1}


def plainly(phases):
    """Return phases that make much of no rounding, as Adam's first steps do."""
    return [{**phase, "optimizer": "sgd", "lr": 0.02} for phase in phases]


def ends(out):
    """Return the weights at the end of each phase."""
    return [load_file(path) for path in sorted(out.glob("*/checkpoint-end/model.safetensors"))]


def shards(out):
    """Return what each phase that ran shards on its own, and what share of all it has."""
    return json.loads((out / "shards.json").read_text())


def apart(one, other):
    """Return the norm of all differences to that of all weights."""
    names = [name for name, value in other.items() if value.is_floating_point()]
    difference = torch.cat([(one[name] - other[name]).flatten() for name in names])
    return difference.norm() / torch.cat([other[name].flatten() for name in names]).norm()


def one_and_two(folder, phases, **options):
    """Train in one process, and in two that share the parameters; return end weights and facts."""
    found = []
    for count in (1, 2):
        out = folder / f"of-{count}"
        own = [{**phase, "batch_size": 8 // count} for phase in phases]
        own_options = {**OPTIONS, **options, "shard": count > 1}
        assert together(count, out, own, own_options) == [0] * count, log(out)
        found.append((ends(out), results(out)[1]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phases", "options"),
    [
        (PHASES, {"backbone": CONVNEXT}),
        (plainly((HEAD, ADAPTERS, *PHASES[1:])), {"backbone": VIT}),
        (plainly((HEAD, ALL)), {"backbone": RESNET, "sync_batchnorm": True}),
    ],
)
def test_two_that_share_the_parameters_equal_one_in_every_phase(tmp_path, phases, options):
    """Each phase thaws other parameters; adapters are merged; what is frozen keeps every bit."""
    one, two = one_and_two(tmp_path, phases, publish=True, **options)
    assert len(one[0]) == len(two[0]) == len(phases)
    before = [state(network(options["backbone"]))] * 2
    for after in zip(one[0], two[0], strict=True):
        assert apart(after[1], after[0]) < 1e-5
        assert changed(before[1], after[1]) == changed(before[0], after[0])  # the rest in no bit
        before = after
    assert two[1]["checks"] == [{**check, "ranks": 2} for check in one[1]["checks"]]
    for key in ("loss", "eval_loss", "grad_norm"):
        for plain, shared in zip(one[1]["history"], two[1]["history"], strict=True):
            values = [row[key] for row in plain if key in row]
            assert [row[key] for row in shared if key in row] == pytest.approx(values, rel=1e-3)
    for seen in shards(tmp_path / "of-2").values():
        assert len([name for name in seen["units"] if name.count(".") > 1]) >= 4  # the blocks
        assert seen["share"] == pytest.approx(0.5, abs=0.02)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "of-2" / "model").eval()
    pixels = Pixels(images(6), network(options["backbone"]))[:6]["pixel_values"]
    logits = torch.tensor(two[1]["logits"])
    torch.testing.assert_close(model(pixel_values=pixels).logits, logits, rtol=0, atol=1e-6)


RESUMED = [
    {**HEAD, "batch_size": 4, "accumulate": 2},
    {**COLD, "epochs": 3, "batch_size": 4, "augment": "light", "best": "accuracy"},
]


@pytest.mark.slow
def test_sharded_processes_killed_and_resumed_end_like_the_unbroken_ones(tmp_path):
    """Statistics of BatchNorm and mixed precision included."""
    found, options = [], {"backbone": RESNET, "bf16": True}
    for call in (0, 6):
        out = tmp_path / f"killed-at-{call}"
        own = {**options, "shard": True, "checkpoint_seconds": 0}
        if call:
            kill = {"kill": ("transformers:Trainer._save_rng_state", call)}
            assert together(2, out, RESUMED, {**own, **kill}) == [-signal.SIGKILL] * 2, log(out)
            assert (out / "phase-1-head" / "checkpoint-end").is_dir()
            assert list(out.glob("phase-2-*/checkpoint-*")) != []
        assert together(2, out, RESUMED, own) == [0, 0], log(out)
        found.append(results(out))
    assert changed(found[0][0], found[1][0]) == set()
    assert found[0][1] == found[1][1]
    assert shards(out).keys() == {"all"}  # the first phase was read back


def test_a_sharded_phase_that_diverges_begins_again_at_a_lower_rate(tmp_path):
    phase = {**COLD, "lr": 1e-2, "epochs": 2, "batch_size": 4, "on_nan": "rollback"}
    out, options = tmp_path / "out", {"backbone": RESNET, "shard": True, "explode": (5e-3, 1)}
    assert together(2, out, [phase], options) == [0, 0], log(out)
    assert log(out).count("the phase begins again from the weights it started with") == 2
    assert results(out)[1]["checks"][0]["unmoved"] == []


@pytest.mark.parametrize(
    ("backbone", "classes"),
    [(RESNET, {"BasicBlock", "Bottleneck"}), (VIT, {"Block"}), (CONVNEXT, {"ConvNeXtBlock"})],
)
def test_what_is_gathered_on_its_own_are_the_blocks(backbone, classes):
    model = network(backbone)
    groups, prefix = model.backbone.groups, model.backbone.prefix
    assert sharding.unit_classes(model, prefix, groups) == classes


def test_a_network_whose_input_embeddings_transformers_does_not_know_can_be_sharded():
    model = network("torchvision/squeezenet1_1")
    with pytest.raises(NotImplementedError):
        model.get_input_embeddings()
    assert sharding.copied(model).get_input_embeddings() is None


def test_features_that_a_sharded_phase_insists_on_are_refused():
    model = network()
    known = model.backbone
    phases = make_phases([parse_phase({**HEAD, "features": "cached"})], known.groups)
    with pytest.raises(FeaturesError, match="features: cached is not possible, because the param"):
        replay_of(model, known, phases[0], (), images(), None, seed=0, sharded=True)


def asking(version=2, offload=False, checkpointing=False, compiled=False):
    """Return what a Trainer knows of FSDP when it is asked for."""
    plugin = SimpleNamespace(
        fsdp_version=version,
        cpu_offload=CPUOffloadPolicy() if offload else None,
        activation_checkpointing=checkpointing,
        auto_wrap_policy=transformer_auto_wrap_policy,
        transformer_cls_names_to_wrap=None,
    )
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
    args = SimpleNamespace(torch_compile=compiled, device="cpu", fsdp_plugin_args=None)
    return accelerator, args


def asked_of(asking, model):
    """Return whether a network is to be sharded; it is said to be experimental."""
    accelerator, args = asking
    return sharding.asked(accelerator, False, args, model, model.backbone)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"version": 1}, "FSDP version 1 is not supported; set fsdp_version: 2"),
        ({"offload": True}, "fsdp_offload_params is not supported; set it to false"),
        ({"checkpointing": True}, "fsdp_activation_checkpointing .* gradient_checkpointing: true"),
        ({"compiled": True}, "compile: true is not supported with FSDP"),
    ],
)
def test_what_is_not_supported_is_refused_in_a_line(asked, said):
    with pytest.raises(UserError, match=said):
        asked_of(asking(**asked), network())


def test_sharding_that_accelerate_leaves_out_is_not_passed_over(tmp_path, monkeypatch):
    """It does so among CPU processes, without a word."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(UserError, match="accelerate shards among accelerators only; use"):
        trainer(tmp_path, [HEAD])


def test_a_forward_that_a_copy_would_share_is_named():
    model = network()
    layer = model.timm_model.layer1
    layer.forward = lambda values: values
    with pytest.raises(UserError, match="timm_model.layer1 has a function in the place of its for"):
        sharding.copied(model)
    model.timm_model.layer1.forward = MethodType(type(layer).forward, layer)
    copied = sharding.copied(model).timm_model.layer1
    assert copied.forward.__self__ is copied


def test_each_network_of_a_process_has_its_own_blocks_unless_a_user_names_classes(monkeypatch):
    """A run with a source or several seeds trains several; accelerate keeps one configuration."""
    asked = asking()
    plugin = asked[0].state.fsdp_plugin
    for backbone, classes in ((VIT, ["Block"]), (CONVNEXT, ["ConvNeXtBlock"])):
        assert asked_of(asked, network(backbone))
        assert plugin.transformer_cls_names_to_wrap == classes
        plugin.auto_wrap_policy = functools.partial(transformer_auto_wrap_policy)  # as accelerate
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "Mlp")
    plugin.transformer_cls_names_to_wrap = ["Mlp"]
    assert asked_of(asked, network())
    assert plugin.transformer_cls_names_to_wrap == ["Mlp"]
