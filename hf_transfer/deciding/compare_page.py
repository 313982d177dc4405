"""A comparison as one self-contained page: two pictures, and a table for each number of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from markupsafe import Markup

from hf_transfer.deciding.compare_text import conclusion
from hf_transfer.recipe.tasks import TASKS
from hf_transfer.results.rendering import render, template
from hf_transfer.results.ways_chart import Named, Spot, ways_chart
from hf_transfer.results.words import metric_title, show_metric, show_seconds

if TYPE_CHECKING:
    from hf_transfer.deciding.compare import Comparison, Row


def comparison_page(comparison: Comparison) -> str:
    """Return the HTML of a comparison; it needs no network, script or font."""
    counts = list(dict.fromkeys(row.per_class for row in comparison.rows))
    tables = [_table(comparison, count) for count in counts]
    seeds, count = len(comparison.seeds), len(comparison.labels)
    task = next(task for task in TASKS.values() if task.headline == comparison.metric)
    facts = [
        f"{count} {task.noun if count == 1 else task.nouns}" if count else "",
        f"{comparison.test_images:,} test images",
        f"{seeds} seed{'s' * (seeds > 1)}",
        f"{show_seconds(comparison.seconds)} in all",
        *comparison.notes,
    ]
    return render(
        "comparison.html",
        style=Markup(template("page.css")),  # noqa: S704
        title=f"Which way to train: {_ways(comparison)} compared",
        answer=tables[-1]["conclusion"],
        facts=[fact for fact in facts if fact],
        metric=metric_title(comparison.metric),
        tested=any(row.behind for row in comparison.rows),
        charts=[Markup(chart) for chart in _charts(comparison, counts)],  # noqa: S704
        tables=tables,
    )


def _ways(comparison: Comparison) -> str:
    count = len({row.way for row in comparison.rows})
    return f"{count} ways" if count > 1 else "one way"


def _charts(comparison: Comparison, counts: list[int | None]) -> list[str]:
    metric = metric_title(comparison.metric)
    last = _rows(comparison, counts[-1])
    best = max(last, key=lambda row: row.mean).way
    where = "" if counts[-1] is None else f", {counts[-1]} images per class"
    by_time = [Named(row.way, (_spot(row, row.seconds),), row.way == best) for row in last]
    charts = [ways_chart(f"{metric} against time{where}", "seconds", by_time, " s")]
    if len(counts) > 1:
        ways = [row.way for row in last]
        by_count = [
            Named(
                way,
                tuple(
                    _spot(row, float(row.per_class))
                    for row in comparison.rows
                    if row.way == way and row.per_class is not None
                ),
                way == best,
            )
            for way in ways
        ]
        charts.append(
            ways_chart(f"{metric} against labelled images", "labelled images per class", by_count)
        )
    return charts


def _spot(row: Row, x: float) -> Spot:
    count = "" if row.per_class is None else f", {row.per_class} images per class"
    note = f"{row.way}{count}: {row.mean:.3f}, {row.seconds:.0f} s"
    return Spot(max(x, 0.1), row.mean, min(row.values), max(row.values), note)


def _rows(comparison: Comparison, count: int | None) -> list[Row]:
    return [row for row in comparison.rows if row.per_class == count]


def _table(comparison: Comparison, count: int | None) -> dict[str, object]:
    rows = _rows(comparison, count)
    best = max(rows, key=lambda row: row.mean)
    return {
        "title": "All training images" if count is None else f"{count} images per class",
        "conclusion": conclusion(rows),
        "rows": [
            {
                "way": row.way,
                "best": row is best,
                "mean": show_metric(comparison.metric, row.mean),
                "range": f"{min(row.values):.3f} to {max(row.values):.3f}",
                "behind": _behind(row),
                "seconds": row.seconds,
                "parameters": row.parameters,
            }
            for row in sorted(rows, key=lambda row: -row.mean)
        ],
    }


def _behind(row: Row) -> tuple[str, str] | None:
    if row.behind is None:
        return None
    gain, low, high = row.behind
    return f"{gain:.3f}", f"{low:.3f} to {high:.3f}"
