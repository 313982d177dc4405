"""How a model was made, to click through: phases, curves, the confusion matrix, scores by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hf_transfer.base.boundary import untrusted
from hf_transfer.base.errors import UserError
from hf_transfer.recipe.tasks import THRESHOLD
from hf_transfer.results import conclusions, page_phases
from hf_transfer.results.card_training import expected
from hf_transfer.results.charts import Band, Line, line_chart
from hf_transfer.results.figures import figure
from hf_transfer.results.places import place_name
from hf_transfer.results.report import RunReport
from hf_transfer.results.svg import escape, thin
from hf_transfer.results.words import (
    METRIC_TITLES,
    JsonDict,
    images_words,
    show_count,
    show_headline,
    show_seconds,
)
from hf_transfer.space.drawn import note, panel, show_share
from hf_transfer.space.models import Shown

LABELS_NAMED = 12
MOST_CLASSES = 30  # of a matrix whose cells one can click


def told_of(model: Shown) -> str:
    """Return in a sentence what the report says of a model."""
    if model.report is None:
        why = "the report that came with this model cannot be read" * bool(model.why_no_report)
        return f"Accuracy: not measured; {why or 'no report came with this model'}."
    try:
        with untrusted("report.json"):
            return _measured(model.report)
    except UserError:
        return "Accuracy: not measured; the report that came with this model cannot be read."


def _measured(report: RunReport) -> str:
    """Return the leading metric with its split, n and interval, and what was trained how."""
    leads = report.task.headline
    split = "test" if report.metrics.get("test") else "validation"
    values = report.metrics["test"] if split == "test" else report.metrics
    value, bounds = values.get(leads), values.get("intervals", {}).get(leads)
    named = images_words(report.split_name(split))
    text = f"{METRIC_TITLES[leads]}: not measured"
    if value is not None:
        interval = f", 95% interval {bounds[0]:.3f} to {bounds[1]:.3f}" if bounds else ""
        text = f"{METRIC_TITLES[leads]} {value:.3f} on n = {values['n']:,} {named}{interval}"
    backbone = place_name(str(report.backbone.get("id", "not stated")))
    return f"{text}. Backbone {backbone}, recipe {report.name}, seed {report.seed:d}."


def labels_of(labels: Sequence[str], task: str, thresholds: Sequence[float] = ()) -> str:
    """Return in a sentence what a model tells apart, and from which probabilities on."""
    named = ", ".join(labels[:LABELS_NAMED])
    more = f" and {len(labels) - LABELS_NAMED} more" if len(labels) > LABELS_NAMED else ""
    if task == "classification":
        return f"Distinguishes {len(labels)} classes: {named}{more}."
    if task == "regression":
        return f"Predicts from an image: {named}{more}."
    limits = sorted(set(thresholds or (THRESHOLD,)))
    least = "a label counts as present from a probability of "
    least += (
        f"{limits[0]:.2g}" if len(limits) == 1 else f"{limits[0]:.2g} to {limits[-1]:.2g}, its own"
    )
    return f"Predicts which of {len(labels)} labels an image shows: {named}{more}; {least}."


def made_views(model: Shown | None) -> tuple[str, str, str]:
    """Return the account of a run in three parts: what was trained, the confusion matrix, scores
    by class with what to know."""
    if model is None:
        hint = '<p class="hft-soft">No model yet. Train one, or run the example.</p>'
        return panel(hint), "", ""
    report = model.report
    if report is None:
        return note(told_of(model)), "", ""
    try:
        with untrusted("report.json"):
            return _trained(model, report), _answered(model, report), _scored(report)
    except UserError:
        return note("Not measured: the report that came with this model cannot be read."), "", ""


def _trained(model: Shown, report: RunReport) -> str:
    curves = _titled("Curves, with the points where layers were unfrozen", _curves(report))
    phases = panel(_phases(report), "What trained when")
    seen = _titled("What advice saw in these images", model.advice)
    moved = _titled("What moved", _moved(report))
    return panel(_headline(report), model.title) + phases + curves + moved + seen


def _answered(model: Shown, report: RunReport) -> str:
    return _titled("Right and wrong, by class", _matrix(model, report.measured[1]))


def _scored(report: RunReport) -> str:
    cautions = "".join(f"<li>{escape(text)}</li>" for text in conclusions.cautions(report))
    scores = _titled("Scores by class", _scores(report.measured[1]))
    return scores + _titled("To know", cautions, "ul")


def _titled(title: str, content: str, wrap: str = "") -> str:
    if not content:
        return ""
    return panel(f"<{wrap}>{content}</{wrap}>" if wrap else content, title)


def _headline(report: RunReport) -> str:
    leads, (split, values) = report.leading_metric, report.measured
    value, bounds = values.get(leads), values.get("intervals", {}).get(leads)
    found = "not measured" if value is None else show_headline(leads, value)
    facts = [(METRIC_TITLES.get(leads, leads), found)]
    if bounds:
        facts.append(("95% interval", " to ".join(show_headline(leads, end) for end in bounds)))
    facts.append((images_words(report.split_name(split)).capitalize(), f"{values.get('n', 0):,}"))
    facts.append(("Network", place_name(str(report.backbone.get("id", "not stated")))))
    seconds = report.seconds.get("wall")
    if seconds is not None:
        facts.append(("Took", show_seconds(seconds)))
    cells = "".join(f"<div><dt>{escape(a)}</dt><dd>{escape(b)}</dd></div>" for a, b in facts)
    lines = [expected(report)]
    lines += [
        f"To beat: {what} reaches {show_headline(metric, least)}."
        for what, metric, least in conclusions.baselines(report, split)[:1]
    ]
    words = "".join(f"<p class='hft-soft'>{escape(line)}</p>" for line in lines if line)
    return f'<dl class="hft-facts">{cells}</dl>{words}'


def _phases(report: RunReport) -> str:
    rows = []
    for i, phase in enumerate(page_phases.phases(report), 1):
        strip = "".join(
            f'<i class="{kind}" title="{escape(group)}"></i>' for group, kind in phase["strip"]
        )
        result = f"{phase['metric']} {phase['value']}" if phase["value"] else "not measured"
        kept = '<span class="hft-kept">the model</span>' if phase["kept"] else ""
        rate = phase["rate"].removeprefix("none: ")
        how = phase["length"] if rate != phase["rate"] else f"rates {rate}, {phase['length']}"
        words = (
            f"{show_count(phase['trainable'])} of {show_count(phase['total'])} parameters "
            f"({show_share(phase['share'])}), {how}, {show_seconds(phase['seconds'])}"
        )
        rows.append(
            f"<li><div class='hft-class'><b>{i}. {escape(phase['name'])}</b>{kept}"
            f"<span class='hft-soft'>{escape(result)}</span></div>"
            f'<div class="hft-groups" role="img" aria-label="trained: '
            f'{escape(" ".join(phase["groups"]))}">{strip}</div>'
            f"<p class='hft-soft'>{escape(words)}</p></li>"
        )
    return f'<ol class="hft-classes">{"".join(rows)}</ol>'


def _moved(report: RunReport) -> str:
    """Return how far each group moved, and what the check after each phase counted."""
    charts = "".join(
        f"<figure>{drawn}<figcaption>{escape(found.get('note', ''))}</figcaption></figure>"
        for found in report.figures
        if (drawn := figure(found, title=True))
    )
    rows = [(phase["name"], phase["proof"]) for phase in page_phases.phases(report)]
    counts = "".join(
        f"<p class='hft-soft'><b>{escape(name)}</b>: parameters and buffers, "
        f"{escape(', '.join(proof))}</p>"
        for name, proof in rows
        if proof
    )
    return counts + (f'<div class="hft-charts">{charts}</div>' if charts else "")


def _curves(report: RunReport) -> str:
    charts = page_phases.curves(report)
    return f'<div class="hft-charts">{"".join(map(str, charts))}</div>' if charts else ""


def _matrix(model: Shown, values: JsonDict) -> str:
    confusion, labels = values.get("confusion"), model.report.labels if model.report else ()
    if not confusion or len(labels) > MOST_CLASSES:
        return ""
    head = "".join(f"<th scope='col'>{escape(label)}</th>" for label in labels)
    body = "".join(
        f"<tr><th scope='row'>{escape(labels[i])}</th>"
        + "".join(_cell(labels, i, j, count, sum(row)) for j, count in enumerate(row))
        + "</tr>"
        for i, row in enumerate(confusion)
    )
    hint = "Rows are the true classes, columns the answers."
    if model.answers or (model.may_show and model.report and model.report.examples):
        hint += " Choose a cell to see its images."
    return (
        f"<p class='hft-soft'>{hint}</p>"
        '<div class="hft-scroll" tabindex="0" role="region" aria-label="Confusion matrix">'
        f'<table class="hft-matrix"><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody>'
        "</table></div>"
    )


def _cell(labels: Sequence[str], i: int, j: int, count: int, total: int) -> str:
    if not count:
        return "<td></td>"
    share = count / max(1, total)
    strength = max(0.08, share if i == j else share**0.7)
    words = f"{count} of {total} {labels[i]} answered {labels[j]}"
    kind = "hit" if i == j else "miss"
    return (
        f'<td><button type="button" class="hft-count {kind}" style="--s:{strength:.2f}" '
        f'data-act="cell" data-true="{i}" data-said="{j}" data-key="{i}-{j}" '
        f'aria-label="{escape(words)}" title="{escape(words)}">{count}</button></td>'
    )


def _scores(values: JsonDict) -> str:
    rows = values.get("per_class") or values.get("per_label") or ()
    if not rows:
        return ""
    cells = "".join(
        f"<tr><th scope='row'>{escape(row['label'])}</th><td>{row['n']:,}</td>"
        + "".join(f"<td>{_share(row[key])}</td>" for key in ("precision", "recall", "f1"))
        + "</tr>"
        for row in rows
    )
    head = "".join(
        f"<th scope='col'>{title}</th>" for title in ("Class", "n", "Precision", "Recall", "F1")
    )
    return (
        '<div class="hft-scroll" tabindex="0" role="region" aria-label="Scores by class">'
        f'<table class="hft-table"><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table>'
        "</div>"
    )


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


# --- curves of a training --------------------------------------------------------------------


@dataclass
class Curve:
    """What one way of training told so far: points (epoch, value) and the spans of its phases."""

    title: str
    accuracy: list[tuple[float, float]]
    loss: list[tuple[float, float]]
    bands: list[Band]


def live_charts(curves: Sequence[Curve]) -> str:
    """Return accuracy and loss of all ways over their epochs."""
    charts = []
    for what, key in (("Accuracy", "accuracy"), ("Loss", "loss")):
        lines = [
            Line(
                curve.title,
                f"way{i % 4}",
                thin(getattr(curve, key)),
                marked=key == "accuracy" and len(getattr(curve, key)) < 40,
            )
            for i, curve in enumerate(curves)
            if getattr(curve, key)
        ]
        if lines:
            bands = curves[0].bands if len(curves) == 1 else []
            charts.append(line_chart(what, lines, bands, lambda y: f"{y:.2g}"))
    return f'<div class="hft-charts">{"".join(charts)}</div>' if charts else ""
