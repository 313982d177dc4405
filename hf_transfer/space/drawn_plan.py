"""The plan as a picture: a row for each stage of the network, a column for each phase."""

from __future__ import annotations

import math

from hf_transfer.planning.plan import PlannedPhase
from hf_transfer.planning.quantities import format_bytes
from hf_transfer.recipe.phase_parts import AUGMENTS as KINDS
from hf_transfer.results.svg import escape
from hf_transfer.results.words import show_count, show_rate
from hf_transfer.space.draft import AUGMENTS, Draft
from hf_transfer.space.drawn import about, note, panel, show_share


def plan_view(draft: Draft | None) -> str:
    """Return the picture of a plan with what it costs; what is clicked comes back as an event."""
    if draft is None:
        return panel('<p class="hft-soft">Choose images and a network, then make a plan.</p>')
    if draft.plan is None:
        return note(draft.problem, "problem")
    phases = draft.plan.phases
    head = "".join(_phase_head(planned, len(phases)) for planned in phases)
    body = "".join(_stage_row(draft, stage) for stage in reversed(draft.stages))
    foot = "".join(f"<td>{_settings(planned)}</td>" for planned in phases)
    cost = "".join(f"<td>{_cost(planned)}</td>" for planned in phases)
    add = ""
    if len(phases) < draft.limits.phases:
        add = (
            '<button type="button" class="hft-add" data-act="add" data-key="add">Add a phase'
            "</button>"
        )
    table = (
        '<div class="hft-scroll" tabindex="0" role="region" aria-label="Plan">'
        '<table class="hft-plan"><thead><tr><th scope="col">Layers, output on top</th>'
        f"{head}</tr></thead><tbody>{body}</tbody>"
        f'<tfoot><tr><th scope="row">Settings</th>{foot}</tr>'
        f'<tr><th scope="row">Cost</th>{cost}</tr></tfoot></table></div>'
    )
    notes = "".join(note(text) for text in draft.plan.notes)
    return panel(
        f"{_headline(draft)}{table}{add}{notes}{note(draft.problem or draft.refusal, 'problem')}",
        style="hft-planned",
    )


def _headline(draft: Draft) -> str:
    plan = draft.plan
    assert plan is not None
    memory = max(planned.memory_bytes for planned in plan.phases)
    trained = {name for planned in plan.phases for name in planned.phase.parameters}
    share = sum(plan.groups.layout.sizes.get(name, 0) for name in trained) / plan.groups.total
    facts = (
        ("Time", about(plan.seconds)),
        ("Memory", format_bytes(memory)),
        ("Trains", f"{show_share(share)} of {show_count(plan.groups.total)} parameters"),
        ("Images", " + ".join(f"{n:,} {split}" for split, n in plan.counts.items())),
    )
    cells = "".join(f"<div><dt>{a}</dt><dd>{escape(b)}</dd></div>" for a, b in facts)
    return f'<dl class="hft-facts">{cells}</dl>'


def _phase_head(planned: PlannedPhase, count: int) -> str:
    number = planned.phase.index
    remove = ""
    if count > 1:
        remove = (
            f'<button type="button" class="hft-remove" data-act="remove" data-key="x{number}" '
            f'data-phase="{number - 1}" aria-label="Remove phase {number}">×</button>'
        )
    return f'<th scope="col">Phase {number}{remove}</th>'


def _stage_row(draft: Draft, stage: str) -> str:
    assert draft.plan is not None
    size = draft.sizes().get(stage, 0)
    largest = max(draft.sizes().values())
    width = 100 * math.log1p(size) / math.log1p(largest)
    cells = []
    for i in range(len(draft.plan.phases)):
        share = draft.trained(i).get(stage, 0.0)
        state = "on" if share == 1 else "part" if share else "off"
        words = {"on": "trains", "part": "in part", "off": "frozen"}[state]
        cells.append(
            f'<td><button type="button" class="hft-cell {state}" data-act="toggle" '
            f'data-phase="{i}" data-stage="{escape(stage)}" data-key="{i}/{escape(stage)}" '
            f'aria-pressed="{"true" if share else "false"}" '
            f'aria-label="{escape(stage)}, phase {i + 1}: {words}">{words}</button></td>'
        )
    return (
        f'<tr><th scope="row"><span class="hft-stage">{escape(stage)}</span>'
        f'<span class="hft-soft">{show_count(size)}</span>'
        f'<i class="hft-size" style="width:{width:.0f}%"></i></th>{"".join(cells)}</tr>'
    )


def _settings(planned: PlannedPhase) -> str:
    spec, at = planned.phase.spec, planned.phase.index - 1
    if spec.solve:
        return '<span class="hft-soft">solved exactly: no rate to choose</span>'
    fields = [
        _field("Rate", "rate", at, show_rate(planned.highest)),
        _field(
            "Epochs",
            "epochs",
            at,
            f"{spec.epochs:g}" if spec.epochs else "",
            f"{spec.steps} steps" if spec.steps else "",
        ),
    ]
    named = next((name for name in AUGMENTS if KINDS[name] == spec.augment), "")
    options = "".join(
        f'<option value="{name}"{" selected" * (name == named)}>{name}</option>'
        for name in (AUGMENTS if named else (*AUGMENTS, ""))
    )
    fields.append(
        f'<label>Augmentation<select data-act="augment" data-phase="{at}" '
        f'data-key="augment{at}">{options}</select></label>'
    )
    return "".join(fields)


def _field(title: str, act: str, at: int, value: str, hint: str = "") -> str:
    return (
        f'<label>{title}<input type="text" inputmode="decimal" autocomplete="off" '
        f'data-act="{act}" data-phase="{at}" data-key="{act}{at}" '
        f'value="{escape(value)}" placeholder="{hint}"></label>'
    )


def _cost(planned: PlannedPhase) -> str:
    lines = [f"{show_count(planned.parameters)} parameters"]
    if planned.steps:
        lines.append(f"{planned.steps:,} steps")
    lines.append(about(planned.seconds))
    lines.append("every image each epoch" if planned.live else "features computed once")
    return "<br>".join(map(escape, lines))
