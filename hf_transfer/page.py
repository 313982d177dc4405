"""The page: a RunReport as one self-contained HTML page, light and dark, without scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from hf_transfer.charts import heat_map, interval
from hf_transfer.page_tables import MISSING, any_value, meter, table
from hf_transfer.page_training import curves_section, phases_section
from hf_transfer.report import (
    WORDS,
    Facts,
    RunReport,
    metric_words,
    show_count,
    show_seconds,
)

MOST_CLASSES_DRAWN = 200
BESIDE = 6  # up to so many classes the matrix leaves room for a table beside it
IN_ORDER = 12  # up to so many classes their table keeps their order


def report_page(report: RunReport) -> str:
    """Return the HTML of a run."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    sections = (
        _header(report),
        _result(report),
        _facts(report),
        _warnings(report),
        _seeds(report.seeds),
        phases_section(report),
        curves_section(report),
        _classes(report),
        _data(report),
        _record(report),
    )
    title = escape(f"{report.name}: {report.backbone.get('id', 'run')}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>\n{style}</style></head>\n<body><main>\n"
        + "\n".join(section for section in sections if section)
        + "\n<footer>Made from report.json, which holds every number on this page.</footer>"
        "\n</main></body></html>\n"
    )


def _header(report: RunReport) -> str:
    place, size = report.data.get("path"), report.backbone.get("image_size")
    facts = (
        report.backbone.get("id"),
        f"on {Path(str(place)).name}" if place else None,
        f"{len(report.labels)} classes" if report.labels else None,
        f"{size} px" if size else None,
        f"seed {report.seed}" + (", the median" if report.seeds else ""),
        report.created and report.created.replace("T", " ")[:16],
    )
    line = " · ".join(escape(str(fact)) for fact in facts if fact)
    return (
        f'<header><div class="eyebrow">hf_transfer run</div><h1>{escape(report.name)}</h1>'
        f'<div class="sub">{line}</div></header>'
    )


def _measured(report: RunReport) -> tuple[str, Facts]:
    """The split that counts, and its metrics: test where there is one, else validation."""
    test = report.metrics.get("test")
    return ("test", test) if test else ("validation", report.metrics)


def _result(report: RunReport) -> str:
    split, values = _measured(report)
    accuracy, other = values.get("accuracy"), report.metrics.get("accuracy")
    if accuracy is None:
        return ""
    bounds = values.get("intervals", {}).get("accuracy")
    spread = f"95% interval {bounds[0]:.1%} to {bounds[1]:.1%}, " if bounds else ""
    hint = ""
    if split == "test":
        hint = f"On validation: {other:.1%}." if other is not None else ""
    elif any(phase.best_epoch is not None for phase in report.phases):
        hint = "The best epochs were chosen on the same images, so it flatters a little."
    rows = [_metric_row(values, name, words) for name, words in metric_words(values).items()]
    columns = (("", "keep"), ("", "num"), ("", "keep label"), ("", ""))
    return (
        f'<section class="hero"><div><div class="label">Accuracy on {split}</div>'
        f'<div class="big">{100 * accuracy:.1f}<small>%</small></div>'
        f'<div class="label">{spread}n = {values.get("n", 0):,}. {hint}</div></div>'
        f"{table(columns, rows)}</section>"
    )


def _metric_row(values: Facts, name: str, words: str) -> list[str]:
    value, bounds, words = values[name], values.get("intervals", {}).get(name), escape(words)
    if value is None:
        return [words, MISSING, escape(values.get("reasons", {}).get(name, "")), ""]
    span = f"{bounds[0]:.3f} to {bounds[1]:.3f}" if bounds else ""
    picture = interval(value, bounds, 0, 1) if name in WORDS and name != "nll" else ""
    return [words, f"{value:.3f}", span, picture]


