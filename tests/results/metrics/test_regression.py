"""Metrics of numbers agree with scikit-learn, and say where they are undefined."""

import json

import numpy as np
import pytest
from sklearn import metrics as reference

from hf_transfer.base.errors import UserError
from hf_transfer.results.metrics.regression import POINTS, regression_metrics


def sample(n: int = 100, seed: int = 0):
    generator = np.random.default_rng(seed)
    targets = generator.normal([0.0, 5000.0], [1.0, 300.0], (n, 2))
    return targets + generator.normal(0, [0.3, 100.0], (n, 2)), targets


def test_they_agree_with_scikit_learn():
    values, targets = (column[:, 0] for column in sample())
    found = regression_metrics(values, targets)
    assert found["mae"] == pytest.approx(reference.mean_absolute_error(targets, values))
    assert found["rmse"] == pytest.approx(reference.root_mean_squared_error(targets, values))
    assert found["r2"] == pytest.approx(reference.r2_score(targets, values))
    for name, (low, high) in found["intervals"].items():
        assert low < found[name] < high
    json.dumps(found, allow_nan=False)


def test_of_several_targets_each_counts_alike_and_has_its_row():
    values, targets = sample()
    found = regression_metrics(values, targets, ["x", "y"], bootstrap=50)
    assert found["r2"] == pytest.approx(reference.r2_score(targets, values))
    for i, row in enumerate(found["per_target"]):
        assert row["target"] == "xy"[i]
        assert row["r2"] == pytest.approx(reference.r2_score(targets[:, i], values[:, i]))
        assert row["mae"] == pytest.approx(np.abs(values - targets)[:, i].mean())
        assert row["points"][3] == pytest.approx([targets[3, i], values[3, i]], rel=1e-5)


def test_of_many_rows_few_points_are_kept():
    values, targets = sample(1001)
    points = regression_metrics(values, targets, bootstrap=0)["per_target"][0]["points"]
    assert POINTS / 2 < len(points) <= POINTS


def test_targets_that_are_all_equal_have_no_r2():
    assert regression_metrics([1.0, 2.0], [3.0, 3.0])["reasons"] == {"r2": "all targets are equal"}
    found = regression_metrics(np.ones((3, 2)), [[1, 2], [1, 3], [1, 4]], ["x", "y"])
    assert found["r2"] is None
    assert found["reasons"]["r2"] == "x is the same in every image"
    assert found["per_target"][1]["r2"] is not None


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        regression_metrics([1.0], [1.0, 2.0])
    with pytest.raises(UserError, match="not finite"):
        regression_metrics([np.nan], [1.0])
