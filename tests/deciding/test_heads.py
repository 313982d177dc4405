import numpy as np
import pytest

from hf_transfer.deciding import heads
from hf_transfer.deciding.folds import folds
from hf_transfer.deciding.heads import (
    STRENGTHS,
    fit_heads,
    honest,
    losses,
    mean_head,
    near_best,
    out_of_fold,
    temperature,
)
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


@pytest.mark.parametrize("kind", ["exact", "ridge", "lda"])
def test_a_head_predicts_images_that_it_has_not_seen(kind):
    features, labels = cloud(count=300)
    fold = folds(labels, repeats=1)[0]
    found = honest(out_of_fold(features, labels, 3, fold, kind=kind), labels, fold)
    assert (found.argmax(1) == labels).mean() > 0.9


@pytest.mark.parametrize("kind", ["ridge", "lda"])
def test_heads_of_more_features_than_images_are_those_of_the_whole_space(kind, monkeypatch):
    features, labels = cloud(count=30, width=80)
    small = fit_heads(features, labels, 3, [0.3], kind)[0].logits(features)
    monkeypatch.setattr(heads, "_spanned", lambda rows: (rows, np.eye(rows.shape[1])))
    whole = fit_heads(features, labels, 3, [0.3], kind)[0].logits(features)
    assert np.allclose(small, whole, atol=1e-6)


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


def test_features_may_be_of_the_fold_alone_and_of_several_views():
    features, labels = cloud()
    fold = folds(labels, 3, repeats=1)[0]
    asked = []

    def of_fold(number):
        asked.append(number)
        return np.stack([features, features]), features

    several = out_of_fold(of_fold, labels, 3, fold, [1.0])
    assert asked == [0, 1, 2]
    one = out_of_fold(features, labels, 3, fold, [1.0])
    assert np.abs(several - one).max() < 0.02 * np.abs(one).max()


def test_strengths_near_the_best_hold_the_best_and_leave_out_the_worst():
    features, labels = cloud(count=300, apart=0.4)
    logits = out_of_fold(features, labels, 3, folds(labels, repeats=1)[0])
    near = near_best(logits, labels)
    assert int(losses(logits, labels).mean(1).argmin()) in near
    assert len(near) < len(STRENGTHS["exact"])


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
