"""What is watched while a pretext trains: rank and spread of features, and a probe."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from small import images, network

from hf_transfer.training.watching import Watch, effective_rank, ridge, spread, watched


def test_with_few_images_to_validate_on_those_that_train_are_watched():
    sets = {"train": images(40), "validation": images(4, seed=1)}
    few = SimpleNamespace(task="rotation", **sets)
    assert [len(watch.images) for watch in watched(network(), few, None)] == [40]
    few.validation = images(36, seed=1)
    assert [len(watch.images) for watch in watched(network(), few, None)] == [36]


def test_the_rank_is_the_number_of_directions_that_features_take():
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(20, 20)))[0][:5]
    features = rng.normal(size=(4000, 5)) @ directions
    assert effective_rank(features) == pytest.approx(5, abs=0.1)
    assert effective_rank(rng.normal(size=(50, 1)) @ np.ones((1, 6))) == pytest.approx(1, abs=0.01)


def test_the_spread_is_one_on_the_sphere_and_nothing_at_a_point():
    rng = np.random.default_rng(0)
    assert spread(rng.normal(size=(5000, 10))) == pytest.approx(1, abs=0.02)
    assert spread(np.ones((10, 4))) == 0.0


def test_the_probe_is_ridge_regression_on_standardised_features():
    rng = np.random.default_rng(0)
    known, new = rng.normal(2, 3, (60, 8)), rng.normal(2, 3, (20, 8))
    targets = known[:, :2] @ np.array([[1.0, 0.0], [0.5, 2.0]]) + rng.normal(0, 0.1, (60, 2))
    mean, std = known.mean(0), known.std(0)
    plain = min(
        (
            Ridge(alpha=60 * 10.0**power).fit((known - mean) / std, targets)
            for power in range(-3, 4)
        ),
        key=lambda fit: np.square(fit.predict((known - mean) / std) - targets).sum(),
    )
    assert np.allclose(ridge(known, targets, new), plain.predict((new - mean) / std), atol=1e-6)


def test_a_network_whose_features_become_one_is_told_of_and_its_weights_are_left_alone(caplog):
    model = network()
    watch = Watch(model, images())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    first = watch()
    assert model.training
    assert set(first) == {"rank", "spread"}
    assert watch.collapsed is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("timm_model.stages.3") or "layer4" in name:
                parameter.zero_()
    with caplog.at_level(logging.WARNING):
        watch()
    assert "the features collapse" in watch.collapsed
    assert "the features collapse" in caplog.text
    assert watch.before == first
