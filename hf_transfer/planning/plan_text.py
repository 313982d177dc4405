"""A plan as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from hf_transfer.base.console import WIDE
from hf_transfer.planning.plan import Plan, PlannedPhase
from hf_transfer.planning.quantities import (
    format_bytes,
    format_operations,
    format_range,
    format_seconds,
    format_share,
)
from hf_transfer.planning.text_table import table, wrapped
from hf_transfer.recipe.tasks import TASKS

ROWS, COLUMNS = 20, 7  # of the table of rates; what is more is left out in the middle
LABELS = 12  # that are named; of more, the first ones
SIDE = 10  # columns of the words before what they say
HEADINGS = ("phase", "trains", ">parameters", ">share", "rates", ">epochs", ">steps", ">batch")
COSTS = ("features", ">memory", ">compute", ">time")


def format_plan(plan: Plan, width: int = WIDE) -> str:
    """Return a plan as text, folded to `width` columns: data, phases, cost, notes, and rates where
    they differ."""
    headings = [wrapped(line, width, SIDE) for line in _headings(plan)]
    notes = [wrapped(f"note: {note}", width, 2) for note in plan.notes]
    parts = [
        _joined(headings),
        "\n".join(table(_phase_rows(plan), width)),
        _joined(wrapped(line, width, 2) for line in _below(plan)),
        _joined(notes),
        "\n".join(_rates(plan, width)),
    ]
    return "\n\n".join(part for part in parts if part)


def _joined(paragraphs: Iterable[list[str]]) -> str:
    return "\n".join(line for lines in paragraphs for line in lines)


# --- what it starts from ---------------------------------------------------------------------


def _headings(plan: Plan) -> list[str]:
    recipe, groups = plan.recipe, plan.groups
    weights = "pretrained" if recipe.pretrained else "random weights"
    if recipe.source:
        weights = "trained first, on the recipe's source"
    name = recipe.backbone or (recipe.source.backbone if recipe.source else "a backbone")
    seeds = f", {recipe.seeds} seeds" if recipe.seeds > 1 else ""
    seeds += f", {recipe.folds} folds, then all images" if recipe.folds > 1 else ""
    phases = f"{len(plan.phases)} phase{'s' * (len(plan.phases) > 1)}{seeds}"
    counts = ", ".join(f"{number:,} {split}" for split, number in plan.counts.items())
    pretext = TASKS[recipe.task].is_pretext
    what = "without labels, " if pretext else f"{plan.labels} {_nouns(plan)}, "
    lines = [
        f"{recipe.name}: {recipe.task}, {phases}",
        f"backbone  {name}, {weights}: {groups.total:,} parameters in {len(groups.groups)} groups; "
        f"{_head(plan)}",
        f"data      {recipe.data.path or '(none)'}: {what}{counts} images at {plan.image_px} px",
    ]
    return lines if pretext else [*lines, *_labels(plan)]


def _head(plan: Plan) -> str:
    layout = plan.groups.layout
    size = sum(layout.sizes[name] for name in layout.head)
    if not size or layout.head_kept:
        return "its own head is kept"
    return f"new head of {size:,} for {layout.labels} {_nouns(plan)}"


def _nouns(plan: Plan) -> str:
    if TASKS[plan.recipe.task].is_pretext:
        return "outputs of the pretext"
    noun = "target" if plan.recipe.task == "regression" else "label"
    return noun if plan.labels == 1 else f"{noun}s"


def _labels(plan: Plan) -> list[str]:
    """Return a line that names the labels, with the images that each has in each split."""
    names = list(dict.fromkeys(name for counts in plan.by_label.values() for name in counts))
    shown = names if len(names) <= LABELS else names[: LABELS - 2]
    more = [f"{len(names) - len(shown)} more"] if len(shown) < len(names) else []
    if plan.recipe.task == "regression":
        return [f"targets   {', '.join([*shown, *more])}"]
    splits = list(plan.by_label)
    told = [f"{n} {' + '.join(f'{plan.by_label[s].get(n, 0):,}' for s in splits)}" for n in shown]
    return [f"labels    {', '.join([*told, *more])} ({' + '.join(splits)})"] if names else []


# --- phases ----------------------------------------------------------------------------------


def _phase_rows(plan: Plan) -> list[list[str]]:
    return [[*HEADINGS, *COSTS], *(_phase_row(plan, planned) for planned in plan.phases)]


def _phase_row(plan: Plan, planned: PlannedPhase) -> list[str]:
    spec = planned.phase.spec
    batch = f"{spec.batch_size} x {spec.accumulate}" if spec.accumulate > 1 else spec.batch_size
    rates = format_range(group.lr for group in planned.rates) + " !" * planned.hardly_moves
    return [
        f"{planned.phase.index} {planned.phase.name}",
        planned.trains,
        f"{planned.parameters:,}",
        format_share(planned.parameters / plan.groups.total),
        "" if spec.solve else rates,
        f"{planned.epochs:g}" if planned.epochs else "" if spec.steps else spec.solve or "",
        f"{planned.steps:,}" if planned.steps else "",
        "" if spec.solve else str(batch),
        "live" if planned.live else f"cached, {format_bytes(planned.disk_bytes)}",
        format_bytes(planned.memory_bytes),
        format_operations(planned.operations),
        format_seconds(planned.seconds),
    ]


def _below(plan: Plan) -> list[str]:
    """Return what stands below the table: the sum, what never trains, and how sure this is."""
    trained = {name for planned in plan.phases for name in planned.phase.parameters}
    for planned in plan.phases:  # merging an adapter changes its layer
        adapters = planned.phase.adapters
        trained |= {f"{path}.weight" for path in adapters.layers} if adapters else set()
    left = sum(size for name, size in plan.groups.layout.sizes.items() if name not in trained)
    operations = sum(planned.operations for planned in plan.phases) * plan.recipe.runs
    total = f"in all {format_operations(operations)}"
    if plan.seconds is not None:
        total += f", {format_seconds(plan.seconds)} on this machine's processor"
    lines = [total]
    if left:
        share = format_share(left / plan.groups.total)
        lines.append(f"never trained: {left:,} parameters ({share})")
    lines += _live(plan)
    if plan.machine.processes > 1:
        lines.append(_several(plan))
    return [
        *lines,
        "Memory, compute and time are estimates; starting, loading and decoding come on top. "
        "Features marked cached are computed once for each image and kept on disk.",
    ]


def _live(plan: Plan) -> list[str]:
    """Return why frozen layers run in every epoch, phases with one reason in one line."""
    reasons: dict[str, list[str]] = {}
    for planned in plan.phases:
        if planned.live and planned.phase.frozen_prefix:
            reasons.setdefault(planned.live, []).append(planned.phase.name)
    return [
        f"phase{'s' * (len(names) > 1)} {', '.join(names)}: frozen layers run in every epoch, "
        f"because {why}"
        for why, names in reasons.items()
    ]


def _several(plan: Plan) -> str:
    """Return what several processes share: the batches, and in each step only what trains."""
    count = plan.machine.processes
    if plan.machine.sharded:
        return (
            f"{count} processes, each with its own batches, shard parameters, gradients and "
            "optimizer state (FSDP): each needs less memory than shown"
        )
    reduced = [
        f"{planned.reduced_bytes:,} bytes ({planned.phase.name})"
        for planned in plan.phases
        if planned.reduced_bytes
    ]
    return (
        f"{count} processes, each with its own batches, exchange in each step only the gradients "
        f"of what trains: {', '.join(reduced) or 'none'}"
    )


# --- rates -----------------------------------------------------------------------------------


def _rates(plan: Plan, width: int) -> list[str]:
    """Return the table of rates: a row for each group, the head first, a column for each phase.

    Empty where every phase has one rate. What a group has several of is shown as a range.
    """
    several = [planned for planned in plan.phases if planned.lowest < planned.highest]
    if not several:
        return []
    shown = several if len(several) <= COLUMNS else [*several[: COLUMNS - 1], several[-1]]
    by_name = [
        {name: group.lr for group in planned.rates for name in group.names} for planned in shown
    ]
    rows = [["rates", ">parameters", *(f">{planned.phase.name}" for planned in shown)]]
    for i, group in reversed(list(enumerate(plan.groups.groups))):
        cells = [
            format_range(rates[n] for n in planned.phase.network.groups[i].parameters if n in rates)
            for planned, rates in zip(shown, by_name, strict=True)
        ]
        if any(cells):
            rows.append([group.name, f"{group.size:,}", *cells])
    if len(rows) > ROWS + 1:
        half = ROWS // 2
        gap = [f"… {len(rows) - 1 - 2 * half} more", *("" for _ in rows[0][1:])]
        rows = [*rows[: half + 1], gap, *rows[-half:]]
    left = len(several) - len(shown)
    return [*table(rows, width), *([f"… and {left} more phases"] if left else [])]
