"""Intervals: those of the textbook, the same for a seed, and absent where they would mislead."""

import numpy as np

from hf_transfer.results.metrics import resampling
from hf_transfer.results.metrics.resampling import intervals, weights_of


def test_the_interval_of_a_mean_is_that_of_theory():
    values = np.random.default_rng(0).normal(size=400)
    found, undefined = intervals(400, 2000, 0, lambda drawn: {"mean": values[drawn].mean(axis=1)})
    width = 1.96 * values.std() / 20
    np.testing.assert_allclose(found["mean"], [values.mean() - width, values.mean() + width], 0.1)
    assert undefined == ()


def test_a_metric_that_is_often_undefined_has_no_interval(monkeypatch):
    def measure(drawn):
        return {"odd": np.where((drawn == 0).any(axis=1), 1.0, np.nan)}

    assert intervals(50, 200, 0, measure) == ({}, ("odd",))
    assert intervals(50, 0, 0, measure) == ({}, ())


def test_chunks_do_not_change_the_draws(monkeypatch):
    def measure(drawn):
        return {"first": drawn[:, 0].astype(float)}

    whole = intervals(30, 100, 1, measure)
    monkeypatch.setattr(resampling, "CHUNK", 60)
    assert intervals(30, 100, 1, measure) == whole


def test_weights_count_the_draws():
    drawn = np.array([[0, 0, 2], [1, 1, 1]])
    assert weights_of(drawn).tolist() == [[2, 0, 1], [0, 3, 0]]
