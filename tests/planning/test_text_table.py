"""Tables and paragraphs stay within the terminal, and lose nothing to it."""

import pytest

from hf_transfer.planning.text_table import table, wrapped

ROWS = [["name", ">number", "words"], ["first", "1", "one two"], ["second", "20,000", ""]]


def test_a_table_is_aligned_and_has_no_blanks_at_its_ends():
    assert table(ROWS) == ["name    number  words", "first        1  one two", "second  20,000"]


@pytest.mark.parametrize("width", [1, 12, 15, 20])
def test_what_is_too_wide_comes_in_several_tables_with_the_first_column_in_each(width):
    lines = table(ROWS, width)
    assert lines.count("") == 1
    assert [line.split()[0] for line in lines if line] == ["name", "first", "second"] * 2
    assert all(len(line) <= max(width, 15) for line in lines)
    assert sorted(" ".join(lines).split()) == sorted(
        [*" ".join(table(ROWS)).split(), "name", "first", "second"]
    )


def test_a_paragraph_is_wrapped_with_its_indent_and_long_words_stay_whole():
    text = "data  " + "x" * 50 + " and more"
    assert wrapped(text, 30, 6) == ["data", "      " + "x" * 50, "      and more"]
    assert wrapped("short", 30) == ["short"]
