"""Metrics of several labels agree with scikit-learn, and say so where they are undefined."""

import json

import numpy as np
import pytest
from sklearn import metrics as reference

from hf_transfer.results.metrics.multi_label import multilabel_metrics


def sample(n: int = 200, count: int = 6, seed: int = 0):
    generator = np.random.default_rng(seed)
    labels = (generator.random((n, count)) < 0.3).astype(int)
    return generator.integers(-3, 3, (n, count)) + 1.5 * labels, labels


def test_they_agree_with_scikit_learn():
    logits, labels = sample()
    found = multilabel_metrics(logits, labels, bootstrap=0)
    guess = logits > 0
    assert found["map"] == pytest.approx(reference.average_precision_score(labels, logits))
    assert found["auroc"] == pytest.approx(reference.roc_auc_score(labels, logits))
    assert found["micro_f1"] == pytest.approx(reference.f1_score(labels, guess, average="micro"))
    assert found["macro_f1"] == pytest.approx(reference.f1_score(labels, guess, average="macro"))
    assert found["all_right"] == pytest.approx(reference.accuracy_score(labels, guess))
    assert (found["n"], found["reasons"], found["intervals"]) == (200, {}, {})


def test_every_label_has_its_row():
    logits, labels = sample()
    rows = multilabel_metrics(logits, labels, list("abcdef"), bootstrap=0)["per_label"]
    precision, recall, f1, seen = reference.precision_recall_fscore_support(labels, logits > 0)
    areas = reference.average_precision_score(labels, logits, average=None)
    for i, row in enumerate(rows):
        assert (row["label"], row["n"]) == ("abcdef"[i], seen[i])
        expected = (precision[i], recall[i], f1[i], areas[i])
        own = tuple(row[key] for key in ("precision", "recall", "f1", "average_precision"))
        assert own == pytest.approx(expected)


def test_intervals_hold_the_value_and_depend_on_the_seed_only():
    found = multilabel_metrics(*sample(), bootstrap=200)
    assert set(found["intervals"]) == {"map", "auroc", "micro_f1", "macro_f1", "all_right"}
    for name, (low, high) in found["intervals"].items():
        assert low < found[name] < high
    assert multilabel_metrics(*sample(), bootstrap=200) == found
    assert multilabel_metrics(*sample(), bootstrap=200, seed=1)["intervals"] != found["intervals"]
    json.dumps(found, allow_nan=False)


def test_without_a_positive_they_say_why():
    found = multilabel_metrics(-np.ones((4, 2)), np.zeros((4, 2), int))
    undefined = {"map", "auroc", "micro_f1", "macro_f1"}
    assert {name for name in undefined if found[name] is None} == undefined
    assert set(found["reasons"]) == undefined
    assert found["reasons"]["map"] == "no label has a positive row"
    assert found["all_right"] == 1.0
    assert found["intervals"] == {"all_right": [pytest.approx(0.51, abs=0.01), 1.0]}
    assert found["per_label"][0]["f1"] is None


def test_resamples_without_a_rare_label_do_not_look_better():
    labels = np.zeros((40, 2), int)
    labels[::2, 0] = labels[1, 1] = 1
    logits = np.c_[labels[:, 0] - 0.5, np.full(40, -0.5)]  # the rare label is never predicted
    found = multilabel_metrics(logits, labels)
    assert found["macro_f1"] == pytest.approx(0.5)
    assert found["intervals"].get("macro_f1", [0.5, 0.5])[1] == pytest.approx(0.5)


def test_what_is_rare_or_much_has_no_interval_and_a_reason(monkeypatch):
    labels = np.zeros((40, 1), int)
    labels[0] = 1
    found = multilabel_metrics(labels - 0.5, labels, bootstrap=100)
    assert "map" not in found["intervals"]
    assert "rare" in found["reasons"]["map interval"]
    monkeypatch.setattr("hf_transfer.results.metrics.multi_label.AUROC_BUDGET", 10)
    found = multilabel_metrics(*sample(20), bootstrap=10)
    assert "too many to resample" in found["reasons"]["auroc interval"]
    assert "macro_f1" in found["intervals"]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="0 or 1"):
        multilabel_metrics(np.zeros((2, 2)), np.full((2, 2), 3))
    with pytest.raises(ValueError, match="both must be"):
        multilabel_metrics(np.zeros((2, 2)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="1 label names for 2"):
        multilabel_metrics(np.zeros((2, 2)), np.zeros((2, 2)), ["a"])
