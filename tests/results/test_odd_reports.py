"""A report may come from anywhere: it is refused in one line or shown, and breaks nothing."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sample_report import sample_report, task_report

from hf_transfer.base.errors import UserError
from hf_transfer.results.card import model_card
from hf_transfer.results.page import report_page
from hf_transfer.results.report import RunReport, aggregate
from hf_transfer.results.summary import summary

DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
ABSENT = object()
ODD = ("x", "", None, float("nan"), 1e308, -1, 10**400, True, [], {}, ["x"], {"x": 1}, DEEP, ABSENT)
# What shows through in a terminal, in HTML and in Markdown.
NASTY = "\x1b[31m<script>alert(1)</script> | **b** [l](http://x) `c` ![i](y) \u202e\n# h\n---\n"


def reports() -> list[dict[str, Any]]:
    """Return small reports of all tasks, with a test split, several seeds and a saved phase."""
    one = sample_report(("a", "b"), n=20, test=True)
    short = tuple(replace(phase, history=phase.history[3:6]) for phase in one.phases)
    one = replace(one, phases=short, best_phase="all")
    one = replace(one, seeds=aggregate([one, one]))
    others = [task_report(task, n=20) for task in ("multi_label", "regression")]
    return [report.to_dict() for report in (one, *others)]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value; of a list those of the first item only."""
    yield path
    found = value.items() if isinstance(value, dict) else enumerate(value[:1])
    for key, entry in found:
        if isinstance(entry, (dict, list)):
            yield from places(entry, (*path, key))
        else:
            yield (*path, key)


def changed(values: dict[str, Any], path: tuple[Any, ...], odd: Any) -> Any:
    """Return a copy with another value at a path."""
    if not path:
        return odd
    result = copy.deepcopy(values)
    inner: Any = result
    for key in path[:-1]:
        inner = inner[key]
    if odd is ABSENT:
        del inner[path[-1]]
    else:
        inner[path[-1]] = odd
    return result


@pytest.mark.parametrize("task", range(3))
def test_any_odd_value_is_refused_in_one_line_or_shown(task: int) -> None:
    values = reports()[task]
    shown, refused = 0, []
    for i, path in enumerate(places(values)):
        for odd in (ODD * 2)[i % len(ODD) :][:3]:  # each meets each kind of value somewhere
            if odd is ABSENT and not path:
                continue
            try:
                report = RunReport.from_dict(changed(values, path, odd), "report.json")
            except UserError as error:
                refused.append(str(error))
                continue
            for text in (report_page(report), model_card(report), summary(report)):
                assert not re.search(r"\bnan\b|\binf\b", text), (path, odd)
            shown += 1
    assert shown > 50
    assert len(refused) > 50
    for line in refused:
        assert "\n" not in line
        assert line.startswith(("report.json", "cannot read report.json"))
        assert len(line) < 500


@pytest.mark.parametrize("task", range(3))
def test_words_from_outside_stay_words(task: int) -> None:
    values = reports()[task]
    texts = [path for path in places(values) if path and _at(values, path) and path[0] != "version"]
    for path in texts:
        if not isinstance(_at(values, path), str):
            continue
        try:
            report = RunReport.from_dict(changed(values, path, NASTY))
        except UserError:
            continue
        page, card = report_page(report), model_card(report)
        assert "<script" not in page
        assert "\x1b" not in page + card + summary(report), path
        assert "\u202e" not in page + card + summary(report), path
        front, _, body = card.removeprefix("---\n").partition("\n---\n")
        assert "\n---\n" not in body, path
        assert "\n# h" not in body, path
        for markup in ("<script", "**b**", "[l](", "![i]"):
            where = re.sub(r"`[^`\n]*`", "", body)  # in code it is text
            assert not re.search(r"(?<!\\)" + re.escape(markup), where), (path, markup)


def _at(values: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        values = values[key]
    return values


def test_a_file_with_odd_json_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    for text in ("NaN", '"x"', "null", "1e999", "[" * 100_000, '{"version": 1}', "\ufeff{}"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError) as error:
            RunReport.load(path)
        assert "\n" not in str(error.value)


def test_numbers_that_are_not_finite_are_not_measured(tmp_path: Path) -> None:
    values = sample_report().to_dict()
    values["metrics"]["accuracy"] = float("nan")
    path = tmp_path / "report.json"
    path.write_text(json.dumps(values))
    report = RunReport.load(path)
    assert report.metrics["accuracy"] is None
    assert "not measured" in report_page(report)
    assert "| Accuracy | validation | not measured | – | – | 500 |" in model_card(report)
    assert "not measured" in summary(report)
