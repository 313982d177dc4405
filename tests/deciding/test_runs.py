"""Runs side by side: only results on the same images are compared."""

import dataclasses

from sample_report import sample_report

from hf_transfer.deciding.runs import format_runs, runs


def test_the_best_run_is_named_of_those_on_the_same_images_only(tmp_path):
    one = sample_report()
    one = dataclasses.replace(one, data={**one.data, "fingerprint": "a"})
    added = dataclasses.replace(one, data={**one.data, "fingerprint": None})  # as --add writes it
    of = {"a": one, "b": one, "more": added, "more2": added}
    of["drawn"] = dataclasses.replace(one, seed=one.seed + 1)
    for name, report in of.items():
        report.save(tmp_path / name / "report.json")
    said = [line for line in format_runs(runs(tmp_path), 160).splitlines() if "best is" in line]
    assert len(said) == 1
    assert said[0].startswith("2 runs on the same ")
    assert "best is a;" in said[0] or "best is b;" in said[0]


def test_a_result_is_told_as_the_end_of_its_run_tells_it(tmp_path):
    report = sample_report()
    report.save(tmp_path / "a" / "report.json")
    assert f"validation accuracy {report.headline:.3f} (" in format_runs(runs(tmp_path), 200)
    assert f", n = {report.metrics['n']})" in format_runs(runs(tmp_path), 200)
