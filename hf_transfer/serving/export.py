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
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedModel

from hf_transfer.base.boundary import untrusted
from hf_transfer.base.errors import UserError
from hf_transfer.base.files import aside
from hf_transfer.base.outputs import file_to_write
from hf_transfer.base.signatures import checked
from hf_transfer.recipe.specs import DataSpec
from hf_transfer.results.words import metric_phrase
from hf_transfer.serving.export_formats import (
    Answers,
    Whole,
    write_executorch,
    write_onnx,
    write_openvino,
    write_torch,
)
from hf_transfer.serving.export_int8 import compare_int8, lost_points, write_int8
from hf_transfer.serving.export_resizing import (
    check_resizing,
    compare_resizing,
    put_resizing_inside,
)
from hf_transfer.serving.odd_files import apart, odd_files
from hf_transfer.serving.onnx_model import OnnxModel
from hf_transfer.serving.pictures import batches
from hf_transfer.serving.predict import answering, network_of, predict
from hf_transfer.serving.runtimes import SUFFIXES, refusal

if TYPE_CHECKING:
    from hf_transfer.serving.load import Model

SAME = 1e-4  # how far an exported model's answers may lie from ours
SAME_HALF = 2e-2  # in 16 bits
WRITE: dict[str, Callable[[Whole, Path], Answers]] = {
    "onnx": write_onnx,
    "torch": write_torch,
    "openvino": write_openvino,
    "executorch": write_executorch,
}
BESIDE = {"openvino": (".bin",), "executorch": (".json",)}  # suffixes of files beside the one named


