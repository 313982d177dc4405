"""The page's account by class, label, target and group: tables, the matrix, the calibration."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from hf_transfer.results.charts import calibration, heat_map, scatter
from hf_transfer.results.page_images import cells
from hf_transfer.results.report import RunReport
from hf_transfer.results.words import (
    CROSS,
    IN_UNITS,
    JsonDict,
    images_words,
    show_headline,
    show_metric,
)

MOST_TARGETS_DRAWN = 12
MOST_CONFUSIONS = 8
MOST_ROWS = 200  # classes or labels
IN_ORDER = 12  # up to so many classes their table keeps their order
HONEST = 0.03  # mean confidence less accuracy, up to which they are said to agree
SHARES = {  # the columns of the tables by class and by label
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1",
    "average_precision": "AP",
    "auroc": "AUROC",
}


def details(report: RunReport) -> JsonDict | None:
    """Return the metrics by class, by label or by target; None where there are none."""
    split, values = report.measured
    name = report.split_name(split)
    counts = (report.data.get("counts") or {}).get("train") or {}
    trained = counts if name != CROSS else {}  # the same images
    rows = values.get("per_class") or values.get("per_label") or ()
    shown = [
        {
            "label": row["label"],
            "trained": trained.get(row["label"]),
            "n": row["n"],
            "f1": row["f1"] or 0.0,
            "shares": ["–" if row[k] is None else f"{row[k]:.3f}" for k in SHARES if k in row],
        }
        for row in _ordered(rows)[:MOST_ROWS]
    ]
    targets = values.get("per_target") or ()
    found = {
        "split": images_words(name),
        "of": "images" if name == CROSS else split,
        "on": report.where,
        "groups": _groups(report, values),
        "matrix": _matrix(report, values.get("confusion")),
        "no_matrix": (values.get("reasons") or {}).get("confusion"),
        "rows": shown,
        "weakest_first": len(rows) > IN_ORDER,
        "not_listed": max(0, len(rows) - MOST_ROWS),
        "calibration": _calibration(values),
        "columns": [title for key, title in SHARES.items() if rows and key in rows[0]],
        "targets": [
            {**row, **{k: show_metric(k, row[k]) for k in ("r2", *IN_UNITS)}} for row in targets
        ],
        "scatters": [
            Markup(scatter(row["target"], [(x, y) for x, y in row["points"]]))  # noqa: S704
            for row in targets[:MOST_TARGETS_DRAWN]
            if row.get("points")
        ],
        "not_drawn": max(0, len(targets) - MOST_TARGETS_DRAWN),
    }
    return found if rows or targets or found["matrix"] else None


def _groups(report: RunReport, values: JsonDict) -> list[JsonDict]:
    """Return the leading metric by group, the weakest first."""
    leads = report.task.headline
    rows = sorted(values.get("per_group") or (), key=lambda row: (row["value"] or 0.0, -row["n"]))
    return [
        {
            "group": row["group"],
            "n": row["n"],
            "value": "–" if row["value"] is None else show_headline(leads, row["value"]),
            "interval": " to ".join(show_headline(leads, e) for e in row.get("interval") or ()),
        }
        for row in rows[:MOST_ROWS]
    ]


def _calibration(values: JsonDict) -> JsonDict | None:
    """Return the calibration curve, and what it says in a sentence; None where it is not known."""
    rows = values.get("calibration") or ()
    images = sum(row["n"] for row in rows)
    if not images:
        return None
    sure, right = (
        sum(row["n"] * row[key] for row in rows) / images for key in ("confidence", "accuracy")
    )
    if abs(sure - right) < HONEST:
        words = "It is about as often right as it says"
    elif sure > right:
        words = "It is too sure of itself"
    else:
        words = "It is more often right than it says"
    return {
        "words": f"{words}: {sure:.0%} sure on average, {right:.0%} right.",
        "picture": Markup(  # noqa: S704
            calibration([(row["confidence"], row["accuracy"], row["n"]) for row in rows])
        ),
    }


def _ordered(rows: Sequence[JsonDict]) -> Sequence[JsonDict]:
    """Return few rows as they are, many with the weakest first."""
    if len(rows) <= IN_ORDER:
        return rows
    return sorted(rows, key=lambda row: (row["f1"] is None, row["f1"] or 0.0, row["label"]))


def _matrix(report: RunReport, matrix: Sequence[Sequence[int]] | None) -> JsonDict | None:
    """Return the confusion matrix, the pairs most often confused, and the images that its cells
    lead to; None for a misfit."""
    labels = report.labels
    if not matrix or any(len(labels) != len(row) for row in (matrix, *matrix)):
        return None
    wrong = [(-n, i, j) for i, row in enumerate(matrix) for j, n in enumerate(row) if n and i != j]
    shown = cells(report)
    anchors = {place: cell["anchor"] for place, cell in shown.items()}
    return {
        "picture": Markup(heat_map(matrix, labels, anchors)),  # noqa: S704
        "beside": len(labels) <= IN_ORDER,
        "pairs": [
            {**cell, "n": matrix[i][j], "of": sum(matrix[i])} for (i, j), cell in shown.items()
        ],
        "confused": [
            {
                "true": labels[i],
                "predicted": labels[j],
                "n": -n,
                "of": sum(matrix[i]),
                "anchor": anchors.get((i, j), ""),
            }
            for n, i, j in sorted(wrong)[:MOST_CONFUSIONS]
            if len(labels) > 2
        ],
    }
