"""A report survives its file exactly, and its page shows what is in it and nothing else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_report import FLOWERS, sample_report, task_report, with_images

from hf_transfer.base.errors import UserError
from hf_transfer.results.card import model_card
from hf_transfer.results.charts import calibration, heat_map, scatter
from hf_transfer.results.page import report_page, write_html
from hf_transfer.results.report import PhaseReport, RunReport, aggregate
from hf_transfer.results.summary import summary
from hf_transfer.results.svg import shorten, thin, ticks
from hf_transfer.results.words import listed, show_count, show_number, show_rate, show_seconds

EMPTY = RunReport("x", {}, {}, {}, (), {}, {}, {}, 3)


class Page(HTMLParser):
    """Parses a page strictly: every tag is closed in order; collects text, tags and addresses."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


# --- the file -------------------------------------------------------------------------------


@pytest.mark.parametrize("test", [False, True])
def test_a_report_survives_its_file_exactly(tmp_path: Path, test: bool) -> None:
    report = sample_report(test=test)
    path = report.save(tmp_path / "run" / "report.json")
    assert RunReport.load(path) == report
    assert RunReport.load(path.parent) == report
    assert RunReport.from_dict(report.to_dict()) == report
    assert json.loads(path.read_text()) == report.to_dict()


def test_the_file_has_the_documented_keys(tmp_path: Path) -> None:
    values = json.loads(sample_report().save(tmp_path / "r.json").read_text())
    assert {"recipe", "backbone", "data", "phases", "metrics", "seconds"} <= set(values)
    assert {"environment", "seed", "warnings", "version", "created", "name"} <= set(values)
    assert set(values["phases"][0]) == {
        "name",
        "groups",
        "trainable_parameters",
        "total_parameters",
        "epochs",
        "steps",
        "seconds",
        "stopped",
        "best_epoch",
        "metrics",
        "history",
        "rates",
        "features",
        "checks",
        "rollbacks",
        "gentle",
        "solve",
        "settings",
    }
    assert 0 <= values["metrics"]["accuracy"] <= 1


def test_values_become_plain_when_the_report_is_made(tmp_path: Path) -> None:
    report = replace(
        EMPTY,
        recipe={"crop": (0.5, 1.0), "path": Path("a/b"), 3: None},
        metrics={"accuracy": np.float32(0.5), "confusion": np.eye(2, dtype=np.int64)},
        seconds={"wall": float("nan")},
    )
    assert report.recipe == {"crop": [0.5, 1.0], "path": str(Path("a/b")), "3": None}
    assert report.metrics == {"accuracy": 0.5, "confusion": [[1, 0], [0, 1]]}
    assert report.seconds == {"wall": None}
    assert RunReport.load(report.save(tmp_path / "r.json")) == report
    with pytest.raises(TypeError, match="plain values, not object"):
        replace(EMPTY, metrics={"accuracy": object()})


def test_a_report_does_not_change_with_what_it_was_made_of() -> None:
    metrics: dict[str, Any] = {"accuracy": 0.5, "intervals": {"accuracy": [0.4, 0.6]}}
    report = replace(EMPTY, metrics=metrics)
    metrics["intervals"]["accuracy"].append(1.0)
    assert report.metrics["intervals"] == {"accuracy": [0.4, 0.6]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version 2 cannot be read, only 1"),
        ({"version": None}, "version None cannot be read"),
        ({"phases": "x"}, "phases must be a list, not 'x'"),
        ({"phases": [{"name": "head"}]}, r"phases.0.groups is missing \(and 5 more problems\)"),
        ({"phases": [3]}, "phases.0 must be a mapping, not 3"),
        ({"seed": "one"}, "seed must be"),
        ({"metrics": ...}, "metrics is missing"),
        ({"metrics": {"accuracy": "high"}}, "metrics.accuracy must be a valid number, not 'high'"),
        ({"recipe": {"task": "chess"}}, "recipe.task must be 'classification'"),
    ],
)
def test_another_format_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    values = sample_report().to_dict() | change
    path = tmp_path / "report.json"
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))
    with pytest.raises(UserError, match=words) as error:
        RunReport.load(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_report_with_facts_of_a_later_version_is_read_without_them() -> None:
    values = sample_report().to_dict()
    assert RunReport.from_dict({**values, "colour": "red"}) == sample_report()
    assert RunReport.from_dict({k: v for k, v in values.items() if k != "best_phase"})


NESTED = "[" * 200_000 + "]" * 200_000


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "\x00", "\xff", NESTED, f'{{"version": 1, "seed": {"9" * 5000}}}']
)
def test_what_is_no_report_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as error:
        RunReport.load(path)
    assert "\n" not in str(error.value)


