"""Metrics by name: ours and local `evaluate` modules need no network; errors are one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sample_report import sample_logits

from hf_transfer.base.errors import UserError
from hf_transfer.results.metrics.by_name import MODULE, OURS, load_metric
from hf_transfer.results.metrics.classification import classification_metrics, softmax
from hf_transfer.results.metrics.multi_label import multilabel_metrics
from hf_transfer.results.metrics.regression import regression_metrics

USERS = """
import datasets
import evaluate
import numpy as np

class Mine(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="",
            features=datasets.Features({FEATURES}),
        )

    def _compute(self, {PARAMETERS}):
        {BODY}
"""
CLASSES = '{"predictions": datasets.Value("int32"), "references": datasets.Value("int32")}'
SCORE = '{"prediction_scores": datasets.Value("float"), "references": datasets.Value("int32")}'
SCORES = (
    '{"predictions": datasets.Sequence(datasets.Value("float32")), '
    '"references": datasets.Value("int32")}'
)


def users_metric(folder: Path, features: str, parameters: str, body: str) -> str:
    path = folder / "mine.py"
    text = USERS.replace("{FEATURES}", features).replace("{PARAMETERS}", parameters)
    path.write_text(text.replace("{BODY}", body))
    return str(path)


@pytest.mark.parametrize("name", OURS)
def test_our_names_give_our_numbers(name: str) -> None:
    logits, labels = sample_logits(60, 6, 0)
    expected = classification_metrics(logits, labels, bootstrap=0)[name]
    assert load_metric(name)(logits, labels) == {name: expected}


def test_a_metric_that_does_not_apply_adds_nothing() -> None:
    assert load_metric("top5")(*sample_logits(20, 3, 0)) == {}


def test_our_names_import_nothing_heavy() -> None:
    code = (
        "import sys; from hf_transfer.results.metrics.by_name import load_metric; "
        "print(load_metric('accuracy')([[1.0, 0.0]], [0]), "
        "{'torch', 'evaluate', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "{'accuracy': 1.0} set()\n"


def test_our_metrics_load_as_an_evaluate_module_without_the_network() -> None:
    import evaluate

    logits, labels = sample_logits(60, 6, 0)
    metric = evaluate.load(str(MODULE), keep_in_memory=True)
    found = metric.compute(predictions=logits, references=labels, bootstrap=20)
    assert found == classification_metrics(logits, labels, bootstrap=20)
    metric.add_batch(predictions=logits[:40], references=labels[:40])
    metric.add_batch(predictions=logits[40:], references=labels[40:])
    assert metric.compute(bootstrap=20) == found


def test_the_module_also_measures_several_labels_and_numbers() -> None:
    import evaluate

    logits, flags = np.array([[1.0, -1.0], [0.5, 2.0]]), np.array([[1, 0], [0, 1]])
    several = evaluate.load(str(MODULE), "multilabel", keep_in_memory=True)
    assert several.compute(predictions=logits, references=flags) == multilabel_metrics(
        logits, flags
    )
    numbers = evaluate.load(str(MODULE), "regression", keep_in_memory=True)
    assert numbers.compute(predictions=[1.0, 2.0], references=[1.5, 2.5]) == regression_metrics(
        [1.0, 2.0], [1.5, 2.5]
    )
    with pytest.raises(ValueError, match="there are default, classification"):
        evaluate.load(str(MODULE), "other")


def test_our_class_is_usable_directly() -> None:
    from hf_transfer.results.metrics.evaluate_module import TransferMetrics

    logits, labels = sample_logits(20, 3, 0)
    found = TransferMetrics(keep_in_memory=True).compute(predictions=logits, references=labels)
    assert found == classification_metrics(logits, labels)


def test_a_users_metric_over_classes_gets_the_most_probable_one(tmp_path: Path) -> None:
    body = "return {'hits': np.mean(np.array(predictions) == references), 'average_is': average}"
    path = users_metric(tmp_path, CLASSES, "predictions, references, average='binary'", body)
    logits, labels = sample_logits(60, 4, 0)
    expected = classification_metrics(logits, labels, bootstrap=0)["accuracy"]
    assert load_metric(path)(logits, labels) == {"hits": pytest.approx(expected)}


def test_a_metric_that_averages_is_asked_for_the_macro_mean(tmp_path: Path) -> None:
    body = "return {'macro': float(average == 'macro')}"
    path = users_metric(tmp_path, CLASSES, "predictions, references, average='binary'", body)
    assert load_metric(path)(*sample_logits(20, 4, 0)) == {"macro": 1.0}
    assert load_metric(path)(*sample_logits(20, 2, 0)) == {"macro": 0.0}


def test_a_users_metric_over_scores_gets_probabilities(tmp_path: Path) -> None:
    body = "return {'total': np.sum(predictions), 'width': len(predictions[0])}"
    path = users_metric(tmp_path, SCORES, "predictions, references", body)
    found = load_metric(path)(*sample_logits(20, 4, 0))
    assert found == {"total": pytest.approx(20.0, rel=1e-5), "width": 4.0}


def test_a_metric_of_one_score_gets_that_of_the_second_of_two_classes(tmp_path: Path) -> None:
    body = "return {'mean': np.mean(prediction_scores)}"
    path = users_metric(tmp_path, SCORE, "prediction_scores, references", body)
    logits, labels = sample_logits(20, 2, 0)
    expected = softmax(logits)[:, 1].mean()
    assert load_metric(path)(logits, labels) == {"mean": pytest.approx(expected, rel=1e-5)}
    with pytest.raises(UserError, match="one score per image, so it measures two classes, not 3"):
        load_metric(path)(*sample_logits(20, 3, 0))


def test_a_users_metric_cannot_pass_for_one_of_ours(tmp_path: Path) -> None:
    path = users_metric(tmp_path, CLASSES, "predictions, references", "return {'accuracy': 1.0}")
    assert load_metric(path)(*sample_logits(20, 4, 0)) == {"mine_accuracy": 1.0}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise ValueError('two\\nlines')", "for 4 classes: two lines"),
        ("return {'each': np.zeros(4)}", "returned no number, only each"),
    ],
)
def test_a_metric_that_fails_is_a_one_line_error(tmp_path: Path, body: str, words: str) -> None:
    path = users_metric(tmp_path, CLASSES, "predictions, references", body)
    with pytest.raises(UserError, match=words) as error:
        load_metric(path)(*sample_logits(20, 4, 0))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("acuracy", "'acuracy' from the Hub: .*; write accuracy if you meant that"),
        ("someone/zzz", "cannot read the metric 'someone/zzz' from the Hub: .*use one of accuracy"),
        ("./absent.py", "metric file ./absent.py does not exist"),
        ("absent.py", "metric file absent.py does not exist"),
    ],
)
def test_a_name_that_cannot_be_had_is_a_one_line_error(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        load_metric(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\n", "it must define a subclass of evaluate.Metric"),
        ("def (:\n", "it must define a subclass of evaluate.Metric"),
        ("import no_such_package_here\n", "no_such_package_here"),
    ],
)
def test_a_file_that_is_no_metric_is_a_one_line_error(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "other.py"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as error:
        load_metric(str(path))
    assert "\n" not in str(error.value)
