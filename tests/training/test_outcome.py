"""What a phase did, read from Trainer's log."""

from types import SimpleNamespace

import numpy as np
import pytest
from small import network

from hf_transfer.base.errors import UserError
from hf_transfer.planning.phases import make_phases
from hf_transfer.recipe.specs import PhaseSpec, Stop
from hf_transfer.recipe.tasks import CLASSIFICATION, TASKS
from hf_transfer.results.metrics.by_name import EpochMetrics
from hf_transfer.results.metrics.classification import compute_metrics
from hf_transfer.training.outcome import (
    best_row,
    check_metric,
    history_of,
    metric_names,
    metric_values,
    phase_report,
)
from hf_transfer.training.proof import Proof

LOG = [
    {"step": 3, "epoch": 1.0, "loss": 2.0, "learning_rate": 0.1},
    {"step": 3, "epoch": 1.0, "eval_loss": 1.5, "eval_score": 0.2, "eval_runtime": 0.1},
    {"step": 6, "epoch": 2.0, "loss": 1.0, "learning_rate": 0.0},
    {"step": 6, "epoch": 2.0, "eval_loss": 1.7, "eval_score": 0.4, "eval_runtime": 0.1},
    {"step": 6, "epoch": 2.0, "train_runtime": 3.0, "train_loss": 1.5},
]


def phase(**options):
    backbone = network().backbone
    spec = PhaseSpec("head", epochs=9, **options)
    return make_phases([spec], backbone.groups)[0]


def report(spec, log=LOG, steps=(6, 27)):
    state = SimpleNamespace(log_history=log, global_step=steps[0], max_steps=steps[1], epoch=2.0)
    return phase_report(spec, state, Proof(2, (), 90, 1), 1.5, cached=True)


def test_a_row_of_history_is_a_step_with_its_training_and_evaluation():
    rows = history_of(LOG)
    assert [row["step"] for row in rows] == [3, 6]
    assert rows[0]["loss"] == 2.0
    assert rows[0]["eval_loss"] == 1.5
    assert "train_loss" not in rows[1]


@pytest.mark.parametrize(
    ("best", "epoch"), [("loss", 1.0), ("score", 2.0), ("last", 2.0), ("eval_loss", 1.0)]
)
def test_the_metrics_are_those_of_the_epoch_that_the_phase_ended_with(best, epoch):
    found = report(phase(best=best))
    assert found.best_epoch == epoch
    assert found.metrics["loss"] == (1.5 if epoch == 1 else 1.7)
    assert "runtime" not in found.metrics


def test_without_evaluations_there_is_no_best_and_no_metric():
    found = report(phase(), [row for row in LOG if "eval_loss" not in row])
    assert (found.best_epoch, found.metrics) == (None, {})
    assert best_row(phase(best="last"), []) == {}


@pytest.mark.parametrize(
    ("stop", "steps", "says"),
    [
        (None, (27, 27), None),
        (Stop(patience=1), (6, 27), "loss did not improve for one evaluation"),
        (Stop(patience=1), (27, 27), None),
        (Stop("score", patience=1), (6, 27), "a callback ended it"),
        (None, (6, 27), "a callback ended it"),
    ],
)
def test_why_a_phase_stopped(stop, steps, says):
    assert report(phase(stop=stop), steps=steps).stopped == says


def test_a_metric_that_is_not_there_is_named_with_those_that_are():
    check_metric("loss", LOG[1], "head")
    with pytest.raises(UserError, match="phase head: there is no metric 'f1'; have .*score"):
        check_metric("f1", LOG[1], "head")
    assert metric_values("f1", LOG) == []


def test_the_names_of_metrics_are_known_before_training_where_they_can_be():
    assert metric_names(None) == {"loss"}
    assert "macro_f1" in metric_names(compute_metrics)
    assert metric_names(print) is None
    own = EpochMetrics([lambda logits, labels: {"mine": 1.0}], classes=3)
    assert {"loss", "accuracy", "mine"} <= metric_names(own)


def test_no_logits_are_drawn_to_know_the_names_of_our_own_metrics(monkeypatch):
    monkeypatch.setattr(np.random, "default_rng", None)
    assert metric_names(EpochMetrics(classes=3000)) == set(CLASSIFICATION.metrics)


def test_an_epochs_metrics_build_no_tables(monkeypatch):
    for name in (
        "hf_transfer.results.metrics.classification._per_class",
        "hf_transfer.results.metrics.multi_label._Labels.label_by_label",
    ):
        monkeypatch.setattr(name, None)
    monkeypatch.setattr("hf_transfer.results.metrics.regression._target", None)
    logits, labels = np.eye(3), np.arange(3)
    for task, truth in (("classification", labels), ("multi_label", np.eye(3, dtype=int))):
        found = EpochMetrics(task=task)(SimpleNamespace(predictions=logits, label_ids=truth))
        assert found["auroc"] == 1.0
        assert set(found) < set(TASKS[task].metrics)
    values = SimpleNamespace(predictions=logits[:, :1], label_ids=logits[:, :1])
    assert EpochMetrics(task="regression")(values) == {"r2": 1.0, "mae": 0.0, "rmse": 0.0}
