"""Models for other runtimes: from pixels to answers, the same as predict's, or no file at all."""

import functools
import json
import logging
import re
import sys
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import photos
from tiny_folders import resnet_folder, stir

import hf_transfer
from hf_transfer.backbones.load import load_backbone
from hf_transfer.backbones.regression_units import take_scale
from hf_transfer.backbones.saving import save_model
from hf_transfer.base.errors import UserError
from hf_transfer.data.decoding import decode_noted, load_image
from hf_transfer.data.image_set import ImageSet
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.data.scale import Scale
from hf_transfer.serving import export as exporting
from hf_transfer.serving.embed import embed
from hf_transfer.serving.export import export
from hf_transfer.serving.export_formats import MOST_AT_ONCE, Whole
from hf_transfer.serving.export_resizing import put_resizing_inside
from hf_transfer.serving.load import load
from hf_transfer.serving.odd_files import odd_files
from hf_transfer.serving.pictures import batches
from hf_transfer.serving.predict import predict

LABELS = ("a", "b, c", "ü")
PACKAGE = str(Path(hf_transfer.__file__).parent).encode()


def network(name: str | None = None, **options):
    """A named network or, as that is exported sooner, a tiny one of transformers."""
    options = {"pretrained": False, "image_size": 32, **options}
    with tempfile.TemporaryDirectory() as folder:
        return stir(load_backbone(name or str(resnet_folder(Path(folder))), LABELS, **options))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model of a task and what came of its export, by task; one of classification is exported in
    test_loaders.py, with every kind of backbone."""

    @functools.cache
    def made(task):
        pytest.importorskip("onnxruntime")
        name = {"regression": None, "multi_label": "torchvision/squeezenet1_1"}[task]
        model = network(name, task=task, image_size=64)
        if task == "regression":
            scale = Scale((500.0, 0.5, 0), (300.0, 0.1, 1))
            pixels = np.zeros((1, 64, 64, 3), np.uint8)
            take_scale(model, ImageSet(pixels, [[0, 0, 0]], LABELS, scale=scale))
        else:
            model.backbone = replace(model.backbone, thresholds=(0.3, 0.5, 0.6))
        return model, export(model, tmp_path_factory.mktemp("out") / "model.onnx")

    return made


@pytest.mark.slow
@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_onnx_runtime_answers_files_as_predict_does(task, exported, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, found = exported(task)
    assert found["compared"] == 10
    assert found["difference"] <= 1e-4
    assert [path.name for path in Path(found["file"]).parent.iterdir()] == ["model.onnx"]
    assert PACKAGE not in Path(found["file"]).read_bytes()  # torch notes where each node is from
    session = onnxruntime.InferenceSession(found["file"])
    facts = session.get_modelmeta().custom_metadata_map
    image = model.backbone.image
    assert json.loads(facts["labels"]) == list(LABELS)
    assert json.loads(facts["mean"]) == pytest.approx(image.mean)
    assert (facts["task"], int(facts["size"])) == (task, image.size)
    (tmp_path / "files").mkdir()
    files = odd_files(tmp_path / "files", 3)[:3]
    (batch,) = batches(files, image)
    start = image.middle(image.stored)
    cut = batch.pixels[:, start : start + image.size, start : start + image.size].numpy()
    (answers,) = session.run(None, {"pixels": cut})
    for row, answer in zip(predict(model, files, top=3), answers, strict=True):
        told = dict(row.values or row.labels)
        assert [told[label] for label in LABELS] == pytest.approx(
            answer.tolist(), abs=1e-4, rel=1e-4
        )


@pytest.mark.slow
def test_an_onnx_file_of_a_task_that_is_not_known_is_refused(exported, tmp_path):
    onnx = pytest.importorskip("onnx")
    file = onnx.load(exported("multi_label")[1]["file"])
    next(fact for fact in file.metadata_props if fact.key == "task").value = "segmentation"
    onnx.save(file, tmp_path / "other.onnx")
    with pytest.raises(UserError, match=r"no task 'segmentation'; .* write it again"):
        predict(tmp_path / "other.onnx", [])


@pytest.mark.slow
def test_an_onnx_file_predicts_and_is_evaluated_as_its_model_is(exported, tmp_path):
    model, found = exported("multi_label")
    file = Path(found["file"])
    images = sorted(photos(tmp_path / "data", count=3).glob("*/*.png"))
    for one, other in zip(predict(file, images), predict(model, images), strict=True):
        assert dict(one.labels) == pytest.approx(dict(other.labels), abs=1e-5)
        assert (one.file, one.threshold) == (other.file, other.threshold)
        assert one.thresholds == other.thresholds
    for call in (lambda: embed(file, images), lambda: load(file).explain(images)):
        with pytest.raises(UserError, match="is an ONNX file"):
            call()
    (tmp_path / "bad.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match="write it again with hf-transfer export"):
        predict(tmp_path / "bad.onnx", images)


@pytest.mark.slow
def test_eight_bits_are_calibrated_and_their_price_is_told(tmp_path):
    pytest.importorskip("onnxruntime")
    data = photos(tmp_path / "data", LABELS[::2], count=12)
    model = network()
    save_model(model, tmp_path / "model")
    small = tmp_path / "small.onnx"
    options = {"int8": True, "resize": True, "data": data}
    lines = exporting.export_to(tmp_path / "model", "onnx", small, **options)
    assert "before rounding to 8 bits" in lines[0]
    assert "takes images of any size" in lines[-1]
    assert re.search(r"8 bits: accuracy \d.* on 24 images; .* ms an image in one thread", lines[1])
    image = sorted(data.glob("*/*.png"))[0]
    one, other = (dict(predict(it, image, top=3)[0].labels) for it in (small, model))
    assert one == pytest.approx(other, abs=0.1)
    assert one != pytest.approx(other, abs=1e-6)
    assert logging.getLogger().level != logging.ERROR


@pytest.mark.parametrize(
    "settings",
    [
        ImageSettings(20, crop_pct=20 / 23),
        ImageSettings(21, interpolation="bilinear", crop_pct=21 / 24, crop_offset="down"),
        ImageSettings(24, interpolation="bilinear", crop_mode="squash"),
        ImageSettings(20, 1, (0.5,), (0.5,), crop_pct=20 / 23),
    ],
)
def test_resizing_inside_gives_the_pixels_of_pillow_but_for_roundings(settings, tmp_path):
    """Of a file whose only answer is the square that it sees."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, load, save

    sides = ["batch", settings.size, settings.size, settings.channels]
    named = [helper.make_tensor_value_info(n, TensorProto.UINT8, sides) for n in ("pixels", "seen")]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["pixels"], ["seen"])], "same", named[:1], named[1:]
    )
    opset = [helper.make_opsetid("", 20)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=10), str(tmp_path / "same.onnx"))
    put_resizing_inside(tmp_path / "same.onnx", settings)
    made = load(str(tmp_path / "same.onnx")).graph
    read = {name for node in made.node for name in node.input}
    assert {one.name for one in made.initializer} <= read  # else ONNX Runtime warns of it
    session = onnxruntime.InferenceSession(tmp_path / "same.onnx")
    (tmp_path / "files").mkdir()
    start, off = settings.middle(settings.stored), []
    for file in odd_files(tmp_path / "files", settings.channels):
        whole = np.asarray(load_image(file, settings.channels))
        whole = whole.reshape(1, *whole.shape[:2], settings.channels)
        (found,) = session.run(None, {"pixels": whole})
        expected = decode_noted(file, settings, reduced=False).pixels[start:, start:]
        expected = expected[: settings.size, : settings.size].astype(int)
        off.append(np.abs(found[0] - expected))
    assert max(each.max() for each in off) <= 1
    assert np.mean([each.mean() for each in off]) < 2e-3