def test_a_missing_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no .*report.json; was the run finished"):
        RunReport.load(tmp_path)


def test_a_write_that_fails_leaves_the_old_report_and_no_scraps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = EMPTY.save(tmp_path / "report.json")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot write .*No space left on device; free space"):
        sample_report().save(path)
    assert RunReport.load(path) == EMPTY
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_a_file_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        EMPTY.save(tmp_path / "run" / "report.json")


def test_reports_pages_and_cards_import_no_torch() -> None:
    code = (
        "import sys; from hf_transfer.results import report, page, card; "
        "from hf_transfer.results.metrics import classification; "
        "print({'torch', 'matplotlib', 'evaluate'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# --- several seeds --------------------------------------------------------------------------


def test_seeds_come_together_as_mean_min_and_max() -> None:
    reports = [sample_report(seed=seed, test=True) for seed in range(3)]
    found = aggregate(reports)
    values = [report.metrics["accuracy"] for report in reports]
    assert (found["n"], found["seeds"]) == (3, [0, 1, 2])
    assert found["metrics"]["accuracy"] == {
        "mean": pytest.approx(np.mean(values)),
        "min": min(values),
        "max": max(values),
        "values": values,
    }
    assert found["test"]["accuracy"]["values"] == [r.metrics["test"]["accuracy"] for r in reports]
    assert found["seconds"]["wall"]["mean"] == pytest.approx(88.3)
    assert "n" not in found["metrics"]


def test_seeds_whose_backbones_a_source_trained_come_together() -> None:
    runs = [
        replace(
            sample_report(seed=seed),
            backbone={"id": f"runs/x/seed-{seed}/source/model"},
            source={"backbone": "timm/x"},
        )
        for seed in range(2)
    ]
    assert aggregate(runs)["n"] == 2
    with pytest.raises(UserError, match="different backbone"):
        aggregate([runs[0], replace(runs[1], source={"backbone": "timm/y"})])


def test_a_metric_that_one_seed_lacks_has_no_mean() -> None:
    one, two = sample_report(seed=0), sample_report(seed=1)
    two = replace(two, metrics={**two.metrics, "auroc": None})
    assert "auroc" not in aggregate([one, two])["metrics"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "full"}, "different recipe cannot be aggregated: lp_ft, full"),
        ({"backbone": {"id": "timm/x"}}, "different backbone"),
        ({"data": {"labels": ["a"]}}, "different labels"),
    ],
)
def test_runs_of_other_things_are_not_averaged(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        aggregate([sample_report(), replace(sample_report(), **change)])
    with pytest.raises(UserError, match="no report to aggregate"):
        aggregate([])


# --- the page -------------------------------------------------------------------------------


def test_the_page_shows_result_phases_rates_classes_audit_and_record(tmp_path: Path) -> None:
    report = sample_report(test=True)
    path = write_html(report, tmp_path / "report.html")
    text = Page(path.read_text(encoding="utf-8")).text
    share = report.metrics["test"]["accuracy"]
    low, high = report.metrics["test"]["intervals"]["accuracy"]
    for words in (
        "Accuracy on test",
        f"{100 * share:.1f} %",
        f"95% interval {low:.1%} to {high:.1%}, n = 500",
        "timm/resnet10t.c3_in1k · trained on flowers · recipe lp_ft · 96 px · seed 0",
        "2.56K of 4.93M",
        "5e-5 down to 8.9e-6",
        "validation loss rose for 3 epochs; best epoch 5",
        "2 changed, 78 unchanged",
        "Class 'daisy' has 4 images that occur twice.",
        "rose/a<b>.jpg",
        "made RGB",
        "data fingerprint 9f3b6c1d",
        '"layer_decay": 0.75',
        "1 min 28 s in all",
        *FLOWERS,
    ):
        assert words in text


def test_the_page_needs_nothing_from_elsewhere() -> None:
    seeds = aggregate([sample_report(seed=seed) for seed in range(2)])
    page = report_page(replace(sample_report(test=True), seeds=seeds))
    parsed = Page(page)
    assert parsed.addresses == []
    assert parsed.tags.isdisjoint({"script", "link", "img", "iframe", "object", "base"})
    assert not re.search(r"url\(|@import|https?:", page)


def test_images_lie_in_the_page_and_links_lead_to_them() -> None:
    page = report_page(with_images(sample_report(), 200))
    parsed = Page(page)
    inside = "data:image/webp;base64,"
    links = {a for a in parsed.addresses if not a.startswith(inside)}
    assert all(link.startswith("#") for link in links)
    anchors = set(re.findall(r'id="([^"]+)"', page))
    assert {link[1:] for link in links} <= anchors
    assert len(links) > 5
    assert parsed.tags.isdisjoint({"script", "link", "iframe", "object", "base"})
    assert "Surest mistakes" in parsed.text


def test_what_auto_measured_is_called_cross_validation_and_what_it_tried_is_a_table() -> None:
    tried = [
        {"what": "exact head", "why": "the start", "accuracy": 0.5, "seconds": 42.0, "kept": True},
        {"what": "advice", "why": "unfreeze all", "accuracy": None, "seconds": 0.0, "kept": False},
    ]
    report = sample_report()
    metrics = report.metrics | {"said": ["Expect an accuracy of 0.5.", "exact head: the start."]}
    found = replace(report, metrics=metrics, auto={"tried": tried, "budget_seconds": 600.0})
    page, card = Page(report_page(found)), model_card(found)
    assert "In cross-validation, the model classifies" in page.text
    assert "on cross-validation" not in page.text + card
    assert "validation images" not in page.text
    assert "Exact head kept The start 0.500 42 s Advice Unfreeze all – –" in page.text
    assert "exact head: the start." not in page.text
    assert "--minutes 10" in page.text
    assert "| Accuracy | cross-validation |" in card
    assert summary(found).startswith("cross-validation accuracy")
    held_out = replace(found, auto={**found.auto, "parts": 1})
    assert summary(held_out).startswith("validation accuracy")
    assert "cross-validation" not in Page(report_page(held_out)).text + model_card(held_out)


def test_the_head_alone_stands_beside_what_fine_tuning_reached() -> None:
    assert "the head alone 63.0%" in Page(report_page(sample_report())).text
    assert "the head alone, on validation 63.0%" in Page(report_page(sample_report(test=True))).text
    report = sample_report()
    solved = replace(report.phases[0], solve="lbfgs")
    page = report_page(replace(report, phases=(solved, report.phases[1])))
    assert "the exact head alone 63.0%" in Page(page).text
    assert "head alone" not in report_page(replace(report, phases=report.phases[:1]))


def test_names_cannot_become_markup() -> None:
    nasty = "</td><script>alert(1)</script>\"'&amp;"
    labels = (nasty, *FLOWERS[1:])
    phase = replace(
        sample_report().phases[0],
        name=nasty,
        groups=(nasty, "head"),
        stopped=nasty,
        rates=({"label": nasty, "parameters": 1, "lr": 1e-3, "weight_decay": 0.0},),
        checks={"moved": 1, nasty: 2},
    )
    report = replace(
        sample_report(labels),
        name=nasty,
        phases=(phase,),
        warnings=(nasty,),
        backbone={"id": nasty, nasty: nasty},
        environment={nasty: nasty},
        recipe={nasty: nasty},
        created=nasty,
    )
    report = replace(report, data={**report.data, "path": nasty, "audit": {nasty: [nasty]}})
    page = report_page(replace(report, seeds=aggregate([report, report])))
    assert "<script" not in page
    assert "script" not in Page(page).tags
    assert "alert(1)" in Page(page).text


def test_an_empty_report_makes_a_page_that_says_so() -> None:
    parsed = Page(report_page(EMPTY))
    assert "not measured" in parsed.text
    assert "None" not in parsed.text
    assert "svg" not in parsed.tags


def test_an_undefined_metric_shows_its_reason() -> None:
    report = sample_report()
    metrics = {**report.metrics, "auroc": None, "reasons": {"auroc": "no image of class 'x'"}}
    text = Page(report_page(replace(report, metrics=metrics))).text
    assert "AUROC, one against the rest not measured no image of class 'x'" in text


def test_further_metrics_of_a_recipe_are_shown_too() -> None:
    report = sample_report()
    report = replace(report, metrics={**report.metrics, "mcc": 0.5678})
    text = Page(report_page(replace(report, seeds=aggregate([report, report])))).text
    assert "mcc 0.568" in text
    assert "mcc, validation 0.568" in text


def test_the_page_says_that_epochs_were_chosen_on_validation_only_where_they_were() -> None:
    report = sample_report()
    assert "chosen on these images" in report_page(report)
    phases = tuple(replace(phase, best_epoch=None) for phase in report.phases)
    assert "chosen on these images" not in report_page(replace(report, phases=phases))
    assert "chosen on these images" not in report_page(sample_report(test=True))


def test_several_seeds_are_shown_side_by_side(tmp_path: Path) -> None:
    runs = [sample_report(seed=seed) for seed in range(3)]
    page = write_html(runs[0], tmp_path / "r.html", seeds=runs).read_text(encoding="utf-8")
    mean = np.mean([report.metrics["accuracy"] for report in runs])
    assert "Over 3 seeds" in Page(page).text
    assert f"Accuracy, validation {mean:.3f}" in Page(page).text
    kept = replace(runs[0], seeds=aggregate(runs))
    assert RunReport.load(kept.save(tmp_path / "r.json")) == kept
    assert report_page(kept) == page
    assert "Over" not in Page(report_page(runs[0])).text


def test_phases_without_a_history_are_drawn_without_curves() -> None:
    phase = PhaseReport("head", ("head",), 10, 100, 1.0, 4, 0.5)
    text = Page(report_page(replace(sample_report(), phases=(phase,)))).text
    assert "1 head" in text
    assert "Training curves" not in text


def test_gaps_in_a_history_do_not_break_the_curves() -> None:
    phase = replace(
        sample_report().phases[0],
        history=({"loss": float("nan"), "epoch": 0.5}, {"loss": 0.5, "epoch": 1}, {"loss": 1.0}),
    )
    page = report_page(replace(sample_report(), phases=(phase,)))
    assert Page(page).tags >= {"svg", "polyline"}
    assert "nan" not in page


def test_many_classes_stay_a_page_of_modest_size() -> None:
    labels = tuple(f"class {i:03d}" for i in range(300))
    page = report_page(sample_report(labels, n=3000))
    assert len(page) < 400_000
    assert "Confusion matrix left out: 300 classes make a matrix of 90,000 cells." in page
    assert Page(page).text.count("class 299") >= 1


# --- the pictures ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 5, 12, 40, 200])
def test_a_heat_map_is_well_formed_and_keeps_its_cells_inside(count: int) -> None:
    generator = np.random.default_rng(0)
    matrix = generator.integers(0, 30, (count, count)) + 1
    root = ElementTree.fromstring(heat_map(matrix.tolist(), [f"<label> {i}" for i in range(count)]))
    width, height = (float(v) for v in root.attrib["viewBox"].split()[2:])
    cells = [e for e in root.iter("rect") if e.attrib["class"] in ("hit", "miss")]
    assert len(cells) == count * count
    assert sum(e.attrib["class"] == "hit" for e in cells) == count
    for cell in cells:
        assert 0 <= float(cell.attrib["x"]) <= width - float(cell.attrib["width"])
        assert 0 <= float(cell.attrib["y"]) <= height - float(cell.attrib["height"])


def test_a_calibration_curve_lies_on_the_diagonal_where_the_model_is_honest() -> None:
    root = ElementTree.fromstring(calibration([(0.25, 0.25, 30), (0.9, 0.5, 70)]))
    edge = next(e for e in root.iter("line") if e.get("class") == "edge").attrib
    first, second = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter("circle")]
    left, floor = float(edge["x1"]), float(edge["y1"])
    assert first[0] - left == pytest.approx(floor - first[1], abs=0.2)
    assert second[0] - left > floor - second[1]  # surer than right lies below the line
    page = report_page(sample_report())
    assert "How sure it is" in page
    old = replace(sample_report(), metrics={**sample_report().metrics, "calibration": []})
    assert "How sure it is" not in report_page(old)


