"""What came out is told against what needs no model, and what went wrong is told at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sample_report import sample_report, task_report

from hf_transfer.results import conclusions
from hf_transfer.results.card import model_card
from hf_transfer.results.metrics.classification import classification_metrics
from hf_transfer.results.page import report_page
from hf_transfer.results.report import RunReport
from hf_transfer.results.summary import summary
from hf_transfer.results.words import ADDED


def classified(predicted: list[int], truth: list[int], labels: tuple[str, ...]) -> RunReport:
    """Return a report of these predictions on validation."""
    logits = np.eye(len(labels))[predicted] * 3
    metrics = classification_metrics(logits, truth, labels)
    return replace(sample_report(labels), metrics=metrics, warnings=(), phases=())


ONE_CLASS = classified([0] * 102, [0] * 62 + [1] * 40, ("sick", "well"))


def everywhere(report: RunReport) -> list[str]:
    """Return page, card and output, without the escapes of Markdown and HTML."""
    texts = (report_page(report), model_card(report), summary(report))
    return [text.replace("&#39;", "'").replace("\\", "") for text in texts]


def test_a_classifier_that_predicts_one_class_is_called_no_better_than_that() -> None:
    for text in everywhere(ONE_CLASS):
        assert "The model is no better than always giving the same answer" in text
        assert "One class is never predicted on validation: well." in text
    assert "Do not use it yet" in report_page(ONE_CLASS)
    assert "Do not use it yet" in model_card(ONE_CLASS)


def test_balanced_accuracy_leads_where_classes_are_uneven_and_only_there() -> None:
    assert ONE_CLASS.leading_metric == "balanced_accuracy"
    assert ONE_CLASS.headline == 0.5
    assert "Balanced accuracy on validation" in report_page(ONE_CLASS)
    assert summary(ONE_CLASS).startswith("validation balanced accuracy 0.500 (n = 102), accuracy")
    assert "accuracy 0.608" in summary(ONE_CLASS).splitlines()[0]
    assert sample_report().leading_metric == "accuracy"
    assert task_report("regression").leading_metric == "r2"


def test_the_most_common_class_and_chance_stand_beside_every_accuracy() -> None:
    found = conclusions.baselines(ONE_CLASS, "validation")
    assert found == [
        ("always answering 'sick' (the most common class)", "accuracy", 62 / 102),
        ("guessing at random", "accuracy", 0.5),
        ("always giving the same answer", "balanced_accuracy", 0.5),
    ]
    page, card, output = everywhere(ONE_CLASS)
    assert "always answering 'sick' (the most common class)" in page
    assert "60.8%" in page
    assert "| Accuracy | validation | 0.608 | 0.5" in card
    assert "| 0.608 | 102 |" in card  # the baseline beside it
    assert "baseline: accuracy 0.608 by always answering 'sick' (the most common class)" in output
    assert "baseline: balanced accuracy 0.500 by always giving the same answer" in output
    assert "guessing" not in output  # 0.500 as well


def test_even_classes_have_one_baseline_and_good_models_no_warning() -> None:
    report = replace(sample_report(), warnings=())
    found = conclusions.baselines(report, "validation")
    assert found[0] == ("always giving the same answer or guessing", "accuracy", 0.2)
    assert conclusions.told_baselines(report, "validation") == found[:1]  # balanced: 0.2 as well
    assert summary(report).count("baseline: ") == len(report.splits)
    assert conclusions.cautions(report) == []


def test_a_result_whose_interval_reaches_the_baseline_is_not_clearly_better() -> None:
    report = classified([0, 1] * 6 + [0, 0], [0, 1] * 4 + [1, 0, 1, 0, 1, 0], ("a", "b"))
    (caution,) = conclusions.cautions(report)
    assert "is not clearly better than always giving the same answer" in caution
    assert "95% interval" in caution


def test_other_tasks_have_what_they_must_beat() -> None:
    multi, numbers = task_report("multi_label"), task_report("regression")
    ((what, metric, share),) = conclusions.baselines(multi, "validation")
    rows = multi.metrics["per_label"]
    assert (what, metric) == ("a random order", "map")
    assert share == pytest.approx(sum(row["n"] for row in rows) / len(rows) / 200)
    assert conclusions.baselines(numbers, "validation") == [("always answering the mean", "r2", 0)]
    for report in (multi, numbers):
        for text in everywhere(report):
            assert conclusions.baselines(report, "validation")[0][0] in text


def worse(best: str | None) -> RunReport:
    """Return a report whose second phase lost what the first had reached."""
    report = sample_report()
    head, full = report.phases
    phases = (replace(head, metrics={"accuracy": 0.683}), replace(full, metrics={"accuracy": 0.55}))
    return replace(report, phases=phases, best_phase=best, warnings=())


@pytest.mark.parametrize("best", ["head", None])
def test_a_phase_that_made_it_worse_is_told_everywhere(best: str | None) -> None:
    said = (
        "Phase all made the model worse: accuracy on validation fell from 68.3% after phase head "
        "to 55.0%." + (" The saved model is that of phase head." if best else "")
    )
    for text in everywhere(worse(best)):
        assert said in text
    assert ('class="kept"' in report_page(worse(best))) == (best is not None)


def test_added_images_are_compared_with_no_result_on_fewer_of_them() -> None:
    head, full = worse("head").phases
    report = replace(worse("head"), phases=(head, replace(full, name=ADDED)))
    assert conclusions.worsened(report) == []
    assert conclusions.head_alone(report) == []
    assert "hf-transfer train MORE_IMAGES --add RUN" in report_page(report)


@pytest.mark.parametrize(
    ("kept", "last", "told"), [(0.2, 0.31, True), (0.52, 0.55, False), (0.55, 0.31, False)]
)
def test_an_epoch_of_least_loss_that_answers_worse_than_the_last_is_told(kept, last, told) -> None:
    report = sample_report()
    (phase,) = report.phases[1:]
    history = ({"epoch": 1.0, "eval_accuracy": kept}, {"epoch": 9.0, "eval_accuracy": last})
    phase = replace(phase, metrics={"accuracy": kept}, history=history, best_epoch=1.0)
    report = replace(
        report, phases=(phase,), metrics={**report.metrics, "n": 100, "accuracy": kept}, warnings=()
    )
    said = (
        f"Phase all kept epoch 1, which has the least validation loss, but its last epoch answers "
        f"better: accuracy {last:.1%} against {kept:.1%}. Try best: last, or best: accuracy."
    )
    assert all((said in text) == told for text in everywhere(report))
    settings = {**phase.settings, "best": "accuracy"}
    asked = replace(report, phases=(replace(phase, settings=settings),))
    assert conclusions.ended_early(asked) == []


def test_a_phase_that_lost_almost_nothing_is_no_warning() -> None:
    report = worse("head")
    head, full = report.phases
    full = replace(full, metrics={"accuracy": 0.681})
    assert conclusions.worsened(replace(report, phases=(head, full))) == []


def test_titles_come_from_the_labels_and_the_data() -> None:
    assert conclusions.title(ONE_CLASS) == "Image classifier: sick, well"
    many = sample_report(tuple(f"kind {i}" for i in range(12)))
    named = "Image classifier: kind 0, kind 1, kind 2 and 9 more classes"
    assert conclusions.title(many) == named  # and not by the folder's name, which may say anything
    hub = replace(many, data={**many.data, "repo": "ethz/food101"})
    assert conclusions.title(hub) == "Image classifier: 12 classes of ethz/food101"
    digits = sample_report(tuple("0123456789"))
    assert conclusions.title(digits) == "Image classifier: 0 to 9"
    assert conclusions.title(task_report("regression")) == "Image regression: x<y, z"
    for text in (report_page(many), model_card(many)):
        assert "lp_ft" not in text.split("</h1>")[0].split("# Image")[-1].splitlines()[0]


def test_page_and_card_hold_no_folder_of_the_machine() -> None:
    report = sample_report()
    home = "/home/someone/pictures/flowers"
    report = replace(
        report,
        data={**report.data, "path": home},
        backbone={**report.backbone, "id": "/home/someone/net", "weights": "/home/someone/w.pt"},
        recipe={**report.recipe, "backbone": "~/nets/r10", "data": {"path": home}},
        warnings=(f"cannot read {home}/daisy/1.jpg: truncated",),
    )
    for text in (report_page(report), model_card(report)):
        assert "someone" not in text
        assert "~/nets" not in text
        assert "flowers" in text
        assert "1.jpg" in text


def test_a_cross_validation_leads_and_no_head_that_few_images_judged_stands_beside_it() -> None:
    report = sample_report(test=True)
    assert conclusions.head_alone(report)
    assert summary(report).startswith("validation accuracy")
    spread = {"mean": 0.5, "min": 0.1, "max": 0.9, "values": [0.1, 0.9]}
    folds = {"n": 2, "test": {"accuracy": spread}}
    crossed = replace(report, folds=folds)
    assert summary(crossed).startswith("cross-validation accuracy")
    assert conclusions.head_alone(crossed) == []
