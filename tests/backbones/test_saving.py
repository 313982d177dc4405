"""The saved folder: each library opens it with the same logits, labels and pixels."""

from __future__ import annotations

import copy
import dataclasses
import gc
import json
import pickle
import resource
import signal
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from children import ended, start
from PIL import Image
from tiny_folders import dinov2_folder, pixels, resnet_folder, stir, timm_folder, vit_folder
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, pipeline

from hf_transfer.backbones import saving
from hf_transfer.backbones.load import load_backbone, load_model
from hf_transfer.backbones.saving import save_model
from hf_transfer.base.errors import UserError
from hf_transfer.base.files import MARK
from hf_transfer.data.decoding import decode
from hf_transfer.inputs.model_input import to_model_input

torch.set_num_threads(1)
LABELS = ("daisy", "rose", "tulip", "a b/c")

Case = tuple[str, dict[str, Any]]
CASES: dict[str, Callable[[Path], Case]] = {
    "timm with batch norm": lambda path: ("timm/test_resnet", {"image_size": 64}),
    "timm transformer at another size": lambda path: ("timm/test_vit", {"image_size": 96}),
    "timm folder": lambda path: (str(timm_folder(path, "resnet10t", 7)), {}),
    "timm in gray": lambda path: ("timm/test_resnet", {"image_size": 64, "channels": 1}),
    "transformers vit": lambda path: (str(vit_folder(path)), {}),
    "transformers vit at another size": lambda path: (str(vit_folder(path)), {"image_size": 48}),
    "transformers vit with alpha": lambda path: (str(vit_folder(path)), {"channels": 4}),
    "transformers resnet": lambda path: (str(resnet_folder(path)), {}),
    "transformers dinov2": lambda path: (str(dinov2_folder(path)), {}),
    "torchvision mobilenet": lambda path: ("torchvision/mobilenet_v3_small", {"image_size": 64}),
    "torchvision regnet": lambda path: ("torchvision/regnet_y_400mf", {"image_size": 64}),
    "torchvision in 6 channels": lambda path: (
        "torchvision/squeezenet1_1",
        {"image_size": 64, "channels": 6},
    ),
}


@pytest.fixture(scope="module", params=CASES)
def saved(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model with a value of its own in every tensor, and the folder that it was saved to."""
    place = tmp_path_factory.mktemp("saved")
    backbone_id, options = CASES[request.param](place / "own")
    model = load_backbone(backbone_id, LABELS, pretrained=Path(backbone_id).is_dir(), **options)
    save_model(stir(model), place / "model")
    return model, place / "model"


@pytest.fixture(autouse=True)
def remote_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the code that travels with torchvision models out of the user's cache."""
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "code")
    )
    monkeypatch.syspath_prepend(str(tmp_path / "code"))


def _trust(model: Any) -> dict[str, bool]:
    return {"trust_remote_code": True} if model.backbone.source == "torchvision" else {}


def _logits(model: Any, network: Any = None) -> torch.Tensor:
    image = model.backbone.image
    # A copy: weights that lie in the file's own memory, where transformers leaves them, are aligned
    # otherwise, and some kernels then round the last bit otherwise.
    network = copy.deepcopy(network or model).eval()
    with torch.no_grad():
        output = network(pixels(image.size, image.channels))
    return output if isinstance(output, torch.Tensor) else output.logits


def test_transformers_opens_it_with_equal_logits_and_labels(saved):
    model, folder = saved
    opened = AutoModelForImageClassification.from_pretrained(folder, **_trust(model))
    assert torch.equal(_logits(model), _logits(model, opened))
    assert opened.config.id2label == dict(enumerate(LABELS))
    assert opened.config.label2id == {label: i for i, label in enumerate(LABELS)}


def test_timm_opens_its_own_with_equal_logits_and_labels(saved):
    model, folder = saved
    if model.backbone.source != "timm":
        pytest.skip("timm opens timm's networks")
    opened = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert torch.equal(_logits(model), _logits(model, opened))
    assert tuple(opened.pretrained_cfg["label_names"]) == LABELS
    seen = timm.data.resolve_model_data_config(opened)
    assert list(seen["input_size"][1:]) == [model.backbone.image.size] * 2


