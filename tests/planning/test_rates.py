"""Rates: every parameter that trains is in exactly one group, the head's first, none frozen by
accident."""

import math
from itertools import pairwise

import pytest

from hf_transfer.planning.groups import Group, LayerGroups, group_layers
from hf_transfer.planning.layout import Layout
from hf_transfer.planning.phases import make_phases
from hf_transfer.planning.rates import lr_scale, param_groups, parameter_rates
from hf_transfer.planning.recorded import recorded_layout
from hf_transfer.recipe.specs import PhaseSpec


def network(depth: int, heads: int = 1) -> LayerGroups:
    """Return `depth` groups of a convolution with its norm, and a head of `heads` layers."""
    shapes: dict[str, tuple[int, ...]] = {}
    groups = []
    for i in range(depth):
        own = {f"b{i}.weight": (4, 4, 3, 3), f"b{i}.norm.weight": (4,), f"b{i}.gamma": (4, 1, 1)}
        shapes |= own
        groups.append(Group(f"b{i}", f"b{i}", tuple(own), 0))
    top = {f"fc{i}.{k}": (3, 4)[:n] for i in range(heads) for k, n in (("weight", 2), ("bias", 1))}
    shapes |= top
    groups.append(Group("head", "head", tuple(top), 0))
    layout = Layout(
        parameters=tuple(shapes.items()),
        head=tuple(top),
        norms=tuple(f"b{i}.norm" for i in range(depth)),
        no_decay=tuple(f"b{i}.gamma" for i in range(depth)),
    )
    return LayerGroups(tuple(groups), layout)


def phase(depth: int = 3, heads: int = 1, **settings):
    """Return one phase of such a network with these settings."""
    groups = network(depth, heads)
    spec = PhaseSpec(**{"train": "all", "epochs": 1, "cold_head": True, **settings})
    return make_phases([spec], groups)[0]


