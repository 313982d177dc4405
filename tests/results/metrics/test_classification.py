"""Metrics agree with scikit-learn, and say so where they are undefined."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
from sample_report import sample_logits
from sklearn import metrics as reference

from hf_transfer.base.errors import UserError
from hf_transfer.results.metrics import classification, resampling
from hf_transfer.results.metrics.classification import (
    classification_metrics,
    compute_metrics,
    softmax,
)


@pytest.mark.parametrize("classes", [2, 3, 7, 30])
def test_every_metric_agrees_with_scikit_learn(classes: int) -> None:
    logits, labels = sample_logits(400, classes, seed=classes)
    found = classification_metrics(logits, labels, bootstrap=0)
    guess, shares = logits.argmax(axis=1), softmax(logits)
    score = shares[:, 1] if classes == 2 else shares
    assert found["n"] == 400
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(labels, guess))
    assert found["macro_f1"] == pytest.approx(reference.f1_score(labels, guess, average="macro"))
    assert found["balanced_accuracy"] == pytest.approx(
        reference.balanced_accuracy_score(labels, guess)
    )
    assert found["auroc"] == pytest.approx(
        reference.roc_auc_score(labels, score, multi_class="ovr")
    )
    assert found["nll"] == pytest.approx(reference.log_loss(labels, shares))
    assert found["confusion"] == reference.confusion_matrix(labels, guess).tolist()
    if classes > 5:
        top5 = reference.top_k_accuracy_score(labels, shares, k=5)
        assert found["top5"] == pytest.approx(top5)
    else:
        assert "top5" not in found
    precision, recall, f1, n = reference.precision_recall_fscore_support(labels, guess)
    for i, row in enumerate(found["per_class"]):
        assert (row["label"], row["n"]) == (str(i), n[i])
        assert [row["precision"], row["recall"], row["f1"]] == pytest.approx(
            [precision[i], recall[i], f1[i]]
        )


def test_the_result_is_plain_json() -> None:
    found = classification_metrics(*sample_logits(60, 6, 0), label_names=list("abcdef"))
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_without_tables_the_numbers_are_the_same_and_nothing_else_is_there() -> None:
    sample = sample_logits(60, 6, 0)
    whole = classification_metrics(*sample, bootstrap=0)
    bare = classification_metrics(*sample, bootstrap=0, tables=False)
    tables = {key: whole[key] for key in ("per_class", "confusion", "calibration")}
    assert {**bare, **tables} == whole


def test_the_metrics_of_many_classes_stay_small_and_say_what_is_left_out() -> None:
    logits = np.random.default_rng(0).normal(size=(600, 201))
    found = classification_metrics(logits, np.arange(600) % 201, bootstrap=0)
    assert len(found["per_class"]) == 201
    assert "confusion" not in found
    assert found["reasons"]["confusion"] == "left out: 201 classes make a matrix of 40,401 cells"
    assert len(json.dumps(found)) < 60_000
    few = classification_metrics(logits[:, :200], np.arange(600) % 200, bootstrap=0)
    assert np.sum(few["confusion"]) == 600


def test_auroc_counts_ties_as_half() -> None:
    generator = np.random.default_rng(3)
    logits = generator.integers(0, 3, size=(300, 4)).astype(float)
    labels = np.arange(300) % 4
    shares = softmax(logits)
    found = classification_metrics(logits, labels, bootstrap=0)["auroc"]
    assert found == pytest.approx(reference.roc_auc_score(labels, shares, multi_class="ovr"))


def test_auroc_is_null_with_its_reason_when_a_class_has_no_image() -> None:
    logits, labels = sample_logits(90, 3, 0)
    kept = labels != 1
    found = classification_metrics(logits[kept], labels[kept], ["cat", "dog", "owl"])
    assert found["auroc"] is None
    assert found["reasons"] == {"auroc": "no image of class 'dog'"}
    assert "auroc" not in found["intervals"]
    assert found["per_class"][1]["recall"] is None


def test_scores_of_absent_classes_are_left_out_as_scikit_learn_does() -> None:
    logits, labels = np.eye(4)[[0, 0, 1, 2, 2]], np.array([0, 1, 1, 2, 2])
    guess = logits.argmax(axis=1)
    found = classification_metrics(logits, labels, bootstrap=0)
    assert found["macro_f1"] == pytest.approx(reference.f1_score(labels, guess, average="macro"))
    assert found["balanced_accuracy"] == pytest.approx(
        reference.balanced_accuracy_score(labels, guess)
    )
    assert found["per_class"][3] == {
        "label": "3",
        "n": 0,
        "precision": None,
        "recall": None,
        "f1": None,
    }


def test_calibration_error_is_zero_for_honest_and_one_for_certain_and_wrong() -> None:
    honest = np.log(np.array([[0.8, 0.2]] * 10))
    labels = np.array([0] * 8 + [1] * 2)
    assert classification_metrics(honest, labels, bootstrap=0)["ece"] == pytest.approx(0.0)
    certain = np.array([[0.0, 200.0]] * 4)
    found = classification_metrics(certain, np.zeros(4, int), bootstrap=0)
    assert found["ece"] == pytest.approx(1.0)


def test_the_calibration_table_gives_the_calibration_error() -> None:
    found = classification_metrics(*sample_logits(400, 4, 0), bootstrap=0)
    rows = found["calibration"]
    assert sum(row["n"] for row in rows) == 400
    gaps = [row["n"] * abs(row["confidence"] - row["accuracy"]) for row in rows]
    assert sum(gaps) / 400 == pytest.approx(found["ece"])
    right = sum(row["n"] * row["accuracy"] for row in rows)
    assert right / 400 == pytest.approx(found["accuracy"])


def test_calibration_error_is_that_of_its_definition() -> None:
    logits, labels = sample_logits(500, 5, 2)
    shares = softmax(logits)
    confidence, right = shares.max(axis=1), shares.argmax(axis=1) == labels
    expected = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert classification_metrics(logits, labels, bootstrap=0)["ece"] == pytest.approx(expected)


def test_huge_logits_neither_overflow_nor_lose_the_loss() -> None:
    logits = np.array([[1e4, 0.0, -1e4], [3e38, 0.0, 0.0]], dtype=np.float32)
    found = classification_metrics(logits, np.array([1, 0]), bootstrap=0)
    assert found["nll"] == pytest.approx(5000.0)
    assert softmax(logits).sum(axis=1) == pytest.approx(1.0)


def test_the_first_class_wins_a_tie_everywhere() -> None:
    found = classification_metrics(np.zeros((6, 6)), np.arange(6), bootstrap=0)
    assert found["accuracy"] == pytest.approx(1 / 6)
    assert found["top5"] == pytest.approx(5 / 6)


def test_intervals_cover_the_true_accuracy_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        right = generator.random(200) < 0.7
        logits = np.stack([np.where(right, 1.0, -1.0), np.zeros(200)], axis=1)
        found = classification_metrics(logits, np.zeros(200, int), bootstrap=300, seed=trial)
        low, high = found["intervals"]["accuracy"]
        covered += low <= 0.7 <= high
    assert 88 <= covered <= 100


def test_interval_of_accuracy_is_near_the_binomial_one() -> None:
    logits, labels = sample_logits(1000, 4, 5)
    found = classification_metrics(logits, labels)
    low, high = found["intervals"]["accuracy"]
    share = found["accuracy"]
    width = 1.96 * np.sqrt(share * (1 - share) / 1000)
    assert [low, high] == pytest.approx([share - width, share + width], abs=0.006)
    assert sorted(found["intervals"]) == [
        "accuracy",
        "auroc",
        "balanced_accuracy",
        "macro_f1",
        "nll",
    ]
    for name, (low, high) in found["intervals"].items():
        assert low <= found[name] <= high


@pytest.mark.parametrize("right", [True, False])
def test_where_all_images_are_right_or_wrong_the_interval_of_accuracy_has_a_width(right) -> None:
    """Of four right images nobody knows that all others are; with groups two are known."""
    truth = np.array([0, 1, 0, 1])
    logits = np.eye(2)[truth if right else 1 - truth]
    found = classification_metrics(logits, truth)
    low, high = found["intervals"]["accuracy"]
    assert (low, high) == pytest.approx((0.51, 1.0) if right else (0.0, 0.49), abs=0.01)
    assert "balanced_accuracy" not in found["intervals"]
    reason = found["reasons"]["balanced_accuracy interval"]
    assert reason == "all resamples have the same value"
    grouped = classification_metrics(logits, truth, groups=["p", "p", "q", "q"])
    low, high = grouped["intervals"]["accuracy"]
    assert high - low == pytest.approx(0.66, abs=0.01)


def test_resamples_without_the_rare_classes_do_not_look_better():
    labels = np.array([0] * 12 + [1] * 2 + [2])
    logits = np.tile([1.0, 0.0, 0.0], (15, 1))
    logits[0] = [0.0, 1.0, 0.0]
    found = classification_metrics(logits, labels)
    assert found["intervals"]["balanced_accuracy"][1] == pytest.approx(1 / 3)
    assert found["intervals"]["macro_f1"][1] < 0.35


def test_intervals_depend_on_the_seed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = sample_logits(120, 3, 5)
    first = classification_metrics(logits, labels, bootstrap=50)["intervals"]
    assert first == classification_metrics(logits, labels, bootstrap=50)["intervals"]
    assert first != classification_metrics(logits, labels, bootstrap=50, seed=1)["intervals"]
    monkeypatch.setattr(resampling, "CHUNK", 7 * 120)
    assert first == classification_metrics(logits, labels, bootstrap=50)["intervals"]


def test_a_resampled_auroc_is_that_of_the_resample() -> None:
    logits, labels = sample_logits(80, 3, 1)
    rows = classification._Rows(logits, labels)
    drawn = np.random.default_rng(0).integers(0, 80, size=(4, 80))
    found = classification._resampled_auroc(rows, drawn)
    for i, draw in enumerate(drawn):
        area = reference.roc_auc_score(labels[draw], softmax(logits)[draw], multi_class="ovr")
        assert found[i] == pytest.approx(area)


def test_auroc_has_no_interval_where_a_class_is_too_rare_to_resample() -> None:
    logits, labels = np.eye(2)[[0] * 30 + [1]], np.array([0] * 30 + [1])
    found = classification_metrics(logits, labels)
    assert found["auroc"] == 1.0
    assert "auroc" not in found["intervals"]
    assert "few images" in found["reasons"]["auroc interval"]


def test_auroc_has_no_interval_beyond_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classification, "AUROC_BUDGET", 1000)
    found = classification_metrics(*sample_logits(80, 3, 1), bootstrap=10)
    assert "auroc" not in found["intervals"]
    assert "too many to resample" in found["reasons"]["auroc interval"]


def test_a_thousand_resamples_of_four_thousand_images_are_quick() -> None:
    logits, labels = sample_logits(4000, 5, 0)
    start = time.process_time()
    classification_metrics(logits, labels)
    assert time.process_time() - start < 2.0


def test_logits_that_are_not_finite_are_refused_in_one_line() -> None:
    logits, labels = sample_logits(10, 3, 0)
    logits[4, 1] = np.nan
    with pytest.raises(UserError, match=r"1 of 30 logits .* row 4: the training has diverged") as e:
        classification_metrics(logits, labels)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("logits", "labels", "names", "words"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), None, "nothing to measure"),
        (np.zeros(3), np.zeros(3, int), None, r"must be \(N, C\)"),
        (np.zeros((3, 1)), np.zeros(3, int), None, "at least 2"),
        (np.zeros((3, 2)), np.zeros(2, int), None, r"labels must be \(3,\)"),
        (np.zeros((3, 2)), np.zeros(3), None, "integers"),
        (np.zeros((3, 2)), np.array([0, 1, 2]), None, r"lie in 0..1; got 0..2"),
        (np.zeros((3, 2)), np.array([0, 1, -100]), None, r"got -100..1"),
        (np.zeros((3, 2)), np.zeros(3, int), ["a"], "1 label names for 2 columns"),
    ],
)
def test_what_does_not_fit_is_a_clear_value_error(
    logits: object, labels: object, names: list[str] | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        classification_metrics(logits, labels, names)  # type: ignore[arg-type]


def test_compute_metrics_gives_a_trainer_the_defined_scalars() -> None:
    logits, labels = sample_logits(60, 3, 0)
    found = compute_metrics(SimpleNamespace(predictions=logits, label_ids=labels))
    assert sorted(found) == ["accuracy", "auroc", "balanced_accuracy", "ece", "macro_f1", "nll"]
    assert all(isinstance(value, float) for value in found.values())
    assert compute_metrics((logits, labels)) == found
    assert compute_metrics(((logits, "hidden states"), labels)) == found
    assert "auroc" not in compute_metrics((logits, np.zeros(60, int)))
