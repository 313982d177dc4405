"""The page's account of the training: what each phase trained, at which rates, and the curves."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from hf_transfer.base.boundary import printable
from hf_transfer.recipe.tasks import PROBES
from hf_transfer.results.charts import Band, Line, line_chart
from hf_transfer.results.conclusions import phase_value
from hf_transfer.results.places import place_name
from hf_transfer.results.report import PhaseReport, RunReport
from hf_transfer.results.svg import Point, thin
from hf_transfer.results.words import (
    JsonDict,
    is_number,
    metric_phrase,
    metric_title,
    show_headline,
    show_rate,
)

MOST_GROUPS_NAMED = 3
NEVER_TRAINED = "all layers that no phase trained"
PROOF = {  # what the check after a phase counted, in words
    "moved": "{} changed",
    "still": "{} unchanged",
    "unmoved": "{} that should have changed did not",
    "ranks": "equal on all {} processes",
}


def phases(report: RunReport) -> list[JsonDict]:
    """Return what each phase trained, how, and what came of it."""
    # The phase that trains most names the groups in their order; the others may add to it.
    widest = sorted(report.phases, key=lambda phase: -len(phase.groups))
    known = list(dict.fromkeys(group for phase in widest for group in phase.groups))
    if any(phase.trainable_parameters < phase.total_parameters for phase in widest[:1]):
        known.insert(0, NEVER_TRAINED)
    return [_phase(report, phase, known) for phase in report.phases]


def _phase(report: RunReport, phase: PhaseReport, known: Sequence[str]) -> JsonDict:
    name, value = phase_value(report, phase)
    return {
        "name": phase.name,
        "value": None if value is None else show_headline(name, value),
        "metric": metric_phrase(name),
        "kept": report.best_phase == phase.name and len(report.phases) > 1,
        "strip": [
            (group, "on" if group in phase.groups else "rest" if group is NEVER_TRAINED else "")
            for group in known
        ],
        "groups": group_words(phase),
        "trainable": phase.trainable_parameters,
        "total": phase.total_parameters,
        "share": phase.trainable_parameters / max(1, phase.total_parameters),
        "rate": rate_words(phase),
        "length": length_words(phase),
        "seconds": phase.seconds,
        "ended": ended_words(phase),
        "how": list(_how(phase)),
        "proof": list(_proof(phase)),
        "rates": phase.rates if len({row.get("lr") for row in phase.rates}) > 1 else (),
    }


def group_words(phase: PhaseReport) -> list[str]:
    """Return the names of the groups that trained; of many the first and the last, around "…"."""
    groups = list(phase.groups)
    return groups if len(groups) <= MOST_GROUPS_NAMED else [groups[0], "…", groups[-1]]


def rate_words(phase: PhaseReport) -> str:
    """Return the learning rates of a phase, the largest first."""
    if phase.solve:
        found = [row["regularisation"] for row in phase.history if "regularisation" in row]
        known = found and is_number(found[0])
        return f"none: solved, regularisation {found[0]:.3g}" if known else "none: solved"
    rates = [row["lr"] for row in phase.rates if row.get("lr") is not None]
    if not rates:
        return "not stated"
    low, high = show_rate(min(rates)), show_rate(max(rates))
    how = ", found by a range test" if any(row.get("found") for row in phase.rates) else ""
    return (high if low == high else f"{high} down to {low}") + how


def length_words(phase: PhaseReport) -> str:
    """Return how long a phase trained, in epochs and steps."""
    steps = f"{phase.steps:,} step" + ("" if phase.steps == 1 else "s")
    if phase.solve:
        return f"solved in {steps}" if phase.steps else "solved"
    return f"{phase.epochs:g} epoch" + ("" if phase.epochs == 1 else "s") + f", {steps}"


def ended_words(phase: PhaseReport) -> str:
    """Return how a phase ended, and with the weights of which epoch."""
    best = "" if phase.best_epoch is None else f"; best epoch {phase.best_epoch:g}"
    return (phase.stopped or "completed") + best


def _how(phase: PhaseReport) -> Iterator[str]:
    """Yield how a phase was run where that is not as usual."""
    if phase.features == "cached":
        yield "on cached features"
    yield from phase.gentle
    if phase.rollbacks:
        yield f"rolled back {phase.rollbacks} time" + ("" if phase.rollbacks == 1 else "s")


def _proof(phase: PhaseReport) -> Iterator[str]:
    """Yield what the check after the phase counted."""
    for name, value in phase.checks.items():
        count = len(value) if isinstance(value, list) else value
        usual = (name, count) in (("unmoved", 0), ("ranks", 1))
        if is_number(count) and not usual:
            yield PROOF.get(name, "{} " + name.replace("{", "{{").replace("}", "}}")).format(
                f"{count:,}"
            )


def curves(report: RunReport) -> list[Markup]:
    """Return the loss and the leading metric over the epochs of all phases, as charts."""
    if all(phase.solve for phase in report.phases):
        return []
    leads, probes = report.task.headline, [f"eval_{name}" for name in PROBES.values()]
    bands: list[Band] = []
    points: dict[str, list[Point]] = {
        name: [] for name in ("loss", "eval_loss", f"eval_{leads}", *probes)
    }
    best: list[float] = []
    seen: set[str] = set()
    for phase in report.phases:
        start = bands[-1].end if bands else 0.0
        rows = [row for row in phase.history if is_number(row.get("epoch"))]
        end = start + max([phase.epochs, *(row["epoch"] for row in rows)])
        bands.append(Band(phase.name, start, end, _unfreezes(phase, seen)))
        seen |= set(phase.groups)
        best += [start + phase.best_epoch] if phase.best_epoch is not None else []
        for name, found in points.items():
            found += [(start + r["epoch"], r[name]) for r in rows if is_number(r.get(name))]
    charts = []
    for title, lines in (
        ("Loss", (("training", "train", "loss"), ("validation", "valid", "eval_loss"))),
        (metric_title(leads), (("validation", "valid", f"eval_{leads}"),)),
        *((metric_title(p.removeprefix("eval_")), (("probe", "valid", p),)) for p in probes),
    ):
        drawn = [_line(name, style, points[key], best) for name, style, key in lines if points[key]]
        if drawn:
            charts.append(Markup(line_chart(title, drawn, bands, "{:.3g}".format)))  # noqa: S704
    return charts


def _unfreezes(phase: PhaseReport, seen: set[str]) -> str:
    """Return which groups train for the first time, where others have trained before."""
    new = [group for group in phase.groups if group not in seen]
    if not new or not seen:
        return ""
    return ", ".join(new) if len(new) <= 2 else f"{len(new)} groups"


def _line(name: str, style: str, points: Sequence[Point], best: Sequence[float]) -> Line:
    kept = thin(points)
    rings = tuple(p for p in kept if any(abs(p[0] - epoch) < 1e-6 for epoch in best))
    return Line(name, style, kept, rings, marked=style == "valid" and len(kept) <= 80)


def command(report: RunReport) -> str:
    """Return the command that trains such a model again, or scores one again."""
    if scored := report.metrics.get("command"):
        return str(scored)
    if not report.auto:
        return f"hf-transfer train recipe.yaml --data FOLDER --seed {report.seed}"
    minutes, size = report.auto.get("budget_seconds", 0) / 60, report.backbone.get("image_size")
    backbone = place_name(str(report.backbone.get("id") or "ID"))
    options = f" --minutes {max(1, round(minutes))}" if minutes else ""
    options += f" --image-size {size}" if isinstance(size, int) else ""
    options += f" --seed {report.seed}"
    more = printable(shlex.join(report.auto.get("options", [])))
    return f"hf-transfer train FOLDER --backbone {backbone}{options} {more}".strip()
