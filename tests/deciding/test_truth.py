"""What images add to a score: its mean is the task's leading metric, its error the metric's own."""

import numpy as np
import pytest

from hf_transfer.deciding.probes import behind, interval
from hf_transfer.deciding.truth import least, scores, task_of
from hf_transfer.results.metrics.by_name import measure


def case(task, count=200, seed=0):
    """Return outputs and what is true, which they tell in part; and worse outputs."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(count, 3))
    if task == "classification":
        truth = base.argmax(1)
    else:
        truth = base > (0.3, 1.0, 1.8) if task == "multi_label" else base * (1.0, 2.0, 5.0)
    better = np.round(base + rng.normal(size=base.shape), 1)  # with ties
    return better, truth, better + rng.normal(size=base.shape)


@pytest.mark.parametrize("task", ["classification", "multi_label", "regression"])
def test_the_mean_of_what_images_add_is_the_metric_and_so_is_its_error(task):
    outputs, truth, worse = case(task)
    assert task_of(truth).name == task
    leads = task_of(truth).headline
    expected = measure(task, outputs, truth)
    found = scores(outputs, truth)
    assert found.mean() == pytest.approx(expected[leads])
    (low, high), bounds = interval(found), expected["intervals"][leads]
    assert high - low == pytest.approx(bounds[1] - bounds[0], rel=0.1)
    draws, rng = [], np.random.default_rng(1)
    for _ in range(300):
        rows = rng.integers(0, len(truth), len(truth))
        pair = [measure(task, x[rows], truth[rows], bootstrap=0)[leads] for x in (outputs, worse)]
        draws.append(pair[0] - pair[1])
    gain, error = behind(found, scores(worse, truth))
    assert gain == pytest.approx(expected[leads] - measure(task, worse, truth)[leads])
    assert error == pytest.approx(np.std(draws), rel=0.2)


def test_a_label_that_no_image_has_and_a_number_that_never_varies_do_not_count():
    outputs, truth, _ = case("multi_label")
    truth[:, 2] = False
    assert scores(outputs, truth).mean() == pytest.approx(
        measure("multi_label", outputs, truth)["map"]
    )
    outputs, truth, _ = case("regression")
    truth[:, 2] = 7.0
    found = measure("regression", outputs[:, :2], truth[:, :2])["r2"]
    assert scores(outputs, truth).mean() == pytest.approx(found)
    assert not scores(outputs, truth * 0).any()


def test_without_classes_the_smallest_one_is_half_of_all_images():
    assert least(np.array([0, 0, 0, 2, 2]), 3) == 0
    assert least(np.array([0, 0, 0, 1, 1]), 2) == 2
    assert least(np.zeros((31, 2)), 2) == 15
