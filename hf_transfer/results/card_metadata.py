"""The card's metadata: what the Hub reads of a model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_transfer.base.boundary import untrusted
from hf_transfer.base.errors import UserError
from hf_transfer.results import conclusions
from hf_transfer.results.report import RunReport
from hf_transfer.results.words import METRIC_TITLES, NOT_STATED, JsonDict, metric_titles

# The Hub's names of our metrics, with their arguments there.
HUB_METRICS: dict[str, tuple[str, JsonDict | None]] = {
    "accuracy": ("accuracy", None),
    "balanced_accuracy": ("balanced_accuracy", None),
    "map": ("mean_average_precision", None),
    "macro_f1": ("f1", {"average": "macro"}),
    "auroc": ("roc_auc", {"multi_class": "ovr"}),
    "r2": ("r_squared", None),
    "mae": ("mae", None),
}
# The Hub's words for licences that a backbone may state; any other is 'other', with its own name.
HUB_LICENSES = re.compile(
    r"apache-2\.0|mit|unlicense|openrail|mpl-2\.0|[al]?gpl-3\.0|bsd-[23]-clause|cc0-1\.0"
    r"|cc-by(-nc)?(-sa|-nd)?-[234]\.0"
)
# The pipeline is that of image classification for all: it opens them, and reads the task in them.
TAGS = {
    "classification": ("image-classification",),
    "multi_label": ("image-classification", "multi-label-classification"),
    "regression": ("image-regression",),
    "pretext": ("image-feature-extraction", "self-supervised"),
}
TAGS_OF_ALL = ("hf_transfer", "transfer-learning")
LICENCE = ("license", "license_name", "license_link")
OURS = (  # keys that are written anew for each model
    *LICENCE, "library_name", "pipeline_tag", "base_model", "base_model_relation", "datasets",
    "tags", "metrics", "model_name", "eval_results", "model-index",
)  # fmt: skip


def card_metadata(report: RunReport, repo_id: str | None) -> ModelCardData:
    """Return what the Hub reads of a model: its task, origin, licence and results."""
    timm = report.backbone.get("source") == "timm"
    base, data = base_model(report), report.data.get("repo")
    found = [result for split in report.splits for result in _results(report, split)]
    return ModelCardData(
        **_license(report, base),
        library_name="timm" if timm else "transformers",
        pipeline_tag=report.task.hub_type if report.task.is_pretext else "image-classification",
        base_model=base,
        base_model_relation="finetune" if base else None,
        datasets=[data] if data else None,
        tags=[*TAGS_OF_ALL, *TAGS[report.task.kind]],
        metrics=[HUB_METRICS[report.leading_metric][0]] if found else None,
        model_name=_name(report, repo_id) if found else None,
        eval_results=found or None,
    )


def keep_metadata(card: Any, previous: str) -> None:
    """Put into a ModelCard what somebody added to the metadata of the `previous` one: keys that
    are not written here, further tags and data sets, a base model where none is known, and for the
    same base model, or where no licence is known, the licence."""
    try:
        with untrusted("the metadata of the previous card"):
            found: Any = ModelCard(previous, ignore_metadata_errors=True).data
            before = found.to_dict()
            measured = {result.dataset_type for result in found.eval_results or ()}
    except UserError:
        return  # nothing to keep
    now = card.data.to_dict()
    kept = set(before) - set(OURS)
    if not now.get("base_model"):
        kept |= {"base_model", "base_model_relation"} & set(before)
    same = before.get("base_model") == now.get("base_model")
    if before.get("license") and (same or now.get("license") in (None, "other")):
        kept |= set(LICENCE)
    for key in kept:
        card.data[key] = before.get(key)
    of_tasks = {tag for each in TAGS.values() for tag in each}
    for key, ours in (("tags", {*TAGS_OF_ALL, *of_tasks}), ("datasets", measured)):
        if isinstance(added := before.get(key), list):
            own = now.get(key) or []
            card.data[key] = [*own, *(one for one in added if one not in [*ours, *own])] or None


def _name(report: RunReport, repo_id: str | None) -> str:
    return repo_id.rsplit("/", 1)[-1] if repo_id else conclusions.title(report)


def _license(report: RunReport, base: str | None) -> JsonDict:
    """Return the licence of the weights as the Hub states it: its own words, or 'other'."""
    stated = report.backbone.get("license")
    if not stated or HUB_LICENSES.fullmatch(stated):
        return {"license": stated}
    link = f"https://huggingface.co/{base}" if base else None
    return {
        "license": "other",
        "license_name": None if stated == "other" else re.sub(r"[^\w.-]+", "-", stated.lower()),
        "license_link": link,
    }


def _results(report: RunReport, split: str) -> Iterator[EvalResult]:
    values, name = report.splits[split], conclusions.data_name(report) or NOT_STATED
    of_classes = report.task.name == "classification"
    for metric, (kind, arguments) in HUB_METRICS.items():
        if metric in metric_titles(values) and values[metric] is not None:
            yield EvalResult(
                task_type=report.task.hub_type,
                task_name=report.task.title,
                dataset_type=report.data.get("repo") or re.sub(r"[^\w.-]+", "-", name),
                dataset_name=name,
                dataset_split=report.split_name(split),
                metric_type=kind,
                metric_name=METRIC_TITLES[metric],
                metric_value=round(values[metric], 4),
                # The Hub's AUROC of one class against the rest is that of classes alone.
                metric_args=arguments if metric != "auroc" or of_classes else None,
            )


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
