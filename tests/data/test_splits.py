"""Splits: every stratum and every label has its share, and names and seed alone decide."""

import random

import numpy as np

from hf_transfer.data.columns import Codes
from hf_transfer.data.splits import by_strata, draw_order, grouped, iterative, parts, tenths


def names(count: int) -> list[str]:
    return [f"{number:04d}.png" for number in range(count)]


def rows_of(drawn: dict[str, np.ndarray], split: str) -> set[int]:
    return set(drawn[split].tolist())


def test_rows_are_grouped_by_their_code_in_their_order():
    draw = np.random.default_rng(0)
    codes, rows = draw.integers(0, 9, 40), np.sort(draw.permutation(40)[:23])
    groups = [rows[codes[rows] == code].tolist() for code in np.unique(codes[rows])]
    assert [mine.tolist() for mine in grouped(codes, rows)] == groups
    assert list(grouped(codes, rows[:0])) == []


def test_every_stratum_gives_its_share_and_keeps_one_row():
    strata = {row: row % 3 == 0 for row in range(90)} | {90: 7, 91: 8, 92: 8}
    order = draw_order(names(93), 0)
    codes = Codes(strata[row] for row in range(93)).codes
    drawn = by_strata(np.arange(93), codes, order, {"test": 0.1, "validation": 0.2})
    for stratum, share in ((True, 30), (False, 60)):
        mine = {row for row in range(90) if strata[row] == stratum}
        assert len(mine & rows_of(drawn, "validation")) == share * 0.2
        assert len(mine & rows_of(drawn, "test")) == share * 0.1
    whole = rows_of(drawn, "test") | rows_of(drawn, "validation")
    assert 90 not in whole
    assert len({91, 92} & whole) == 1


def test_parts_hold_every_row_once_and_every_label_alike():
    rows = np.arange(3, 100)
    strata = np.arange(100) % 3
    order = draw_order(names(100), 0)
    groups = np.arange(100) // 4
    several = [(int(k), 3) if row % 5 else (int(k),) for row, k in enumerate(strata)]
    for labels, together in ((strata, None), (strata, groups), (several, None), (several, groups)):
        part = parts(rows, labels, 4, order, together)
        assert sorted(set(part)) == [0, 1, 2, 3]
        sizes = np.bincount(part)
        assert sizes.max() - sizes.min() <= (1 if together is None else 8)
        if together is not None:
            assert all(len(set(part[groups[rows] == group])) == 1 for group in set(groups[rows]))
        for k in range(3):
            shares = np.bincount(part[strata[rows] == k], minlength=4)
            assert shares.max() - shares.min() <= (2 if together is None else 6)
    assert (parts(rows, strata, 4, order) == parts(rows, strata, 4, order)).all()


def test_tenths_spread_numbers_over_the_splits():
    targets = [(float(value),) for value in range(100)]
    random.Random(3).shuffle(targets)
    strata = tenths(np.arange(100), targets)
    drawn = by_strata(np.arange(100), strata, draw_order(names(100), 0), {"validation": 0.2})
    chosen = sorted(targets[row][0] for row in rows_of(drawn, "validation"))
    assert [int(value // 10) for value in chosen] == [i // 2 for i in range(20)]


def test_several_labels_have_their_share_in_every_split_even_the_rare_ones():
    draw = random.Random(0)
    chance = (0.6, 0.3, 0.1, 0.02)
    targets = [tuple(i for i, p in enumerate(chance) if draw.random() < p) for _ in range(500)]
    order = draw_order(names(500), 1)
    drawn = iterative(np.arange(500), targets, order, {"test": 0.1, "validation": 0.2})
    for split, share in (("test", 0.1), ("validation", 0.2)):
        rows = rows_of(drawn, split)
        assert abs(len(rows) - 500 * share) <= 2
        for label in range(4):
            whole = sum(label in target for target in targets)
            assert abs(sum(label in targets[row] for row in rows) - share * whole) <= 1.5
    again = iterative(np.arange(500), targets, order, {"test": 0.1, "validation": 0.2})
    assert all(rows_of(again, split) == rows_of(drawn, split) for split in drawn)
    other = iterative(np.arange(500), targets, draw_order(names(500), 2), {"validation": 0.2})
    assert rows_of(other, "validation") != rows_of(drawn, "validation")
