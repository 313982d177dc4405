"""The formats that `export` writes: a model with what comes before and after it, as one file."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from hf_transfer.backbones.blueprint import Backbone
from hf_transfer.base.errors import UserError
from hf_transfer.recipe.tasks import THRESHOLD

OPSET = 20
MOST_AT_ONCE = (
    15  # images that an ExecuTorch program takes: its lowering of convolutions asks for <16
)
MISSING = "export to {to} needs {packages}; run: pip install 'hf-transfer-learning[{extra}]'"
Answers = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]


class Whole(PreTrainedModel):
    """A model with what comes before and after it: uint8 pixels to probabilities or values."""

    main_input_name = "pixels"

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(PretrainedConfig())
        self.model, self.backbone = model, model.backbone
        image = self.backbone.image
        self.register_buffer("mean", torch.tensor(image.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(image.std)[:, None, None], persistent=False)

    @property
    def output(self) -> str:
        """The name of what it gives."""
        return "values" if self.backbone.task == "regression" else "probabilities"

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return {output: (B, labels)} of uint8 pixels (B, size, size, C)."""
        x = (pixels.permute(0, 3, 1, 2).to(torch.float32) / 255 - self.mean) / self.std
        logits = self.model(pixel_values=x.to(self.model.dtype)).logits.float()
        if self.backbone.task == "classification":
            return {self.output: logits.softmax(-1)}
        if self.backbone.task == "multi_label":
            return {self.output: logits.sigmoid()}
        scale = self.backbone.scale
        if scale is not None:
            logits = logits * torch.tensor(scale.std) + torch.tensor(scale.mean)
        return {self.output: logits}


def facts(backbone: Backbone) -> dict[str, str]:
    """Return what a user of the file has to know, as texts: lists as JSON."""
    image = backbone.image
    return {
        "task": backbone.task,
        "labels": json.dumps(backbone.labels),
        "size": str(image.size),
        "channels": str(image.channels),
        "resize": str(image.stored),  # of the shorter side, or of both where crop_mode is squash
        "crop_mode": image.crop_mode,
        "crop_offset": image.crop_offset,
        "interpolation": image.interpolation,
        "mean": json.dumps(image.mean),
        "std": json.dumps(image.std),
        **({"threshold": _threshold(backbone)} if backbone.task == "multi_label" else {}),
    }


def _threshold(backbone: Backbone) -> str:
    """Return from which probability labels count as there: one for all, or a list of one each."""
    return json.dumps(backbone.thresholds or THRESHOLD)


def write_onnx(whole: Whole, path: Path) -> Answers:
    """Write an ONNX file and return its answers. Raises UserError without the packages."""
    try:
        import onnx_ir
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
        from transformers.exporters import OnnxConfig, OnnxExporter
    except ImportError as error:
        told = MISSING.format(
            to="onnx", packages="onnx, onnxscript and onnxruntime", extra="export"
        )
        raise UserError(told) from error
    config = OnnxConfig(
        dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}}, opset_version=OPSET
    )
    with _quiet():
        program = OnnxExporter().export(whole, _sample(whole), config=config).program
    for node in program.graph.all_nodes():
        node.metadata_props.clear()  # torch's notes, with the paths of this machine's source files
    program.metadata_props.update(facts(whole.backbone))
    onnx_ir.save(program, str(path))
    return onnx_answers(path)


def onnx_answers(path: Path, threads: int = 0) -> Answers:
    """Return the answers (B, labels) of an ONNX file to pixels (B, size, size, C)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def answers(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = session.run(None, {"pixels": pixels})[0]
        return found

    return answers


def write_openvino(whole: Whole, path: Path) -> Answers:
    """Write an OpenVINO model, .xml with .bin beside it, and return its answers."""
    try:
        import openvino
        from transformers.exporters import OpenVINOConfig, OpenVINOExporter
    except ImportError as error:
        told = MISSING.format(to="openvino", packages="openvino", extra="openvino")
        raise UserError(told) from error
    config = OpenVINOConfig(dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}})
    with _quiet():
        program = OpenVINOExporter().export(whole, _sample(whole), config=config).program
        for key, value in facts(whole.backbone).items():
            program.set_rt_info(value, ["model_info", key])
        openvino.save_model(program, str(path), compress_to_fp16=False)
    return openvino_answers(path)


def openvino_answers(path: Path, threads: int = 0) -> Answers:
    """Return the answers (B, labels) of an OpenVINO model to pixels (B, size, size, C)."""
    import openvino

    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    compiled = openvino.Core().compile_model(str(path), "CPU", options)
    return lambda pixels: compiled({0: pixels})[0]


def write_executorch(whole: Whole, path: Path) -> Answers:
    """Write an ExecuTorch program for CPUs (XNNPACK), with its facts in a .json beside it, and
    return its answers. Raises UserError without the package."""
    try:
        from executorch.runtime import Runtime
        from transformers.exporters import ExecutorchConfig, ExecutorchExporter
    except ImportError as error:
        told = MISSING.format(to="executorch", packages="executorch", extra="executorch")
        raise UserError(told) from error
    shapes = {"pixels": {0: torch.export.Dim("batch", max=MOST_AT_ONCE)}}
    config = ExecutorchConfig(backend="xnnpack", dynamic_shapes=shapes)
    with _quiet():
        made = ExecutorchExporter().export(whole, _sample(whole), config=config)
        with path.open("wb") as file:
            made.program.write_to_file(file)
        path.with_suffix(".json").write_text(json.dumps(facts(whole.backbone), indent=1) + "\n")
        method = Runtime.get().load_program(path).load_method("forward")

    def answers(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = method.execute([torch.from_numpy(pixels)])[0].numpy()
        return found

    return answers


def write_torch(whole: Whole, path: Path) -> Answers:
    """Write a file for torch.export.load and return its answers."""
    shapes = {"pixels": {0: torch.export.Dim("batch")}}
    with _quiet(), torch.no_grad():
        program = torch.export.export(whole, (), _sample(whole), dynamic_shapes=shapes)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # it names this machine's source files
        torch.export.save(program, path, extra_files=facts(whole.backbone))
        module = torch.export.load(path).module()

    def answers(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            return module(pixels=torch.from_numpy(pixels))[whole.output].numpy()

    return answers


def _sample(whole: Whole) -> dict[str, Tensor]:
    image = whole.backbone.image
    shape = (2, image.size, image.size, image.channels)
    return {"pixels": torch.zeros(shape, dtype=torch.uint8)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' own lines and warnings off the terminal."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "transformers")
    ]
    levels = [logger.level for logger in loggers]
    with open(os.devnull, "w") as nowhere, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            with redirect_stdout(nowhere):
                yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
