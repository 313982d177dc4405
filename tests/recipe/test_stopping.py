"""When a phase is best and when it stops."""

import math

import pytest

from hf_transfer.recipe.stopping import best_index, better, lower_is_better, should_stop, unclear
from hf_transfer.recipe.tasks import TASKS

NAN = math.nan


@pytest.mark.parametrize(
    ("metric", "lower"),
    [("loss", True), ("eval_loss", True), ("flowers_loss", True), ("nll", True), ("ece", True),
     ("brier_score", True), ("eval_brier_score", True), ("mine_brier", True), ("mape", True),
     ("smape", True), ("mase", True), ("mean_perplexity", True), ("Word_Error", True),
     ("score", False), ("my_score", False), ("roc_auc", False), ("mean_iou", False),
     ("accuracy", False), ("macro_f1", False), ("eval_top5", False), ("balanced_accuracy", False)],
)  # fmt: skip
def test_less_of_a_loss_is_better_and_more_of_a_score(metric, lower):
    assert lower_is_better(metric) is lower
    assert unclear(metric) is None
    assert better(metric, 0.1, 0.2) is lower
    assert better(metric, 0.2, 0.1) is not lower


def test_of_every_metric_of_ours_it_is_known_what_is_better():
    named = [name for task in TASKS.values() for name in task.metrics]
    assert [name for name in named if unclear(name)] == []
    lower = {name for name in named if lower_is_better(name)}
    assert lower == {"loss", "ece", "nll", "mae", "rmse"}


@pytest.mark.parametrize("metric", ["p", "stat", "sharp", "lossy", "scores_of_mine"])
def test_a_name_that_does_not_say_what_is_better_is_told_so(metric):
    assert f"less of '{metric}' is better is not known; take" in unclear(metric)
    assert not lower_is_better(metric)


@pytest.mark.parametrize(
    ("metric", "values", "min_change", "best"),
    [
        ("loss", [], 0, -1),
        ("loss", [3, 2, 4], 0, 1),
        ("loss", [3, 2, 2], 0, 1),
        ("accuracy", [0.1, 0.5, 0.5], 0, 1),
        ("loss", [NAN, 2, 3], 0, 1),
        ("loss", [2, NAN, 1], 0, 2),
        ("loss", [3, 2.9, 2.8, 1], 0.5, 3),
        ("loss", [3, 2.9, 2.8], 0.5, 0),
    ],
)
def test_the_best_is_the_earliest_that_gains_enough_and_never_nan(metric, values, min_change, best):
    assert best_index(metric, values, min_change) == best


@pytest.mark.parametrize(
    ("values", "patience", "min_change", "stops"),
    [
        ([3], 1, 0, False),
        ([3, 2], 1, 0, False),
        ([3, 2, 2], 1, 0, True),
        ([3, 2, 3], 2, 0, False),
        ([3, 2, 3, 3], 2, 0, True),
        ([3, 2, 3, 1], 2, 0, False),
        ([3, 2.9, 2.8], 2, 0.5, True),
        ([3, NAN], 1, 0, True),
    ],
)
def test_a_phase_stops_after_patience_evaluations_without_a_gain(
    values, patience, min_change, stops
):
    assert should_stop("loss", values, patience, min_change) is stops