def test_we_open_it_with_equal_logits_labels_and_pixels(saved):
    model, folder = saved
    opened = load_model(folder)
    assert not opened.training
    assert torch.equal(_logits(model), _logits(model, opened))
    assert opened.backbone.labels == LABELS
    ours, theirs = model.backbone.image, opened.backbone.image
    assert theirs.stored == ours.stored
    assert dataclasses.replace(theirs, crop_pct=ours.crop_pct) == ours
    assert opened.backbone.groups.groups == model.backbone.groups.groups


def test_saving_again_what_was_loaded_gives_the_same_files(saved, tmp_path):
    _, folder = saved
    save_model(load_model(folder), tmp_path / "again")
    for path in folder.iterdir():
        if path.suffix != ".json" or path.name == "preprocessor_config.json":
            assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    ours, theirs = (
        json.loads((f / "config.json").read_text()) for f in (folder, tmp_path / "again")
    )
    assert ours == theirs


def test_it_holds_no_pickle_and_nothing_of_this_machine(saved):
    _, folder = saved
    names = {path.name for path in folder.iterdir()} - {MARK}
    usual = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert usual <= names <= usual | {"configuration_torchvision.py", "modeling_torchvision.py"}
    text = "".join(path.read_text() for path in folder.glob("*.json"))
    assert str(folder.parent) not in text


def _picture(width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(width).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def _ours(model: Any, picture: Image.Image) -> torch.Tensor:
    image = model.backbone.image
    return to_model_input(torch.from_numpy(decode(picture, image))[None], image)


def _is_cut_alike(image: Any, width: int, height: int) -> bool:
    """Whether transformers' processors, which round a margin's half down, cut the same middle out
    as torchvision and timm, which round it to even; else they lie one pixel apart."""
    short, long = sorted((width, height))
    margins = (image.stored - image.size, image.stored * long // short - image.size)
    return image.crop_mode == "squash" or all(margin % 4 != 3 for margin in margins)


def test_its_image_processor_prepares_pixels_as_we_do(saved):
    """timm's processor resizes with Pillow, as we do: equal. transformers' resizes tensors, which
    in places rounds to a neighbour among the 256 levels, where it enlarges to the next but one."""
    model, folder = saved
    image = model.backbone.image
    if image.channels != 3:
        pytest.skip("transformers' processors make RGB")
    processor = AutoImageProcessor.from_pretrained(folder)
    sizes = [(90, 90), (120, 80), (64, 128), (40, 40), (96, 120), (88, 110)]
    alike = [size for size in sizes if _is_cut_alike(image, *size)]
    exact = model.backbone.source == "timm"
    assert exact or len(alike) >= 3
    for width, height in sizes if exact else alike:
        picture = _picture(width, height)
        theirs = processor(picture, return_tensors="pt")["pixel_values"]
        difference = (_ours(model, picture) - theirs).abs() * torch.tensor(image.std)[:, None, None]
        levels = difference * 255
        if exact:
            assert levels.max() == 0
        else:
            assert levels.max() < 2.01, (width, height)
            assert levels.mean() < 0.1, (width, height)


def test_a_pipeline_ranks_the_labels_as_we_do(saved):
    model, folder = saved
    if model.backbone.image.channels != 3:
        pytest.skip("a pipeline gives RGB")
    classify = pipeline("image-classification", model=str(folder), device="cpu", **_trust(model))
    picture = _picture(90, 90)
    answers = {answer["label"]: answer["score"] for answer in classify(picture, top_k=4)}
    with torch.no_grad():
        ours = model(_ours(model, picture)).logits.softmax(-1)[0]
    assert list(answers) == [LABELS[i] for i in ours.argsort(descending=True)]
    assert [answers[label] for label in LABELS] == pytest.approx(ours.tolist(), abs=0.01)


def test_fine_tuning_it_again_keeps_no_old_label(saved, tmp_path):
    model, folder = saved
    again = load_backbone(str(folder), ["cat", "dog"], seed=1)
    save_model(again, tmp_path / "again")
    config = AutoConfig.from_pretrained(tmp_path / "again", **_trust(model))
    assert config.id2label == {0: "cat", 1: "dog"}
    text = (tmp_path / "again" / "config.json").read_text()
    assert "daisy" not in text
    assert load_model(tmp_path / "again").backbone.labels == ("cat", "dog")
    old = dict(model.named_parameters())
    head = {again.backbone.prefix + name for name in again.backbone.layout.head}
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, old[name]) == (name not in head), name


# --- the way to the disk ---------------------------------------------------------------------


def _small() -> Any:
    return load_backbone("timm/test_resnet", ["a", "b"], pretrained=False, image_size=64)


def test_a_save_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    model = _small()
    save_model(model, tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}

    def full(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(saving, "_write_json", full)
    for name in ("model", "other"):
        with pytest.raises(UserError, match=f"cannot write .*{name}: No space left") as caught:
            save_model(model, tmp_path / name)
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before


def save_with_limit(folder):
    """Save a model where files may have 32 KiB, and print the error."""
    model = load_backbone("timm/test_resnet", ["a", "b"], pretrained=False, image_size=64)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, 2**15))
    try:
        save_model(model, folder)
    except ValueError as error:
        print(error, flush=True)


