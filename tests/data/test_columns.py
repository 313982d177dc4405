"""Columns: what they give is what was put in, in few bytes."""

import pickle
import tracemalloc

import numpy as np

from hf_transfer.data.columns import Codes
from hf_transfer.data.sources import scan
from hf_transfer.recipe.specs import DataSpec


def test_codes_are_what_was_put_in():
    values = [(0, 1), (), (0, 1), (2,)]
    codes = Codes(values)
    assert codes == values
    assert codes != values[:-1]
    assert codes.table == [(0, 1), (), (2,)]
    assert codes.codes.tolist() == [0, 1, 0, 2]
    assert codes.where((0, 1)).tolist() == [0, 2]
    assert codes.where("absent").tolist() == []
    assert codes.map(len) == (2, 0, 2, 1)
    assert codes.map(bool).where(True).tolist() == [0, 2, 3]
    assert (codes[-1], codes[1:3]) == ((2,), ((), (0, 1)))
    assert pickle.loads(pickle.dumps(codes)) == codes
    assert Codes() == ()
    assert Codes().where(1).tolist() == []


def test_what_is_taken_is_those_rows():
    codes = Codes(["x", "y", "x", "z"]).take(np.array([3, 0]))
    assert codes == ("z", "x")
    assert codes.where("x").tolist() == [1]


def test_some_rows_are_given_a_value_in_a_column_of_its_own():
    codes = Codes("abab").map(str.upper)
    assert codes.put(np.array([0, 3]), "C") == ("C", "B", "A", "C")
    assert codes.put(np.array([0]), "B").table == ["A", "B"]
    assert codes == tuple("ABAB")


def test_a_scan_holds_less_than_200_bytes_an_image_and_not_much_more_while_it_is_made(tmp_path):
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
    assert held < 120 * count
    assert peak < 200 * count
