"""One pass gives what arrives at every group; statistics are lent to the network and given back."""

import numpy as np
import pytest
import torch
from small import CONVNEXT, RESNET, VIT, changed, images, network, state

from hf_transfer.backbones.load import load_backbone
from hf_transfer.deciding.boundaries import (
    boundary_features,
    statistics_of,
    using,
)
from hf_transfer.inputs.arriving import pooled
from hf_transfer.inputs.model_input import to_model_input
from hf_transfer.training.norm_statistics import layers


@pytest.mark.parametrize("name", [RESNET, VIT, CONVNEXT])
def test_the_head_makes_the_logits_of_its_boundary(name):
    model, some = network(name), images(6)
    found = boundary_features(model, some)
    assert found.groups == model.backbone.groups.names[1:]
    model.eval()
    with torch.no_grad():
        values = to_model_input(some.__getitems__(range(6))["pixels"], model.backbone.image)
        expected = model(pixel_values=values).logits
        logits = model.timm_model.get_classifier()(torch.from_numpy(found.head))
    assert torch.allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["timm/densenet121", "torchvision/alexnet", "torchvision/swin_t"])
def test_features_arrive_at_every_group_of_odd_networks(name):
    model = load_backbone(name, ("a", "b"), pretrained=False, image_size=64)
    found = boundary_features(model, images(2, 64), keep=False)
    assert found.groups == model.backbone.groups.names[1:]
    assert all(x.shape[0] == 2 and np.isfinite(x).all() for x in found.features.values())


def test_a_dense_layer_gets_all_that_comes_to_it():
    model = load_backbone("timm/densenet121", ("a", "b"), pretrained=False, image_size=64)
    found = boundary_features(model, images(2, 64), keep=False)
    sides = [x.shape[1] for x in found.features.values()]
    assert sides[:4] == [64, 96, 128, 160]


def test_stored_features_are_those_computed_and_are_read_again(monkeypatch):
    model, some = network(RESNET), images(7)
    computed = boundary_features(model, some, keep=False)
    stored = boundary_features(model, some)
    monkeypatch.setattr("hf_transfer.deciding.boundaries._Pass.run", None)  # not called again
    again = boundary_features(model, some)
    for name in computed.groups:
        assert np.array_equal(computed.features[name], stored.features[name])
        assert np.array_equal(stored.features[name], again.features[name])


def test_a_subset_has_the_rows_of_its_images():
    found = boundary_features(network(RESNET), images(7), keep=False)
    some = found.take(np.array([5, 2]))
    assert len(some) == 2
    assert np.array_equal(some.head, found.head[[5, 2]])


def test_statistics_are_of_the_images_asked_for_and_the_model_stays_as_it_was():
    model, some = network(RESNET), images(12)
    before = state(model)
    rows = np.array([1, 4, 7])
    found = statistics_of(model, some, rows)
    same = statistics_of(model, some.subset(rows))
    other = statistics_of(model, some, np.array([0, 2, 3]))
    assert set(found) == set(layers(model))
    assert all(torch.equal(found[name][0], same[name][0]) for name in found)
    assert any(not torch.equal(found[name][0], other[name][0]) for name in found)
    assert not changed(before, state(model))


def test_networks_without_batch_normalisation_have_no_statistics():
    assert statistics_of(network(VIT), images(6)) == {}


def test_the_weight_says_how_much_of_the_statistics_counts():
    model, some = network(RESNET), images(12)
    found = statistics_of(model, some)
    before = state(model)
    plain = boundary_features(model, some, keep=False).head
    none = boundary_features(model, some, statistics=found, weight=0.0, keep=False).head
    half = boundary_features(model, some, statistics=found, weight=0.5, keep=False).head
    whole = boundary_features(model, some, statistics=found, keep=False).head
    assert np.array_equal(plain, none)
    assert not np.allclose(plain, half)
    assert not np.allclose(half, whole)
    assert not changed(before, state(model))
    with using(model, found):
        name, layer = next(iter(layers(model).items()))
        assert torch.equal(layer.running_mean, found[name][0])
    assert not changed(before, state(model))


def test_the_cache_tells_statistics_apart():
    model, some = network(RESNET), images(12)
    plain = boundary_features(model, some).head
    found = statistics_of(model, some)
    assert not np.allclose(plain, boundary_features(model, some, statistics=found).head)
    assert np.array_equal(plain, boundary_features(model, some).head)


def test_places_and_tokens_are_averaged_wherever_the_channels_are():
    x = torch.rand(2, 5, 4, 4)
    assert torch.allclose(pooled(x), x.mean((2, 3)))
    assert torch.allclose(pooled(x.permute(0, 2, 3, 1)), x.mean((2, 3)))
    assert torch.allclose(pooled(x.flatten(2).transpose(1, 2)), x.mean((2, 3)), atol=1e-6)
