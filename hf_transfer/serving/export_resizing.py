"""Resizing and cutting inside an ONNX file, which then takes images of any size.

ONNX's antialiased Resize of uint8, with what lies outside left out and the cubic of Pillow, gives
Pillow's pixels but for roundings: about one in ten thousand differs, by 1 of 255.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from hf_transfer.base.errors import UserError
from hf_transfer.data.decoding import load_image
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.serving.export_formats import onnx_answers
from hf_transfer.serving.odd_files import apart, odd_files
from hf_transfer.serving.onnx_model import INSIDE
from hf_transfer.serving.predict import predict

MODES = {"bilinear": "linear", "bicubic": "cubic"}
SAME = 1e-2  # how far answers may lie from ours, roundings of pixels included


def check_resizing(to: str, image: ImageSettings) -> None:
    """Raise UserError where resizing cannot be inside a file."""
    if to != "onnx":
        raise UserError(f"--resize is for --to onnx, not for {to}; remove one of them")
    if image.interpolation not in MODES or image.crop_mode == "border" or image.channels > 4:
        raise UserError(
            f"--resize cannot put this model's resizing into a file ({image.interpolation}, "
            f"{image.crop_mode}, {image.channels} channels): it takes bilinear or bicubic, center "
            "or squash, and up to 4 channels; leave --resize out, and resize as the card shows"
        )


def put_resizing_inside(path: Path, image: ImageSettings) -> None:
    """Let an ONNX file take uint8 pixels (B, H, W, C) of any height and width, not squares only."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(str(path))
    graph = model.graph
    (square,) = graph.input
    for node in graph.node:
        node.input[:] = ["square" if name == square.name else name for name in node.input]
    added = list(_nodes(image))
    read = {name for node in added for name in node.input}
    graph.initializer.extend(one for one in _constants(image) if one.name in read)
    for node in reversed(added):
        graph.node.insert(0, node)
    sides: list[str | int | None] = ["batch", "height", "width", image.channels]
    taken = helper.make_tensor_value_info("pixels", TensorProto.UINT8, sides)
    del graph.input[:]
    graph.input.append(taken)
    model.metadata_props.add(key=INSIDE, value="true")
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _constants(image: ImageSettings) -> Iterator[Any]:
    from onnx import numpy_helper

    stored = image.stored
    whole = {"two": [2], "four": [4], "zero": [0], "sides": [2, 3], "target": [stored, stored]}
    whole |= {"stored": [stored], "size": [image.size]}
    for name, values in whole.items():
        yield numpy_helper.from_array(np.array(values, np.int64), f"resize_{name}")
    yield numpy_helper.from_array(np.array([0.5], np.float32), "resize_half")


def _nodes(image: ImageSettings) -> Iterator[Any]:
    """Yield the operations from `pixels` to `square`, in order."""
    from onnx import TensorProto, helper

    def node(kind: str, inputs: str, output: str, **how: Any) -> Any:
        names = ["" if name == "-" else name for name in inputs.split()]
        names = [f"resize_{name}" if name not in ("", "pixels") else name for name in names]
        made = output if output == "square" else f"resize_{output}"
        return helper.make_node(kind, names, [made], f"resize_{kind}_{output}", **how)

    yield node("Transpose", "pixels", "first", perm=[0, 3, 1, 2])
    yield node("Shape", "first", "shape")
    yield node("Slice", "shape zero two", "rest")
    if image.crop_mode == "squash":
        yield node("Identity", "target", "scaled")
    else:  # the shorter side becomes the target, the longer one is rounded down
        yield node("Slice", "shape two four", "given")
        yield node("ReduceMin", "given", "short", keepdims=1)
        yield node("Mul", "given stored", "product")
        yield node("Div", "product short", "scaled")
    yield node("Concat", "rest scaled", "wanted", axis=0)
    mode = MODES[image.interpolation]
    cubic = {"cubic_coeff_a": -0.5} if mode == "cubic" else {}
    how = {"mode": mode, "antialias": 1, "exclude_outside": 1, **cubic}
    yield node("Resize", "first - - wanted", "resized", **how)
    yield node("Sub", "scaled size", "spare")
    if image.crop_offset == "down":
        yield node("Div", "spare two", "start")
    else:
        yield node("Cast", "spare", "float", to=TensorProto.FLOAT)
        yield node("Mul", "float half", "middle")
        yield node("Round", "middle", "even")
        yield node("Cast", "even", "start", to=TensorProto.INT64)
    yield node("Add", "start size", "end")
    yield node("Slice", "resized start end sides", "cut")
    yield node("Transpose", "cut", "square", perm=[0, 2, 3, 1])


def compare_resizing(model: PreTrainedModel, path: Path) -> float:
    """Return by how much the answers of a file that resizes differ at most from `predict`'s, to
    files of odd sizes and modes. Raises UserError where that is more than SAME."""
    answers, channels = onnx_answers(path), model.backbone.image.channels
    with tempfile.TemporaryDirectory() as folder:
        files = odd_files(Path(folder), channels)
        rows = predict(model, files, top=len(model.backbone.labels), tta=False)
        images = [np.asarray(load_image(file, channels)) for file in files]
    shaped = [image.reshape(*image.shape[:2], channels)[None] for image in images]
    found = np.concatenate([answers(np.ascontiguousarray(image)) for image in shaped])
    worst = apart(found, rows, model.backbone.labels)
    if not worst <= SAME:
        raise UserError(
            f"with resizing inside, answers differ from predict's by {worst:.1e}, more than "
            f"{SAME:g}, so the file was not kept; leave --resize out"
        )
    return worst
