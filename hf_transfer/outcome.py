"""What a phase did, from Trainer's state to a PhaseReport."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from hf_transfer import stopping
from hf_transfer.backbone import Backbone
from hf_transfer.freezing import Proof
from hf_transfer.phases import Phase
from hf_transfer.rates import param_groups
from hf_transfer.report import PhaseReport

_SPEED = ("_per_second", "_runtime")


def phase_report(
    phase: Phase, backbone: Backbone, state: Any, proof: Proof, seconds: float, cached: bool
) -> PhaseReport:
    """Return the report of a finished phase; its metrics are those of the epoch it ended with."""
    history = history_of(state.log_history)
    best = _best(phase, [row for row in history if "eval_loss" in row])
    sizes = backbone.layout.sizes
    return PhaseReport(
        name=phase.name,
        groups=phase.groups,
        trainable_parameters=sum(sizes[name] for name in phase.parameters),
        total_parameters=sum(sizes.values()),
        epochs=state.epoch or 0.0,
        steps=state.global_step,
        seconds=seconds,
        stopped=_stopped(phase, state),
        best_epoch=best["epoch"] if best else None,
        metrics={
            key.removeprefix("eval_"): value
            for key, value in best.items()
            if key.startswith("eval_") and not key.endswith(_SPEED)
        },
        history=tuple(history),
        rates=tuple(
            {
                "label": group.label,
                "parameters": sum(sizes[name] for name in group.names),
                "lr": group.lr,
                "weight_decay": group.weight_decay,
            }
            for group in param_groups(phase, backbone.groups, backbone.layout)
        ),
        features="cached" if cached else "live",
        checks=asdict(proof),
    )


def history_of(log: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row an epoch: Trainer's training and evaluation entries of a step merged."""
    rows: dict[int, dict[str, Any]] = {}
    for entry in log:
        if "train_runtime" not in entry:
            rows.setdefault(entry["step"], {}).update(entry)
    return [rows[step] for step in sorted(rows)]


def metric_values(metric: str, log: Sequence[dict[str, Any]], phase: str) -> list[float]:
    """Return a metric after each evaluation in Trainer's log. Raises ValueError where it lacks."""
    key = metric if metric.startswith("eval_") else f"eval_{metric}"
    logged = [entry for entry in log if "eval_loss" in entry]
    if logged and key not in logged[-1]:
        known = sorted(k.removeprefix("eval_") for k in logged[-1] if k.startswith("eval_"))
        raise ValueError(f"phase {phase}: there is no metric {metric!r}; have {', '.join(known)}")
    return [entry[key] for entry in logged]


def _best(phase: Phase, evaluated: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if not evaluated:
        return {}
    if phase.spec.best == "last":
        return evaluated[-1]
    values = metric_values(phase.spec.best, evaluated, phase.name)
    return evaluated[stopping.best_index(phase.spec.best, values)]


def _stopped(phase: Phase, state: Any) -> str | None:
    """Return why the phase ended before its planned end, or None."""
    stop = phase.spec.stop
    if stop is None or state.global_step >= state.max_steps:
        return None
    return f"{stop.metric} did not improve for {stop.patience} evaluations"
