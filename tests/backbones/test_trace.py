"""The trace: what runs first, what it costs, and that nothing changes by looking."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hf_transfer.backbones.trace import head_names, is_norm, trace_layout
from hf_transfer.planning.groups import group_layers
from hf_transfer.planning.layout import GroupsError, Layout


class Network(nn.Module):
    """Small, and defined in another order than it runs."""

    def __init__(self, labels: int = 3) -> None:
        super().__init__()
        self.head = nn.Linear(8, labels)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(6, 8, 3, padding=1, groups=2)
        self.gamma = nn.Parameter(torch.ones(8, 1, 1))
        self.first = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.position = nn.Parameter(torch.zeros(1, 6, 4, 4))
        self.mask_token = nn.Parameter(torch.zeros(6))
        self.drop = nn.Dropout()

    def no_weight_decay(self) -> set[str]:
        return {"position"}

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.first(pixels) + self.position
        features = self.norm(self.second(features)) * self.gamma
        return self.head(self.drop(features.mean((2, 3))))


def traced(network: nn.Module, size: int = 8, **more: object) -> Layout:
    return trace_layout(network, image={"size": size, "channels": 3}, **more)  # type: ignore[arg-type]


def test_parameters_come_in_the_order_of_their_first_use() -> None:
    names = [name for name, _ in traced(Network()).parameters]
    assert names == [
        *("first.weight", "first.bias", "position", "second.weight", "second.bias"),
        *("norm.weight", "norm.bias", "gamma", "head.weight", "head.bias", "mask_token"),
    ]


def test_what_never_runs_is_named() -> None:
    assert traced(Network()).unused == ("mask_token",)


def test_what_runs_and_reaches_no_output_is_named_with_what_never_runs() -> None:
    class Pooled(Network):
        def forward(self, pixels: Tensor) -> Tensor:
            pooled = self.first(pixels).mean((2, 3))
            nn.functional.layer_norm(pooled, (6,), self.mask_token)
            return super().forward(pixels)

    class Several(Pooled):
        def forward(self, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
            return super().forward(pixels), {"boxes": pixels.mean() * self.mask_token}

    assert traced(Pooled()).unused == ("mask_token",)
    assert traced(Several()).unused == ()


def test_multiply_adds_are_those_of_one_image() -> None:
    layout = traced(Network())
    macs = {name: macs for (name, _), macs in zip(layout.parameters, layout.macs, strict=True)}
    assert macs["first.weight"] == 4 * 4 * 6 * 3 * 9
    assert macs["second.weight"] == 4 * 4 * 8 * 3 * 9
    assert macs["head.weight"] == 8 * 3
    assert macs["position"] == macs["norm.weight"] == macs["first.bias"] == 0


def test_norms_dropout_and_exemptions_are_named() -> None:
    layout = traced(Network())
    assert layout.norms == ("norm",)
    assert layout.loose == (("drop", 8),)  # eight parameters had acted before it
    assert layout.no_decay == ("position",)


def test_the_head_is_told_by_two_numbers_of_labels() -> None:
    assert head_names(Network(3), Network(4)) == ("head.weight", "head.bias")
    assert head_names(Network(3), Network(3)) == ()
    assert traced(Network(), head=("head.bias", "head.weight")).head == ("head.weight", "head.bias")


def test_a_prefix_is_taken_off_all_names() -> None:
    wrapped = nn.Module()
    wrapped.add_module("network", Network())
    wrapped.forward = lambda pixels: wrapped.network(pixels)  # type: ignore[method-assign]
    plain = traced(Network(), head=("head.weight",))
    assert traced(wrapped, head=("network.head.weight",), prefix="network.").head == plain.head
    assert traced(wrapped, prefix="network.").parameters == plain.parameters


# --- nothing changes -------------------------------------------------------------------------


@pytest.mark.parametrize("fails_on_meta", [False, True])
def test_the_trace_changes_nothing(fails_on_meta: bool) -> None:
    torch.manual_seed(0)
    network = _Looks() if fails_on_meta else Network()
    network.train()
    network.norm.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    grads = [p.requires_grad for p in network.parameters()]
    random = torch.get_rng_state()
    traced(network)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in network.modules()] == modes
    assert [p.requires_grad for p in network.parameters()] == grads
    assert all(p.grad is None for p in network.parameters())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(module._forward_pre_hooks for module in network.modules())


class _Looks(Network):
    """Looks at numbers while it runs, which the meta device has not, and draws some."""

    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.is_meta:
            raise BufferError("no numbers here")
        torch.rand(3), np.random.rand(), random.random()
        return super().forward(pixels)


def test_what_does_not_run_on_meta_runs_where_it_is() -> None:
    looks, plain = _Looks(), Network()
    before = random.getstate(), np.random.get_state()[2], torch.get_rng_state()
    assert traced(looks).parameters == traced(plain).parameters
    assert before[:2] == (random.getstate(), np.random.get_state()[2])
    assert torch.equal(before[2], torch.get_rng_state())


def test_what_runs_nowhere_is_one_line() -> None:
    with pytest.raises(GroupsError, match="cannot run Network on images") as caught:
        traced(Network(), size=9)
    assert "\n" not in str(caught.value)


# --- use that is not plain -------------------------------------------------------------------


class Tied(nn.Module):
    """One layer under two names, and a weight that is made of two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.one = nn.Linear(8, 8)
        self.two = self.one
        self.last = nn.Linear(8, 8)

    def forward(self, pixels: Tensor) -> Tensor:
        made = self.last.weight * self.scale  # made at once, used last
        hidden = self.two(self.one(pixels.mean((1, 2))))
        return nn.functional.linear(hidden, made, self.last.bias)


