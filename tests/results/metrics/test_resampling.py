"""Intervals: those of the textbook, the same for a seed, and absent where they would mislead."""

import tracemalloc

import numpy as np
import pytest

from hf_transfer.results.metrics import by_name, multi_label, resampling
from hf_transfer.results.metrics.classification import classification_metrics
from hf_transfer.results.metrics.regression import regression_metrics
from hf_transfer.results.metrics.resampling import intervals, weights_of, widen


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


def test_intervals_of_a_cross_validation_are_wider_and_stay_where_a_metric_can_be():
    """Five models that share images: the variance of their mean is 2.25 times that of a test's."""
    values = {"accuracy": 0.9, "r2": 0.1, "mae": 0.9, "rmse": 0.1}
    values["intervals"] = {
        "accuracy": [0.8, 0.95], "r2": [-0.1, 0.2], "mae": [0.7, 1.1], "rmse": [0.02, 0.2]
    }  # fmt: skip
    widen(values, 5)
    assert values["intervals"] == {
        "accuracy": pytest.approx([0.75, 0.975]),
        "r2": pytest.approx([-0.2, 0.25]),
        "mae": pytest.approx([0.6, 1.2]),
        "rmse": pytest.approx([0.0, 0.25]),
    }
    values = {"accuracy": 0.9, "intervals": {"accuracy": [0.6, 0.99]}}
    widen(values, 2)
    assert values["intervals"]["accuracy"][1] == 1.0


def test_weights_count_the_draws():
    drawn = np.array([[0, 0, 2], [1, 1, 1]])
    assert weights_of(drawn, 3).tolist() == [[2, 0, 1], [0, 3, 0]]


def peak_of(work):
    """Return the most memory, in MB, that a call holds at once beyond what was there before."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def test_intervals_of_a_hundred_thousand_classes_take_little_memory():
    scores = np.random.default_rng(0).normal(size=(20, 100_000)).astype(np.float32)
    truth = np.arange(20) * 5000
    taken = peak_of(lambda: classification_metrics(scores, truth, tables=False))
    assert taken < 150, f"{taken:.0f} MB"


def test_intervals_of_many_labels_or_targets_take_little_memory(monkeypatch):
    monkeypatch.setattr(multi_label, "AUROC_BUDGET", 10)
    values = np.random.default_rng(0).normal(size=(20, 2000))
    for measure, wanted in (
        (multi_label.multilabel_metrics, values > 1),
        (regression_metrics, values + 1),
    ):
        taken = peak_of(lambda m=measure, w=wanted: m(values, w, bootstrap=300, tables=False))
        assert taken < 60, f"{measure.__name__}: {taken:.0f} MB"


def test_measuring_holds_no_copy_of_the_logits():
    scores = np.random.default_rng(0).normal(size=(1000, 20_000)).astype(np.float32)
    truth = np.arange(1000) * 7
    taken = peak_of(lambda: classification_metrics(scores, truth, tables=False))
    assert taken < 32 < scores.nbytes / 2**20, f"{taken:.0f} MB"


def test_intervals_over_groups_are_those_of_groups_drawn_whole():
    """Images of a group that are all alike count as one: the interval is that of the groups."""
    right = np.random.default_rng(0).random(30) < 0.7

    def bounds(values, groups=None):
        found, _ = intervals(
            len(values), 2000, 0, lambda drawn: {"x": values[drawn].mean(axis=1)}, groups=groups
        )
        return found["x"]

    many, groups = np.repeat(right, 5), np.repeat([f"patient {i}" for i in range(30)], 5)
    whole, narrow = bounds(many, groups), bounds(many)
    assert whole == pytest.approx(bounds(right), abs=0.03)
    assert whole[1] - whole[0] > 1.8 * (narrow[1] - narrow[0])


@pytest.mark.parametrize("task", ["classification", "multi_label", "regression"])
def test_every_task_has_intervals_over_groups_of_any_size(task):
    random = np.random.default_rng(1)
    outputs = random.normal(size=(60, 3))
    labels = {
        "classification": random.integers(0, 3, 60),
        "multi_label": random.integers(0, 2, (60, 3)),
        "regression": outputs + random.normal(size=(60, 3)),
    }[task]
    groups = random.integers(0, 20, 60)
    found = by_name.measure(task, outputs, labels, ("a", "b", "c"), groups=groups, bootstrap=200)
    alone = by_name.measure(task, outputs, labels, ("a", "b", "c"), bootstrap=200)
    assert found["groups"] == len(set(groups))
    assert found["intervals"].keys() == alone["intervals"].keys()
    assert found["intervals"] != alone["intervals"]
    each = by_name.measure(
        task, outputs, labels, ("a", "b", "c"), groups=np.arange(60), bootstrap=200
    )
    for name, (low, high) in each["intervals"].items():
        assert (low, high) == pytest.approx(alone["intervals"][name], abs=0.12)
