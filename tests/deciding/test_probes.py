"""Probes never see what they judge, use the features there are, and say how sure they are."""

import numpy as np
import pytest

from hf_transfer.deciding.folds import folds, pairs
from hf_transfer.deciding.probes import (
    STRENGTHS,
    behind,
    interval,
    learning_curve,
    log_evidence,
    nearest,
    probe,
    probe_scores,
    ridge,
    standardised,
    targets_of,
)
from hf_transfer.deciding.truth import task_of
from hf_transfer.results.metrics.by_name import measure

RNG = np.random.default_rng(0)


def blobs(count=120, width=20, apart=2.0, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    middles = rng.normal(0, apart, (classes, width))
    return (middles[labels] + rng.normal(0, 2, (count, width))).astype(np.float32), labels


def test_ridge_agrees_with_scikit_learn_on_either_side_of_square():
    from sklearn.linear_model import Ridge

    for count, width in ((60, 10), (30, 50)):
        features, labels = blobs(count, width)
        near, far = standardised([features], np.arange(count - 10), np.arange(count - 10, count))
        targets = targets_of(labels[: count - 10], 3)
        whole = (near**2).sum() / len(near)
        found = ridge(near, far, targets)
        for at in (0, len(STRENGTHS) // 2, -1):
            expected = Ridge(alpha=STRENGTHS[at] * whole).fit(near, targets).predict(far)
            assert np.allclose(found[at], expected, atol=2e-3)


def test_labels_that_nothing_tells_are_told_by_chance():
    features = RNG.normal(size=(200, 50)).astype(np.float32)
    labels = RNG.integers(0, 2, 200)
    told = probe_scores([features], labels, targets_of(labels, 2), folds(labels, repeats=2))
    assert abs(told.mean() - 0.5) < 0.12


def test_no_answer_depends_on_the_label_or_the_features_of_its_own_fold():
    features, labels = blobs()
    dealt = folds(labels, repeats=1)
    before = ridge(
        *standardised([features], *next(pairs(dealt[0]))), np.eye(3)[labels[dealt[0] != 0]]
    )
    inside, outside = next(pairs(dealt[0]))
    spoiled = features.copy()
    spoiled[outside[1:]] = 1e6  # of other images of the fold
    after = ridge(*standardised([spoiled], inside, outside), np.eye(3)[labels[inside]])
    assert np.allclose(before[:, 0], after[:, 0])


def test_features_that_know_more_add_to_those_that_know_less():
    strong, labels = blobs(apart=1.5)
    weak = RNG.normal(size=(len(labels), 40)).astype(np.float32)
    dealt, targets = folds(labels), targets_of(labels, 3)
    alone = probe_scores([weak], labels, targets, dealt)
    both = probe_scores([weak, strong], labels, targets, dealt)
    gain, error = behind(both, alone)
    assert gain > 3 * error


def test_constant_features_say_nothing_and_do_no_harm():
    features, labels = blobs()
    dealt, targets = folds(labels), targets_of(labels, 3)
    plain = probe([features], targets, dealt)
    more = np.concatenate([features, np.full((len(labels), 1), 7.0, np.float32)], axis=1)
    assert np.isfinite(probe([more], targets, dealt)).all()
    assert (plain.argmax(-1) == probe([more], targets, dealt).argmax(-1)).mean() > 0.95


def test_nearest_images_of_other_folds_vote():
    features, labels = blobs(apart=4.0)
    found = nearest(features, targets_of(labels, 3), folds(labels)[0])
    assert (found.argmax(1) == labels).mean() > 0.95
    assert np.allclose(found.sum(1), 1)
    numbers = np.stack([10.0 * labels, -labels], axis=1)
    assert np.abs(nearest(features, numbers, folds(labels)[0]) - numbers).mean() < 0.5


def test_probes_tell_several_labels_and_numbers_by_their_own_metric():
    features, labels = blobs(300, apart=1.0)
    several = np.stack([labels == 1, labels > 0, RNG.random(300) < 0.1], axis=1)
    numbers = np.stack([features[:, 0] + features[:, 1], RNG.normal(size=300)], axis=1)
    for truth, metric in ((several, "map"), (numbers, "r2")):
        dealt, targets = folds(truth, repeats=1), targets_of(truth, truth.shape[1])
        told = probe_scores([features], truth, targets, dealt)
        answers = probe([features], targets, dealt)[0]
        assert told.mean() == pytest.approx(measure(task_of(truth).name, answers, truth)[metric])
        curve = learning_curve(features, truth, targets, dealt)
        assert curve.values[-1] == pytest.approx(told.mean(), abs=0.05)


def test_the_log_evidence_prefers_features_that_tell_the_classes():
    good, labels = blobs(apart=3.0)
    targets = targets_of(labels, 3)
    assert log_evidence(good, targets) > log_evidence(RNG.normal(size=good.shape), targets)


def test_intervals_hold_the_mean_stay_in_bounds_and_grow_with_groups():
    values = np.array([1.0] * 45 + [0.0] * 5)
    low, high = interval(values)
    assert 0 < low < 0.9 < high < 1
    assert interval(np.ones(20))[1] <= 1
    nearly = np.full(20, 1 - 1e-16)
    assert interval(nearly, np.arange(20) // 5) == pytest.approx(interval(np.ones(4)))
    wide = interval(values, np.arange(50) // 10)
    assert wide[1] - wide[0] > high - low
    spread = np.repeat(RNG.normal(0.5, 0.5, 20), 10)  # parts of R², which may be below 0
    low, high = interval(spread)
    assert low < spread.mean() < high <= 1
    alike = interval(spread, np.arange(200) // 10)
    assert alike[1] - alike[0] > 2 * (high - low)


def test_a_learning_curve_rises_and_foresees_more_with_more_images():
    features, labels = blobs(300, 60, apart=0.5)
    targets = targets_of(labels, 3)
    curve = learning_curve(features, labels, targets, folds(labels, repeats=2))
    assert curve.images[0] < curve.images[1] < curve.images[2]
    assert curve.values[0] < curve.values[-1]
    ahead, low, high = curve.twice
    assert low <= ahead <= high
    assert ahead >= curve.values[-1] - 1e-9


@pytest.mark.parametrize("classes", [2, 5])
def test_targets_of_classes_are_one_hot(classes):
    found = targets_of(np.arange(classes), classes)
    assert np.array_equal(found, np.eye(classes))
