"""Packed rows: what they give is what was put in, in few bytes."""

import pickle
import tracemalloc

import numpy as np
import pytest

from hf_transfer.data import columns
from hf_transfer.data.columns import Codes, Names
from hf_transfer.data.sources import scan
from hf_transfer.recipe.specs import DataSpec

TEXTS = ("a.png", "", "é/日本.jpg", "bad\udcff.png", "z" * 300)


def test_names_are_what_was_put_in():
    names = Names(TEXTS)
    assert names == TEXTS
    assert tuple(names) == TEXTS
    assert names != TEXTS[:-1]
    assert names != (*TEXTS[:-1], "y")
    assert (names[-1], names[1:3]) == (TEXTS[-1], TEXTS[1:3])
    assert "é/日本.jpg" in names
    assert names.index("é/日本.jpg") == 2
    with pytest.raises(IndexError):
        names[len(TEXTS)]
    assert Names() == ()


def test_what_is_taken_is_those_rows_and_can_be_taken_from_again():
    some = Names(TEXTS).take(np.array([4, 0, 2]))
    assert some == (TEXTS[4], TEXTS[0], TEXTS[2])
    assert some.take(np.array([2, 2])) == (TEXTS[2], TEXTS[2])
    assert pickle.loads(pickle.dumps(some)) == some
    codes = Codes(["x", "y", "x", "z"]).take(np.array([3, 0]))
    assert codes == ("z", "x")
    assert codes.where("x").tolist() == [False, True]


def test_codes_are_what_was_put_in():
    values = [(0, 1), (), (0, 1), (2,)]
    codes = Codes(values)
    assert codes == values
    assert codes.table == [(0, 1), (), (2,)]
    assert codes.codes.tolist() == [0, 1, 0, 2]
    assert codes.where((0, 1)).tolist() == [True, False, True, False]
    assert not codes.where("absent").any()
    assert codes.map(len) == (2, 0, 2, 1)
    assert codes.map(bool).where(True).tolist() == [True, False, True, True]
    assert (codes[-1], codes[1:3]) == ((2,), ((), (0, 1)))
    assert Codes() == ()
    assert Codes().where(1).tolist() == []


@pytest.mark.parametrize("count", [0, 1, 7, 8, 50])
def test_texts_are_sorted_in_parts_as_at_once(monkeypatch, count):
    monkeypatch.setattr(columns, "SORTED_AT_ONCE", 8)
    texts = [*TEXTS, *(f"{number * 37 % 50}.png" for number in range(count))]
    assert list(columns.sorted_texts(texts)) == sorted(texts)


def test_some_rows_are_given_a_value():
    codes = Codes("abab").map(str.upper)
    codes.put(np.array([0, 3]), "C")
    assert codes == ("C", "B", "A", "C")
    assert codes.where("C").tolist() == [True, False, False, True]


def test_a_scan_holds_few_bytes_an_image_and_not_much_more_while_it_is_made(tmp_path):
    count, classes = 10_000, 10
    for row in range(count):
        place = tmp_path / f"some-class-{row % classes}"
        place.mkdir(exist_ok=row >= classes)
        (place / f"{row:08d}.jpg").touch()
    spec = DataSpec(str(tmp_path), validation=0.1)
    scan(spec)  # so that what is made once is not counted
    tracemalloc.start()
    try:
        found = scan(spec)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found.files) == count
    assert held < 50 * count  # a name of 25 letters, where it ends, class and split: 41
    assert peak < 150 * count  # as a tuple of texts the names alone are 82
