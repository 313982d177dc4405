"""An evaluation as files: evaluation.json, and the page that a report has."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedModel

from hf_transfer.base.files import write_text
from hf_transfer.data.contents import is_dicom
from hf_transfer.data.decoding import decode
from hf_transfer.data.image_set import ImageSet
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.data.scan import Scan
from hf_transfer.results import facts
from hf_transfer.results.examples import examples
from hf_transfer.results.page import write_html
from hf_transfer.results.report import RunReport
from hf_transfer.results.words import LABELLED, JsonDict
from hf_transfer.serving.evaluate_text import (
    told_of_comparison,
    told_of_confidence,
    told_of_unknown,
)

if TYPE_CHECKING:
    from hf_transfer.serving.evaluate import Scored


def write_evaluation(
    result: JsonDict,
    model: PreTrainedModel,
    found: Scan,
    scored: Scored,
    out: Path,
    page_images: bool | None,
) -> None:
    """Write what `evaluate` found to the folder `out`: evaluation.json and report.html."""
    write_text(out / "evaluation.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    if page_images is None:
        page_images = not any(_dicom(found, scored.rows))
    shown = _examples(model, found, scored, _limits(result, scored)) if page_images else {}
    write_html(evaluation_report(result, model, found, scored, shown), out / "report.html")


def evaluation_report(
    result: JsonDict, model: PreTrainedModel, found: Scan, scored: Scored, shown: JsonDict
) -> RunReport:
    """Return an evaluation as a report without phases, for the page."""
    backbone = model.backbone
    data: JsonDict = {
        "path": result["data"],
        "labels": list(scored.names),
        "images": {LABELLED: len(scored.rows)},
        "unmatched": list(_unmatched(result["labels"])),
    }
    if backbone.task != "regression":
        counts = Counter(
            found.labels[at] for row in scored.rows for at in found.places(found.targets[row])
        )
        data["counts"] = {LABELLED: {label: counts[label] for label in scored.names}}
    return RunReport(
        name="evaluation",
        recipe={"task": backbone.task, "page_images": None if shown else "none"},
        backbone=facts.backbone_facts(model, backbone.id),
        data=data,
        phases=(),
        metrics={
            LABELLED: result["metrics"],
            "said": list(_said(result)),
            "command": result["command"],
        },
        seconds={},
        environment=facts.environment(),
        seed=0,
        warnings=tuple(f"left out: {one['error']}" for one in result["unreadable"]),
        created=facts.now(),
        examples=shown,
    )


def _said(result: JsonDict) -> Iterator[str]:
    """Yield what was asked besides the metrics, in words."""
    if result["tta"]:
        yield "Each answer is the average of those for the image and its mirror image."
    if sure := result.get("confident"):
        yield told_of_confidence(sure)
    if own := result.get("thresholds"):
        told = ", ".join(f"{name} {limit:.3g}" for name, limit in own.items())
        yield f"Labels count as present from the model's own probabilities on: {told}."
    if threshold := result.get("threshold"):
        yield f"A label counts as present from a probability of {threshold:g} on."
    if unknown := result.get("unknown"):
        yield told_of_unknown(unknown)
    if compared := result.get("comparison"):
        yield from (f"{line[0].upper()}{line[1:]}." for line in told_of_comparison(compared))


def _unmatched(labels: JsonDict) -> Iterator[JsonDict]:
    for row in labels["only_in_data"]:
        near = f"; is it the model's {row['nearest']!r}?" if row["nearest"] else ""
        count = row["images"]
        what = "its image is" if count == 1 else f"its {count:,} images are"
        done = f"{what} not counted{near}"
        yield {"label": row["label"], "where": "the data", "done": done}
    for label in labels["only_in_model"]:
        done = "no image shows it, so nothing is measured"
        yield {"label": label, "where": "the model", "done": done}


def _dicom(found: Scan, rows: np.ndarray[Any, Any]) -> Iterator[bool]:
    for row in rows.tolist():
        if found.table is not None:
            with found.opened(row) as content:
                yield is_dicom(content[:132])
        else:
            with open(os.path.join(found.root, found.files[row]), "rb") as file:
                yield is_dicom(file.read(132))


def _limits(result: JsonDict, scored: Scored) -> tuple[float, ...]:
    """Return the probabilities from which labels counted as there; () for one half."""
    if own := result.get("thresholds"):
        return tuple(own[name] for name in scored.names)
    return (result["threshold"],) * len(scored.names) if "threshold" in result else ()


def _examples(
    model: PreTrainedModel, found: Scan, scored: Scored, limits: tuple[float, ...]
) -> JsonDict:
    """Return the images that the page shows, with what the model said of them."""
    files = [found.files[row] for row in scored.rows.tolist()]
    pixels: Any = _Pixels(found, scored.rows, model.backbone.image)
    images = ImageSet(pixels, scored.truth, scored.names, files)
    return examples(model.backbone.task, scored.logits, images, limits=limits)


@dataclass(frozen=True)
class _Pixels:
    """The pixels of scored images, decoded when asked for."""

    found: Scan
    rows: np.ndarray[Any, Any]
    settings: ImageSettings

    def __getitem__(self, row: int) -> np.ndarray[Any, Any]:
        with self.found.opened(int(self.rows[row])) as content:
            return decode(content, self.settings)
