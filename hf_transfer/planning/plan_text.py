"""A plan as a table to read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hf_transfer.planning.plan import Plan, PlannedPhase

ROWS, COLUMNS = 20, 7  # of the table of rates; what is more is left out in the middle


def format_plan(plan: Plan) -> str:
    """Return a plan as text for a terminal: phases, cost, notes, and rates where they differ."""
    parts = [
        "\n".join(_heading(plan)),
        "\n".join(_table(_phase_rows(plan))),
        "\n".join(_below(plan)),
    ]
    if plan.notes:
        parts.append("\n".join(f"note: {note}" for note in plan.notes))
    parts.append("\n".join(_rates(plan)))
    return "\n\n".join(part for part in parts if part)


def _heading(plan: Plan) -> list[str]:
    recipe, groups = plan.recipe, plan.groups
    head = sum(plan.groups.layout.sizes[name] for name in plan.groups.layout.head)
    weights = "pretrained" if recipe.pretrained else "random weights"
    if recipe.source:
        weights = "trained first, as the recipe's source says"
    name = recipe.backbone or (recipe.source.backbone if recipe.source else "a backbone")
    told = "targets" if recipe.task == "regression" else "labels"
    new = f"new head of {head:,} for {plan.groups.layout.labels} {told}"
    if not head or plan.groups.layout.head_kept:
        new = "its own head is kept"
    counts = ", ".join(f"{number:,} {split}" for split, number in plan.counts.items())
    seeds = f", {recipe.seeds} seeds" if recipe.seeds > 1 else ""
    phases = f"{len(plan.phases)} phase{'s' * (len(plan.phases) > 1)}{seeds}"
    return [
        f"{recipe.name}: {recipe.task}, {phases}",
        f"backbone  {name}, {weights}: {groups.total:,} parameters in "
        f"{len(groups.groups)} groups; {new}",
        f"data      {recipe.data.path or '(none)'}: {plan.labels} {told}, {counts} images "
        f"at {plan.image_px} px",
    ]


def _phase_rows(plan: Plan) -> list[list[str]]:
    rows = [
        [
            "phase",
            "trains",
            ">parameters",
            ">share",
            "rates",
            ">epochs",
            ">steps",
            ">batch",
            "features",
            ">memory",
            ">compute",
            ">time",
        ]
    ]
    for planned in plan.phases:
        spec = planned.phase.spec
        accumulated = f"{spec.batch_size} x {spec.accumulate}"
        length = f"{spec.epochs:g}" if spec.epochs else "" if spec.steps else spec.solve or ""
        rows.append(
            [
                f"{planned.phase.index} {planned.phase.name}",
                planned.trains,
                f"{planned.parameters:,}",
                _share(planned.parameters / plan.groups.total),
                "" if spec.solve else _rate_range(planned),
                length,
                f"{planned.steps:,}" if planned.steps else "",
                "" if spec.solve else accumulated if spec.accumulate > 1 else str(spec.batch_size),
                "live" if planned.live else f"cached, {format_bytes(planned.disk_bytes)}",
                format_bytes(planned.memory_bytes),
                format_operations(planned.operations),
                format_seconds(planned.seconds),
            ]
        )
    return rows


def _below(plan: Plan) -> list[str]:
    """Return what stands below the table: the sum, what never trains, and how sure this is."""
    trained = {name for planned in plan.phases for name in planned.phase.parameters}
    for planned in plan.phases:  # merging an adapter changes its layer
        adapters = planned.phase.adapters
        trained |= {f"{path}.weight" for path in adapters.layers} if adapters else set()
    left = sum(size for name, size in plan.groups.layout.sizes.items() if name not in trained)
    operations = sum(planned.operations for planned in plan.phases) * plan.recipe.seeds
    lines = []
    total = f"together {format_operations(operations)}"
    if plan.seconds is not None:
        total += f", {format_seconds(plan.seconds)} on this machine's processor"
    lines.append(total)
    if left:
        lines.append(f"never trained: {left:,} parameters ({_share(left / plan.groups.total)})")
    for planned in plan.phases:
        if planned.live and planned.phase.frozen_prefix:
            name = planned.phase.name
            lines.append(f"phase {name} runs what is frozen in every epoch: {planned.live}")
    if plan.machine.processes > 1:
        lines.append(_together(plan))
    lines.append(
        "Memory, compute and time are estimates: weights, gradients, optimizer and best weights, "
        "rough activations;"
    )
    lines.append(
        "without starting and decoding. Cached: the frozen part runs once an image, kept on disk."
    )
    return lines


def _together(plan: Plan) -> str:
    """Return what several processes share: the batches, and in each step only what trains."""
    if plan.machine.sharded:
        return (
            f"{plan.machine.processes} processes, each with its own batches, share out parameters, "
            "gradients and optimizer (FSDP): each needs less memory than stands here"
        )
    reduced = [
        f"{planned.reduced_bytes:,} bytes ({planned.phase.name})"
        for planned in plan.phases
        if planned.reduced_bytes
    ]
    return (
        f"{plan.machine.processes} processes, each with its own batches, sum in each step the "
        f"gradients of what trains: {', '.join(reduced) or 'none'}"
    )


def _rates(plan: Plan) -> list[str]:
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
            _range(rates[n] for n in planned.phase.network.groups[i].parameters if n in rates)
            for planned, rates in zip(shown, by_name, strict=True)
        ]
        if any(cells):
            rows.append([group.name, f"{group.size:,}", *cells])
    if len(rows) > ROWS + 1:
        half = ROWS // 2
        gap = [f"… {len(rows) - 1 - 2 * half} more", *("" for _ in rows[0][1:])]
        rows = [*rows[: half + 1], gap, *rows[-half:]]
    left = len(several) - len(shown)
    return [*_table(rows), *([f"… and {left} phases more"] if left else [])]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as aligned lines; a heading that starts with > is aligned to the right."""
    right = [heading.startswith(">") for heading in rows[0]]
    cells = [[cell.removeprefix(">") for cell in rows[0]], *rows[1:]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(right))]
    return [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]