def test_thousands_of_classes_are_listed_by_their_weakest() -> None:
    labels = tuple(f"class {i:04d}" for i in range(3000))
    page = report_page(sample_report(labels, n=3000))
    assert len(page) < 500_000
    assert "The other 2,800 are in report.json." in page


def test_a_strip_shows_layers_that_no_phase_trained() -> None:
    report = sample_report()
    assert "all layers that no phase trained" not in report_page(report)
    page = report_page(replace(report, phases=report.phases[:1]))
    assert page.count('<i class="rest" title="all layers that no phase trained">') == 1


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.61, 0.74, 5) == [0.65, 0.7]
    assert ticks(3, 3, 5) == [3]
    generator = np.random.default_rng(0)
    for low, span in zip(generator.normal(size=50), generator.random(50) * 100 + 1e-6, strict=True):
        found = ticks(low, low + span, 5)
        assert 2 <= len(found) <= 6
        assert all(low - span * 1e-6 <= tick <= low + span * (1 + 1e-6) for tick in found)


def test_thinning_keeps_few_points_and_the_mean_of_many() -> None:
    points = [(float(i), float(i % 7)) for i in range(1001)]
    assert thin(points, 2000) == tuple(points)
    assert thin([]) == ()
    assert len(thin(points, 100)) <= 100
    assert np.mean([x for x, _ in thin(points[:1000], 100)]) == pytest.approx(499.5)