def _facts(report: RunReport) -> str:
    images = sum((_counts(report).get("train") or {}).values())
    parameters = report.backbone.get("parameters")
    wall, training = report.seconds.get("wall"), report.seconds.get("training")
    facts = (
        (None if wall is None else show_seconds(wall), "wall time"),
        (None if training is None else show_seconds(training), "of it training"),
        (f"{images:,}" if images else None, "training images"),
        (show_count(parameters) if parameters else None, "parameters"),
        (len(report.phases), "phase" if len(report.phases) == 1 else "phases"),
    )
    cells = [f"<div><b>{value}</b><span>{words}</span></div>" for value, words in facts if value]
    return f'<div class="facts">{"".join(cells)}</div>'


def _warnings(report: RunReport) -> str:
    if not report.warnings:
        return ""
    lines = "".join(f"<li>{escape(str(warning))}</li>" for warning in report.warnings)
    return f'<section class="warnings"><h2>Warnings</h2><ul>{lines}</ul></section>'


def _seeds(spread: Facts) -> str:
    if spread.get("n", 0) < 2:
        return ""
    rows = []
    for split, found in (("validation", spread["metrics"]), ("test", spread["test"])):
        for name, entry in found.items():
            rows.append(
                [
                    f"{escape(WORDS.get(name, name))}, {split}",
                    f"<b>{entry['mean']:.3f}</b>",
                    f"{entry['min']:.3f} to {entry['max']:.3f}",
                    *(f"{value:.3f}" for value in entry["values"]),
                ]
            )
    columns = [("", "keep"), ("mean", "num"), ("min to max", "num")]
    columns += [(f"seed {seed}", "num") for seed in spread["seeds"]]
    return f"<section><h2>Over {spread['n']} seeds</h2>{table(columns, rows)}</section>"


def _classes(report: RunReport) -> str:
    split, values = _measured(report)
    matrix, labels = values.get("confusion"), report.labels
    parts = []
    if matrix and len(labels) == len(matrix):
        drawn = f"<p>{len(labels)} classes are too many to draw: see report.json.</p>"
        if len(labels) <= MOST_CLASSES_DRAWN:
            drawn = heat_map(matrix, labels)
        note = "Rows are true classes, shaded by their share: blue is right, orange is wrong."
        beside = "two" if len(labels) <= BESIDE else ""
        parts.append(
            f'<p class="note">{note}</p><div class="{beside}"><div class="scroll">{drawn}</div>'
            f"<div>{_confused(matrix, labels)}</div></div>"
        )
    if values.get("per_class"):
        parts.append(_per_class(values["per_class"], _counts(report).get("train") or {}))
    if not parts:
        return ""
    return f"<section><h2>Class by class, on {split}</h2>{''.join(parts)}</section>"


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


def _counts(report: RunReport) -> Facts:
    return report.data.get("counts") or {}


def _data(report: RunReport) -> str:
    place = report.data.get("path")
    rows = [
        [split, *(f"{n:,}" for n in (sum(found), len(found), min(found), max(found)))]
        for split, counts in _counts(report).items()
        if (found := list(counts.values()))
    ]
    heads = ("Images", "Classes", "Fewest in a class", "Most in a class")
    columns = [("Split", ""), *((head, "num") for head in heads)]
    return (
        "<section><h2>Data</h2>"
        + (f'<p class="note">{escape(str(place))}</p>' if place else "")
        + (table(columns, rows, "snug") if rows else "")
        + f"<h3>Audit</h3>{_audit(report.data.get('audit'))}</section>"
    )


def _audit(audit: Facts | None) -> str:
    if audit is None:
        return f"<p>{MISSING}</p>"
    if audit == {"findings": []}:
        return "<p>Nothing was found amiss.</p>"
    return any_value(audit["findings"] if list(audit) == ["findings"] else audit)


def _record(report: RunReport) -> str:
    recipe = escape(json.dumps(report.recipe, indent=2, ensure_ascii=False))
    backbone = {k: v for k, v in report.backbone.items() if not isinstance(v, (list, dict))}
    environment = {**report.environment, "data fingerprint": report.data.get("fingerprint")}
    return (
        f'<section><h2>Record</h2><div class="two"><div><h3>Backbone</h3>{any_value(backbone)}'
        f"</div><div><h3>Environment</h3>{any_value(environment)}</div></div>"
        f"<details><summary>The recipe as it ran</summary><pre>{recipe}</pre></details></section>"
    )
