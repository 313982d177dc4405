"""Models for other runtimes: from pixels to answers, the same as predict's, or no file at all."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_folders import stir, vit_folder

from hf_transfer.backbones.load import load_backbone
from hf_transfer.backbones.regression_units import take_scale
from hf_transfer.base.errors import UserError
from hf_transfer.data.image_set import ImageSet
from hf_transfer.data.scale import Scale
from hf_transfer.serving import export as exporting
from hf_transfer.serving.export import Whole, export, odd_files
from hf_transfer.serving.pictures import batches
from hf_transfer.serving.predict import predict

LABELS = ("a", "b, c", "ü")
SMALL = "timm/test_resnet"


def network(name: str = SMALL, **options):
    options = {"pretrained": False, "image_size": 32, **options}
    return stir(load_backbone(name, LABELS, **options))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "multi_label", "regression"])
def test_onnx_runtime_answers_files_as_predict_does(task, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    if task == "classification":
        model = network(str(vit_folder(tmp_path / "vit")), pretrained=True)
    else:
        name = {"regression": SMALL, "multi_label": "torchvision/squeezenet1_1"}[task]
        model = network(name, task=task, image_size=64)
    if task == "regression":
        scale = Scale((500.0, 0.5, 0), (300.0, 0.1, 1))
        pixels = np.zeros((1, 64, 64, 3), np.uint8)
        take_scale(model, ImageSet(pixels, [[0, 0, 0]], LABELS, scale=scale))
    found = export(model, tmp_path / "out" / "model.onnx")
    assert found["compared"] == 10
    assert found["difference"] <= 1e-4
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.onnx"]
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
    with pytest.raises(UserError, match=r"the file's name ends with \.onnx"):
        export("nowhere", tmp_path / "a.pb")
    for name in ("onnx_ir", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UserError, match=r"pip install 'hf-transfer-learning\[export\]'"):
            export(network(), tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_default_file_has_the_models_name(tmp_path, monkeypatch):
    asked: list[Path] = []

    def record(model, out, *, to):
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
