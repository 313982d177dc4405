"""One file of an image, one answer: our predict and every loader that the card names, end to end.

The card's own blocks are executed, with the path of the file in place of theirs.
"""

from __future__ import annotations

import builtins
import functools
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from children import python
from drawn import picture
from hub_server import OWNER, TOKEN, serve
from PIL import Image
from sample_report import sample_report
from tiny_folders import dinov2_folder, resnet_folder, stir, vit_folder
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
from transformers.image_utils import load_image as transformers_load_image

import hf_transfer
from hf_transfer.backbones.load import load_backbone, load_model
from hf_transfer.backbones.saving import save_model
from hf_transfer.base.errors import UserError
from hf_transfer.results.card import model_card
from hf_transfer.serving import loaders
from hf_transfer.serving.export import export
from hf_transfer.serving.export_resizing import SAME as SAME_RESIZED
from hf_transfer.serving.export_resizing import put_resizing_inside
from hf_transfer.serving.loaders import check_loaders
from hf_transfer.serving.pictures import batches
from hf_transfer.serving.predict import outputs, predict

torch.set_num_threads(1)
# Transformers leaves files that it opens to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
LABELS = ("a", "b", "c", "d", "e")
SAME = 1e-4
SIZES = ((91, 70), (70, 91), (333, 57), (900, 60), (33, 32), (640, 481), (751, 502))
DEEP = ("deep.png", "deep.tif")  # which transformers and timm themselves clip to white


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    """The same small pictures in every mode that files come in."""
    folder = tmp_path_factory.mktemp("files")
    for i, size in enumerate(SIZES):
        picture(i, *size).save(folder / f"size{i}.{'jpg' if i % 2 else 'png'}", quality=90)
    picture(20, 1200, 900).save(folder / "photo.jpg", quality=90)
    image = picture(30, 150, 101)
    image.convert("L").save(folder / "gray.png")
    image.convert("1").save(folder / "bits.png")
    image.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    image.quantize(16).save(folder / "palette.gif")
    image.quantize(16).save(folder / "palette.png", transparency=3)
    noise = np.random.default_rng(0).integers(0, 256, (101, 150), dtype=np.uint8)
    image.putalpha(Image.fromarray(noise))
    image.save(folder / "rgba.png")
    image.save(folder / "rgba.webp", lossless=True)
    image.convert("LA").save(folder / "la.png")
    exif = image.getexif()
    for turn in (3, 6, 7):
        exif[0x0112] = turn
        image.convert("RGB").save(folder / f"turned{turn}.jpg", exif=exif, quality=95)
    deep = np.asarray(image.convert("L")).astype(np.uint16) * 250
    for name in DEEP:
        Image.fromarray(deep).save(folder / name)
    return sorted(folder.iterdir())


BACKBONES: dict[str, Any] = {
    "timm/test_resnet": {"image_size": 64},
    "timm/test_vit": {},
    "timm/test_convnext": {"image_size": 96},
    "timm/test_efficientnet": {"image_size": 64},
    "timm/mobilenetv3_small_050": {"image_size": 64},
    "timm/test_byobnet": {"image_size": 64},
    "timm/test_vit3": {},
    "torchvision/squeezenet1_1": {"image_size": 64},
    "torchvision/resnet18": {"image_size": 64},
    "vit": {},
    "resnet": {},
    "dinov2": {},
}
FOLDERS = {"vit": vit_folder, "resnet": resnet_folder, "dinov2": dinov2_folder}


def saved(name: str, folder: Path, **options: Any) -> Path:
    """Write a model with small random weights, as a run does."""
    source = str(FOLDERS[name](folder / "source")) if name in FOLDERS else name
    if name not in FOLDERS:
        options["pretrained"] = False
    model = load_backbone(source, LABELS, **{**BACKBONES[name], **options})
    save_model(spread(stir(model)), folder / "model")
    return folder / "model"


@torch.no_grad()
def spread(model: Any) -> Any:
    """Scale a model's random head so that its logits differ by about one between pictures."""
    (batch,) = batches([picture(i) for i in range(8)], model.backbone.image)
    logits = outputs(model, batch.pixels)
    for name in model.backbone.layout.head:
        parameter = model.get_parameter(f"{model.backbone.prefix}{name}")
        if parameter.ndim == 1:
            parameter.sub_(logits.mean(dim=0))
        parameter.div_(logits.std(dim=0).max())
    return model


