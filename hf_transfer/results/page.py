"""The page: a RunReport as one self-contained HTML page, light and dark, without scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from hf_transfer.base.boundary import untrusted
from hf_transfer.base.files import write_text
from hf_transfer.results import conclusions
from hf_transfer.results.charts import interval
from hf_transfer.results.examples import DICOM
from hf_transfer.results.figures import figure, figure_table
from hf_transfer.results.page_classes import details
from hf_transfer.results.page_images import galleries, sheets
from hf_transfer.results.page_phases import command, curves, phases
from hf_transfer.results.page_source import source
from hf_transfer.results.places import without_paths
from hf_transfer.results.rendering import render, template
from hf_transfer.results.report import RunReport, aggregate, split_rows
from hf_transfer.results.words import (
    ADDED,
    IN_UNITS,
    LABELLED,
    METRIC_TITLES,
    JsonDict,
    images_words,
    metric_phrase,
    metric_title,
    metric_titles,
    range_words,
    show_headline,
    show_metric,
    show_seconds,
    split_words,
)


def write_html(report: RunReport, path: str | Path, seeds: Sequence[RunReport] = ()) -> Path:
    """Write one self-contained HTML page on a run, whole or not at all; return its path.

    `seeds` are all runs of the recipe, this one among them, to be shown side by side; without
    them it shows the report's own `seeds`. The page needs no network, script or font. Raises
    UserError if it cannot be written.
    """
    return write_text(
        path, report_page(replace(report, seeds=aggregate(seeds)) if seeds else report)
    )


def report_page(report: RunReport) -> str:
    """Return the HTML of a run."""
    with untrusted("the report as a page", "run the recipe again"):
        report = without_paths(report)
        return render(
            "page.html",
            style=Markup(template("page.css")),  # noqa: S704
            title=conclusions.title(report),
            facts=_facts(report),
            outcome=conclusions.outcome(report),
            advice=conclusions.advice(report),
            cautions=conclusions.cautions(report),
            result=_result(report),
            tiles=_tiles(report),
            repeats=[found for found in (_seeds(report.seeds), _folds(report.folds)) if found],
            phases=phases(report),
            curves=curves(report),
            images=images_words(report.split_name(report.measured[0])),
            galleries=galleries(report),
            sheets=sheets(report),
            no_images=_no_images(report),
            source=source(report),
            details=details(report),
            figures=_figures(report),
            unmatched=report.data.get("unmatched") or (),
            said=_said(report),
            tried=_tried(report),
            tried_metric=metric_title(report.task.headline),
            command=command(report),
            added=any(phase.name == ADDED for phase in report.phases),
            auto=bool(report.auto),
            trained=bool(report.phases) or not report.metrics.get(LABELLED),
            data=_data(report),
            record=_record(report),
            task=report.task,
        )


def _facts(report: RunReport) -> list[str]:
    size, data = report.backbone.get("image_size"), conclusions.data_name(report)
    trained = not report.metrics.get(LABELLED)
    facts = (
        report.network,
        f"{'trained' if trained else 'scored'} on {data}" if data else None,
        f"recipe {report.name}" if trained else None,
        f"{size} px" if size else None,
        f"seed {report.seed}" + (", the median" if report.seeds else "") if trained else None,
        report.created and report.created.replace("T", " ")[:16],
    )
    return [fact for fact in facts if fact]


def _result(report: RunReport) -> JsonDict | None:
    """Return the leading metric, what it must beat, and all metrics; None without metrics."""
    split, values = report.measured
    leads, value = report.leading_metric, report.headline
    if not values:
        return None
    bounds = values.get("intervals", {}).get(leads)
    other = report.metrics.get(leads) if split == "test" else None
    hint = ""
    if other is not None:
        where = split_words(report.split_name("validation")).capitalize()
        hint = f"{where}: {show_headline(leads, other)}."
    elif split == "validation" and any(phase.best_epoch is not None for phase in report.phases):
        hint = (
            "The best epochs were chosen on these images, so new images will do a little worse. "
            "A test split measures that."
        )
    found = conclusions.baselines(report, split)
    return {
        "on": report.where,
        "title": metric_title(leads),
        "value": "–" if value is None else show_headline(leads, value),
        "interval": [show_headline(leads, end) for end in bounds or ()],
        "n": values.get("n"),
        "groups": values.get("groups"),
        "baselines": [*_baselines(report, split), *conclusions.head_alone(report)],
        "hint": hint,
        "metrics": [
            _metric(values, name, text, found) for name, text in metric_titles(values).items()
        ],
    }


def _said(report: RunReport) -> Sequence[str]:
    """Return what is said of the result; of `auto` without the lines that are in the table."""
    said: Sequence[str] = report.metrics.get("said") or ()
    return said[:1] if report.auto.get("tried") else said


def _tried(report: RunReport) -> list[JsonDict]:
    """Return what `auto` tried, in its order."""
    return [
        {
            "what": one["what"],
            "why": one["why"],
            "kept": one["kept"],
            "value": show_metric(report.task.headline, one.get(report.task.headline)),
            "seconds": show_seconds(one["seconds"]) if one["seconds"] >= 0.1 else "–",
        }
        for one in report.auto.get("tried") or ()
    ]


def _no_images(report: RunReport) -> str:
    """Return why the page shows no images, in a sentence; "" where it does or nothing is known."""
    if report.examples.get("rows") or not report.measured[1]:
        return ""
    audit = report.data.get("audit") or {}
    if report.recipe.get("page_images") == "none":
        return "The recipe leaves images out of this page (page_images: none)."
    if any(found["kind"] == DICOM for found in audit.get("findings") or ()):
        return (
            "Some images are DICOM files, which may show patients, so this page shows none; "
            "page_images: page in the recipe does."
        )
    return ""


def _figures(report: RunReport) -> list[JsonDict]:
    """Return the report's further charts, each with its numbers as a table."""
    return [
        {
            "title": found["title"],
            "note": found.get("note", ""),
            "picture": Markup(drawn),  # noqa: S704
            "table": figure_table(found),
        }
        for found in report.figures
        if (drawn := figure(found))
    ]


