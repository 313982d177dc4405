"""What the lines of a card that open the model need to know."""

from __future__ import annotations

from markupsafe import Markup

from hf_transfer.results.examples import DICOM
from hf_transfer.results.report import RunReport
from hf_transfer.results.words import JsonDict


def loading(report: RunReport, repo_id: str | None) -> JsonDict:
    source, task = report.backbone.get("source"), report.task.name
    channels = report.backbone.get("channels") or 3
    return {
        "channels": channels,
        "how": f"channels={channels}" if channels != 3 else "",
        "scores": {"classification": ".softmax(-1)", "multi_label": ".sigmoid()"}.get(task, ""),
        "place": Markup(repo_id or "path/to/model"),  # noqa: S704
        "remote_code": source == "torchvision",
        "timm": Markup("hf-hub" if repo_id else "local-dir") if source == "timm" else "",
        "onnx": _onnx(report),
        "dicom": _dicom(report),
    }


def _dicom(report: RunReport) -> str:
    """Return the arguments that read DICOM files as in training; "" where there are none."""
    found = report.backbone.get("preprocessing") or {}
    window, frame = found.get("window"), found.get("frame")
    words = [f", window=({window[0]:g}, {window[1]:g})"] if window else []
    words += [f", frame={frame}"] if frame else []
    kinds = [one["kind"] for one in (report.data.get("audit") or {}).get("findings") or ()]
    return "".join(words) or (" " if DICOM in kinds else "")


def _onnx(report: RunReport) -> JsonDict | None:
    """Return what the lines for ONNX Runtime need to know; None where they cannot be written."""
    found = report.backbone.get("preprocessing")
    if not found or found["channels"] != 3 or found["crop_mode"] == "border" or found["window"]:
        return None
    down = found["crop_offset"] == "down"
    return {
        "size": found["size"],
        "stored": found["stored"],
        "squash": found["crop_mode"] == "squash",
        "filter": Markup(found["interpolation"].upper()),  # noqa: S704
        "left": Markup("(side - {0}) // 2" if down else "round((side - {0}) / 2)").format(
            found["size"]
        ),
    }
