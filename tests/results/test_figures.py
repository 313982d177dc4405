"""Further charts of a report: lines with intervals over numbers or names."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
from sample_report import sample_report

from hf_transfer.results.figures import figure, figure_table
from hf_transfer.results.page import report_page
from hf_transfer.results.report import RunReport

LABELS = {
    "title": "Accuracy against labels",
    "x": "images per class",
    "y": "accuracy",
    "lines": [
        {"name": "from <scratch>", "points": [[2, 0.64, 0.6, 0.7], [5, 0.87, 0.8, 0.9], [50, 0.9]]},
        {"name": "frozen", "points": [[2, 0.8], [50, 0.95]]},
    ],
}
DEPTH = {
    "title": "Accuracy against depth",
    "x": "first layer that trains",
    "y": "accuracy",
    "names": ["stem", "stages.0", "head"],
    "lines": [{"name": "", "points": [[0, 0.5], [1, 0.7], [2, 0.6]]}],
}


@pytest.mark.parametrize("found", [LABELS, DEPTH])
@pytest.mark.parametrize("title", [False, True])
def test_a_figure_is_well_formed_and_inside_its_frame(found, title):
    root = ElementTree.fromstring(figure(found, title))
    width, height = (float(v) for v in root.attrib["viewBox"].split()[2:])
    for node in root.iter():
        x, y = node.attrib.get("cx"), node.attrib.get("cy")
        if x:
            assert 0 < float(x) < width
            assert 0 < float(y) < height
    words = "".join(root.itertext())
    assert (found["title"] in words) == title
    assert found["x"] in words


def test_its_numbers_are_a_table():
    assert figure_table(LABELS) == {
        "head": ["images per class", "from <scratch>", "frozen"],
        "rows": [
            ["2", "0.64 (0.6 to 0.7)", "0.8"],
            ["5", "0.87 (0.8 to 0.9)", "–"],
            ["50", "0.9", "0.95"],
        ],
    }
    assert [row[0] for row in figure_table(DEPTH)["rows"]] == ["stem", "stages.0", "head"]


def test_the_page_shows_each_figure_once_and_none_without_points(tmp_path):
    empty = {**LABELS, "title": "Nothing", "lines": []}
    report = replace(sample_report(), figures=(LABELS, DEPTH, empty))
    page = report_page(report)
    assert page.count("<h2>Accuracy against") == 2
    assert "Nothing" not in page
    assert "from &lt;scratch&gt;" in page
    assert RunReport.load(report.save(tmp_path / "r.json")) == report
    one = {**DEPTH, "lines": [{"name": "", "points": [[0, 0.5]]}]}
    assert "circle" in figure(one)
