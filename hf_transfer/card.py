"""The model card: a RunReport as YAML front matter and text; an absent fact is named as absent."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hf_transfer.report import (
    WORDS,
    Facts,
    PhaseReport,
    RunReport,
    metric_words,
    show_count,
    show_rate,
    show_seconds,
)

NOT_MEASURED = "not measured"
NOT_STATED = "not stated"
# The Hub's names for our metrics, with its arguments.
HUB_METRICS: tuple[tuple[str, str, Facts], ...] = (
    ("accuracy", "accuracy", {}),
    ("balanced_accuracy", "balanced_accuracy", {}),
    ("macro_f1", "f1", {"average": "macro"}),
    ("auroc", "roc_auc", {"multi_class": "ovr"}),
)
MOST_LABELS_NAMED = 30
MOST_CLASSES_LISTED = 50


def model_card(report: RunReport, repo_id: str | None = None) -> str:
    """Return the README.md of a model: front matter that the Hub reads, then text.

    Every number carries its split, n and, where there is one, its 95% interval. What the report
    does not hold is 'not measured' or 'not stated'. `repo_id` fills in how to load it.
    """
    front = yaml.safe_dump(_front(report, repo_id), sort_keys=False, allow_unicode=True, width=1000)
    sections = (
        f"# {_text(_title(report, repo_id))}",
        _summary(report),
        f"## Results\n\n{_results(report)}",
        f"## How it was trained\n\n{_training(report)}",
        f"## Data\n\n{_data(report)}",
        f"## How to load it\n\n{_loading(report, repo_id)}",
        f"## Limitations\n\n{_limitations(report)}",
        f"## Environment\n\n{_environment(report)}",
    )
    return f"---\n{front}---\n\n" + "\n\n".join(sections) + "\n"


def _front(report: RunReport, repo_id: str | None) -> Facts:
    timm = report.backbone.get("source") == "timm"
    base, data = base_model(report), report.data.get("repo")
    results = [
        {
            "task": {"type": "image-classification", "name": "Image classification"},
            "dataset": {
                "name": _data_name(report) or NOT_STATED,
                "type": data or re.sub(r"[^\w.-]+", "-", _data_name(report) or NOT_STATED),
                "split": split,
            },
            "metrics": [
                {"type": kind, "name": WORDS[name], "value": round(values[name], 4)}
                | ({"args": dict(arguments)} if arguments else {})
                for name, kind, arguments in HUB_METRICS
                if values.get(name) is not None
            ],
        }
        for split, values in _splits(report)
    ]
    front = {
        "license": report.backbone.get("license"),
        "library_name": "timm" if timm else "transformers",
        "pipeline_tag": "image-classification",
        "base_model": base,
        "datasets": [data] if data else None,
        "tags": ["hf_transfer", "transfer-learning", "image-classification"],
        "metrics": ["accuracy"] if results else None,
        "model-index": [{"name": _title(report, repo_id), "results": results}] if results else None,
    }
    return {key: value for key, value in front.items() if value is not None}


def base_model(report: RunReport) -> str | None:
    """Return the Hub repository that the pretrained weights came from, None where none is stated.

    That is `repo` of the backbone's facts or, for timm's own name.tag, its repository of that name.
    """
    facts = report.backbone
    if facts.get("repo"):
        return str(facts["repo"])
    name = str(facts.get("id", ""))
    known = facts.get("weights") == "pretrained" and facts.get("source") == "timm"
    return name if known and re.fullmatch(r"timm/[a-z0-9_]+\.[a-z0-9_]+", name) else None


def _title(report: RunReport, repo_id: str | None) -> str:
    if repo_id:
        return repo_id.rsplit("/", 1)[-1]
    name = str(report.backbone.get("id", "model")).rsplit("/", 1)[-1]
    return f"{name} on {_data_name(report)}" if _data_name(report) else name


def _data_name(report: RunReport) -> str | None:
    place = report.data.get("repo") or report.data.get("path")
    # A line of its own that says --- would end the front matter.
    return " ".join(Path(str(place)).name.split()) if place else None


def _splits(report: RunReport) -> list[tuple[str, Facts]]:
    """The splits that were measured, the one that counts first."""
    test = report.metrics.get("test")
    found = [("test", test)] if test else []
    return found + ([("validation", report.metrics)] if "accuracy" in report.metrics else [])


def _summary(report: RunReport) -> str:
    labels, backbone = report.labels, _code(report.backbone.get("id", NOT_STATED))
    named = ", ".join(_text(label) for label in labels[:MOST_LABELS_NAMED])
    more = len(labels) - MOST_LABELS_NAMED
    named += f" and {more} more" if more > 0 else ""
    kinds = f"It tells {len(labels)} classes apart: {named}." if labels else "Classes: not stated."
    way = {"pretrained": "pretrained weights", "random": "random weights, without transfer"}
    weights = report.backbone.get("weights")
    start = way.get(str(weights), _code(Path(weights).name) if weights else NOT_STATED)
    data = _text(_data_name(report) or NOT_STATED)
    return (
        f"An image classifier: {backbone} trained on {data} with hf_transfer's recipe "
        f"{_code(report.name)}, from {start}. {kinds}"
    )


def _results(report: RunReport) -> str:
    splits = _splits(report)
    if not splits:
        return f"Accuracy: {NOT_MEASURED}."
    rows = [
        [_text(words), split, *_value(values, name), f"{values['n']:,}" if "n" in values else "–"]
        for split, values in splits
        for name, words in metric_words(values).items()
    ]
    parts = [_table(("Metric", "Split", "Value", "95% interval", "n"), rows), _spread(report)]
    split, values = splits[0]
    classes = [row for row in values.get("per_class", []) if row["f1"] is not None]
    if classes:
        head = f"Class by class, on {split}:"
        if len(classes) > MOST_CLASSES_LISTED:
            classes = sorted(classes, key=lambda row: (row["f1"], row["label"]))[:10]
            head = f"The ten weakest classes, on {split}:"
        table = _table(
            ("Class", "n", "Precision", "Recall", "F1"), [_class(row) for row in classes]
        )
        parts += [head, table]
    return "\n\n".join(parts)


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
        [_text(WORDS.get(name, name)), split, *(f"{entry[k]:.3f}" for k in ("mean", "min", "max"))]
        for split, metrics in found
        for name, entry in metrics.items()
    ]
    head = f"Over {len(seeds)} seeds ({', '.join(map(str, seeds))}):"
    return f"{note}.\n\n{head}\n\n{_table(('Metric', 'Split', 'Mean', 'Min', 'Max'), rows)}"


def _value(values: Facts, name: str) -> list[str]:
    value, bounds = values[name], values.get("intervals", {}).get(name)
    if value is None:
        reason = values.get("reasons", {}).get(name)
        return [NOT_MEASURED + (f": {_text(reason)}" if reason else ""), "–"]
    return [f"{value:.3f}", f"{bounds[0]:.3f} to {bounds[1]:.3f}" if bounds else NOT_MEASURED]


def _class(row: Facts) -> list[str]:
    shares = ["–" if row[k] is None else f"{row[k]:.3f}" for k in ("precision", "recall", "f1")]
    return [_text(str(row["label"])), f"{row['n']:,}", *shares]


def _training(report: RunReport) -> str:
    if not report.phases:
        return f"Phases: {NOT_STATED}."
    head = ("Phase", "Trained", "Parameters", "Rate", "Epochs", "Steps", "Time", "Ended")
    rows = [[f"{i} {_text(p.name)}", *_phase(p)] for i, p in enumerate(report.phases, 1)]
    wall, training = report.seconds.get("wall"), report.seconds.get("training")
    time = (
        f"Training took {NOT_MEASURED if training is None else show_seconds(training)}, "
        f"the whole run {NOT_MEASURED if wall is None else show_seconds(wall)}."
    )
    return (
        "Phases ran one after the other; what is not named as trained was frozen.\n\n"
        f"{_table(head, rows)}\n\n{time} All settings are in recipe.yaml, all numbers in "
        "report.json."
    )


def _phase(phase: PhaseReport) -> list[str]:
    groups = [_code(group) for group in phase.groups]
    if len(groups) > 3:
        groups = [f"{groups[0]} … {groups[-1]} ({len(groups)} groups)"]
    rates = [row["lr"] for row in phase.rates if row.get("lr") is not None]
    rate = show_rate(max(rates)) if rates else NOT_STATED
    if rates and min(rates) < max(rates):
        rate += f" down to {show_rate(min(rates))}"
    best = "" if phase.best_epoch is None else f"; best epoch {phase.best_epoch:g}"
    return [
        ", ".join(groups),
        f"{show_count(phase.trainable_parameters)} of {show_count(phase.total_parameters)}",
        rate,
        f"{phase.epochs:g}",
        f"{phase.steps:,}",
        show_seconds(phase.seconds),
        _text(phase.stopped or "ran to its end") + best,
    ]


def _data(report: RunReport) -> str:
    rows = [
        [split, *(f"{n:,}" for n in (sum(found), len(found), min(found), max(found)))]
        for split, counts in (report.data.get("counts") or {}).items()
        if (found := list(counts.values()))
    ]
    head = ("Split", "Images", "Classes", "Fewest in a class", "Most in a class")
    counts = _table(head, rows) if rows else f"Images: {NOT_STATED}."
    return f"{counts}\n\n{_audit(report.data.get('audit'))}"


def _audit(audit: Any) -> str:
    if not isinstance(audit, Mapping) or "findings" not in audit:
        return f"Audit of the images: {NOT_MEASURED}."
    if not audit["findings"]:
        return "The audit of the images found nothing amiss."
    lines = [
        f"- {_text(str(found.get('kind')))}: {found.get('count')} ({_text(str(found.get('done')))})"
        for found in audit["findings"]
    ]
    return "The audit of the images found:\n\n" + "\n".join(lines)


def _loading(report: RunReport, repo_id: str | None) -> str:
    place = repo_id or "path/to/model"
    source = report.backbone.get("source")
    trust = ", trust_remote_code=True" if source == "torchvision" else ""
    parts = [
        "```python\n"
        "from transformers import pipeline\n\n"
        f'classify = pipeline("image-classification", model="{place}"{trust})\n'
        'print(classify("image.jpg"))\n'
        "```"
    ]
    if trust:
        parts.append(
            "The network is torchvision's; `trust_remote_code=True` lets transformers run the "
            "few lines in this folder that wrap it."
        )
    if source == "timm":
        scheme = "hf-hub" if repo_id else "local-dir"
        parts.append(
            "```python\n"
            "import timm\n\n"
            f'model = timm.create_model("{scheme}:{place}", pretrained=True).eval()\n'
            "settings = timm.data.resolve_model_data_config(model)\n"
            "transform = timm.data.create_transform(**settings, is_training=False)\n"
            "```"
        )
    parts.append(f"```sh\nhf-transfer predict {place} image.jpg\n```")
    return "\n\n".join(parts)


def _limitations(report: RunReport) -> str:
    splits = _splits(report)
    lines = ["It gives every image one of its classes, also an image that shows none of them."]
    lines += _limits_of_results(report, *splits[0]) if splits else []
    lines.append(
        "How it does on other data than this, its robustness and its fairness towards groups of "
        f"people: {NOT_MEASURED}."
    )
    license_ = report.backbone.get("license")
    lines.append(
        f"Licence of the pretrained weights: {_text(str(license_ or NOT_STATED))}; "
        f"licence and origin of the images: {NOT_STATED}."
    )
    lines += [f"Warning of the run: {_text(str(w)).rstrip('.')}." for w in report.warnings]
    return "\n".join(f"- {line}" for line in lines)


def _limits_of_results(report: RunReport, split: str, values: Facts) -> list[str]:
    lines = []
    if split == "validation":
        lines.append(
            f"Results on images that no choice was made on (a test split): {NOT_MEASURED}."
        )
        chosen = [phase.name for phase in report.phases if phase.best_epoch is not None]
        if chosen:
            lines.append(
                "The best epochs were chosen on the validation images, so the numbers flatter a "
                "little."
            )
    rows = [row for row in values.get("per_class", []) if row["f1"] is not None]
    if rows:
        worst = min(rows, key=lambda row: row["f1"])
        lines.append(
            f"Weakest class on {split}: {_text(str(worst['label']))}, F1 {worst['f1']:.3f} "
            f"(n = {worst['n']:,})."
        )
    return lines


def _environment(report: RunReport) -> str:
    facts = {
        **report.environment,
        "seed": report.seed,
        "data fingerprint": report.data.get("fingerprint"),
        "created": report.created,
    }
    rows = [
        [_text(key), NOT_STATED if value is None else _text(str(value))]
        for key, value in facts.items()
    ]
    return _table(("Fact", "Value"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(words: str) -> str:
    """Words from outside as Markdown text: what would be markup is escaped, line breaks go."""
    markup = r"([\\`*\[\]<|&~]|(?<!\w)_|_(?!\w))"
    return re.sub(markup, r"\\\1", " ".join(words.split()))


def _code(words: object) -> str:
    inside = " ".join(str(words).replace("`", "'").split()).replace("|", "\\|")
    return f"`{inside}`"