def test_numbers_are_written_as_people_write_them() -> None:
    assert [show_count(n) for n in (7, 2565, 4_922_696, 3 * 10**9, None)] == [
        "7",
        "2.56K",
        "4.92M",
        "3B",
        "–",
    ]
    rates = (1e-3, 3.2e-5, 0.01, 0.5, 0.0, 1.25e-6, None)
    assert [show_rate(r) for r in rates] == ["1e-3", "3.2e-5", "0.01", "0.5", "0", "1.25e-6", "–"]
    assert [show_seconds(s) for s in (0.42, 12.4, 59.6, 125, 3840)] == [
        "0.4 s",
        "12 s",
        "1 min 0 s",
        "2 min 5 s",
        "1 h 4 min",
    ]
    numbers = (0.12345678, 42.0, 2147483647.0, 1.5e-9, -12345.6, 0.0)
    shown = ["0.12346", "42", "2,147,483,647", "1.5e-9", "-12,346", "0"]
    assert [show_number(n) for n in numbers] == shown
    assert listed(["a"], 3) == "a"
    assert listed(["a", "b", "c"], 3) == "a, b and c"
    assert listed(["a", "b", "c", "d"], 2) == "a, b and 2 more"
    assert shorten("short") == "short"
    assert len(shorten("a" * 90)) == 22


