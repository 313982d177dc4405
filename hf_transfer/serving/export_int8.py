"""An ONNX file in 8 bits: calibrated on images, compared with the file in full on labelled ones."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hf_transfer.backbones.blueprint import Backbone
from hf_transfer.base.errors import UserError
from hf_transfer.recipe.specs import DataSpec
from hf_transfer.recipe.tasks import TASKS
from hf_transfer.serving.evaluate import evaluate, unlabelled_images
from hf_transfer.serving.onnx_model import OnnxModel
from hf_transfer.serving.pictures import batches

MOST = 128  # images to calibrate on
TIMED = 15  # single images


def write_int8(full: Path, backbone: Backbone, data: str | Path | DataSpec) -> Path:
    """Write a file in 8 bits beside a full one, and return its path. Raises UserError."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = _pixels(backbone, data)

        def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
            found = next(self.rows, None)
            return None if found is None else {"pixels": found}

    prepared, small = full.with_name("prepared.onnx"), full.with_name(f"{full.stem}.int8.onnx")
    logger = logging.getLogger()  # its advice is for those who call it themselves
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        quant_pre_process(str(full), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(small),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    finally:
        logger.setLevel(level)
    return small


def _pixels(backbone: Backbone, data: str | Path | DataSpec) -> Iterator[np.ndarray[Any, Any]]:
    """Yield squares of pixels uint8 (1, S, S, C) of up to MOST images, spread evenly."""
    image, count = backbone.image, 0
    for batch in batches(unlabelled_images(data, backbone, MOST), image):
        start = image.middle(image.stored)
        for row in batch.pixels[:, start : start + image.size, start : start + image.size]:
            count += 1
            yield np.ascontiguousarray(row[None].numpy())
    if not count:
        raise UserError("--int8: no image of --data can be read")


def compare_int8(full: Path, small: Path, data: str | Path | DataSpec) -> dict[str, Any]:
    """Return {metric, n, full, int8}: of both files their leading metric's value on labelled
    images, the milliseconds for one image in one thread, and their bytes."""
    told: dict[str, Any] = {}
    for name, path in (("full", full), ("int8", small)):
        model = OnnxModel(path)
        metrics = evaluate(model, data)["metrics"]
        metric = TASKS[model.backbone.task].headline
        told |= {"metric": metric, "n": metrics["n"]}
        told[name] = {
            "value": metrics[metric],
            "ms": _milliseconds(OnnxModel(path, threads=1)),
            "bytes": path.stat().st_size,
        }
    return told


def lost_points(told: dict[str, Any]) -> float:
    """Return how many points, hundredths, of the leading metric 8 bits lose; less than 0: they
    gain."""
    return 100 * float(told["full"]["value"] - told["int8"]["value"])


def _milliseconds(model: OnnxModel) -> float:
    import torch

    image = model.backbone.image
    pixels = torch.zeros((1, image.size, image.size, image.channels), dtype=torch.uint8)
    times = []
    for _ in range(TIMED):
        start = time.perf_counter()
        model.outputs(pixels)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[3:])
