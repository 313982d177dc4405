"""Thresholds of labels: the best on the images that they are chosen on, by F1 or by cost."""

import numpy as np
import pytest

from hf_transfer.base.errors import UserError
from hf_transfer.results.metrics.multi_label import multilabel_metrics
from hf_transfer.results.metrics.thresholds import best_thresholds, check_rule, shifted

NAMES = ("cat", "dog")


def drawn(count=200, seed=0):
    """Scores that know something of the labels, and are too low."""
    random = np.random.default_rng(seed)
    labels = (random.random((count, 2)) < (0.3, 0.1)).astype(float)
    return 2 * labels + random.normal(size=(count, 2)) - 3, labels


def test_the_chosen_f1_is_the_largest_that_any_threshold_gives():
    logits, labels = drawn()
    limits = best_thresholds(logits, labels, NAMES, "f1")

    def f1(values):
        found = multilabel_metrics(values, labels, NAMES, bootstrap=0)
        return [row["f1"] for row in found["per_label"]]

    best = [
        max(f1(shifted(logits, (p, p)))[i] for p in np.linspace(0.01, 0.99, 99)) for i in (0, 1)
    ]
    found = f1(shifted(logits, limits))
    assert all(one >= other - 1e-9 for one, other in zip(found, best, strict=True))
    assert sum(found) > sum(f1(logits))


def test_what_costs_more_to_miss_counts_as_there_earlier():
    logits, labels = drawn()
    cheap = best_thresholds(logits, labels, NAMES, {"cat": 1.0})
    dear = best_thresholds(logits, labels, NAMES, {"cat": 20.0})
    assert dear[0] < cheap[0]
    assert dear[1] == cheap[1]

    def cost(limit):
        said = shifted(logits, (limit, 0.5))[:, 0] > 0
        there = labels[:, 0] > 0
        return 20 * (there & ~said).sum() + (said & ~there).sum()

    assert cost(dear[0]) == min(cost(p) for p in np.linspace(0.001, 0.999, 999))


def test_a_label_without_images_has_one_half_and_a_clear_one_the_middle():
    logits, labels = np.array([[-2.0, 0.0], [2.0, 1.0]]), np.array([[0, 0], [1, 0]])
    assert best_thresholds(logits, labels, NAMES, "f1") == pytest.approx((0.5, 0.5))


def test_the_cost_of_a_label_that_there_is_not_is_told():
    with pytest.raises(UserError, match="thresholds: there is no label 'cta'; nearest: cat"):
        check_rule({"cta": 3.0}, NAMES)
    check_rule("f1", NAMES)