def test_what_cannot_resize_inside_is_refused(tmp_path):
    with pytest.raises(UserError, match="--resize is for --to onnx, not for torch"):
        export(network(), tmp_path / "a.pt2", to="torch", resize=True)
    model = network()
    image = replace(model.backbone.image, interpolation="lanczos")
    model.backbone = replace(model.backbone, image=image)
    with pytest.raises(UserError, match=r"\(lanczos, center, 3 channels\): it takes bilinear or"):
        export(model, tmp_path / "a.onnx", resize=True)


def test_what_eight_bits_lose_is_said_where_it_is_more_than_a_point(tmp_path, monkeypatch):
    full, small = ({"value": value, "ms": 2.0, "bytes": 2**20} for value in (0.9, 0.885))
    told = {"metric": "map", "n": 9, "full": full, "int8": small}
    answer = {"file": "a.onnx", "compared": 10, "difference": 1e-7, "int8": told}
    monkeypatch.setattr(exporting, "export", lambda *_, **__: answer)
    lines = exporting.export_to(tmp_path, "onnx", None, int8=True, data="x")
    assert "8 bits cost 1.5 points of mean average precision here, more than one" in lines[2]
    small["value"] = 0.895
    assert "points" not in " ".join(exporting.export_to(tmp_path, "onnx", None, int8=True))


@pytest.mark.slow
def test_sixteen_bits_leave_the_model_as_it_is_and_the_answers_near(tmp_path):
    pytest.importorskip("onnxruntime")
    model = network()
    found = export(model, tmp_path / "half.onnx", half=True)
    assert 0 < found["difference"] <= 2e-2
    assert model.dtype == torch.float32


