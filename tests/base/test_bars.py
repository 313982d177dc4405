"""Progress bars: what they count comes out unchanged; only a terminal sees them."""

from hf_transfer.base.bars import bar, shown


def test_items_come_out_as_they_went_in_and_a_file_stays_clean(capsys):
    assert list(shown(range(5), "decoding")) == [0, 1, 2, 3, 4]
    assert list(shown(iter("ab"), "decoding")) == ["a", "b"]
    with bar(3, "features") as progress:
        progress.update(3)
    assert capsys.readouterr().err == ""
