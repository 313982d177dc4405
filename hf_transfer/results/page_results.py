"""The page's account of what came out: the leading number, then one by one."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from hf_transfer.results.charts import heat_map, interval, scatter
from hf_transfer.results.page_tables import MISSING, meter, table
from hf_transfer.results.report import RunReport
from hf_transfer.results.words import WORDS, Facts, metric_words, show_value

MOST_TARGETS_DRAWN = 12
BESIDE = 6  # up to so many classes the matrix leaves room for a table beside it
IN_ORDER = 12  # up to so many classes their table keeps their order
UNBOUNDED = ("nll", "mae", "rmse")  # metrics that are no shares, and get no picture on 0 to 1


def _measured(report: RunReport) -> tuple[str, Facts]:
    """The split that counts, and its metrics: test where there is one, else validation."""
    test = report.metrics.get("test")
    return ("test", test) if test else ("validation", report.metrics)


def result_section(report: RunReport) -> str:
    """Return the leading metric in large, and all of them in a table; nothing without metrics."""
    split, values = _measured(report)
    leads = report.task.headline
    value, other = values.get(leads), report.metrics.get(leads)
    if leads not in values or (value is None and leads not in values.get("reasons", {})):
        return ""
    bounds = values.get("intervals", {}).get(leads)
    ends = [_short(leads, end) for end in bounds or ()]
    spread = f"95% interval {ends[0]} to {ends[1]}, " if bounds else ""
    hint = ""
    if split == "test":
        hint = f"On validation: {_short(leads, other)}." if other is not None else ""
    elif any(phase.best_epoch is not None for phase in report.phases):
        hint = "The best epochs were chosen on the same images, so it flatters a little."
    rows = [_metric_row(values, name, words) for name, words in metric_words(values).items()]
    columns = (("", "keep"), ("", "num"), ("", "keep label"), ("", ""))
    large = "–" if value is None else _short(leads, value).replace("%", "<small>%</small>")
    return (
        f'<section class="hero"><div><div class="label">{WORDS[leads]} on {split}</div>'
        f'<div class="big">{large}</div>'
        f'<div class="label">{spread}n = {values.get("n", 0):,}. {hint}</div></div>'
        f"{table(columns, rows)}</section>"
    )


def _short(name: str, value: float) -> str:
    """Return a leading metric as people say it: accuracy in percent."""
    return f"{value:.1%}" if name == "accuracy" else show_value(name, value)


def _metric_row(values: Facts, name: str, words: str) -> list[str]:
    value, bounds, words = values[name], values.get("intervals", {}).get(name), escape(words)
    if value is None:
        return [words, MISSING, escape(values.get("reasons", {}).get(name, "")), ""]
    span = " to ".join(show_value(name, end) for end in bounds) if bounds else ""
    picture = interval(value, bounds, 0, 1) if name in WORDS and name not in UNBOUNDED else ""
    return [words, show_value(name, value), span, picture]


def details_section(report: RunReport) -> str:
    """Return the metrics class by class, label by label or target by target."""
    split, values = _measured(report)
    trained = (report.data.get("counts") or {}).get("train") or {}
    parts = [_matrix(values.get("confusion"), report.labels)]
    why = values.get("reasons", {}).get("confusion")
    if why:
        parts.append(f'<p class="note">Confusion matrix {escape(why)}.</p>')
    if values.get("per_class"):
        parts.append(_per_class(values["per_class"], trained))
    if values.get("per_label"):
        parts.append(_per_label(values["per_label"], trained))
    if values.get("per_target"):
        parts.append(_per_target(values["per_target"]))
    if not any(parts):
        return ""
    noun = report.task.noun
    return f"<section><h2>{noun.capitalize()} by {noun}, on {split}</h2>{''.join(parts)}</section>"


def _matrix(matrix: Sequence[Sequence[int]] | None, labels: Sequence[str]) -> str:
    if not matrix or len(labels) != len(matrix):
        return ""
    note = "Rows are true classes, shaded by their share: blue is right, orange is wrong."
    drawn = heat_map(matrix, labels)
    beside = "two" if len(labels) <= BESIDE else ""
    return (
        f'<p class="note">{note}</p><div class="{beside}"><div class="scroll">{drawn}</div>'
        f"<div>{_confused(matrix, labels)}</div></div>"
    )


def _confused(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    wrong = [(-n, i, j) for i, row in enumerate(matrix) for j, n in enumerate(row) if n and i != j]
    if len(labels) < 3 or not wrong:
        return ""
    rows = [
        [escape(labels[i]), escape(labels[j]), str(-n), f"{-n / sum(matrix[i]):.1%}"]
        for n, i, j in sorted(wrong)[:8]
    ]
    columns = (("True", ""), ("Predicted", ""), ("Images", "num"), ("Of the class", "num"))
    return "<h3>Most often confused</h3>" + table(columns, rows, "snug")


def _per_class(rows: Sequence[Facts], trained: Facts) -> str:
    title = "Precision, recall, F1"
    if len(rows) > IN_ORDER:
        title += ", weakest first"
        rows = sorted(rows, key=lambda row: (row["f1"] is None, row["f1"] or 0.0, row["label"]))
    columns = (
        ("Class", "wide"),
        ("Trained on", "num"),
        ("Measured on", "num"),
        ("Precision", "num"),
        ("Recall", "num"),
        ("F1", "num"),
        ("", ""),
    )
    cells = [
        [
            escape(str(row["label"])),
            f"{trained[row['label']]:,}" if row["label"] in trained else "–",
            f"{row['n']:,}",
            *(
                "–" if row[key] is None else f"{row[key]:.3f}"
                for key in ("precision", "recall", "f1")
            ),
            meter(row["f1"] or 0.0),
        ]
        for row in rows
    ]
    return f"<h3>{title}</h3>{table(columns, cells, 'tall')}"


def _per_label(rows: Sequence[Facts], trained: Facts) -> str:
    title = "A label counts as predicted from a probability of one half"
    if len(rows) > IN_ORDER:
        title += "; the weakest first"
        rows = sorted(rows, key=lambda row: (row["f1"] is None, row["f1"] or 0.0, row["label"]))
    shares = ("average_precision", "auroc", "precision", "recall", "f1")
    heads = ("Trained on", "In images", "Predicted", "AP", "AUROC", "Precision", "Recall", "F1")
    columns = [("Label", "wide"), *((head, "num") for head in heads), ("", "")]
    cells = [
        [
            escape(str(row["label"])),
            f"{trained[row['label']]:,}" if row["label"] in trained else "–",
            f"{row['n']:,}",
            f"{row['predicted']:,}",
            *("–" if row[key] is None else f"{row[key]:.3f}" for key in shares),
            meter(row["f1"] or 0.0),
        ]
        for row in rows
    ]
    return f"<h3>{title}</h3>{table(columns, cells, 'tall')}"


def _per_target(rows: Sequence[Facts]) -> str:
    """Return each target's errors in its units, and predicted against true values."""
    columns = [("Target", "wide"), *((head, "num") for head in ("n", "R²", "MAE", "RMSE"))]
    cells = [
        [
            escape(str(row["target"])),
            f"{row['n']:,}",
            "–" if row["r2"] is None else f"{row['r2']:.3f}",
            show_value("mae", row["mae"]),
            show_value("rmse", row["rmse"]),
        ]
        for row in rows
    ]
    drawn = [
        f"<div>{scatter(str(row['target']), [(x, y) for x, y in row['points']])}</div>"
        for row in rows[:MOST_TARGETS_DRAWN]
        if row.get("points")
    ]
    note = "Each point is an image; on the line, what was predicted is what is true."
    more = len(rows) - MOST_TARGETS_DRAWN
    rest = f" The other {more} targets are in report.json." if more > 0 else ""
    charts = f'<p class="note">{note}{rest}</p><div class="charts">{"".join(drawn)}</div>'
    return (charts if drawn else "") + table(columns, cells, "tall snug")
