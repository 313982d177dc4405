"""The page's account of the training: what each phase trained, at which rates, and the curves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from hf_transfer.results.charts import Band, Line, Point, line_chart, shorten, thin
from hf_transfer.results.page_tables import MISSING, label, meter, table
from hf_transfer.results.report import PhaseReport, RunReport
from hf_transfer.results.words import WORDS, Facts, show_count, show_rate, show_seconds, show_value

SHORT = {"map": "mAP"}  # of the metrics' words, where a column is narrow

PHASE_COLUMNS = (
    ("Phase", "keep"),
    ("Trained", "trained"),
    ("Parameters", "keep"),
    ("Rate", "num"),
    ("Epochs", "num"),
    ("Time", "num"),
    ("", "num"),  # the leading metric
    ("Ended", "some"),
    ("Proof", "some"),
)
RATE_COLUMNS = (("Group", "keep"), ("Parameters", "num"), ("Rate", "num"), ("Weight decay", "num"))


def phases_section(report: RunReport) -> str:
    """Return the table of phases, each with a strip of the groups that trained, and the rates."""
    if not report.phases:
        return ""
    # The phase that trains most names the groups in their order; the others may add to it.
    widest = sorted(report.phases, key=lambda phase: -len(phase.groups))
    known = list(dict.fromkeys(group for phase in widest for group in phase.groups))
    leads = report.task.headline
    short = SHORT.get(leads, WORDS[leads])
    rows = [_phase_row(i, phase, known, leads) for i, phase in enumerate(report.phases, 1)]
    rates = "".join(
        f"<h3>Phase {i}: {escape(phase.name)}</h3>"
        + table(RATE_COLUMNS, [_rate_row(row) for row in phase.rates], "tall snug")
        for i, phase in enumerate(report.phases, 1)
        if phase.rates
    )
    return (
        '<section><h2>What trained, and when</h2><p class="note">Each phase starts from '
        "what the one before ended with. A strip shows the groups from input to output, in colour "
        "where they trained; groups that no phase trained are left out. "
        f"{WORDS[leads]} is on validation. "
        "The proof counts the tensors that moved and those still the same, bit for bit.</p>"
        + table([(title or short, style) for title, style in PHASE_COLUMNS], rows)
        + (f"<details><summary>All rates</summary>{rates}</details>" if rates else "")
        + "</section>"
    )


def curves_section(report: RunReport) -> str:
    """Return the loss and the leading metric over the epochs of all phases; nothing where there are
    none."""
    if all(phase.solve for phase in report.phases):
        return ""
    leads = report.task.headline
    bands: list[Band] = []
    train: list[Point] = []
    loss: list[Point] = []
    measured: list[Point] = []
    best: list[float] = []
    for phase in report.phases:
        start = bands[-1].end if bands else 0.0
        rows = [row for row in phase.history if row.get("epoch") is not None]
        bands.append(
            Band(phase.name, start, start + max([phase.epochs, *(row["epoch"] for row in rows)]))
        )
        best += [start + phase.best_epoch] if phase.best_epoch is not None else []
        for name, points in (("loss", train), ("eval_loss", loss), (f"eval_{leads}", measured)):
            points += [
                (start + row["epoch"], row[name]) for row in rows if row.get(name) is not None
            ]
    charts = []
    for title, curves in (
        ("Loss", (("training", "train", train), ("validation", "valid", loss))),
        (WORDS[leads], (("validation", "valid", measured),)),
    ):
        lines = [_line(name, style, points, best) for name, style, points in curves if points]
        if lines:
            charts.append(f"<div>{line_chart(title, lines, bands, '{:.3g}'.format)}</div>")
    if not charts:
        return ""
    return (
        '<section><h2>Training</h2><p class="note">The epochs of all phases, one after the other. '
        "A ring marks the epoch whose weights a phase ended with.</p>"
        f'<div class="charts">{"".join(charts)}</div></section>'
    )


def _phase_row(index: int, phase: PhaseReport, known: Sequence[str], leads: str) -> list[str]:
    strip = "".join(
        f'<i class="{"on" if group in phase.groups else ""}" title="{escape(group)}"></i>'
        for group in known
    )
    rates = [row["lr"] for row in phase.rates if row.get("lr") is not None]
    rate = show_rate(max(rates)) if rates else MISSING
    if phase.solve:
        found = (row["regularisation"] for row in phase.history if "regularisation" in row)
        rate = label(f"regularisation {next(found, 0):.3g}")
    if rates and min(rates) != max(rates):
        rate += label(f"down to {show_rate(min(rates))}")
    best = "" if phase.best_epoch is None else f"best epoch {phase.best_epoch:g}"
    total = phase.total_parameters
    value = phase.metrics.get(leads, phase.metrics.get(f"eval_{leads}"))
    return [
        f"<b>{index}</b>&ensp;{escape(phase.name)}",
        f'{_groups(phase.groups)}<span class="strip">{strip}</span>',
        f"{show_count(phase.trainable_parameters)} of {show_count(total)}"
        + meter(phase.trainable_parameters / (total or 1)),
        rate,
        ("solved" if phase.solve else f"{phase.epochs:g}") + label(f"{phase.steps:,} steps"),
        show_seconds(phase.seconds),
        MISSING if value is None else show_value(leads, value),
        escape(phase.stopped or "ran to its end") + label(best),
        _checks(phase.checks) + label(", ".join(_how(phase))),
    ]


def _rate_row(row: Facts) -> list[str]:
    return [
        escape(str(row.get("label", ""))),
        show_count(row.get("parameters")),
        show_rate(row.get("lr")),
        show_rate(row.get("weight_decay")),
    ]


def _groups(groups: Sequence[str]) -> str:
    chips = [f'<span class="chip" title="{escape(g)}">{escape(shorten(g))}</span>' for g in groups]
    if len(groups) <= 3:
        return "".join(chips)
    return f"{chips[0]}… {chips[-1]}{label(f'{len(groups)} groups')}"


def _how(phase: PhaseReport) -> Iterator[str]:
    """Yield how a phase was run where that is not as usual."""
    if phase.features == "cached":
        yield "features cached"
    if phase.compiled.get("compiled"):
        yield "compiled"


def _checks(checks: Facts) -> str:
    """What the check after the phase counted, in words; the JSON names what it lists."""
    words = []
    for name, value in checks.items():
        if isinstance(value, list) and value:
            words.append(f"{len(value)} {name}")
        elif isinstance(value, (int, float)) and not (name == "ranks" and value == 1):
            words.append(f"{value:,} {name}")
    return escape(", ".join(words)) or MISSING


def _line(name: str, style: str, points: Sequence[Point], best: Sequence[float]) -> Line:
    kept = thin(points)
    rings = tuple(p for p in kept if any(abs(p[0] - epoch) < 1e-6 for epoch in best))
    return Line(name, style, kept, rings, marked=style == "valid" and len(kept) <= 80)