@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_the_page_of_another_task_leads_with_its_own_metric(task: str) -> None:
    report = task_report(task)
    text = Page(report_page(report)).text
    leads = {"multi_label": "Mean average precision", "regression": "R²"}[task]
    assert f"{leads} on validation {report.metrics[report.task.headline]:.3f}" in text
    assert "Accuracy" not in text
    assert "150 training images" in text
    assert report == RunReport.from_dict(json.loads(json.dumps(report.to_dict())))


def test_several_labels_have_a_row_each() -> None:
    report = task_report("multi_label")
    text = Page(report_page(report)).text
    assert "Label by label, on validation" in text
    row = report.metrics["per_label"][0]
    numbers = [row[k] for k in ("precision", "recall", "f1", "average_precision", "auroc")]
    cells = " ".join(f"{number:.3f}" for number in numbers)
    assert f"x<y 90 train, {row['n']} validation {cells}" in text
    assert "Per label" in text


def test_numbers_are_drawn_against_what_is_true_in_their_units() -> None:
    report = task_report("regression")
    page = report_page(report)
    text = Page(page).text
    assert "Target by target, on validation" in text
    row = report.metrics["per_target"][1]
    assert f"z 200 {row['r2']:.3f} {row['mae']:.4g} {row['rmse']:.4g}" in text
    assert page.count('class="point"') == 2 * 200
    x, y = row["points"][0]
    assert f"<title>true {x:.6g}, predicted {y:.6g}</title>" in page
    assert "Mean absolute error" not in text  # the targets have no units in common
    assert "Targets, in their units Split Target Mean Standard deviation" in text
    one = Page(report_page(task_report("regression", names=("age",)))).text
    assert "Mean absolute error" in one


