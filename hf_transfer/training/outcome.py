"""What a phase did, from Trainer's state to a PhaseReport."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from transformers import TrainerState

from hf_transfer.base.errors import UserError
from hf_transfer.planning.phase import Phase
from hf_transfer.planning.rates import param_groups
from hf_transfer.recipe import stopping
from hf_transfer.recipe.tasks import CLASSIFICATION
from hf_transfer.results.metrics import classification
from hf_transfer.results.report import PhaseReport
from hf_transfer.training.proof import Proof

_SPEED = ("_per_second", "_runtime", "_preparation_time")


def phase_report(
    phase: Phase,
    state: Any,
    proof: Proof,
    seconds: float,
    cached: bool,
    rollbacks: int = 0,
    auto: bool = False,
) -> PhaseReport:
    """Return the report of a finished phase; its metrics are those of the epoch it ended with.
    `auto` says that its rates were found by a range test."""
    history = history_of(state.log_history)
    best, solved = best_row(phase, history), phase.spec.solve is not None
    sizes = phase.layout.sizes
    return PhaseReport(
        name=phase.name,
        groups=phase.groups,
        trainable_parameters=sum(sizes[name] for name in phase.parameters),
        total_parameters=sum(sizes.values()),
        epochs=state.epoch or 0.0,
        steps=state.global_step,
        seconds=seconds,
        stopped=_stopped(phase, state),
        best_epoch=best["epoch"] if best and not solved else None,
        metrics={
            key.removeprefix("eval_"): value
            for key, value in best.items()
            if key.startswith("eval_") and not key.endswith(_SPEED)
        },
        history=tuple(history),
        solve=phase.spec.solve,
        rates=()
        if solved
        else tuple(
            {
                "label": group.label,
                "parameters": sum(sizes[name] for name in group.names),
                "lr": group.lr,
                "weight_decay": group.weight_decay,
                **({"found": True} if auto else {}),
            }
            for group in param_groups(phase)
        ),
        features="cached" if cached else "live",
        checks=asdict(proof),
        rollbacks=rollbacks,
        gentle=phase.gentle,
        settings={k: v for k, v in asdict(phase.spec).items() if v is not None and k != "place"},
    )


def announced(phase: Phase) -> str:
    """Return what a phase trains, and how, in a line."""
    sizes, rates = phase.layout.sizes, [group.lr for group in param_groups(phase)]
    count, total = sum(sizes[name] for name in phase.parameters), sum(sizes.values())
    low, high = f"{min(rates):.3g}", f"{max(rates):.3g}"
    how = f"rate {high}" if low == high else f"rates {low} to {high}"
    how = "solved" if phase.spec.solve else how
    return "; ".join(
        [
            f"phase {phase.index} {phase.name}: {', '.join(phase.groups)}",
            f"{count:,} of {total:,} parameters",
            how,
            *phase.gentle,
        ]
    )


def joined(state: TrainerState, reports: Sequence[PhaseReport]) -> TrainerState:
    """Return Trainer's state after several phases: their logs and steps one after the other."""
    rows, steps, epochs = [], 0, 0.0
    for report in reports:
        for row in report.history:
            at = {"step": row["step"] + steps, "epoch": row.get("epoch", 0.0) + epochs}
            rows.append({**row, **at, "phase": report.name})
        steps, epochs = steps + report.steps, epochs + report.epochs
    last = [row for row in state.log_history if "train_runtime" in row]
    rows += [{**row, "step": steps, "epoch": epochs, "phase": reports[-1].name} for row in last]
    return replace(state, log_history=rows, global_step=steps, max_steps=steps, epoch=epochs)


def history_of(log: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row a step that was logged: training and evaluation entries of it merged."""
    rows: dict[int, dict[str, Any]] = {}
    for entry in log:
        if "train_runtime" not in entry:
            rows.setdefault(entry["step"], {}).update(entry)
    return [rows[step] for step in sorted(rows)]


def metric_values(metric: str, log: Sequence[dict[str, Any]]) -> list[float]:
    """Return the values of a metric in Trainer's log, one for each evaluation that had it; one
    before the first step (`eval_on_start`) judges nothing."""
    return [row[_key(metric)] for row in log if _key(metric) in row and row["step"] > 0]


def check_metric(metric: str, found: dict[str, Any], phase: str) -> None:
    """Raise UserError unless the metric is among those that an evaluation gave."""
    if _key(metric) not in found:
        known = sorted(key.removeprefix("eval_") for key in found if not key.endswith(_SPEED))
        raise UserError(f"phase {phase}: there is no metric {metric!r}; have {', '.join(known)}")


def metric_names(compute_metrics: Any) -> set[str] | None:
    """Return the names of what an evaluation gives; None for a function that does not tell."""
    if compute_metrics is None:
        return {"loss"}
    if inspect.unwrap(compute_metrics) is classification.compute_metrics:
        return set(CLASSIFICATION.metrics)
    names = getattr(compute_metrics, "names", None)
    return None if names is None else {"loss", *names}


def best_row(phase: Phase, history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the row of the evaluation whose weights a phase ends with; empty without any."""
    evaluated = [
        row for row in history if row["step"] > 0 and any(key.startswith("eval_") for key in row)
    ]
    if phase.spec.best == "last":
        return evaluated[-1] if evaluated else {}
    having = [row for row in evaluated if _key(phase.spec.best) in row]
    best = stopping.best_index(phase.spec.best, metric_values(phase.spec.best, having))
    return having[best] if having else {}


def _key(metric: str) -> str:
    return metric if metric.startswith("eval_") else f"eval_{metric}"


def _stopped(phase: Phase, state: Any) -> str | None:
    """Return why the phase ended before its planned end, or None."""
    if state.global_step >= state.max_steps:
        return None
    stop = phase.spec.stop
    if stop is not None:
        values = metric_values(stop.metric, state.log_history)
        if stopping.should_stop(stop.metric, values, stop.patience, stop.min_change):
            times = "one evaluation" if stop.patience == 1 else f"{stop.patience} evaluations"
            return f"{stop.metric} did not improve for {times}"
    return "a callback ended it"
