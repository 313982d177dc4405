"""An ONNX file that `export` wrote, as a model that predicts and is evaluated."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_transfer.base.boundary import untrusted
from hf_transfer.base.errors import UserError
from hf_transfer.base.files import expanded
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.inputs.model_input import check_pixels
from hf_transfer.recipe.tasks import TASKS

SUFFIX = ".onnx"
INSIDE = "resizes"  # the metadata of a file that resizes and cuts
TINY = 1e-12


@dataclass(frozen=True)
class OnnxFacts:
    """What an ONNX file says of itself: what `backbone` is of other models."""

    id: str
    labels: tuple[str, ...]
    image: ImageSettings
    task: str
    thresholds: tuple[float, ...] = ()  # from which labels of several are there; (): one half
    scale: None = None  # units are inside
    tta: bool = False  # it sees one image at a time


class OnnxModel:
    """A model in an ONNX file; it has answers only, no layers to look into or to train."""

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(
                "an ONNX file needs onnxruntime; install it with: "
                "pip install 'hf-transfer-learning[export]'"
            ) from error
        path = expanded(path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        with untrusted(str(path), "write it again with hf-transfer export"):
            providers = ["CPUExecutionProvider"]
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
            told = self._session.get_modelmeta().custom_metadata_map
            if "labels" not in told:
                raise UserError(f"{path} does not name its labels; hf-transfer export writes them")
            if told["task"] not in TASKS:
                raise ValueError(f"there is no task {told['task']!r}; there are {', '.join(TASKS)}")
            limits = json.loads(told.get("threshold", "0.5"))
            self._resizes = told.get(INSIDE) == "true"
            self.backbone = OnnxFacts(
                str(path),
                tuple(json.loads(told["labels"])),
                _settings(told),
                told["task"],
                tuple(limits) if isinstance(limits, list) else (),
            )

    def outputs(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return outputs (B, C) as logits, of a regression in units, of images of uint8 (B, S', S',
        C)."""
        image = self.backbone.image
        if not len(pixels):
            return torch.empty((0, len(self.backbone.labels)))
        check_pixels(pixels, image)
        seen = pixels
        if not self._resizes:  # which cuts, too
            start = image.middle(pixels.shape[1])
            seen = pixels[:, start : start + image.size, start : start + image.size]
        (found,) = self._session.run(None, {"pixels": np.ascontiguousarray(seen.cpu().numpy())})
        answers = torch.from_numpy(found).float()
        if self.backbone.task == "regression":
            return answers
        if self.backbone.task == "multi_label":
            return answers.double().logit(eps=TINY).float()
        return answers.clamp(min=TINY).log()


def _settings(told: dict[str, Any]) -> ImageSettings:
    size, stored = int(told["size"]), int(told["resize"])
    return ImageSettings(
        size=size,
        channels=int(told["channels"]),
        mean=tuple(json.loads(told["mean"])),
        std=tuple(json.loads(told["std"])),
        interpolation=told["interpolation"],
        crop_pct=size / stored,
        crop_mode=told["crop_mode"],
        crop_offset=told["crop_offset"],
    )
