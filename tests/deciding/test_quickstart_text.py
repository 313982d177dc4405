"""What the quickstart says follows from what it measured, seed by seed."""

import json
from pathlib import Path

from hf_transfer.deciding.quickstart_text import (
    QuickstartResult,
    Row,
    conclusion,
    format_quickstart,
)

PAYS = Row(2, scratch=(0.60, 0.80), frozen=(0.81, 0.85), tuned=(0.78, 0.84))
MEETS = Row(10, scratch=(0.93, 0.95), frozen=(0.93, 0.92), tuned=(0.94, 0.95))
COSTS = Row(50, scratch=(0.98, 0.99), frozen=(0.93, 0.94), tuned=(0.96, 0.97))


def _result(*rows: Row) -> QuickstartResult:
    return QuickstartResult(
        rows=rows,
        seeds=tuple(range(len(rows[0].tuned))),
        test_images=1000,
        source_images=12580,
        source_accuracy=0.87,
        seconds=63.4,
        out=Path("runs/quickstart"),
    )


def test_each_verdict_follows_from_the_gains_of_the_seeds() -> None:
    said = conclusion([PAYS, MEETS, COSTS])
    assert said.startswith(
        "Transfer pays at 2 per class: fine-tuning beats from scratch (+0.110); "
        "at 10 fine-tuning and from scratch meet (+0.005); "
        "at 50 from scratch beats fine-tuning (-0.020). "
    )
    assert said.endswith(
        "Frozen features alone beat from scratch at 2 and fall behind from scratch at 50."
    )


def test_a_seed_without_a_gain_is_enough_to_call_it_level() -> None:
    mixed = Row(5, scratch=(0.80, 0.90), frozen=(0.88, 0.92), tuned=(0.88, 0.90))
    said = conclusion([mixed])
    assert said.startswith("At 5 fine-tuning and from scratch meet (+0.040).")
    assert said.endswith("Frozen features alone beat from scratch at 5.")


def test_one_seed_is_said_to_show_no_spread() -> None:
    assert "One seed shows no spread" in conclusion([Row(2, (0.6,), (0.8,), (0.8,))])
    assert "One seed" not in conclusion([PAYS])


def test_the_table_has_a_row_for_each_number_of_images_and_three_ways() -> None:
    lines = format_quickstart(_result(PAYS, MEETS, COSTS)).splitlines()
    head = next(i for i, line in enumerate(lines) if "from scratch" in line)
    assert lines[head].split("  ")[0] == "images per class"
    rows = [line.split() for line in lines[head + 1 : head + 4]]
    assert [row[0] for row in rows] == ["2", "10", "50"]
    assert rows[0][1:4] == ["0.700", "(0.600..0.800)", "0.830"]
    assert all(len(line) <= 110 for line in lines[head:])


def test_a_result_is_plain_json() -> None:
    values = json.loads(json.dumps(_result(PAYS, MEETS).to_dict()))
    assert values["rows"][0]["scratch"] == [0.6, 0.8]
    assert values["conclusion"] == conclusion([PAYS, MEETS])