def test_a_disk_that_fills_while_weights_are_written_is_one_line(tmp_path):
    """A limit on the size of files stands for the disk; safetensors has an error of its own."""
    assert ended(start(save_with_limit, tmp_path / "log", tmp_path / "model")) == 0
    line = (tmp_path / "log").read_text().splitlines()[-1]
    assert line == (
        f"cannot write {tmp_path / 'model'}: File too large; free space or choose another folder"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_save_replaces_what_was_saved_and_nothing_of_others(tmp_path):
    for name in (".git", "photos"):
        (tmp_path / "model" / name).mkdir(parents=True)
        (tmp_path / "model" / name / "file").write_text("mine")
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"mine")
    (tmp_path / "model" / "link").symlink_to(tmp_path / "model" / "photos")
    for network in (_small(), load_backbone("torchvision/mobilenet_v3_small", ["a", "b"],
                    pretrained=False, image_size=64), _small()):  # fmt: skip
        save_model(network, tmp_path / "model")
    names = {path.name for path in (tmp_path / "model").iterdir() if path.name != MARK}
    usual = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert names == usual | {".git", "photos", "pytorch_model.bin", "link"}
    assert (tmp_path / "model" / "photos" / "file").read_text() == "mine"
    assert (tmp_path / "model" / "link").is_symlink()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_save_does_not_overwrite_a_model_of_others(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("mine")
    with pytest.raises(UserError, match=r"config\.json: hf_transfer did not write the file"):
        save_model(_small(), tmp_path / "model")
    assert (tmp_path / "model" / "config.json").read_text() == "mine"
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["config.json"]


def test_weights_laid_out_channels_last_are_saved_like_any(tmp_path):
    for name in ("timm/test_resnet", "torchvision/mobilenet_v3_small"):
        model = load_backbone(name, ["a", "b"], pretrained=False, image_size=64).eval()
        plain = _logits(model)
        save_model(model.to(memory_format=torch.channels_last), tmp_path / "model")
        assert torch.equal(plain, _logits(model, load_model(tmp_path / "model")))


def test_a_model_that_is_not_ours_says_how_it_is_saved(tmp_path):
    network = timm.create_model("test_resnet")
    with pytest.raises(ValueError, match=r"save_pretrained") as caught:
        save_model(network, tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_a_models_own_save_pretrained_writes_what_save_model_does(tmp_path):
    """transformers' forgets the processor, thresholds and units; of a copy it is the copy's."""
    model = load_backbone("timm/test_resnet", ["a", "b"], pretrained=False, image_size=32)
    for made in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            next(made.parameters()).add_(1.0)
        made.save_pretrained(tmp_path / "own")
        save_model(made, tmp_path / "ours")
        names = {path.name for path in (tmp_path / "ours").iterdir()}
        assert names >= {"config.json", "model.safetensors", "preprocessor_config.json"}
        assert {path.name for path in (tmp_path / "own").iterdir()} == names
        for name in names:
            assert (tmp_path / "own" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes()
    gone = weakref.ref(made)
    gc.disable()  # the function that saves keeps no model in memory
    del made
    assert gone() is None
    gc.enable()
    for refused, words in (
        (lambda: model.push_to_hub("me/x"), "hf-transfer push FOLDER"),
        (lambda: model.save_pretrained(tmp_path / "x", push_to_hub=True), "hf-transfer push"),
        (lambda: model.save_pretrained(tmp_path / "x", variant="fp16"), "not variant"),
    ):
        with pytest.raises(UserError, match=words) as error:
            refused()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "x").exists()
