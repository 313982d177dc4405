"""Batch statistics of all processes: what one process with the whole batch would do."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from children import ended, free_port, join, log, results, start, together
from small import ALL, CONVNEXT, HEAD, RESNET, network, state, trainer
from timm.layers import BatchNormAct2d
from torch import nn

from hf_transfer.base.errors import UserError
from hf_transfer.base.processes import Processes
from hf_transfer.training.machine import sync_batchnorm

LAYERS = {
    "plain": (nn.BatchNorm2d(3, momentum=0.3), (3, 2)),
    "one image in all at one place": (nn.BatchNorm1d(3), (3, 1)),
    "averaged over all batches": (nn.BatchNorm2d(3, momentum=None), (2, 3)),
    "without weight": (nn.BatchNorm3d(3, affine=False), (2, 2)),
    "without running statistics": (nn.BatchNorm2d(3, track_running_stats=False), (2, 2)),
    "of timm, with an activation": (BatchNormAct2d(3), (1, 4)),
    "images that count for nothing": (nn.BatchNorm2d(3), (4, 0)),
}
SIDES = {nn.BatchNorm1d: (), nn.BatchNorm3d: (2, 3, 2)}


class Alone(nn.BatchNorm2d):
    """A layer that normalises in its own way."""

    def forward(self, x):
        return x - x.mean(0)


def sharing(layer, **more):
    facts = {"asked": True, "still_modules": [], "share": None, **more}
    part = sync_batchnorm.SharedStatistics(facts.pop("asked"), Processes.here())
    return part.during(SimpleNamespace(model=layer), SimpleNamespace(**facts))


def backward(layer, x, wanted):
    x = x.clone().requires_grad_()
    found = layer(x)
    (found * wanted).sum().backward()
    grads = {name: p.grad for name, p in layer.named_parameters()}
    return found.detach(), x.grad, grads


def halves(rank, port):
    """Compare each layer on its part of a batch with a copy on the whole of it, twice."""
    join(rank, 2, port)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    for name, (layer, rows) in LAYERS.items():
        mine = slice(rows[0], None) if rank else slice(rows[0])
        whole = copy.deepcopy(layer)
        for _ in range(2):
            shape = (sum(rows), 3, *SIDES.get(type(layer), (4, 2)))
            x, wanted = torch.randn(shape) * 3 + 7, torch.randn(shape)
            expected = backward(whole, x, wanted)
            with sharing(layer, share=None if rows[rank] else 0.0):
                if rows[rank]:
                    found = backward(layer, x[mine], wanted[mine])
                else:
                    found = backward(layer, x[:2], wanted[:2] * 0)
                    assert not found[1].any(), name
            assert "forward" not in layer.__dict__
            if rows[rank]:
                assert torch.allclose(found[0], expected[0][mine], atol=1e-5), name
                assert torch.allclose(found[1], expected[1][mine], atol=1e-5), name
            for key, grad in found[2].items():
                dist.all_reduce(grad)
                assert torch.allclose(grad, expected[2][key], atol=1e-4), (name, key)
                grad.zero_()
            whole.zero_grad()
            for key, value in whole.state_dict().items():
                assert torch.allclose(layer.state_dict()[key], value, rtol=1e-5), (name, key)
    left_alone()
    compiled(rank)
    low = nn.BatchNorm2d(3)
    with sharing(low):
        found = backward(low, torch.randn(2, 3, 4, 4).bfloat16(), torch.ones(()))
    assert found[0].dtype == found[1].dtype == torch.bfloat16
    assert low.running_var.dtype == found[2]["weight"].dtype == torch.float32
    dist.destroy_process_group()


def compiled(rank):
    """A network that torch.compile has made of the layers shares its statistics as well."""
    net, x = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()), torch.ones(4, 3, 2, 2)
    for p in net.parameters():
        nn.init.constant_(p, 0.5)
    x[:, 1] = torch.arange(4.0).view(4, 1, 1)
    expected = copy.deepcopy(net)(x)
    with sharing(net):
        found = torch.compile(net, backend="aot_eager")(x[rank::2])
        found.sum().backward()
    assert torch.allclose(found, expected[rank::2], atol=1e-6)


def left_alone():
    """What is still, evaluates, or is not asked for asks nothing of the other process."""
    layer, x = nn.BatchNorm2d(3), torch.randn(2, 3, 4, 4)
    for about in (sharing(layer, still_modules=[layer]), sharing(layer, asked=False)):
        with about:
            assert "forward" not in layer.__dict__
    with sharing(layer.eval()):
        assert torch.allclose(layer(x), x, atol=1e-4)
    alone = Alone(3)
    with (
        sharing(alone),
        pytest.raises(UserError, match="a Alone, takes its batch statistics by itself"),
    ):
        alone(x)


def test_layers_of_two_processes_do_what_one_does_with_the_whole_batch(tmp_path):
    port = free_port()
    children = [start(halves, tmp_path / f"out-{rank}.log", rank, port) for rank in range(2)]
    assert [ended(child) for child in children] == [0, 0], log(tmp_path / "out")


LP_FT = [
    {**HEAD, "optimizer": "sgd", "lr": 0.05},
    {**ALL, "train": "last 1 stage", "optimizer": "sgd", "lr": 0.05, "features": "cached"},
    {**ALL, "optimizer": "sgd", "lr": 0.05, "epochs": 2, "best": "last"},
]


def trained_by(count, out, **options):
    phases = [{**phase, "batch_size": 8 // count} for phase in LP_FT]
    options = {"backbone": RESNET, "dropout": 0.0, "images": 19, **options}
    assert together(count, out, phases, options) == [0] * count, log(out)
    return results(out)[0]


def apart(ends, other, statistics):
    """Return the largest difference of a tensor, as a share of its largest value."""
    named = [name for name in other if ("running" in name) == statistics]
    return max(
        float((ends[name] - other[name]).abs().max() / other[name].abs().max().clamp(min=1e-2))
        for name in named
    )


def test_weights_and_statistics_are_those_of_one_process_with_twice_the_batch(tmp_path):
    """Of 19 images the last three are of one process: the other's batch must not count."""
    alone = trained_by(1, tmp_path / "alone", sync_batchnorm=True)
    two = trained_by(2, tmp_path / "two", sync_batchnorm=True)
    assert apart(two, alone, statistics=False) < 1e-5
    assert apart(two, alone, statistics=True) < 1e-5
    own = trained_by(2, tmp_path / "own")
    assert apart(own, alone, statistics=False) > 1e-3
    assert apart(own, alone, statistics=True) > 1e-2


def test_one_process_is_left_as_it_is(tmp_path):
    made = trainer(tmp_path, [HEAD], sync_batchnorm=True)
    state_of = SimpleNamespace(still_modules=[], share=None)
    part = next(p for p in made.runner.parts if isinstance(p, sync_batchnorm.SharedStatistics))
    with part.during(made, state_of):
        assert not any("forward" in module.__dict__ for module in made.model.modules())
    assert state(made.model)


def test_a_network_without_batch_statistics_is_refused(tmp_path):
    with pytest.raises(UserError, match="sync_batchnorm: this network has no BatchNorm; remove it"):
        trainer(tmp_path, [HEAD], network(CONVNEXT), sync_batchnorm=True)