def _rate_range(planned: PlannedPhase) -> str:
    return _range(group.lr for group in planned.rates) + " !" * planned.hardly_moves


def _range(rates: Iterable[float]) -> str:
    """Return the smallest and largest rate, as one where they look the same; nothing of none."""
    found = list(rates)
    ends = [f"{rate:.2g}" for rate in (min(found), max(found))] if found else []
    return " to ".join(dict.fromkeys(ends))


def _share(share: float) -> str:
    if 0 < share < 5e-5:
        return "<0.01%"
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}" if share >= 0.01 else f"{share:.2%}"


def format_bytes(count: float) -> str:
    """Return bytes as a person reads them, such as 94 MB."""
    return _scaled(count, 1e6, ("MB", "GB", "TB"))


def format_operations(count: float) -> str:
    """Return a number of operations as a person reads it, such as 28 GFLOP."""
    return _scaled(count, 1e9, ("GFLOP", "TFLOP", "PFLOP", "EFLOP"))


def _scaled(count: float, unit: float, names: Sequence[str]) -> str:
    value, i = count / unit, 0
    while value >= 1000 and i + 1 < len(names):
        value, i = value / 1000, i + 1
    return f"{value:.0f} {names[i]}" if value >= 10 else f"{value:.1f} {names[i]}"


def format_seconds(seconds: float | None) -> str:
    """Return an estimated time as a person reads it, such as about 3 min."""
    if seconds is None:
        return "not known"
    if seconds < 1:
        return "under 1 s"
    if seconds < 100:
        return f"about {seconds:.0f} s"
    if seconds < 6000:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.{'0f' if seconds > 36000 else '1f'}} h"
