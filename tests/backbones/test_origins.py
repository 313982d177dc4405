"""Ids and what they lead to; every mistake on the way to a backbone is one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from children import python
from hub_server import OWNER, TOKEN, Hub, Repository, serve
from huggingface_hub import constants
from tiny_folders import FOLDERS, pixels, resnet_folder, timm_folder, vit_folder

from hf_transfer.backbones.load import load_backbone
from hf_transfer.backbones.origins import check_id, known_names, locate
from hf_transfer.backbones.saving import save_model
from hf_transfer.base.download import BackboneError, answering_hub

torch.set_num_threads(1)
ABC = ("a", "b", "c")


def refused(backbone_id: object, **options: Any) -> str:
    """Return the one line with which loading is refused."""
    with pytest.raises(BackboneError) as caught:
        load_backbone(str(backbone_id), ABC, **options)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 600
    return line


# --- where ids lead --------------------------------------------------------------------------


def test_names_lead_to_their_library():
    for source, name in (("timm", "resnet50.a1_in1k"), ("torchvision", "alexnet")):
        origin = locate(f"{source}/{name}")
        assert (origin.source, origin.name, origin.folder) == (source, name, None)
        assert str(origin) == f"{source}/{name}"
    assert locate("transformers/vit").source == "transformers"


def test_folders_lead_to_what_their_config_says(tmp_path):
    timm_path, vit_path = tmp_path / "timm", tmp_path / "vit"
    timm_folder(timm_path, "test_resnet")
    vit_folder(vit_path)
    model = load_backbone("torchvision/squeezenet1_1", ABC, pretrained=False)
    save_model(model, tmp_path / "run" / "model")
    for path, source in ((timm_path, "timm"), (vit_path, "transformers")):
        assert locate(str(path)).source == source
        assert locate(f"transformers/{path}").source == source
    run = locate(str(tmp_path / "run"))
    assert (run.source, run.folder) == ("torchvision", tmp_path / "run" / "model")


def test_a_folder_that_is_named_like_a_network_does_not_stand_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet18").mkdir()
    assert locate("timm/resnet18").folder is None


def test_a_wrapper_that_transformers_saved_loads_as_timm(tmp_path):
    """Its names have a prefix and its model_args are null: timm itself does not open it."""
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    config = TimmWrapperConfig(architecture="test_resnet", num_labels=3)
    wrapper = TimmWrapperForImageClassification(config).eval()
    wrapper.save_pretrained(tmp_path)
    model = load_backbone(str(tmp_path), image_size=64).eval()
    assert torch.equal(model(pixels(64)).logits, wrapper(pixels(64)).logits)


# --- mistakes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone_id", "words"),
    [
        ("timm/resnet5o", "nearest: resnet50"),
        ("timm/resnet18.nope", "it has resnet18.a1_in1k"),
        ("timm/", "write timm/NAME"),
        ("resnet50", "did you mean timm/resnet50 or torchvision/resnet50?"),
        ("a/b/c", "write timm/NAME"),
        ("resnet10t", "did you mean timm/resnet10t?"),
        ("ResNet18.a1_in1k", "did you mean timm/resnet18.a1_in1k?"),
        ("efficientnet_lite", "timm/efficientnet_lite"),
        ("torchvision/resnet19", "nearest: resnet18"),
        ("torchvision/resnet18.NOPE", "resnet18.IMAGENET1K_V1"),
        ("transformers/vitt", "nearest: vit"),
        ("transformers/bert", "does not classify images"),
        ("transformers/vit", "without weights"),
        ("./nowhere", "does not exist"),
        ("/nowhere/at/all", "does not exist"),
        ("timm/../nowhere", "does not exist"),
        ("tiimm/resnet18", "timm/resnet18"),
        ("alice/net", "HF_HUB_OFFLINE is set; unset it"),
        ("transformers/alice/net", "HF_HUB_OFFLINE is set; unset it"),
        ("timm/alice/net", "HF_HUB_OFFLINE is set; unset it"),
        ("timm/resnet18.a1_in1k", "pretrained: false"),
    ],
)
def test_an_id_that_leads_nowhere(backbone_id, words):
    assert words in refused(backbone_id)


def test_a_network_without_weights():
    line = refused("timm/densenet264d")
    assert "no pretrained weights" in line
    assert "pretrained: false" in line


def test_torchvision_without_connection(monkeypatch):
    def unreachable(*arguments: Any, **options: Any) -> None:
        raise URLError("no route")

    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    monkeypatch.setenv("TORCH_HOME", "/nonexistent-of-a-test")
    monkeypatch.setattr("os.makedirs", lambda *arguments, **options: None)
    assert "no connection" in refused("torchvision/alexnet")


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _written(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def _changed(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return change


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _weights_of(make: Callable[[Path], Path]) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        other = make(folder.with_name("other"))
        shutil.copy(other / "model.safetensors", folder)

    return replace


DAMAGE: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "no config": ("timm", _without("config.json"), "config.json"),
    "broken JSON": ("timm", _written("config.json", '{"a": '), "cannot read"),
    "not text": (
        "vit",
        lambda f: (f / "config.json").write_bytes(b"\xff\xfe") and None,
        "cannot read",
    ),
    "a list": ("vit", _written("config.json", "[]"), "named settings"),
    "nothing said": ("vit", _written("config.json", "{}"), "model_type"),
    "unknown network": ("timm", _changed(architecture="resnet5o"), "nearest"),
    "unknown type": ("vit", _changed(model_type="vitt"), "vitt"),
    "wrong value": ("vit", _changed(hidden_size="wide"), "hidden_size"),
    "a language model": ("vit", _changed(model_type="bert"), "does not classify"),
    "wrong argument": ("timm", _changed(model_args={"no_such": 1}), "no_such"),
    "timm without weights": ("timm", _without("model.safetensors"), "model.safetensors"),
    "without weights": ("vit", _without("model.safetensors"), "model.safetensors"),
    "saved without weights": ("saved", _without("model.safetensors"), "model.safetensors"),
    "timm cut short": ("timm", _cut, "not whole"),
    "cut short": ("vit", _cut, "not whole"),
    "saved cut short": ("saved", _cut, "not whole"),
    "timm's of another": ("timm", _weights_of(resnet_folder), "another architecture"),
    "of another": ("vit", _weights_of(resnet_folder), "another architecture"),
    "saved of another": ("saved", _weights_of(resnet_folder), "another architecture"),
    "of another width": (
        "vit",
        _weights_of(lambda path: vit_folder(path, intermediate_size=128)),
        "another architecture",
    ),
    "no processor": ("vit", _without("preprocessor_config.json"), "preprocessor_config.json"),
    "broken processor": ("vit", _written("preprocessor_config.json", "{"), "processor"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_one_line(damage, tmp_path):
    kind, harm, words = DAMAGE[damage]
    folder = tmp_path / "own"
    if kind == "saved":
        save_model(load_backbone("torchvision/squeezenet1_1", ABC, pretrained=False), folder)
    else:
        {"timm": lambda path: timm_folder(path, "test_resnet"), "vit": vit_folder}[kind](folder)
    harm(folder)
    assert words in refused(folder)


@pytest.mark.parametrize("backbone_id", ["timm/test_resnet", "torchvision/squeezenet1_1"])
def test_a_weights_file_that_does_not_fit_is_one_line(backbone_id, tmp_path):
    other = vit_folder(tmp_path / "vit")
    weights = str(other / "model.safetensors")
    assert "another architecture" in refused(backbone_id, weights=weights)
    assert "does not exist" in refused(backbone_id, weights=str(tmp_path / "gone.safetensors"))


def test_a_weights_file_for_a_transformers_folder(tmp_path):
    vit, other = vit_folder(tmp_path / "vit"), resnet_folder(tmp_path / "resnet")
    assert "another architecture" in refused(vit, weights=str(other / "model.safetensors"))
    model = load_backbone(str(vit), ABC, weights=str(vit / "model.safetensors"))
    assert model.backbone.layout.head == ("classifier.weight", "classifier.bias")


def test_a_name_alone_is_refused_without_importing_a_library(tmp_path):
    """Importing torch and the libraries takes up to 13 s."""
    code = (
        "import sys\nfrom hf_transfer.cli import main\n"
        "status = {main(['groups', name]) for name in sys.argv[1:]}\n"
        "heavy = {'torch', 'timm', 'torchvision', 'transformers'} & set(sys.modules)\n"
        "assert (status, heavy) == ({2}, set()), (status, heavy)\n"
    )
    names = ("resnet50", "./nowhere", "a/b/c", "timm/resnet5o", "torchvision/resnet19.V1")
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == len(names)


def test_the_quick_check_passes_what_a_library_may_know_and_nothing_else():
    def passes(name):
        try:
            return check_id(name) is None
        except BackboneError:
            return False

    right = ("timm/resnet50.a1_in1k", "timm/tv_resnet50", "torchvision/resnet18", "alice/net")
    assert all(map(passes, right))  # timm has tv_resnet50 as an older name
    wrong = (
        "timm/resnet5o.a1_in1k",
        "torchvision/tv_resnet50",
        "torchvision/",
        "resnet18",
        "./net",
    )
    assert not any(map(passes, wrong))


def test_the_architectures_are_known_without_importing_their_libraries():
    import timm
    import torchvision

    known = known_names()
    assert set(known["timm"]) == set(timm.list_models())
    listed = torchvision.models.list_models(module=torchvision.models)
    assert set(known["torchvision"]) == set(listed)


# --- the Hub ---------------------------------------------------------------------------------

LOAD = """
import sys
import numpy as np, torch
from hf_transfer.backbones.load import layout_of, load_backbone
from hf_transfer.base.errors import UserError
for backbone_id in sys.argv[2:]:
    try:
        planned = layout_of(backbone_id, 3)
        model = load_backbone(backbone_id, ["a", "b", "c"], seed=1).eval()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        continue
    assert planned == model.backbone.layout
    size = model.backbone.image.size
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))
    np.save(f"{sys.argv[1]}/{model.backbone.id.replace('/', '-')}.npy", model(x).logits.detach())
    print(model.backbone.source, model.backbone.id)
