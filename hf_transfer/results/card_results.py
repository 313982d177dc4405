"""The results in a model card: every number with its split, n and interval, then one by one."""

from __future__ import annotations

from hf_transfer.results.markdown import table, text
from hf_transfer.results.report import RunReport
from hf_transfer.results.words import WORDS, Facts, metric_words, show_value

MOST_CLASSES_LISTED = 50
SPREAD = ("mean", "min", "max")
NOT_MEASURED = "not measured"


def measured_splits(report: RunReport) -> list[tuple[str, Facts]]:
    """The splits that were measured, the one that counts first."""
    test = report.metrics.get("test")
    found = [("test", test)] if test else []
    measured = report.task.headline in report.metrics
    return found + ([("validation", report.metrics)] if measured else [])


def results(report: RunReport) -> str:
    """Return every number with its split, n and interval; class, label or target by target."""
    splits = measured_splits(report)
    if not splits:
        return f"{WORDS[report.task.headline]}: {NOT_MEASURED}."
    rows = [
        [text(words), split, *_value(values, name), f"{values['n']:,}" if "n" in values else "–"]
        for split, values in splits
        for name, words in metric_words(values).items()
    ]
    parts = [table(("Metric", "Split", "Value", "95% interval", "n"), rows), _spread(report)]
    split, values = splits[0]
    classes = [row for row in values.get("per_class", []) if row["f1"] is not None]
    if classes:
        head = f"Class by class, on {split}:"
        if len(classes) > MOST_CLASSES_LISTED:
            classes = sorted(classes, key=lambda row: (row["f1"], row["label"]))[:10]
            head = f"The ten weakest classes, on {split}:"
        listed = table(
            ("Class", "n", "Precision", "Recall", "F1"), [_class(row) for row in classes]
        )
        parts += [head, listed]
    parts += _label_by_label(values, split)
    return "\n\n".join(parts)


def _label_by_label(values: Facts, split: str) -> list[str]:
    """The tables of several labels at once and of numbers; none for classes."""
    parts = []
    labels = values.get("per_label") or []
    if labels:
        parts.append(f"Label by label, on {split}; predicted from a probability of one half:")
        if len(labels) > MOST_CLASSES_LISTED:
            labels = sorted(labels, key=lambda row: (row["f1"] or 0.0, row["label"]))[:10]
            parts[0] = f"The ten weakest labels, on {split}:"
        head = ("Label", "In images", "Precision", "Recall", "F1")
        parts.append(table(head, [_class(row) for row in labels]))
    targets = values.get("per_target") or []
    if targets:
        rows = [
            [
                text(str(row["target"])),
                f"{row['n']:,}",
                "–" if row["r2"] is None else show_value("r2", row["r2"]),
                *(show_value(name, row[name]) for name in ("mae", "rmse")),
            ]
            for row in targets
        ]
        parts.append(f"Target by target, on {split}, errors in its own units:")
        parts.append(table(("Target", "n", "R²", "Mean absolute error", "RMSE"), rows))
    return parts


def _spread(report: RunReport) -> str:
    seeds = report.seeds.get("seeds") or [report.seed]
    note = (
        f"This is the run with seed {report.seed}. Intervals are percentile bootstrap over images; "
        "they say nothing of the spread over seeds"
    )
    if len(seeds) < 2:
        return f"{note}, which was not measured."
    found = [("validation", report.seeds["metrics"]), ("test", report.seeds["test"])]
    rows = [
        [text(WORDS.get(name, name)), split, *(show_value(name, entry[k]) for k in SPREAD)]
        for split, metrics in found
        for name, entry in metrics.items()
    ]
    head = f"Over {len(seeds)} seeds ({', '.join(map(str, seeds))}):"
    return f"{note}.\n\n{head}\n\n{table(('Metric', 'Split', 'Mean', 'Min', 'Max'), rows)}"


def _value(values: Facts, name: str) -> list[str]:
    value, bounds = values[name], values.get("intervals", {}).get(name)
    if value is None:
        reason = values.get("reasons", {}).get(name)
        return [NOT_MEASURED + (f": {text(reason)}" if reason else ""), "–"]
    span = " to ".join(show_value(name, end) for end in bounds) if bounds else NOT_MEASURED
    return [show_value(name, value), span]


def _class(row: Facts) -> list[str]:
    shares = ["–" if row[k] is None else f"{row[k]:.3f}" for k in ("precision", "recall", "f1")]
    return [text(str(row["label"])), f"{row['n']:,}", *shares]
