import numpy as np
import pytest

from hf_transfer.deciding import heads
from hf_transfer.deciding.folds import folds
from hf_transfer.deciding.heads import (
    STRENGTHS,
    fit_heads,
    honest,
    mean_head,
    near_best,
    out_of_fold,
    stacked,
)
from hf_transfer.deciding.truth import losses, scores, temperature
from hf_transfer.results.metrics.by_name import measure
from hf_transfer.training.solver import solve_head


def cloud(count=90, width=12, classes=3, apart=1.0, seed=0):
    """Return features (N, D), shifted and stretched, and labels (N,)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    middles = rng.normal(size=(classes, width)) * apart
    features = middles[labels] + rng.normal(size=(count, width))
    return features * rng.uniform(0.1, 10, width) + rng.normal(size=width) * 20, labels


@pytest.mark.parametrize("width", [12, 200])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_exact_head_is_the_engines(width, classes):
    features, labels = cloud(width=width, classes=classes)
    theirs = solve_head(features, labels, classes)
    (ours,) = fit_heads(features, labels, classes, [theirs.strength])
    expected = features @ theirs.weight.T + theirs.bias
    assert np.abs(ours.logits(features) - expected).max() < 0.02 * np.abs(expected).max()


def test_weights_of_classes_move_a_head_as_they_move_the_engines():
    features, labels = cloud(count=300, apart=0.5)
    weights = np.array([1.0, 4.0, 1.0])
    theirs = solve_head(features, labels, 3, class_weights=weights)
    (ours,) = fit_heads(features, labels, 3, [theirs.strength], weights[labels])
    expected = features @ theirs.weight.T + theirs.bias
    assert np.abs(ours.logits(features) - expected).max() < 0.02 * np.abs(expected).max()
    (plain,) = fit_heads(features, labels, 3, [theirs.strength])
    answers = [head.logits(features).argmax(1) for head in (ours, plain)]
    assert (answers[0] == 1).mean() > (answers[1] == 1).mean() + 0.05


def test_weights_of_labels_that_are_there_move_a_head_towards_them():
    features, classes = cloud(count=300, apart=0.3)
    labels = several(classes)
    heavy = np.where(labels, [4.0, 1.0, 1.0], 1.0)
    views = np.stack([features, features])
    found = [
        fit_heads(*stacked(given, labels, np.arange(300), weights)[:2], 3, [0.1], weight)[0]
        for given, weights in ((features, None), (features, heavy), (views, heavy))
        for weight in [stacked(given, labels, np.arange(300), weights)[2]]
    ]
    plain, moved, twice = ((head.logits(features) > 0).mean(0) for head in found)
    assert moved[0] > plain[0] + 0.1
    assert np.allclose(moved[1:], plain[1:], atol=0.02)
    assert np.allclose(moved, twice, atol=0.02)


def test_the_strength_is_chosen_for_the_classes_that_count():
    labels = np.array([0] * 18 + [1] * 2)
    sure = np.array([[2.0, 0.0]] * 20)  # right for the many
    unsure = np.zeros((20, 2))
    assert near_best(np.stack([unsure, sure]), labels).tolist() == [1]
    weights = np.where(labels == 1, 40.0, 0.1)
    assert near_best(np.stack([unsure, sure]), labels, weights).tolist() == [0]


def several(labels):
    """Return several labels of images (N, 3), of which two depend on the class."""
    return np.stack([labels == 1, labels > 0, np.arange(len(labels)) % 2 == 0], axis=1)


def numbers(labels):
    """Return standard numbers (N, 2) that depend on the class."""
    found = np.stack([labels, (labels - 1.0) ** 2], axis=1)
    return (found - found.mean(0)) / found.std(0)


def test_a_head_predicts_images_that_it_has_not_seen():
    features, labels = cloud(count=300)
    fold = folds(labels, repeats=1)[0]
    found = honest(out_of_fold(features, labels, 3, fold), labels, fold)
    assert scores(found, labels).mean() > 0.9


def test_a_head_of_several_labels_knows_those_that_the_images_show():
    features, classes = cloud(count=300)
    labels = several(classes)
    fold = folds(labels, repeats=1)[0]
    found = honest(out_of_fold(features, labels, 3, fold), labels, fold)
    right = ((found > 0) == labels).mean(0)
    assert min(right[:2]) > 0.9 > 0.7 > right[2]
    assert scores(found, labels).mean() == pytest.approx(
        measure("multi_label", found, labels)["map"]
    )


def test_a_head_of_numbers_predicts_them_in_standard_units():
    features, classes = cloud(count=300)
    wanted = numbers(classes)
    fold = folds(wanted, repeats=1)[0]
    found = honest(out_of_fold(features, wanted, 2, fold), wanted, fold)
    assert scores(found, wanted).mean() > 0.6
    assert scores(found, wanted).mean() == pytest.approx(1 - losses(found, wanted).mean())


@pytest.mark.parametrize("of", [several, numbers])
def test_heads_of_more_features_than_images_are_those_of_the_whole_space(of, monkeypatch):
    features, labels = cloud(count=30, width=80)
    truth = of(labels)
    small = fit_heads(features, truth, truth.shape[1], [0.3])[0].logits(features)
    monkeypatch.setattr(heads, "_spanned", lambda rows: (rows, np.eye(rows.shape[1])))
    whole = fit_heads(features, truth, truth.shape[1], [0.3])[0].logits(features)
    assert np.abs(small - whole).max() < 0.002 * np.abs(whole).max()


def test_the_mean_of_heads_has_the_mean_of_their_logits():
    features, labels = cloud()
    several = fit_heads(features, labels, 3)
    mean = np.mean([head.logits(features) for head in several], axis=0)
    assert np.allclose(mean_head(several).logits(features), mean)


def test_a_class_without_images_is_hardly_ever_predicted():
    features, labels = cloud()
    (head,) = fit_heads(features, labels, 5, [1.0])
    chances = np.exp(head.logits(features) - head.logits(features).max(1, keepdims=True))
    assert (chances / chances.sum(1, keepdims=True))[:, 3:].max() < 0.02


def test_labels_that_the_images_do_not_tell_are_predicted_by_chance_out_of_fold():
    rng = np.random.default_rng(1)
    features, labels = rng.normal(size=(80, 300)), rng.integers(0, 2, 80)
    fold = folds(labels, repeats=1)[0]
    found = honest(out_of_fold(features, labels, 2, fold), labels, fold)
    assert losses(found, labels).mean() > 0.6  # ln 2 is 0.69


@pytest.mark.parametrize("of", [np.asarray, several, numbers])
def test_features_may_be_of_the_fold_alone_and_of_several_views(of):
    features, classes = cloud()
    labels = of(classes)
    fold = folds(classes, 3, repeats=1)[0]
    asked = []

    def of_fold(number):
        asked.append(number)
        return np.stack([features, features]), features

    outputs = 3 if labels.ndim == 1 else labels.shape[1]
    views = out_of_fold(of_fold, labels, outputs, fold, [1.0])
    assert asked == [0, 1, 2]
    one = out_of_fold(features, labels, outputs, fold, [1.0])
    assert np.abs(views - one).max() < 0.02 * np.abs(one).max()


def test_strengths_near_the_best_hold_the_best_and_leave_out_the_worst():
    features, labels = cloud(count=300, apart=0.4)
    logits = out_of_fold(features, labels, 3, folds(labels, repeats=1)[0])
    near = near_best(logits, labels)
    assert int(losses(logits, labels).mean(1).argmin()) in near
    assert len(near) < len(STRENGTHS)


def test_a_temperature_mends_logits_that_are_too_sure():
    features, labels = cloud(count=300, apart=0.5)
    fold = folds(labels, repeats=1)[0]
    logits = honest(out_of_fold(features, labels, 3, fold), labels, fold)
    found = temperature(4 * logits, labels)
    assert losses(4 * logits / found, labels).mean() < losses(4 * logits, labels).mean()
    (head,) = fit_heads(features, labels, 3, [1.0])
    assert np.allclose(head.cooled(found).logits(features), head.logits(features) / found)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="one class"):
        fit_heads(np.ones((4, 2)), np.zeros(4, int), 2)
