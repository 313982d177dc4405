"""A model as one file for other runtimes, from pixels to probabilities, compared before it is kept.

The file takes the square of pixels that is left after resizing and cutting: uint8 (B, S, S, C).
Normalisation and softmax (several labels: sigmoid; regression: units) are inside.
"""

from __future__ import annotations

import copy
import glob
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import PreTrainedModel

from hf_transfer.base.boundary import untrusted
from hf_transfer.base.errors import UserError
from hf_transfer.base.files import aside
from hf_transfer.recipe.specs import DataSpec
from hf_transfer.serving.export_formats import (
    Answers,
    Whole,
    write_onnx,
    write_openvino,
    write_torch,
)
from hf_transfer.serving.export_int8 import compare_int8, write_int8
from hf_transfer.serving.pictures import batches
from hf_transfer.serving.predict import Prediction, network_of, predict
from hf_transfer.serving.runtimes import SUFFIXES, refusal

SAME = 1e-4  # how far an exported model's answers may lie from ours
SAME_HALF = 2e-2  # in 16 bits
WRITE: dict[str, Callable[[Whole, Path], Answers]] = {
    "onnx": write_onnx,
    "torch": write_torch,
    "openvino": write_openvino,
}


def export(
    model: PreTrainedModel | str | Path,
    out: str | Path,
    *,
    to: str = "onnx",
    half: bool = False,
    int8: bool = False,
    data: str | Path | DataSpec | None = None,
) -> dict[str, Any]:
    """Write a model as one file, for `to` "onnx" (ONNX Runtime), "torch" (`torch.export.load`) or
    "openvino" (.xml, with .bin beside it); return {file, format, compared, difference}.

    The input "pixels" is uint8 (B, size, size, channels) for any B, the output "probabilities" (B,
    labels), of a regression "values" in units. Labels, size, resizing, mean and std are in the
    file's metadata. Files of images of odd sizes and modes are answered by it and by `predict`:
    raises UserError, and keeps no file, where they differ by more than SAME. With `half` weights
    have 16 bits, and SAME_HALF is allowed. With `int8`, of onnx, weights and activations have 8
    bits, calibrated on the images of `data`, and the result has `int8`: both files' metric on the
    labelled images of `data`, and both files' milliseconds an image in one thread.
    """
    if to not in SUFFIXES:
        raise UserError(refusal(to))
    out = Path(out).expanduser()
    if out.suffix.lower() != SUFFIXES[to]:
        raise UserError(f"--out {out}: for --to {to} the file's name ends with {SUFFIXES[to]}")
    if int8 and (to != "onnx" or half or data is None):
        raise UserError(
            "--int8 needs --to onnx, --data with images like those of training, and no --half"
        )
    if data is not None and not int8:
        raise UserError("--data is for --int8; leave it out")
    model = network_of(model)
    whole = Whole(copy.deepcopy(model) if half else model).eval().to("cpu")
    if half:
        whole.model.half()
    allowed = SAME_HALF if half else SAME
    result: dict[str, Any] = {"file": str(out), "format": to}
    with tempfile.TemporaryDirectory() as folder, untrusted(f"or write {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        made = Path(folder) / f"{out.stem}{SUFFIXES[to]}"
        answers = WRITE[to](whole, made)
        count, apart = _compare(model, answers)
        if not apart <= allowed:
            raise UserError(
                f"the exported model's answers differ from predict's by {apart:.1e}, more than "
                f"{allowed:g}, so it was not kept; choose another format"
            )
        result |= {"compared": count, "difference": apart}
        if int8 and data is not None:
            small = write_int8(made, model.backbone, data)
            result["int8"] = compare_int8(made, small, data)
            made = small
        _put(made, out)
    return result


def _put(made: Path, out: Path) -> None:
    """Move a file, and what lies beside it under its name, to its place."""
    for part in sorted(made.parent.glob(f"{glob.escape(made.stem)}.*"), reverse=True):
        if part.suffix in (".bin", made.suffix):
            scratch = aside(out.parent)
            shutil.copyfile(part, scratch)
            scratch.replace(out.with_suffix(part.suffix))


# --- the comparison ----------------------------------------------------------------------------


def _compare(model: PreTrainedModel, answers: Answers) -> tuple[int, float]:
    """Return of how many files the answers were compared with those of `predict`, and by how much
    they differ at most: probabilities as such, values by their size."""
    backbone = model.backbone
    image = backbone.image
    with tempfile.TemporaryDirectory() as folder:
        files = odd_files(Path(folder), image.channels)
        rows = predict(model, files, top=len(backbone.labels), tta=False)
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


def export_to(
    model: str | Path,
    to: str,
    out: str | Path | None,
    half: bool = False,
    int8: bool = False,
    data: str | Path | None = None,
) -> list[str]:
    """Export a model, by default to a file here that has its name; return lines that tell of it."""
    ending = f"{'-half' if half else '-int8' if int8 else ''}{SUFFIXES.get(to, '')}"
    place = Path(out) if out else Path(f"{Path(model).resolve().name}{ending}")
    found = export(model, place, to=to, half=half, int8=int8, data=data)
    lines = [
        f"{found['file']}: {found['compared']} images of odd sizes and modes are answered as by "
        f"predict, to {found['difference']:.0e}"
    ]
    if told := found.get("int8"):
        lines[0] += " before rounding to 8 bits"
        full, small = told["full"], told["int8"]
        lines.append(
            f"8 bits: {told['metric']} {small['value']:.4f} instead of {full['value']:.4f} on "
            f"{told['n']:,} images; {small['ms']:.1f} ms an image in one thread instead of "
            f"{full['ms']:.1f}; {small['bytes'] / 2**20:.1f} MB instead of "
            f"{full['bytes'] / 2**20:.1f}"
        )
        if small["ms"] >= full["ms"]:
            lines.append("It is not faster here; 8 bits pay for ResNets and their kin.")
    if to == "torch":
        lines.append("A .pt2 file can run code when it is opened: open only those that you trust.")
    return lines