def test_a_scatter_keeps_its_points_inside_and_its_line_on_the_diagonal() -> None:
    drawing = ElementTree.fromstring(scatter("a<b", [(0.0, 10.0), (10.0, 0.0), (5.0, 5.0)]))
    frame = drawing.find("rect").attrib
    left, top = float(frame["x"]), float(frame["y"])
    right, floor = left + float(frame["width"]), top + float(frame["height"])
    circles = [(float(c.get("cx")), float(c.get("cy"))) for c in drawing.iter("circle")]
    assert all(left < x < right and top < y < floor for x, y in circles)
    assert circles[0][0] < circles[2][0] < circles[1][0]
    assert circles[0][1] < circles[2][1] < circles[1][1]  # what is above was predicted too high
    line = next(mark for mark in drawing.iter("line") if mark.get("class") == "edge").attrib
    ends = [float(line[key]) for key in ("x1", "y1", "x2", "y2")]
    assert ends == [left, floor, right, top]


@pytest.mark.slow
@pytest.mark.parametrize("count", [5, 100])
def test_a_browser_lays_the_page_out_without_overflow(browser, tmp_path: Path, count: int) -> None:
    labels = tuple(f"a class with quite a long name {i}" for i in range(count))
    path = write_html(sample_report(labels, n=4 * count), tmp_path / "report.html")
    page = browser.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("request", lambda request: problems.append(request.url))
    for width in (390, 420, 1000, 1200):
        problems.clear()
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(path.as_uri())
        assert problems == [path.as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") == width
    page.close()


OVERLAPPING = """() => {
  const box = one => {
    const range = document.createRange();
    range.selectNodeContents(one);
    return range.getBoundingClientRect();
  };
  const found = [];
  for (const row of document.querySelectorAll('.metric')) {
    const parts = [...row.children].map(one => [one.textContent, box(one)]);
    for (const [name, one] of parts) for (const [other, two] of parts)
      if (name !== other && one.width && two.width && one.left < two.right - 1
          && two.left < one.right - 1 && one.top < two.bottom - 5 && two.top < one.bottom - 5)
        found.push([name, other]);
  }
  return found;
}"""


@pytest.mark.slow
def test_a_metric_that_is_not_measured_overlaps_nothing(browser, tmp_path: Path) -> None:
    report = sample_report()
    reasons = {"auroc": "a class has no images"}
    report = replace(report, metrics={**report.metrics, "auroc": None, "reasons": reasons})
    path = write_html(report, tmp_path / "report.html")
    page = browser.new_page()
    page.goto(path.as_uri())
    for width in (390, 770, 900, 910, 1200):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate(OVERLAPPING) == [], width
    page.close()