@checked
def export(
    model: Model | PreTrainedModel | OnnxModel | str | Path,
    out: str | Path,
    *,
    to: str = "onnx",
    half: bool = False,
    int8: bool = False,
    resize: bool = False,
    data: str | Path | DataSpec | None = None,
) -> dict[str, Any]:
    """Write a model as one file, for `to` "onnx" (ONNX Runtime), "torch" (`torch.export.load`),
    "openvino" (.xml, with .bin beside it) or "executorch" (.pte, with .json beside it), to the path
    `out`; return {file, format, compared, difference}.

    The input "pixels" is uint8 (B, size, size, channels) for any B, the output "probabilities" (B,
    labels), of a regression "values" in units. Labels, size, resizing, mean and std are in the
    file's metadata. Files of images of odd sizes and modes are answered by it and by `predict`:
    raises UserError, and keeps no file, where they differ by more than 1e-4. With `half` weights
    have 16 bits, and 2e-2 is allowed. With `int8`, of onnx, weights and activations have 8
    bits, calibrated on the images of `data`, and the result has `int8`: both files' metric on the
    labelled images of `data`, and both files' milliseconds an image in one thread. With `resize`,
    of onnx, "pixels" has any height and width: resizing and cutting are inside, and the result has
    `resizing`, by how much answers differ from `predict`'s at most.
    """
    if to not in SUFFIXES:
        raise UserError(refusal(to))
    out = file_to_write(out, BESIDE.get(to, ()))
    if out.suffix.lower() != SUFFIXES[to]:
        raise UserError(f"--out {out}: for --to {to} the file's name ends with {SUFFIXES[to]}")
    if int8 and (to != "onnx" or half or data is None):
        raise UserError(
            "--int8 needs --to onnx, --data with images like those of training, and no --half"
        )
    if data is not None and not int8:
        raise UserError("--data is for --int8; leave it out")
    model = network_of(answering(model))
    if resize:
        check_resizing(to, model.backbone.image)
    whole = Whole(copy.deepcopy(model) if half else model).eval().to("cpu")
    if half:
        whole.model.half()
    allowed = SAME_HALF if half else SAME
    result: dict[str, Any] = {"file": str(out), "format": to}
    with tempfile.TemporaryDirectory() as folder, untrusted(f"or write {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        made = Path(folder) / f"{out.stem}{SUFFIXES[to]}"
        other = "where it cannot hold this network, choose another format"
        with untrusted(f"{model.backbone.id} to {to}", other, verb="export"):
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
        if resize:
            put_resizing_inside(made, model.backbone.image)
            result["resizing"] = compare_resizing(model, made)
        _put(made, out, to)
    return result


def _put(made: Path, out: Path, to: str) -> None:
    """Move a file, and what lies beside it under its name, to its place."""
    for part in sorted(made.parent.glob(f"{glob.escape(made.stem)}.*"), reverse=True):
        if part.suffix in (*BESIDE.get(to, ()), made.suffix):
            scratch = aside(out.parent)
            shutil.copyfile(part, scratch)
            scratch.replace(out.with_suffix(part.suffix))


# --- the comparison ----------------------------------------------------------------------------


def _compare(model: PreTrainedModel, answers: Answers) -> tuple[int, float]:
    """Return of how many files the answers were compared with those of `predict`, and by how much
    they differ at most."""
    backbone = model.backbone
    image, labels = backbone.image, backbone.labels
    with tempfile.TemporaryDirectory() as folder:
        files = odd_files(Path(folder), image.channels)
        rows = predict(model, files, top=len(labels), tta=False)
        (batch,) = batches(files, image, len(files))
    start = image.middle(image.stored)
    cut = batch.pixels[:, start : start + image.size, start : start + image.size]
    found = answers(np.ascontiguousarray(cut.numpy()))
    alone = answers(np.ascontiguousarray(cut[:1].numpy()))  # another batch size
    return len(files), max(apart(found, rows, labels), apart(alone, rows[:1], labels))


def export_to(
    model: str | Path,
    to: str,
    out: str | Path | None,
    half: bool = False,
    int8: bool = False,
    resize: bool = False,
    data: str | Path | DataSpec | None = None,
) -> list[str]:
    """Export a model, by default to a file here that has its name; return lines that tell of it."""
    ending = f"{'-half' if half else '-int8' if int8 else ''}{SUFFIXES.get(to, '')}"
    place = Path(out) if out else Path(f"{Path(model).resolve().name}{ending}")
    found = export(model, place, to=to, half=half, int8=int8, resize=resize, data=data)
    before = " before rounding to 8 bits" if found.get("int8") else ""
    lines = [
        f"written to {found['file']}: on {found['compared']} images of odd sizes and modes{before} "
        f"its answers {_near(found['difference'])} predict's"
    ]
    if told := found.get("int8"):
        full, small, metric = told["full"], told["int8"], metric_phrase(told["metric"])
        lines.append(
            f"8 bits: {metric} {small['value']:.4f} instead of {full['value']:.4f} on "
            f"{told['n']:,} images; {small['ms']:.1f} ms an image in one thread instead of "
            f"{full['ms']:.1f}; {small['bytes'] / 2**20:.1f} MB instead of "
            f"{full['bytes'] / 2**20:.1f}"
        )
        if (lost := lost_points(told)) > 1:
            lines.append(
                f"8 bits cost {lost:.1f} points of {metric} here, more than one; keep the "
                "full file where that matters."
            )
        if small["ms"] >= full["ms"]:
            lines.append("It is not faster here; 8 bits pay for ResNets and their kin.")
    if (resizing := found.get("resizing")) is not None:
        lines.append(
            "It takes images of any size. Its resizing is not Pillow's to the last bit: the "
            f"answers to these images differ from predict's by up to {resizing:.0e}. For a file "
            "without --resize, the card shows how to resize exactly."
        )
    if to == "openvino":
        lines.append(
            "These are its answers in 32 bits. On processors with bfloat16, OpenVINO uses that "
            """unless told: compile_model(FILE, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})."""
        )
    if to == "torch":
        lines.append("A .pt2 file can run code when it is opened: open only those that you trust.")
    return lines


def _near(difference: float) -> str:
    return f"differ by at most {difference:.0e} from" if difference else "equal"
