"""What moved is measured against the start: frozen groups are at zero, changed ones above it."""

import copy

import numpy as np
import torch
from small import images, network

from hf_transfer.results.report import PhaseReport
from hf_transfer.training.moved import cka, distances, figures, moved_of


def phase(*groups):
    return PhaseReport("p", groups, 1, 1, 1.0, 1, 1.0)


def changed(model, groups, by=0.1):
    """Return a copy of a model in which these groups' weights are larger by a share."""
    other = copy.deepcopy(model)
    named = dict(other.named_parameters())
    for group in other.backbone.groups.groups:
        if group.name in groups:
            for name in group.parameters:
                with torch.no_grad():
                    named[f"{other.backbone.prefix}{name}"].mul_(1 + by)
    return other


def test_distances_are_shares_of_the_weights_norm():
    model = network()
    names = model.backbone.groups.names
    found = distances(model, changed(model, names[2:3], 0.25))
    assert abs(found[names[2]] - 0.25) < 1e-6
    assert all(found[name] == 0 for name in names if name != names[2])


def test_groups_below_what_moved_change_nothing_and_those_above_change_their_representation():
    model, some = network(), images(24)
    names = model.backbone.groups.names
    first = copy.deepcopy(model)
    last = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    named = dict(last.named_parameters())
    for name in last.backbone.groups.groups[-2].parameters:
        weight = named[f"{last.backbone.prefix}{name}"]
        with torch.no_grad():
            weight.add_(torch.randn(weight.shape, generator=generator) * weight.abs().mean())
    rows = moved_of(last, (phase("head"), phase(*names[-2:])), some, lambda: first)
    assert [row["group"] for row in rows] == list(names[:-1])
    assert all(row["weights"] == 0 for row in rows[:-1])
    assert all(row["representation"] < 1e-9 for row in rows[:-1])
    assert rows[-1]["weights"] > 0
    assert rows[-1]["representation"] > 1e-4
    for figure in figures(rows):
        assert figure["names"] == list(names[:-1])
        assert len(figure["lines"][0]["points"]) == len(names) - 1


def test_a_head_alone_loads_no_start():
    assert moved_of(network(), (phase("head"),), images(6), lambda: 1 / 0) == []
    assert figures([]) == ()


def test_cka_is_one_for_the_same_up_to_turning_and_scale_and_small_for_others():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 8))
    turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    assert abs(cka(x, 3 * x @ turn + 5) - 1) < 1e-9
    assert cka(x, rng.normal(size=(200, 8))) < 0.2
    assert cka(np.ones((5, 2)), np.ones((5, 2))) == 1.0
