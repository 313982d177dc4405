"""The quick part of benchmarks/exactness.py: it is exact, and its table would show where not."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import exactness


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "kills"), [("mixed images", 3), ("feature_extraction_augmented", 1)]
)
def test_two_processes_equal_one_and_killed_runs_end_like_unbroken_ones(tmp_path, kind, kills):
    rows = list(exactness.measured([kind], [1, 2], kills, 0, tmp_path))
    assert [row.processes for row in rows] == [1, 2]
    assert all(row.holds for row in rows), "\n".join(map(exactness.line, rows))
    assert all(row.kills == kills for row in rows)
    assert 0 < rows[1].together < exactness.TOGETHER
    assert rows[0].together is None


GOOD = exactness.Row("lp_ft", 2, 1e-7, 1e-5, 20, "1:12 2:8", 0.0, True, 60.0)


@pytest.mark.parametrize(
    "bad", [{"together": 2e-5}, {"resumed": 1e-9}, {"resumed": float("inf")}, {"facts": False}]
)
def test_what_is_not_exact_is_marked_in_the_table(bad):
    assert GOOD.holds
    assert "FAILED" not in exactness.line(GOOD)
    row = dataclasses.replace(GOOD, **bad)
    assert not row.holds
    assert exactness.line(row).endswith("FAILED")


def test_differences_are_of_all_weights_together_and_of_single_bits():
    one = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.0])}
    two = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.5])}
    assert exactness.relative(two, one) == pytest.approx(0.1)
    assert exactness.largest(two, one) == 0.5
    assert exactness.largest(one, one) == 0