def test_a_shared_parameter_is_named_once_and_its_other_name_is_kept() -> None:
    layout = traced(Tied())
    names = [name for name, _ in layout.parameters]
    assert "two.weight" not in names
    assert ("one.weight", "two.weight") in layout.shared
    macs = dict(zip(names, layout.macs, strict=True))
    assert macs["one.weight"] == 2 * 64


def test_a_parameter_is_used_where_it_meets_what_comes_from_the_image() -> None:
    names = [name for name, _ in traced(Tied()).parameters]
    assert names.index("one.weight") < names.index("scale")
    assert names.index("one.weight") < names.index("last.weight")


def test_inputs_go_in_by_the_name_that_the_network_gives_them() -> None:
    class Named(Network):
        def forward(self, ids: Tensor | None = None, pixel_values: Tensor | None = None) -> Tensor:
            assert ids is None
            return super().forward(pixel_values)

    assert traced(Named()).parameters == traced(Network()).parameters


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.BatchNorm2d(4), True),
        (nn.GroupNorm(2, 4), True),
        (nn.LayerNorm(4), True),
        (nn.SyncBatchNorm(4), True),
        (nn.RMSNorm(4), True),
        (nn.Conv2d(3, 4, 1), False),
        (nn.Sequential(nn.BatchNorm2d(4)), False),
        (nn.Dropout(), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_norms_are_known_by_their_class(module: nn.Module, expected: bool) -> None:
    assert is_norm(module) is expected


def test_norms_of_every_library_are_known() -> None:
    import timm
    import torchvision
    from timm.layers import EvoNorm2dB0, FrozenBatchNormAct2d

    assert is_norm(EvoNorm2dB0(4))
    assert is_norm(FrozenBatchNormAct2d(4))
    assert is_norm(torchvision.ops.FrozenBatchNorm2d(4))
    with torch.device("meta"):
        network = timm.create_model("test_resnet", num_classes=3)
    layout = traced(network, size=64)
    held = {path for path, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert held <= set(layout.norms)


class _FirstTouch(TorchFunctionMode):
    """Another way to see the order: the first operation of any kind that is given a parameter."""

    looks = ("__get__", "size", "dim", "numel", "is_floating_point", "is_complex", "stride")

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.names = {id(p): name for name, p in network.named_parameters()}
        self.order: dict[str, int] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if getattr(func, "__name__", "") not in self.looks:
            self._note([*args, *(kwargs or {}).values()])
        return func(*args, **(kwargs or {}))

    def _note(self, values: list[object]) -> None:
        for value in values:
            if isinstance(value, (list, tuple)):
                self._note([*value])
            elif id(value) in self.names:
                self.order.setdefault(self.names[id(value)], len(self.order))


@pytest.mark.parametrize(
    "name",
    [
        "timm/volo_d1_224",
        "timm/levit_128",
        "timm/beit_base_patch16_224",
        "timm/swinv2_tiny_window8_256",
        "timm/cspresnext50",
        "timm/dla60",
        "timm/crossvit_9_240",
        "timm/hrnet_w18_small",
        "timm/coat_tiny",
        "timm/eva02_tiny_patch14_224",
        "torchvision/maxvit_t",
        "transformers/swinv2",
        "transformers/cvt",
    ],
)
def test_groups_are_in_order_by_another_way_of_seeing_it(name: str) -> None:
    from hf_transfer.backbones.sweep import build, size_of, traced

    network = build(name, 5).eval()
    size = size_of(name, network)
    layout = traced(network, build(name, 6), size, 5)
    touch = _FirstTouch(network)
    with torch.no_grad(), touch:
        network(torch.zeros(1, 3, size, size, device="meta"))
    assert {n for n, _ in layout.parameters} - set(layout.unused) == set(touch.order)
    last = -1
    for group in group_layers(layout).groups:
        aside = {*layout.head, *layout.unused}
        places = [touch.order[n] for n in group.parameters if n not in aside]
        assert min(places, default=last) >= last, group.name
        last = max(places, default=last)
