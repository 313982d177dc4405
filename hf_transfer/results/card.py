"""The model card: a RunReport as YAML front matter and text; an absent fact is named as absent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hf_transfer.results.card_results import NOT_MEASURED, measured_splits, results
from hf_transfer.results.markdown import code, table, text
from hf_transfer.results.report import PhaseReport, RunReport, split_rows
from hf_transfer.results.words import (
    WORDS,
    Facts,
    metric_words,
    show_count,
    show_rate,
    show_seconds,
)

NOT_STATED = "not stated"
# The Hub's names for our metrics, with its arguments.
HUB_METRICS: tuple[tuple[str, str, Facts], ...] = (
    ("accuracy", "accuracy", {}),
    ("balanced_accuracy", "balanced_accuracy", {}),
    ("map", "mean_average_precision", {}),
    ("macro_f1", "f1", {"average": "macro"}),
    ("auroc", "roc_auc", {"multi_class": "ovr"}),
    ("r2", "r_squared", {}),
    ("mae", "mae", {}),
)
# The pipeline is that of image classification for all: it opens them, and reads the task in them.
TAGS = {
    "classification": ("image-classification",),
    "multi_label": ("image-classification", "multi-label-classification"),
    "regression": ("image-regression",),
}
MOST_LABELS_NAMED = 30
KINDS = {
    "classification": "An image classifier",
    "multi_label": "An image classifier for several labels at once",
    "regression": "A model that reads numbers off images",
}
TELLS = {
    "classification": "It tells {n} classes apart",
    "multi_label": "It says which of {n} labels an image shows",
    "regression": "Numbers that it gives, in the units of the training data ({n})",
}
LIMITS = {
    "classification": "It gives every image one of its classes, also an image that shows none of "
    "them.",
    "multi_label": "It gives every image a probability for each of its labels and none for what "
    "it was not trained on; the threshold of one half was not tuned.",
    "regression": "It gives numbers for every image, also for one that is of another kind than "
    "those it was trained on; it does not say how sure it is.",
}


def model_card(report: RunReport, repo_id: str | None = None) -> str:
    """Return the README.md of a model: front matter that the Hub reads, then text.

    Every number carries its split, n and, where there is one, its 95% interval. What the report
    does not hold is 'not measured' or 'not stated'. `repo_id` fills in how to load it.
    """
    front = yaml.safe_dump(_front(report, repo_id), sort_keys=False, allow_unicode=True, width=1000)
    sections = (
        f"# {text(_title(report, repo_id))}",
        _summary(report),
        f"## Results\n\n{results(report)}",
        f"## How it was trained\n\n{_training(report)}",
        f"## Data\n\n{_data(report)}",
        f"## How to load it\n\n{_loading(report, repo_id)}",
        f"## Limitations\n\n{_limitations(report)}",
        f"## Environment\n\n{_environment(report)}",
    )
    return f"---\n{front}---\n\n" + "\n\n".join(sections) + "\n"


def _front(report: RunReport, repo_id: str | None) -> Facts:
    timm = report.backbone.get("source") == "timm"
    base, data, leads = base_model(report), report.data.get("repo"), report.task.headline
    measured = [
        {
            "task": {"type": report.task.hub_type, "name": report.task.title},
            "dataset": {
                "name": _data_name(report) or NOT_STATED,
                "type": data or re.sub(r"[^\w.-]+", "-", _data_name(report) or NOT_STATED),
                "split": split,
            },
            "metrics": [
                {"type": kind, "name": WORDS[name], "value": round(values[name], 4)}
                | ({"args": dict(arguments)} if arguments and _of_classes(report, name) else {})
                for name, kind, arguments in HUB_METRICS
                if name in metric_words(values) and values[name] is not None
            ],
        }
        for split, values in measured_splits(report)
    ]
    front = {
        "license": report.backbone.get("license"),
        "library_name": "timm" if timm else "transformers",
        "pipeline_tag": "image-classification",
        "base_model": base,
        "datasets": [data] if data else None,
        "tags": ["hf_transfer", "transfer-learning", *TAGS[report.task.name]],
        "metrics": [{ours: hub for ours, hub, _ in HUB_METRICS}[leads]] if measured else None,
    }
    if measured:
        front["model-index"] = [{"name": _title(report, repo_id), "results": measured}]
    return {key: value for key, value in front.items() if value is not None}


def _of_classes(report: RunReport, metric: str) -> bool:
    """Whether the Hub's arguments of a metric hold: AUROC's are of one class against others."""
    return metric != "auroc" or report.task.name == "classification"


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


def _summary(report: RunReport) -> str:
    labels, backbone = report.labels, code(report.backbone.get("id", NOT_STATED))
    named = ", ".join(text(label) for label in labels[:MOST_LABELS_NAMED])
    more = len(labels) - MOST_LABELS_NAMED
    named += f" and {more} more" if more > 0 else ""
    kinds = f"{report.task.nouns.capitalize()}: not stated."
    if labels:
        kinds = f"{TELLS[report.task.name].format(n=len(labels))}: {named}."
    way = {"pretrained": "pretrained weights", "random": "random weights, without transfer"}
    weights = report.backbone.get("weights")
    start = way.get(str(weights), code(Path(weights).name) if weights else NOT_STATED)
    data = text(_data_name(report) or NOT_STATED)
    return (
        f"{KINDS[report.task.name]}: {backbone} trained on {data} with hf_transfer's recipe "
        f"{code(report.name)}, from {start}. {kinds}"
    )


def _training(report: RunReport) -> str:
    if not report.phases:
        return f"Phases: {NOT_STATED}."
    head = ("Phase", "Trained", "Parameters", "Rate", "Epochs", "Steps", "Time", "Ended")
    rows = [[f"{i} {text(p.name)}", *_phase(p)] for i, p in enumerate(report.phases, 1)]
    wall, training = report.seconds.get("wall"), report.seconds.get("training")
    time = (
        f"Training took {NOT_MEASURED if training is None else show_seconds(training)}, "
        f"the whole run {NOT_MEASURED if wall is None else show_seconds(wall)}."
    )
    return (
        "Phases ran one after the other; what is not named as trained was frozen.\n\n"
        f"{table(head, rows)}\n\n{time} All settings are in recipe.yaml, all numbers in "
        "report.json."
    )


def _phase(phase: PhaseReport) -> list[str]:
    groups = [code(group) for group in phase.groups]
    if len(groups) > 3:
        groups = [f"{groups[0]} … {groups[-1]} ({len(groups)} groups)"]
    rates = [row["lr"] for row in phase.rates if row.get("lr") is not None]
    rate = show_rate(max(rates)) if rates else "none" if phase.solve else NOT_STATED
    if rates and min(rates) < max(rates):
        rate += f" down to {show_rate(min(rates))}"
    best = "" if phase.best_epoch is None else f"; best epoch {phase.best_epoch:g}"
    return [
        ", ".join(groups),
        f"{show_count(phase.trainable_parameters)} of {show_count(phase.total_parameters)}",
        rate,
        "solved" if phase.solve else f"{phase.epochs:g}",
        f"{phase.steps:,}",
        show_seconds(phase.seconds),
        text(phase.stopped or "ran to its end") + best,
    ]


def _data(report: RunReport) -> str:
    one, several = report.task.noun, report.task.nouns.capitalize()
    head = ["Split", "Images", several]
    rows = [[split, f"{n:,}", f"{len(found):,}"] for split, n, found in split_rows(report)]
    if report.task.name != "regression":
        head += [f"Fewest in a {one}", f"Most in a {one}"]
        for row, (_, _, found) in zip(rows, split_rows(report), strict=True):
            row += [f"{min(found):,}", f"{max(found):,}"]
    counts = table(head, rows) if rows else f"Images: {NOT_STATED}."
    return f"{counts}\n\n{_audit(report.data.get('audit'))}"


def _audit(audit: Any) -> str:
    if not isinstance(audit, Mapping) or "findings" not in audit:
        return f"Audit of the images: {NOT_MEASURED}."
    if not audit["findings"]:
        return "The audit of the images found nothing amiss."
    lines = [
        f"- {text(str(found.get('kind')))}: {found.get('count')} ({text(str(found.get('done')))})"
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
    splits = measured_splits(report)
    lines = [LIMITS[report.task.name]]
    lines += _limits_of_results(report, *splits[0]) if splits else []
    lines.append(
        "How it does on other data than this, its robustness and its fairness towards groups of "
        f"people: {NOT_MEASURED}."
    )
    license_ = report.backbone.get("license")
    lines.append(
        f"Licence of the pretrained weights: {text(str(license_ or NOT_STATED))}; "
        f"licence and origin of the images: {NOT_STATED}."
    )
    lines += [f"Warning of the run: {text(str(w)).rstrip('.')}." for w in report.warnings]
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
    kind = "class" if "per_class" in values else "label"
    rows = values.get("per_class") or values.get("per_label") or []
    rows = [row for row in rows if row["f1"] is not None]
    if rows:
        worst = min(rows, key=lambda row: row["f1"])
        lines.append(
            f"Weakest {kind} on {split}: {text(str(worst['label']))}, F1 {worst['f1']:.3f} "
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
        [text(key), NOT_STATED if value is None else text(str(value))]
        for key, value in facts.items()
    ]
    return table(("Fact", "Value"), rows)
