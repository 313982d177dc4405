"""Targets: cells of a row become one class, several labels or numbers, or are refused by place."""

import pytest

from hf_transfer.base.errors import DataError
from hf_transfer.data.targets import check_separator, read_target, target_names


def test_a_class_is_a_text_or_a_whole_number():
    assert read_target("classification", [" cat "], ["label"], "a:2") == "cat"
    for whole in (7, 7.0, "7", "7.0", " 7.00 "):  # a gap in a column makes its numbers floats
        assert read_target("classification", [whole], ["label"], "a:2") == "7"
    assert read_target("classification", ["v1.0"], ["label"], "a:2") == "v1.0"


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        ("cat|dog", ("cat", "dog")),
        (" dog | cat |", ("cat", "dog")),
        (["dog", "cat", "dog"], ("cat", "dog")),
        ('["a|b", "c"]', ("a|b", "c")),
        ("cat", ("cat",)),
        ("", ()),
        ([], ()),
        ([3, 1], ("1", "3")),
    ],
)
def test_several_labels_are_a_list_or_a_text_with_bars(value, labels):
    assert read_target("multi_label", [value], ["tags"], "a:2") == labels


def test_columns_of_flags_are_the_labels_that_they_say_are_there():
    cells = ["1", "0", True, 1.0, "false", 0]
    assert read_target("multi_label", cells, list("abcdef"), "a:2", own=True) == ("a", "c", "d")


def test_one_column_of_flags_is_one_label():
    assert read_target("multi_label", ["1"], ["crack"], "a:2", own=True) == ("crack",)
    assert read_target("multi_label", [0], ["crack"], "a:2", own=True) == ()
    with pytest.raises(DataError, match="a column that lists labels is data.label_column"):
        read_target("multi_label", ["cat|dog"], ["tags"], "a:2", own=True)


def test_numbers_have_a_column_each_or_come_as_one_list():
    assert read_target("regression", ["1.5", -2], ["x", "y"], "a:2") == (1.5, -2.0)
    assert read_target("regression", [[1, 2.5]], ["box"], "a:2") == (1.0, 2.5)
    assert target_names(["box"], 2) == ("box 0", "box 1")
    assert target_names(["age"], 1) == ("age",)


@pytest.mark.parametrize(
    ("task", "cells", "words"),
    [
        ("classification", [""], "no x"),
        ("multi_label", [4], "x is 4; several labels are a list, or a text such as cat|dog"),
        ("multi_label", [["a", ""]], "no x"),
        ("multi_label", ["1", "2"], "y is '2'; each of data.label_columns holds 0 or 1, and a"),
        ("regression", ["nan"], "x is 'nan'; a target is a finite number"),
        ("regression", [float("inf")], "x is inf; a target is a finite number"),
        ("regression", ["1", "much"], "y is 'much'; a target is a finite number"),
        ("regression", [True], "x is True"),
        ("regression", [[1.0, None]], "x 1 is None"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(task, cells, words):
    with pytest.raises(DataError) as caught:
        read_target(task, cells, ["x", "y"][: len(cells)], "table.csv:7", own=len(cells) > 1)
    assert str(caught.value).startswith("table.csv:7: ")
    assert words in str(caught.value)


def test_another_separator_is_named():
    with pytest.raises(DataError, match=r"tags holds 'a;b'; several labels are separated by \|"):
        check_separator("t.csv", "tags", [("a;b",), ("c",), ()])
    check_separator("t.csv", "tags", [("a, b",), ("c", "d")])  # a comma in a label's name