def _baselines(report: RunReport, split: str) -> list[tuple[str, str]]:
    """Return what needs no model and what it reaches; those of the leading metric first."""
    leads = report.leading_metric
    return [
        (what if m == leads else f"{metric_phrase(m)} of {what}", show_headline(m, v))
        for what, m, v in conclusions.told_baselines(report, split)
    ]


def _metric(
    values: JsonDict, name: str, title: str, baselines: Sequence[tuple[str, str, float]]
) -> JsonDict:
    value, bounds = values[name], values.get("intervals", {}).get(name)
    if value is None:
        reason = (values.get("reasons") or {}).get(name, "")
        return {"title": title, "value": None, "reason": reason}
    least = max((v for _, metric, v in baselines if metric == name), default=None)
    share = name in METRIC_TITLES and name not in (*IN_UNITS, "nll", "rank")
    return {
        "title": title,
        "value": show_metric(name, value),
        "interval": " to ".join(show_metric(name, end) for end in bounds) if bounds else "",
        "picture": Markup(interval(value, bounds, 0, 1, least)) if share else "",  # noqa: S704
    }


def _tiles(report: RunReport) -> JsonDict:
    images = next((images for split, images, _ in split_rows(report) if split == "train"), None)
    return {
        "images": images,
        "parameters": report.backbone.get("parameters"),
        "phases": len(report.phases),
        "wall": report.seconds.get("wall"),
        "training": report.seconds.get("training"),
    }


def _seeds(seeds: JsonDict) -> JsonDict | None:
    """Return each metric over the seeds; None for a single one."""
    if seeds.get("n", 0) < 2:
        return None
    rows = [
        _spread(f"{metric_title(name)}, {split}", name, entry)
        for split, key in (("validation", "metrics"), ("test", "test"))
        for name, entry in seeds.get(key, {}).items()
    ]
    heads = [f"seed {seed}" for seed in seeds.get("seeds", ())]
    return {"title": f"Over {seeds['n']} seeds", "heads": heads, "rows": rows}


def _folds(folds: JsonDict) -> JsonDict | None:
    """Return each metric over the parts of a cross-validation; None without one."""
    if not folds:
        return None
    rows = [_spread(metric_title(name), name, entry) for name, entry in folds["test"].items()]
    heads = [f"fold {number + 1}" for number in range(folds["n"])]
    return {"title": f"In {folds['n']} folds", "heads": heads, "rows": rows}


def _spread(title: str, name: str, entry: JsonDict) -> JsonDict:
    return {
        "title": title,
        "mean": show_metric(name, entry["mean"]),
        "range": f"{show_metric(name, entry['min'])} to {show_metric(name, entry['max'])}",
        "values": [show_metric(name, value) for value in entry["values"]],
    }


def _data(report: RunReport) -> JsonDict:
    audit = report.data.get("audit")
    return {
        "name": conclusions.data_name(report),
        "splits": [
            {
                "name": split,
                "images": images,
                "kinds": len(counts),
                "per_kind": range_words(counts),
            }
            for split, images, counts in split_rows(report)
        ],
        "targets": [
            {"split": split, **row}
            for split, rows in (report.data.get("targets") or {}).items()
            for row in rows
        ],
        "findings": None if audit is None else audit.get("findings", ()),
    }


def _record(report: RunReport) -> JsonDict:
    facts: dict[str, Any] = {
        **{f"backbone {key}": value for key, value in report.backbone.items()},
        **report.environment,
        "data fingerprint": report.data.get("fingerprint"),
    }
    return {
        "facts": [
            (key.replace("_", " "), _plain_fact(value))
            for key, value in facts.items()
            if not isinstance(value, (list, dict))
        ],
        "recipe": json.dumps(report.recipe, indent=2, ensure_ascii=False),
    }


def _plain_fact(value: Any) -> str:
    if value is None:
        return "not stated"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
