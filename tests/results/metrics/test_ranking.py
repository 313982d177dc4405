"""Ranking curves agree with scikit-learn under any weights, ties included."""

import numpy as np
import pytest
from sklearn import metrics as reference

from hf_transfer.results.metrics.ranking import auroc, average_precision


@pytest.mark.parametrize("levels", [3, 1000])
def test_curves_agree_with_scikit_learn_under_weights(levels):
    random = np.random.default_rng(levels)
    scores = random.integers(0, levels, 80).astype(float)
    positive = random.random(80) < 0.3
    weights = random.integers(0, 4, (5, 80)).astype(float)
    for ours, theirs in (
        (auroc, reference.roc_auc_score),
        (average_precision, reference.average_precision_score),
    ):
        expected = [theirs(positive, scores, sample_weight=row) for row in weights]
        np.testing.assert_allclose(ours(scores, positive, weights), expected)


def test_a_weighting_without_a_positive_row_has_no_area():
    scores, positive = np.arange(4.0), np.array([True, False, False, False])
    weights = np.array([[0.0, 1, 1, 1], [1, 1, 1, 1]])
    assert np.isnan(auroc(scores, positive, weights)).tolist() == [True, False]
    assert np.isnan(average_precision(scores, positive, weights)).tolist() == [True, False]
