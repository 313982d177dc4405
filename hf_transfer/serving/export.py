"""A model as one file for other runtimes, from pixels to probabilities, compared before it is kept.

The file takes the square of pixels that is left after resizing and cutting: uint8 (B, S, S, C).
Normalisation and softmax (several labels: sigmoid; regression: units) are inside.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from hf_transfer.backbones.blueprint import Backbone
from hf_transfer.base.boundary import untrusted
from hf_transfer.base.errors import UserError
from hf_transfer.recipe.tasks import THRESHOLD
from hf_transfer.serving.pictures import batches
from hf_transfer.serving.predict import Prediction, predict, ready

SAME = 1e-4  # how far an exported model's answers may lie from ours
OPSET = 20
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
MISSING = (
    "export to onnx needs onnx, onnxscript and onnxruntime; install them with: "
    "pip install 'hf-transfer-learning[export]'"
)
Answers = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]


def export(
    model: PreTrainedModel | str | Path, out: str | Path, *, to: str = "onnx"
) -> dict[str, Any]:
    """Write a model as one file, for `to` "onnx" (ONNX Runtime) or "torch" (`torch.export.load`);
    return {file, format, compared, difference}.

    The input "pixels" is uint8 (B, size, size, channels) for any B, the output "probabilities" (B,
    labels), of a regression "values" in units. Labels, size, resizing, mean and std are in the
    file's metadata. Files of images of odd sizes and modes are answered by it and by `predict`:
    raises UserError, and keeps no file, where they differ by more than SAME.
    """
    if to not in SUFFIXES:
        raise UserError(f"cannot export to {to!r}; choose one of {', '.join(SUFFIXES)}")
    out = Path(out).expanduser()
    if out.suffix.lower() != SUFFIXES[to]:
        raise UserError(f"--out {out}: for --to {to} the file's name ends with {SUFFIXES[to]}")
    model = model if isinstance(model, PreTrainedModel) else ready(model)
    whole = Whole(model).eval().to("cpu")
    write = _write_onnx if to == "onnx" else _write_torch
    scratch = out.with_name(f".{out.stem}.part{SUFFIXES[to]}")
    try:
        with untrusted(f"or write {out}"):
            out.parent.mkdir(parents=True, exist_ok=True)
            answers = write(whole, scratch)
            count, apart = _compare(model, answers)
            if not apart <= SAME:
                raise UserError(
                    f"the exported model's answers differ from predict's by {apart:.1e}, more than "
                    f"{SAME:g}, so it was not kept; choose another format"
                )
            scratch.replace(out)
    finally:
        scratch.unlink(missing_ok=True)
    return {"file": str(out), "format": to, "compared": count, "difference": apart}


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
        **({"threshold": str(THRESHOLD)} if backbone.task == "multi_label" else {}),
    }


# --- formats -----------------------------------------------------------------------------------


def _write_onnx(whole: Whole, path: Path) -> Answers:
    try:
        import onnx_ir
        import onnxruntime
        import onnxscript  # noqa: F401
        from transformers.exporters import OnnxConfig, OnnxExporter
    except ImportError as error:
        raise UserError(MISSING) from error
    config = OnnxConfig(
        dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}}, opset_version=OPSET
    )
    with _quiet():
        program = OnnxExporter().export(whole, _sample(whole), config=config).program
    program.metadata_props.update(facts(whole.backbone))
    onnx_ir.save(program, str(path))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run([whole.output], {"pixels": pixels})[0]


def _write_torch(whole: Whole, path: Path) -> Answers:
    shapes = {"pixels": {0: torch.export.Dim("batch")}}
    with _quiet(), torch.no_grad():
        program = torch.export.export(whole, (), _sample(whole), dynamic_shapes=shapes)
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
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
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


# --- the comparison ----------------------------------------------------------------------------


def _compare(model: PreTrainedModel, answers: Answers) -> tuple[int, float]:
    """Return of how many files the answers were compared with those of `predict`, and by how much
    they differ at most: probabilities as such, values by their size."""
    backbone = model.backbone
    image = backbone.image
    with tempfile.TemporaryDirectory() as folder:
        files = odd_files(Path(folder), image.channels)
        rows = predict(model, files, top=len(backbone.labels))
        (batch,) = batches(files, image, len(files))
    if failed := [row.error for row in rows if row.error]:
        raise UserError(f"cannot compare the exported model: {failed[0]}")
    start = image.middle(image.stored)
    cut = batch.pixels[:, start : start + image.size, start : start + image.size]
    found = answers(np.ascontiguousarray(cut.numpy()))
    alone = answers(np.ascontiguousarray(cut[:1].numpy()))  # another batch size
    expected = np.array([in_order(row, backbone.labels) for row in rows])
    size = np.maximum(1.0, np.abs(expected))
    apart = [np.abs(found - expected) / size, np.abs(alone - expected[:1]) / size[:1]]
    return len(files), float(max(each.max() for each in apart))


def in_order(row: Prediction, labels: tuple[str, ...]) -> list[float]:
    """Return a prediction's probabilities or values in the order of the model's labels."""
    told = dict(row.values if row.values is not None else row.labels)
    return [told[label] for label in labels]


def odd_files(folder: Path, channels: int) -> list[Path]:
    """Write ten images of odd sizes and modes, noise under a gradient, and return their paths."""
    random = np.random.default_rng(0)

    def pixels(width: int, height: int, bands: int) -> np.ndarray[Any, Any]:
        ramp = np.linspace(0, 200, width)[None, :, None] * np.linspace(0, 1, height)[:, None, None]
        return (ramp + random.integers(0, 56, (height, width, bands))).astype(np.uint8)

    if channels not in (1, 3, 4):
        for i in range(10):
            np.save(folder / f"{i}.npy", pixels(31 + 40 * i, 300 - 20 * i, channels))
        return sorted(folder.iterdir())
    colour = Image.fromarray(pixels(301, 211, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    colour.save(folder / "turned.jpg", exif=exif)
    colour.convert("L").save(folder / "gray.png")
    colour.convert("1").save(folder / "bits.png")
    colour.convert("CMYK").save(folder / "cmyk.jpg")
    colour.quantize(32).save(folder / "palette.png", transparency=1)
    Image.fromarray(pixels(33, 450, 4), "RGBA").save(folder / "alpha.png")
    Image.fromarray(pixels(17, 19, 2), "LA").save(folder / "small.png")
    Image.fromarray(pixels(1601, 1201, 3)).save(folder / "photo.jpg")
    deep = pixels(97, 89, 1)[..., 0].astype(np.uint16) * 255
    Image.fromarray(deep).save(folder / "deep.png")
    Image.fromarray(pixels(640, 479, 3)).save(folder / "web.webp")
    return sorted(folder.iterdir())


def export_to(model: str | Path, to: str, out: str | Path | None) -> list[str]:
    """Export a model, by default to a file here that has its name; return lines that tell of it."""
    place = Path(out) if out else Path(f"{Path(model).resolve().name}{SUFFIXES.get(to, '')}")
    found = export(model, place, to=to)
    lines = [
        f"{found['file']}: {found['compared']} images of odd sizes and modes are answered as by "
        f"predict, to {found['difference']:.0e}"
    ]
    if to == "torch":
        lines.append("A .pt2 file can run code when it is opened: open only those that you trust.")
    return lines
