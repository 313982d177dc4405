"""Distance is small on a backbone's own images and grows with what others lack; gradients touch
nothing."""

import numpy as np
import pytest
from small import VIT, changed, images, network, state

from hf_transfer.data.scale import Scale
from hf_transfer.deciding.boundaries import boundary_features, statistics_of, using
from hf_transfer.deciding.heads import Head
from hf_transfer.deciding.shift import Watch, distance_of, gradient_norms


def test_distance_grows_as_images_lose_what_training_had():
    model, some = network(), images(24)
    with using(model, statistics_of(model, some)):
        near = distance_of(model, some)
        found = []
        for share in (0.6, 0.2):
            dark = images(24)
            dark.pixels = (dark.pixels * share).astype(np.uint8)
            found.append(distance_of(model, dark))
    assert near.all < 0.02
    assert near.all < found[0].all < found[1].all
    assert found[1].first > near.first


def test_a_pass_for_features_gives_the_distance_as_well():
    model, some = network(), images(24)
    with Watch(model) as watch:
        boundary_features(model, some, keep=False)
    assert watch.images >= 24
    assert abs(watch.distance().all - distance_of(model, some).all) < 0.01


def test_networks_without_batch_normalisation_have_no_distance():
    assert distance_of(network(VIT), images(4)) is None


@pytest.mark.parametrize("task", ["classification", "multi_label", "regression"])
def test_gradients_leave_the_model_as_it_was(task):
    model, some = network(), images(12)
    if task != "classification":
        some.labels = np.eye(3, dtype=np.float32)[some.labels]
        some.scale = Scale((0.0,) * 3, (1.0,) * 3) if task == "regression" else None
    model.requires_grad_(False)
    before = state(model)
    width = boundary_features(model, some, keep=False).head.shape[1]
    head = Head(np.random.default_rng(0).normal(size=(3, width)), np.zeros(3))
    norms = gradient_norms(model, some, np.arange(6), head)
    assert tuple(norms) == model.backbone.groups.names[:-1]
    assert all(norm > 0 for norm in norms.values())
    assert not changed(before, state(model))
    assert not any(parameter.requires_grad for parameter in model.parameters())
