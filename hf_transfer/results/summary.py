"""A run's result in a few lines, for a terminal."""

from __future__ import annotations

from hf_transfer.base.boundary import printable
from hf_transfer.results import conclusions
from hf_transfer.results.learned_first import learned_first
from hf_transfer.results.report import RunReport
from hf_transfer.results.words import metric_phrase, metric_titles, show_metric, show_seconds

SECOND = {
    "classification": "macro_f1",
    "multi_label": "macro_f1",
    "regression": "mae",
    "pretext": "rank",
}


def summary(report: RunReport) -> str:
    """Return a run's result in lines: what came out, what it must beat, and what to know of it."""
    leads = report.leading_metric
    lines = []
    told = list(
        report.splits
    )  # a cross-validation comes first: few images validated the last model
    for split in told if report.folds else reversed(told):
        lines.append(_measured(report, split))
        lines += [
            f"  baseline: {metric_phrase(metric)} {show_metric(metric, value)} by {printable(what)}"
            for what, metric, value in conclusions.told_baselines(report, split)
        ]
    if not report.splits:
        lines.append(f"{metric_phrase(leads)} not measured")
    spread = report.seeds.get("metrics", {}).get(leads)
    if spread:
        low, mean, high = (show_metric(leads, spread[key]) for key in ("min", "mean", "max"))
        lines.append(f"over {len(spread['values'])} seeds: mean {mean}, min {low}, max {high}")
    spread = report.folds.get("test", {}).get(leads)
    if spread:
        low, mean, high = (show_metric(leads, spread[key]) for key in ("min", "mean", "max"))
        lines.append(f"in {report.folds['n']} folds: mean {mean}, min {low}, max {high}")
    if learned := learned_first(report):
        lines.append(printable(learned))
    wall, training = report.seconds.get("wall"), report.seconds.get("training")
    if wall is not None and training is not None:
        lines.append(f"{show_seconds(wall)} in all, {show_seconds(training)} spent training")
    lines += [f"note: {printable(caution)}" for caution in conclusions.cautions(report)]
    return "\n".join(lines)


def _measured(report: RunReport, split: str) -> str:
    """Return what a split's images gave: the leading metric with its interval, and a second."""
    values, leads = report.splits[split], report.leading_metric
    split = report.split_name(split)
    value, n = values.get(leads), values.get("n", "not stated")
    if value is None:
        why = values.get("reasons", {}).get(leads, "it is undefined")
        return f"{split} {metric_phrase(leads)} not measured: {printable(why)} (n = {n})"
    bounds = values.get("intervals", {}).get(leads)
    ends = " to ".join(show_metric(leads, end) for end in bounds or ())
    interval = f"95% interval {ends}, " if bounds else ""
    text = f"{split} {metric_phrase(leads)} {show_metric(leads, value)} ({interval}n = {n})"
    for second in ("accuracy", SECOND[report.task.kind]):
        other = values.get(second) if second in metric_titles(values) else None
        if other is not None and second != leads:
            text += f", {metric_phrase(second)} {show_metric(second, other)}"
    return text
