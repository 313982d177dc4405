"""The model card: a RunReport as metadata for the Hub and as text; what is absent is said to be."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from markupsafe import Markup

from hf_transfer.base.boundary import printable, untrusted
from hf_transfer.results import conclusions
from hf_transfer.results.card_loading import loading
from hf_transfer.results.card_metadata import card_metadata
from hf_transfer.results.card_pictures import pictures_of
from hf_transfer.results.card_training import (
    SETTINGS_HEAD,
    expected,
    preprocessing,
    settings,
    weakest_words,
)
from hf_transfer.results.learned_first import source_start
from hf_transfer.results.page_phases import (
    command,
    ended_words,
    group_words,
    length_words,
    rate_words,
)
from hf_transfer.results.places import published_report
from hf_transfer.results.rendering import code, escape_markdown, render, template
from hf_transfer.results.report import PhaseReport, RunReport, split_rows
from hf_transfer.results.words import (
    ADDED,
    NOT_MEASURED,
    NOT_STATED,
    JsonDict,
    listed,
    metric_phrase,
    metric_title,
    metric_titles,
    range_words,
    show_count,
    show_headline,
    show_metric,
    show_seconds,
)

KINDS = {
    "classification": "An image classifier",
    "multi_label": "An image classifier for several labels at once",
    "regression": "A model that estimates numbers from images",
    "pretext": "A backbone that learned from images without labels",
}
PURPOSES = {
    "classification": "It distinguishes {labels}",
    "multi_label": "It says which of {labels} an image shows",
    "regression": "It estimates, in the units of the training data, {labels}",
    "pretext": "It is a start for other tasks",
}
LIMITS = {
    "classification": Markup(
        "It gives every image one of its classes, even an image that shows none; with "
        "`unknown.safetensors` beside the weights, `hf-transfer predict --unknown` marks such "
        "images."
    ),
    "multi_label": "It gives every image a probability for each of its labels, and none for "
    "anything else.",
    "regression": "It gives numbers for every image, even for one unlike those it was trained on; "
    "it does not say how sure it is.",
    "pretext": "Its outputs answer the pretext alone; use its features, under a new head.",
}
STARTS = {"pretrained": "pretrained weights", "random": "random weights, without transfer"}
MOST_LABELS_NAMED = 30
MOST_ROWS = 50  # classes or labels; of more, the weakest WEAKEST are listed
WEAKEST = 10


def model_card(report: RunReport, repo_id: str | None = None, previous: str = "") -> str:
    """Return the README.md of a model: metadata that the Hub reads, then text.

    Every number carries its split, n and, where there is one, its 95% interval. What the report
    does not hold is 'not measured' or 'not stated'. `repo_id` fills in how to load it; sections
    of the `previous` card that are not ours are kept at the end.
    """
    with untrusted("the report as a card", "run the recipe again"):
        report = published_report(report)
        front = card_metadata(report, repo_id).to_yaml(line_break="\n")
        front = "\n".join(map(printable, front.split("\n")))
        text = render(
            "card.md",
            front=Markup(front),  # noqa: S704
            title=conclusions.title(report),
            task=report.task,
            on=report.where,
            auto=bool(report.auto),
            command=Markup(command(report)),  # noqa: S704
            kind=KINDS[report.task.kind],
            recipe=report.name if "phases" in report.recipe else None,  # else a Trainer in Python
            backbone=report.network or NOT_STATED,
            data_name=conclusions.data_name(report) or f"data that is {NOT_STATED}",
            start=_start(report),
            purpose=PURPOSES[report.task.kind].format(labels=_counted(report)),
            labels=listed(report.labels, MOST_LABELS_NAMED),
            image_size=report.backbone.get("image_size"),
            outcome=conclusions.outcome(report),
            advice=conclusions.advice(report),
            cautions=conclusions.cautions(report),
            leading_title=metric_title(report.leading_metric),
            metrics=list(_metrics(report)),
            baselines=_baselines(report),
            phases=[_phase(report, i, phase) for i, phase in enumerate(report.phases, 1)],
            limits=list(_limits(report)),
            expected=expected(report),
            preprocessing=preprocessing(report),
            settings=settings(report),
            settings_head=SETTINGS_HEAD,
            pictures={k: what for k, (what, _) in pictures_of(report).items()},
            seed=report.seed,
            added=any(phase.name == ADDED for phase in report.phases),
            environment=_environment(report),
            own=[Markup(section) for section in own_sections(previous)],  # noqa: S704
            **_seeds(report),
            **_rows(report),
            **_data(report),
            **_times(report),
            **loading(report, repo_id),
        )
    return text


def own_sections(card: str) -> list[str]:
    """Return the sections of a card, each from its `## ` heading on, that are not made here."""
    parts = re.split(r"^(?=## )", card, flags=re.MULTILINE)[1:]
    ours = set(re.findall(r"^## .+$", template("card.md"), flags=re.MULTILINE))
    return [part.rstrip() for part in parts if part.splitlines()[0].rstrip() not in ours]


def _start(report: RunReport) -> str | Markup:
    weights = report.backbone.get("weights")
    if report.source:
        return f"weights that first learned from {source_start(report)}"
    if weights in STARTS:
        return STARTS[weights]
    return code(weights) if weights else f"weights that are {NOT_STATED}"


def _metrics(report: RunReport) -> Iterator[list[str]]:
    """Yield the rows of the table of metrics: title, split, value, interval, baseline, n."""
    for split, values in report.splits.items():
        found, where = conclusions.baselines(report, split), report.split_name(split)
        n = f"{values['n']:,}" if "n" in values else "–"
        for name, title in metric_titles(values).items():
            value, bounds = values[name], values.get("intervals", {}).get(name)
            span = " to ".join(show_metric(name, end) for end in bounds) if bounds else NOT_MEASURED
            if value is None:
                reason = (values.get("reasons") or {}).get(name)
                shown = f"{NOT_MEASURED}: {reason}" if reason else NOT_MEASURED
                yield [title, where, shown, "–", "–", n]
            else:
                least = max((v for _, metric, v in found if metric == name), default=None)
                yield [title, where, show_metric(name, value), span, show_metric(name, least), n]


def _baselines(report: RunReport) -> str:
    """Return what the baselines are on the split that counts, in a sentence."""
    split, _ = report.measured
    found = [
        f"{what}: {metric_phrase(metric)} {show_metric(metric, value)}"
        for what, metric, value in conclusions.told_baselines(report, split)
    ]
    on = report.where.capitalize()
    return f"The baseline needs no model. {on}, {'; '.join(found)}." if found else ""


def _counted(report: RunReport) -> str:
    count, task = len(report.labels), report.task
    return f"{count:,} {task.noun if count == 1 else task.nouns}"


def _seeds(report: RunReport) -> JsonDict:
    seeds = report.seeds.get("seeds") or ()
    groups = report.measured[1].get("groups")
    over = f"the {groups:,} groups that images belong to" if groups else "images"
    note = (
        f"This is the run with seed {report.seed}. Intervals are percentile bootstrap over {over}; "
        "they do not include the spread over seeds"
    )
    if len(seeds) < 2:
        return {"seed_note": f"{note}, which was not measured.", "seeds": None}
    rows = [
        [metric_title(name), split, *(show_metric(name, entry[k]) for k in ("mean", "min", "max"))]
        for split, key in (("validation", "metrics"), ("test", "test"))
        for name, entry in report.seeds.get(key, {}).items()
    ]
    shown = f"{len(seeds)} seeds ({', '.join(map(str, seeds))})"
    return {"seed_note": f"{note}.", "seeds": {"n": shown, "rows": rows}}


def _rows(report: RunReport) -> JsonDict:
    """Return the table by class, by label or by target, with its heading; of many the weakest."""
    _, values = report.measured
    noun, nouns = report.task.noun, report.task.nouns
    if targets := values.get("per_target"):
        rows = [
            [
                row["target"],
                f"{row['n']:,}",
                *(show_metric(k, row[k]) for k in ("r2", "mae", "rmse")),
            ]
            for row in targets
        ]
        head = ["Target", "n", "R²", "Mean absolute error", "RMSE"]
        return {"rows": rows, "rows_head": head, "rows_title": "By target, errors in its own units"}
    found = [*values.get("per_class", ()), *values.get("per_label", ())]
    title = f"By {noun}"
    if values.get("per_label"):
        title += ", predicted where the probability reaches the label's threshold"
    if len(found) > MOST_ROWS:
        found = sorted(found, key=lambda row: (row["f1"] or 0.0, row["label"]))[:WEAKEST]
        title = f"The {len(found)} weakest {nouns}"
    shares = ("precision", "recall", "f1")
    return {
        "rows_title": title,
        "rows_head": [noun.capitalize(), "Images", "Precision", "Recall", "F1"],
        "rows": [
            [
                row["label"],
                f"{row['n']:,}",
                *("–" if row[k] is None else f"{row[k]:.3f}" for k in shares),
            ]
            for row in found
        ],
    }


def _phase(report: RunReport, index: int, phase: PhaseReport) -> list[Any]:
    groups = group_words(phase)
    count = f" ({len(phase.groups)} groups)" if "…" in groups else ""
    trained = [escape_markdown(g) if g == "…" else str(code(g)) for g in groups]
    name, value = conclusions.phase_value(report, phase)
    kept = " (saved)" if report.best_phase == phase.name and len(report.phases) > 1 else ""
    return [
        f"{index} {phase.name}{kept}",
        Markup(("" if count else ", ").join(trained).replace("…", " … ") + count),  # noqa: S704
        f"{show_count(phase.trainable_parameters)} of {show_count(phase.total_parameters)}",
        rate_words(phase),
        length_words(phase),
        show_seconds(phase.seconds),
        ended_words(phase),
        NOT_MEASURED if value is None else show_headline(name, value),
    ]


def _data(report: RunReport) -> JsonDict:
    """Return the table of the splits, with what is known of their labels."""
    task, audit = report.task, report.data.get("audit")
    columns = 2 if task.is_pretext else 3 if task.name == "regression" else 4
    head = ["Split", "Images", task.nouns.capitalize(), f"Images of a {task.noun}"]
    rows = [
        [split, f"{n:,}", f"{len(counts):,}", range_words(counts)][:columns]
        for split, n, counts in split_rows(report)
    ]
    findings = None if audit is None else audit.get("findings")
    return {"splits_head": head[:columns], "splits": rows, "findings": findings}


def _times(report: RunReport) -> JsonDict:
    found = {name: report.seconds.get(name) for name in ("wall", "training")}
    return {k: NOT_MEASURED if v is None else show_seconds(v) for k, v in found.items()}


def _limits(report: RunReport) -> Iterator[str]:
    split, values = report.measured
    yield LIMITS[report.task.kind]
    if report.task.kind == "multi_label":
        own = report.metrics.get("thresholds")
        yield (
            "From which probability a label counts as there was chosen on the validation images, "
            "whose F1 is therefore a little too good."
            if own
            else "The threshold of one half was not tuned."
        )
    if values and split == "validation":
        yield f"Results on images that no choice was made on (a test split): {NOT_MEASURED}."
        if any(phase.best_epoch is not None for phase in report.phases):
            yield (
                "The best epochs were chosen on the validation images, so new images will do a "
                "little worse."
            )
    if words := weakest_words(report):
        yield words
    if report.recipe.get("tta"):
        yield Markup(
            "The results are of answers averaged over each image and its mirror image, which "
            "`hf-transfer predict` gives; other loaders answer for the image alone."
        )
    yield (
        "How it does on other data, its robustness and its fairness towards groups of people: "
        f"{NOT_MEASURED}."
    )
    yield (
        f"Licence of the pretrained weights: {report.backbone.get('license') or NOT_STATED}; "
        f"licence and origin of the images: {NOT_STATED}."
    )


def _environment(report: RunReport) -> list[list[str]]:
    facts = {
        **report.environment,
        "seed": report.seed,
        "data fingerprint": report.data.get("fingerprint"),
        "created": report.created,
    }
    return [[k, NOT_STATED if v is None else str(v)] for k, v in facts.items()]