@pytest.fixture(scope="module")
def every(tmp_path_factory) -> Callable[[str], Path]:
    """The saved model of each backbone, made when it is first asked for."""
    return functools.cache(lambda name: saved(name, tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Callable[[Path], Path]:
    """The ONNX file of a saved model, written when it is first asked for: it takes seconds."""

    @functools.cache
    def made(model: Path) -> Path:
        runtime = pytest.importorskip("onnxruntime")
        path = tmp_path_factory.mktemp("exported") / "model.onnx"
        export(model, path)
        facts = runtime.InferenceSession(path).get_modelmeta().custom_metadata_map
        assert (facts["task"], json.loads(facts["labels"])) == ("classification", list(LABELS))
        return path

    return made


@pytest.fixture(scope="module", params=BACKBONES)
def model(request, every) -> Path:
    return every(request.param)


@functools.cache
def told_of(model: Path, folder: Path) -> dict[Path, list[float]]:
    """Our probabilities of all files in a folder, in the order of LABELS; they differ."""
    files = sorted(folder.iterdir())
    found = [dict(row.labels) for row in predict(model, files)]
    answers = [[row[label] for label in LABELS] for row in found]
    assert np.std(answers, axis=0).max() > 10 * SAME
    return dict(zip(files, answers, strict=True))


def ours(model: Path, files: list[Path]) -> np.ndarray:
    """Our probabilities (N, 5) of files that lie in one folder, in the order of LABELS."""
    told = told_of(model, files[0].parent)
    return np.array([told[file] for file in files])


def assert_same(found: Any, expected: np.ndarray, files: list[Path]) -> None:
    apart = np.abs(np.asarray(found) - expected).max(axis=1)
    assert {file.name: x for file, x in zip(files, apart, strict=True) if x > SAME} == {}


def usual(files: list[Path]) -> list[Path]:
    return [file for file in files if file.name not in DEEP]


@torch.no_grad()
def test_auto_classes_answer_as_predict_does(model, files):
    files = usual(files)
    processor = AutoImageProcessor.from_pretrained(model, backend="pil")
    network = AutoModelForImageClassification.from_pretrained(model).eval()
    found = []
    for file in files:
        pixels = processor(transformers_load_image(str(file)), return_tensors="pt")
        found.append(network(**pixels).logits.softmax(-1)[0].numpy())
    assert_same(found, ours(model, files), files)


def test_a_pipeline_answers_as_predict_does(model, files):
    files = usual(files)
    processor = AutoImageProcessor.from_pretrained(model, backend="pil")
    classify = pipeline("image-classification", model=str(model), image_processor=processor)
    rows = [{row["label"]: row["score"] for row in classify(str(file))} for file in files]
    found = [[row[label] for label in LABELS] for row in rows]
    assert_same(found, ours(model, files), files)


def forked(command: list[str], env: dict[str, str], **_: Any) -> Any:
    """Run a module, `command` of `python -m`, in a child."""
    _, _, module, *words = command
    code = f"import sys; from {module} import main; main(*sys.argv[1:])"
    return python(code, *words, folder=Path.cwd(), env=env)


@pytest.mark.parametrize("name", ["timm/test_resnet", "torchvision/squeezenet1_1"])
def test_a_fresh_process_answers_in_every_loader_or_names_the_one_that_does_not(
    name, every, monkeypatch
):
    """That of timm's is forked, to be sooner; all that it has loaded, the other loads itself."""
    folder, told = every(name), {}
    ask = loaders._in_a_fresh_process
    if name.startswith("timm"):
        monkeypatch.setattr(loaders.subprocess, "run", forked)
    monkeypatch.setattr(
        loaders, "_in_a_fresh_process", lambda *places: told.update(ask(*places)) or told
    )
    own = ["timm"] if name.startswith("timm") else []
    assert check_loaders(folder) == ["hf_transfer", "transformers", "a pipeline", *own]
    told["transformers"][3][0] += 2 * SAME  # its answer to one of the files
    monkeypatch.setattr(loaders, "_in_a_fresh_process", lambda *places: told)
    with pytest.raises(UserError, match="answers differently in transformers: by 2.0e-04"):
        check_loaders(folder)


def blocks(model: Path, channels: int = 3) -> list[str]:
    """The Python blocks of the model's card."""
    config = (model / "config.json").read_text()
    source = "timm" if "timm_wrapper" in config else "transformers"
    source = "torchvision" if "hf_transfer_torchvision" in config else source
    report = sample_report(LABELS)
    image = load_model(model).backbone.image
    own = {**asdict(image), "stored": image.stored}
    backbone = {**report.backbone, "source": source, "channels": channels, "preprocessing": own}
    card = model_card(replace(report, backbone=backbone))
    found = re.findall(r"```python\n(.*?)```", card.replace("path/to/model", str(model)), re.DOTALL)
    assert len(found) == (2 if source == "timm" else 1) + (channels == 3)
    return found


OPENERS = (  # by which blocks open a model: (owner, name)
    (transformers, "pipeline"),
    (AutoImageProcessor, "from_pretrained"),
    (AutoModelForImageClassification, "from_pretrained"),
    (timm, "create_model"),
)


def remembering(real: Callable[..., Any], place: str, made: dict[Any, Any]) -> Callable[..., Any]:
    """Return `real`, which opens what lies at a place once for all files; else it is as it was."""

    def opened(*given: Any, **options: Any) -> Any:
        if place not in f"{given} {options}" or "config" in options:  # a part of what is opened
            return real(*given, **options)
        key = (real, *given, *options.items())
        if key not in made:
            made[key] = real(*given, **options)
        return made[key]

    return opened


def executed(block: str, file: str, monkeypatch, model: Path, made: dict[Any, Any]) -> np.ndarray:
    """What a block prints of a file: probabilities in the order of LABELS; `made` keeps the opened
    model for the next file."""
    told: list[Any] = []
    with monkeypatch.context() as patch:
        for owner, name in OPENERS:
            patch.setattr(owner, name, remembering(getattr(owner, name), str(model), made))
        patch.setattr(builtins, "print", lambda *values: told.extend(values))
        exec(block.replace('"image.jpg"', file), {})
    if isinstance(told[0], dict):
        return np.array([told[0][label] for label in LABELS])
    if isinstance(told[0], list):
        rows = {row["label"]: row["score"] for row in told[0]}
        return np.array([rows[label] for label in LABELS])
    return told[0][0].numpy()


def test_the_blocks_of_the_card_answer_as_predict_does(model, files, monkeypatch):
    chosen = [file for file in usual(files) if "size" not in file.name]
    expected, made = ours(model, chosen), {}
    for block in blocks(model):
        if "onnxruntime" in block:
            continue  # exporting takes long: below, for one of each kind of resizing
        found = [executed(block, repr(str(file)), monkeypatch, model, made) for file in chosen]
        assert_same(found, expected, chosen)
        if "pipeline" in block:  # 16 bits, as the card says
            deep = [file for file in files if file.name in DEEP]
            block = f"from hf_transfer import load_image\n{block}"
            calls = [f"load_image({str(file)!r})" for file in deep]
            found = [executed(block, call, monkeypatch, model, made) for call in calls]
            assert_same(found, ours(model, deep), deep)


@pytest.mark.parametrize("name", ["timm/test_resnet", "vit", "dinov2"])
def test_the_lines_for_onnx_runtime_answer_as_predict_does(
    name, every, exported, files, monkeypatch
):
    """One that cuts from the nearest place, one that squashes, one that cuts from below."""
    model = every(name)
    (block,) = (block for block in blocks(model) if "onnxruntime" in block)
    block = block.replace("model.onnx", str(exported(model)))
    chosen, made = usual(files), {}
    found = [executed(block, repr(str(file)), monkeypatch, model, made) for file in chosen]
    assert_same(found, ours(model, chosen), chosen)


@pytest.mark.parametrize("name", ["timm/test_resnet", "vit"])
def test_the_lines_for_onnx_runtime_leave_resizing_to_a_file_that_does(
    name, every, exported, files, monkeypatch, tmp_path
):
    model, inside = every(name), tmp_path / "inside.onnx"
    shutil.copy(exported(model), inside)
    put_resizing_inside(inside, load_model(model).backbone.image)
    (block,) = (block for block in blocks(model) if "onnxruntime" in block)
    block = block.replace("model.onnx", str(inside))
    chosen, made = usual(files), {}
    found = [executed(block, repr(str(file)), monkeypatch, model, made) for file in chosen]
    assert np.abs(np.array(found) - ours(model, chosen)).max() < SAME_RESIZED


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", ["timm/test_resnet", "torchvision/squeezenet1_1", "vit"])
def test_the_blocks_of_a_card_for_other_channels_answer_as_predict_does(
    name, channels, files, tmp_path, monkeypatch
):
    model = saved(name, tmp_path, channels=channels)
    chosen = [file for file in files if "size" not in file.name]
    expected, made = ours(model, chosen), {}
    for block in blocks(model, channels):
        found = [executed(block, repr(str(file)), monkeypatch, model, made) for file in chosen]
        assert_same(found, expected, chosen)


def test_a_card_for_other_channels_names_our_own_command_only(tmp_path):
    report = sample_report(LABELS)
    card = model_card(replace(report, backbone={**report.backbone, "channels": 6}))
    assert "```python" not in card
    assert "hf-transfer predict path/to/model image.jpg" in card


THERE_AND_BACK = """
import json, sys
from hf_transfer.serving.hub import pull, push
from hf_transfer.serving.predict import predict
folders, files = map(json.loads, sys.argv[1:])
found = {}
for name, folder in folders.items():
    push(folder, name, check=False)
    found[name] = pull(name).__fspath__(), [dict(row.labels) for row in predict(name, files)]
print(json.dumps(found))
"""


def test_every_backbone_comes_back_from_the_hub_with_the_same_files_and_answers(
    every, files, tmp_path
):
    """So what the other tests here say of the folders holds of what anyone gets from the Hub."""
    folders = {f"{OWNER}/{name.replace('/', '-')}": every(name) for name in BACKBONES}
    few = [file for file in files if file.name in ("gray.png", "la.png", "turned6.jpg")]
    told = [json.dumps({name: str(folder) for name, folder in folders.items()})]
    told.append(json.dumps([str(file) for file in few]))
    with serve() as hub:
        env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN}
        env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        done = python(THERE_AND_BACK, *told, folder=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    for name, (place, rows) in json.loads(done.stdout.splitlines()[-1]).items():
        folder, came = folders[name], {p.name: p.read_bytes() for p in Path(place).iterdir()}
        assert came == {file: (folder / file).read_bytes() for file in came}
        assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= came.keys()
        answers = [[row[label] for label in LABELS] for row in rows]
        assert_same(answers, ours(folders[name], few), few)


# To export takes long, and `export` itself compares each: here one of each kind; test_export.py has
# torchvision's.
EXPORTED = [
    *("timm/test_resnet", "timm/test_convnext", "timm/test_efficientnet", "timm/test_vit"),
    *("timm/mobilenetv3_small_050", "vit", "dinov2"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTED)
def test_onnx_runtime_answers_as_predict_does(name, every, exported, files):
    model = every(name)
    found = [dict(row.labels) for row in predict(exported(model), files)]
    answers = [[row[label] for label in LABELS] for row in found]
    assert_same(answers, ours(model, files), files)


@pytest.mark.parametrize("name", [name for name in BACKBONES if name.startswith("timm")])
def test_timm_opens_its_own_from_the_same_folder(name, every, files):
    model = every(name)
    network = timm.create_model(f"local-dir:{model}", pretrained=True).eval()
    settings = timm.data.resolve_model_data_config(network)
    transform = timm.data.create_transform(**settings, is_training=False)
    usable = usual(files)
    images = [hf_transfer.load_image(file) for file in usable]
    with torch.no_grad():
        found = [network(transform(image)[None]).softmax(-1)[0].numpy() for image in images]
    assert_same(found, ours(model, usable), usable)
