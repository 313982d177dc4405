"""The page: a RunReport as one self-contained HTML page, light and dark, without scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

from hf_transfer.base.files import write_text
from hf_transfer.results.page_results import details_section, result_section
from hf_transfer.results.page_tables import MISSING, any_value, table
from hf_transfer.results.page_training import curves_section, phases_section
from hf_transfer.results.report import RunReport, aggregate, split_rows
from hf_transfer.results.words import WORDS, Facts, show_count, show_seconds, show_value


def report_page(report: RunReport) -> str:
    """Return the HTML of a run."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    sections = (
        _header(report),
        result_section(report),
        _facts(report),
        _warnings(report),
        _seeds(report.seeds),
        phases_section(report),
        curves_section(report),
        details_section(report),
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
        f"{len(report.labels)} {report.task.nouns}" if report.labels else None,
        f"{size} px" if size else None,
        f"seed {report.seed}" + (", the median" if report.seeds else ""),
        report.created and report.created.replace("T", " ")[:16],
    )
    line = " · ".join(escape(str(fact)) for fact in facts if fact)
    return (
        f'<header><div class="eyebrow">hf_transfer run</div><h1>{escape(report.name)}</h1>'
        f'<div class="sub">{line}</div></header>'
    )


def _facts(report: RunReport) -> str:
    images = next((images for split, images, _ in split_rows(report) if split == "train"), 0)
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
                    f"<b>{show_value(name, entry['mean'])}</b>",
                    f"{show_value(name, entry['min'])} to {show_value(name, entry['max'])}",
                    *(show_value(name, value) for value in entry["values"]),
                ]
            )
    columns = [("", "keep"), ("mean", "num"), ("min to max", "num")]
    columns += [(f"seed {seed}", "num") for seed in spread["seeds"]]
    return f"<section><h2>Over {spread['n']} seeds</h2>{table(columns, rows)}</section>"


def _data(report: RunReport) -> str:
    place = report.data.get("path")
    one, several = report.task.noun, report.task.nouns.capitalize()
    columns: list[tuple[str, str]] = [("Split", ""), ("Images", "num"), (several, "num")]
    rows = [[split, f"{n:,}", f"{len(found):,}"] for split, n, found in split_rows(report)]
    if report.task.name != "regression":
        columns += [(f"Fewest in a {one}", "num"), (f"Most in a {one}", "num")]
        for row, (_, _, found) in zip(rows, split_rows(report), strict=True):
            row += [f"{min(found):,}", f"{max(found):,}"]
    return (
        "<section><h2>Data</h2>"
        + (f'<p class="note">{escape(str(place))}</p>' if place else "")
        + (table(columns, rows, "snug") if rows else "")
        + _targets(report.data.get("targets"))
        + f"<h3>Audit</h3>{_audit(report.data.get('audit'))}</section>"
    )


def _targets(targets: Facts | None) -> str:
    """Return what the numbers to tell are like, split by split; nothing where there are none."""
    rows = [
        [
            split,
            escape(row["target"]),
            *(f"{row[key]:.5g}" for key in ("mean", "std", "min", "max")),
        ]
        for split, found in (targets or {}).items()
        for row in found
    ]
    heads = ("Mean", "Spread", "Smallest", "Largest")
    columns = [("Split", ""), ("Target", ""), *((head, "num") for head in heads)]
    return f"<h3>Targets, in their units</h3>{table(columns, rows, 'snug')}" if rows else ""


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


def write_html(report: RunReport, path: str | Path, seeds: Sequence[RunReport] = ()) -> Path:
    """Write one self-contained HTML page on a run, whole or not at all; return its path.

    `seeds` are all runs of the recipe, this one among them, to be shown side by side; without
    them it shows the report's own `seeds`. The page needs no network, script or font. Raises
    UserError if it cannot be written.
    """
    pass

    return write_text(
        path, report_page(replace(report, seeds=aggregate(seeds)) if seeds else report)
    )