@pytest.mark.slow
def test_openvino_answers_as_predict_does(tmp_path):
    openvino = pytest.importorskip("openvino")
    found = export(network(), tmp_path / "model.xml", to="openvino")
    assert found["difference"] <= 1e-4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    model = openvino.Core().read_model(found["file"])
    assert json.loads(model.get_rt_info(["model_info", "labels"]).value) == list(LABELS)
    assert PACKAGE not in (tmp_path / "model.xml").read_bytes()


@pytest.mark.slow
def test_executorch_answers_as_predict_does_with_its_facts_beside_it(tmp_path):
    executorch = pytest.importorskip("executorch.runtime")
    found = export(network(), tmp_path / "model.pte", to="executorch")
    assert found["difference"] <= 1e-4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.pte"]
    assert json.loads(json.loads((tmp_path / "model.json").read_text())["labels"]) == list(LABELS)
    assert PACKAGE not in (tmp_path / "model.pte").read_bytes()
    method = executorch.Runtime.get().load_program(tmp_path / "model.pte").load_method("forward")
    most = torch.zeros((MOST_AT_ONCE, 32, 32, 3), dtype=torch.uint8)
    assert method.execute([most])[0].shape == (MOST_AT_ONCE, len(LABELS))


def test_options_that_do_not_go_together_are_refused(tmp_path):
    for options in ({"int8": True}, {"int8": True, "data": "x", "half": True}, {"data": "x"}):
        with pytest.raises(UserError, match="--data"):
            export("nowhere", tmp_path / "a.onnx", **options)


@pytest.mark.parametrize("channels", [1, 6])
def test_torch_alone_opens_the_other_format_for_any_number_of_channels(channels, tmp_path):
    model = network(channels=channels)
    export(model, tmp_path / "model.pt2", to="torch")
    extra = {"labels": ""}
    whole = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    assert json.loads(extra["labels"]) == list(LABELS)
    pixels = torch.randint(0, 256, (5, 32, 32, channels), dtype=torch.uint8)
    with torch.no_grad():
        expected = Whole(model).eval()(pixels)["probabilities"]
        assert torch.allclose(whole(pixels=pixels)["probabilities"], expected, atol=1e-6)
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        told = b"".join(map(archive.read, archive.namelist()))
    assert PACKAGE not in told
    assert b"site-packages" not in told


def test_what_a_format_cannot_hold_is_one_line_that_says_so(tmp_path, monkeypatch):
    def refuse(*_):
        raise ValueError("operator x is not in its set")

    monkeypatch.setitem(exporting.WRITE, "torch", refuse)
    told = "cannot export timm/test_resnet to torch: operator x is not in its set; where it cannot"
    with pytest.raises(UserError, match=told):
        export(network("timm/test_resnet"), tmp_path / "a.pt2", to="torch")


def test_a_file_whose_answers_differ_is_refused_and_not_kept(tmp_path, monkeypatch):
    kept = tmp_path / "model.pt2"
    kept.write_bytes(b"from before")
    forward = Whole.forward
    monkeypatch.setattr(
        Whole,
        "forward",
        lambda self, pixels: {k: v + 2e-4 for k, v in forward(self, pixels).items()},
    )
    with pytest.raises(UserError, match=r"differ from predict's by 2.0e-04, more than 0.0001"):
        export(network(), kept, to="torch")
    assert kept.read_bytes() == b"from before"
    assert list(tmp_path.iterdir()) == [kept]


def test_mistakes_are_told_before_anything_is_exported(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="cannot export to 'tflite'; choose one of onnx, torch"):
        export("nowhere", tmp_path / "a", to="tflite")
    with pytest.raises(
        UserError, match="export to coreml is not supported; its files run on a Mac"
    ):
        export("nowhere", tmp_path / "a.mlpackage", to="coreml")
    with pytest.raises(UserError, match=r"the file's name ends with \.onnx"):
        export("nowhere", tmp_path / "a.pb")
    for name in ("onnx_ir", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UserError, match=r"pip install 'hf-transfer-learning\[export\]'"):
            export(network(), tmp_path / "a.onnx")
    monkeypatch.setitem(sys.modules, "executorch.runtime", None)
    with pytest.raises(UserError, match=r"pip install 'hf-transfer-learning\[executorch\]'"):
        export(network(), tmp_path / "a.pte", to="executorch")
    assert list(tmp_path.iterdir()) == []


def test_the_default_file_has_the_models_name(tmp_path, monkeypatch):
    asked: list[Path] = []

    def record(model, out, *, to, **_):
        asked.append(Path(out))
        return {"file": str(out), "compared": 10, "difference": 1e-7}

    monkeypatch.setattr(exporting, "export", record)
    (tmp_path / "flowers").mkdir()
    assert (
        "open only those that you trust"
        in exporting.export_to(tmp_path / "flowers", "torch", None)[1]
    )
    exporting.export_to(tmp_path / "flowers", "onnx", None)
    assert asked == [Path("flowers.pt2"), Path("flowers.onnx")]