SETTINGS = [
    {},
    {"layer_decay": 0.75},
    {"layer_decay": 1.0},
    {"lr": (1e-5, 1e-3)},
    {"lrs": (("head", 1e-2), ("b0", 1e-5), ("norms", 1e-6))},
    {"lrs": (("norms", 1e-6),), "layer_decay": 0.5, "weight_decay": 0.0},
    {"train": ("head", "norms"), "layer_decay": 0.5},
    {"train": "head"},
    {"train": ("all", "not b1")},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("heads", [1, 2])
def test_every_trainable_parameter_is_in_exactly_one_group(settings, heads):
    one = phase(5, heads, **settings)
    names = [name for group in param_groups(one) for name in group.names]
    assert sorted(names) == sorted(one.parameters)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_head_comes_first_and_labels_are_unique(settings):
    one = phase(5, **settings)
    found = param_groups(one)
    assert not set(one.layout.head).isdisjoint(found[0].names)
    assert len({group.label for group in found}) == len(found)
    assert len({(group.lr, group.weight_decay) for group in found}) == len(found)


@pytest.mark.parametrize("settings", SETTINGS)
def test_names_in_a_group_are_in_execution_order_and_all_groups_are_equal_each_time(settings):
    one = phase(5, **settings)
    order = {name: i for i, (name, _) in enumerate(one.layout.parameters)}
    found = param_groups(one)
    for group in found:
        assert [order[name] for name in group.names] == sorted(order[name] for name in group.names)
    assert found == param_groups(one)


def test_decay_of_1_is_one_rate():
    one = phase(60, layer_decay=1.0, lr=3e-4)
    assert {group.lr for group in param_groups(one)} == {3e-4}


def test_without_weight_decay_a_rate_is_one_group():
    one = phase(3, weight_decay=0.0)
    (group,) = param_groups(one)
    assert group.names == tuple(name for name, _ in one.layout.parameters)
    assert group.label == "b0 … head"


def test_no_parameter_of_one_dimension_nor_one_that_the_backbone_names_has_weight_decay():
    one = phase(3, weight_decay=0.1)
    decays = {n: g.weight_decay for g in param_groups(one) for n in g.names}
    shapes = dict(one.layout.parameters)
    for name, decay in decays.items():
        spared = len(shapes[name]) <= 1 or name.endswith("gamma")
        assert decay == (0.0 if spared else 0.1), name


def test_rates_fall_from_the_head_down_and_the_head_has_the_rate_of_the_phase():
    one = phase(6, heads=2, lr=1e-3, layer_decay=0.8)
    rates = parameter_rates(one)
    assert {rates[name] for name in one.layout.head} == {1e-3}
    levels = [rates[group.parameters[0]] for group in one.network.groups[:-1]]
    assert levels == sorted(levels)
    for low, high in pairwise([*levels, 1e-3]):
        assert low / high == pytest.approx(0.8)
    found = [group.lr for group in param_groups(one)]
    assert found == sorted(found, reverse=True)


def test_depth_counts_from_the_head_whatever_trains():
    whole = phase(6, layer_decay=0.8)
    part = phase(6, layer_decay=0.8, train="last 2 blocks")
    rates = parameter_rates(whole)
    for name, rate in parameter_rates(part).items():
        assert rate == rates[name]


@pytest.mark.parametrize("decay", [0.5, 0.65, 0.75, 0.9])
def test_the_first_layer_of_a_deep_network_still_learns(decay):
    one = phase(60, lr=1.0, layer_decay=decay)
    rates = parameter_rates(one)
    assert min(rates.values()) >= decay**12 * (1 - 1e-9)
    assert rates["b59.weight"] > decay  # and neighbours are closer than in a short one


def test_the_scale_is_a_power_up_to_twelve_groups_and_spread_out_beyond():
    assert lr_scale(0, 0.5, 60) == 1.0
    assert lr_scale(3, 0.5, 12) == 0.125
    assert lr_scale(60, 0.5, 60) == pytest.approx(0.5**12)
    assert lr_scale(30, 0.5, 60) == pytest.approx(0.5**6)
    assert lr_scale(0, 0.5, 0) == 1.0
    scales = [lr_scale(depth, 0.7, 40) for depth in range(41)]
    assert all(0 < low < high for high, low in pairwise(scales))


@pytest.mark.parametrize(("depth", "decay"), [(0, 0.0), (0, 1.1), (0, math.nan), (-1, 1), (6, 1)])
def test_a_scale_outside_its_range_is_refused(depth, decay):
    with pytest.raises(ValueError, match="must be"):
        lr_scale(depth, decay, 5)


def test_geometric_rates_have_equal_ratios_and_the_given_ends():
    one = phase(4, heads=2, lr=(1e-6, 1e-2))
    rates = parameter_rates(one)
    levels = [rates[group.parameters[0]] for group in one.network.groups]
    assert levels == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
    assert {rates[name] for name in one.layout.head} == {1e-2}
    alone = phase(4, lr=(1e-6, 1e-2), train="head")
    assert set(parameter_rates(alone).values()) <= {1e-2}


def test_geometric_rates_run_over_what_trains_only():
    one = phase(4, lr=(1e-4, 1e-2), train="last 2 blocks")
    rates = parameter_rates(one)
    ends = [rates[name] for name in ("b2.weight", "b3.weight", "fc0.weight")]
    assert ends == pytest.approx([1e-4, 1e-3, 1e-2])


def test_the_first_rule_that_matches_gives_the_rate_and_the_rest_keep_theirs():
    rules = (("norms", 1e-6), ("head", 1e-2), ("last 1 block", 1e-4))
    one = phase(3, lr=1.0, layer_decay=0.5, lrs=rules)
    rates = parameter_rates(one)
    assert rates["b2.norm.weight"] == 1e-6
    assert rates["b2.weight"] == 1e-4
    assert rates["fc0.weight"] == 1e-2  # `last 1 block` includes the head, and comes later
    assert rates["b1.weight"] == 0.25


@pytest.mark.parametrize("backbone", ["timm/densenet121", "timm/vit_small_patch16_224"])
def test_the_rates_of_a_real_network_hold_the_same(backbone):
    layout = recorded_layout(backbone, 5)
    if layout is None:
        pytest.skip(f"{backbone} is not recorded")
    groups = group_layers(layout)
    spec = PhaseSpec("all", epochs=1, lr=1.0, layer_decay=0.75, cold_head=True)
    (one,) = make_phases([spec], groups)
    found = param_groups(one)
    names = [name for group in found for name in group.names]
    assert sorted(names) == sorted(one.parameters)
    assert min(group.lr for group in found) >= 0.75**12 * (1 - 1e-9)
    assert set(found[0].names) <= set(one.layout.head)
