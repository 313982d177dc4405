"""Two models on the same images: what chance explains."""

from types import SimpleNamespace

import numpy as np
import pytest

from hf_transfer.serving.evaluate_text import told_of_comparison
from hf_transfer.serving.paired import compared


def answers(right: list[bool]) -> SimpleNamespace:
    """What a model said of images of the first of two classes."""
    logits = np.array([[1.0, 0.0] if one else [0.0, 1.0] for one in right])
    rows = np.arange(len(right))
    return SimpleNamespace(logits=logits, truth=np.zeros(len(right), int), rows=rows, names="ab")


def p_value(ours: list[bool], theirs: list[bool], groups: list[str] | None = None) -> float:
    return compared("classification", answers(ours), answers(theirs), groups)["p_value"]


def test_images_of_one_patient_count_as_one():
    better, worse = [True] * 20, [False] * 20
    assert p_value(better, worse) == pytest.approx(2 * 0.5**20)
    assert p_value(better, worse, ["a"] * 10 + ["b"] * 10) == 0.5  # two patients: as two coins
    assert p_value(better, worse, ["a"] * 20) == 1.0


def test_with_a_group_for_each_image_it_is_mcnemars_test():
    ours = [True] * 8 + [False] + [True] * 20
    theirs = [False] * 8 + [True] * 21
    alone = p_value(ours, theirs)
    assert alone == pytest.approx(2 * 10 / 2**9)  # nine differ, one of them against us
    assert p_value(ours, theirs, [str(i) for i in range(29)]) == pytest.approx(alone)


@pytest.mark.parametrize(("groups", "name"), [(None, "McNemar's"), (["a", "b"], "permutation")])
def test_the_test_is_named(groups, name):
    pair = answers([True, True]), answers([True, False])
    lines = told_of_comparison({**compared("classification", *pair, groups), "other": "that"})
    assert name in lines[-1]