"""


def _publish(hub: Hub, name: str, folder: Path) -> str:
    repository = Repository()
    repository.commit("first", {path.name: path.read_bytes() for path in folder.iterdir()})
    hub.repositories[f"{OWNER}/{name}"] = repository
    return f"{OWNER}/{name}"


def _remote(hub: Hub, out: Path, *ids: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(out / "cache"), "HF_HUB_DISABLE_XET": "1"}
    env |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    env |= {"HF_TOKEN": TOKEN}
    return python(LOAD, str(out), *ids, folder=out, env=env)


MISSING = f"timm/{OWNER}/nothing"


@pytest.fixture(scope="module")
def from_hub(tmp_path_factory):
    """What one process said that loaded a backbone of each library from the Hub, by two ids each,
    and one that is not there; the logits are in the folder."""
    folder = tmp_path_factory.mktemp("hub")
    with serve() as hub:
        repos = {kind: _publish(hub, kind, make(folder / kind)) for kind, make in FOLDERS.items()}
        ids = [name for kind, repo in repos.items() for name in (f"{kind}/{repo}", repo)]
        return folder, _remote(hub, folder, *ids, MISSING), hub.paths


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_backbone_comes_from_the_hub_as_from_its_folder(kind, from_hub):
    folder, done, asked = from_hub
    local = load_backbone(str(folder / kind), ABC, seed=1).eval()
    with torch.no_grad():
        expected = local(pixels(local.backbone.image.size)).logits.numpy()
    for backbone_id in (f"{kind}/{OWNER}/{kind}", f"{OWNER}/{kind}"):
        assert f"{kind} {backbone_id}" in done.stdout.splitlines(), done.stderr
        found = np.load(folder / f"{backbone_id.replace('/', '-')}.npy")
        np.testing.assert_allclose(found, expected, atol=1e-6)
    downloaded = [path for path in asked if path.startswith("GET") and "/resolve/" in path]
    assert not any(path.endswith((".bin", ".py")) for path in downloaded)


def test_a_repository_that_is_not_there_is_one_line(from_hub):
    (line,) = [row for row in from_hub[1].stderr.splitlines() if row.startswith("error")]
    assert MISSING.removeprefix("timm/") in line
    assert "there is no such model, or you may not read it" in line


def test_a_hub_that_does_not_answer_is_not_asked_again_and_again(tmp_path):
    with serve() as hub:
        pass  # its port is free again: connections are refused
    began = time.monotonic()
    done = _remote(hub, tmp_path, "timm/resnet18.a1_in1k")
    assert "cannot load the weights of timm/resnet18.a1_in1k: no connection" in done.stderr
    assert "Retrying" not in done.stderr
    assert f"no connection to {hub.url}; what is cached is used" in done.stderr
    assert time.monotonic() - began < 45  # five attempts for each of two files take 50 seconds


def test_after_an_answer_or_none_the_client_is_as_it_was(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serve() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        with answering_hub():
            assert not constants.HF_HUB_OFFLINE
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    with answering_hub():
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
