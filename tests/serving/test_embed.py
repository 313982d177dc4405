"""Features before the head: the head makes logits of them, files hold them, like is near like."""

import inspect
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from drawn import picture
from pyarrow import parquet
from tiny_folders import stir
from tiny_model import tiny_run

import hf_transfer
from hf_transfer.backbones.load import load_backbone, load_model
from hf_transfer.base.errors import UserError
from hf_transfer.inputs.arriving import arriving
from hf_transfer.inputs.head_features import head_features
from hf_transfer.inputs.model_input import to_model_input
from hf_transfer.serving.embed import Embeddings, embed, embed_to, iter_embeddings
from hf_transfer.serving.embed_files import write_embeddings
from hf_transfer.serving.load import Model
from hf_transfer.serving.pictures import batches
from hf_transfer.serving.predict import outputs

LABELS = ("a", "b", "c")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("embed") / "run")


@pytest.fixture
def files(tmp_path) -> list[Path]:
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        picture(i, 90 + 20 * i).save(path)
    return paths


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_vit", "timm/test_convnext"])
def test_the_head_gives_the_logits_of_the_features(name, files):
    model = stir(load_backbone(name, LABELS, pretrained=False))
    found = embed(model, files, batch_size=2)
    head = model.timm_model.get_classifier()
    with torch.no_grad():
        logits = head(torch.from_numpy(found.features))
    (batch,) = batches(files, model.backbone.image)
    assert torch.allclose(logits, outputs(model, batch.pixels), atol=1e-5)
    assert found.files == tuple(map(str, files))


def test_places_are_averaged_where_the_head_is_a_convolution(files):
    model = load_backbone("torchvision/squeezenet1_1", LABELS, pretrained=False, image_size=64)
    assert embed(model, files).features.shape == (5, 512)


def test_features_of_any_group_are_those_that_arrive_there(files):
    model = stir(load_backbone("timm/test_resnet", LABELS, pretrained=False, image_size=64))
    (batch,) = batches(files, model.backbone.image)
    with torch.no_grad():
        every = arriving(model, to_model_input(batch.pixels, model.backbone.image))
    for group in (list(every)[0], list(every)[-1]):
        found = embed(model, files, group=group)
        assert np.allclose(found.features, every[group].numpy(), atol=1e-5)
    with pytest.raises(UserError, match=r"no group 'stages.9'.*; its groups: .*head"):
        embed(model, files, group="stages.9")


def test_a_stopped_call_continues_and_a_finished_one_computes_nothing(
    run, files, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("hf_transfer.base.shards.SHARD_ROWS", 2)
    model, seen = load_model(run), []

    def counted(model, pixels):
        if len(seen) == stop:
            raise KeyboardInterrupt
        seen.extend(range(len(pixels)))
        return head_features(model, pixels)

    monkeypatch.setattr("hf_transfer.serving.embed.head_features", counted)
    (tmp_path / "bad.png").write_bytes(b"x")
    images = [tmp_path / "bad.png", *files]
    stop = 5  # two of which were a look at the width, one image is bad
    with pytest.raises(KeyboardInterrupt):
        embed(model, images, batch_size=2)
    stop, seen = None, []
    found = embed(model, images, batch_size=2)
    assert len(seen) == 2 + 2  # the width, and the last two of five
    assert found.errors[0][0] == str(tmp_path / "bad.png")
    assert found.errors[0][1].startswith(str(tmp_path / "bad.png"))
    seen = []
    again = embed(model, images)
    assert len(seen) == 2
    assert np.allclose(again.features, embed(model, images, keep=False).features, atol=1e-5)
    picture(9).save(files[0])
    assert not np.allclose(embed(model, images).features[0], again.features[0], atol=1e-3)


def test_files_hold_the_features_and_the_names_in_order(run, files, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"x")
    model = load_model(run)
    images = [files[0], bad, *files[1:]]
    expected = embed(model, files)
    for out in (tmp_path / "out" / "f.npy", tmp_path / "f.parquet", tmp_path / "rows"):
        parts = iter_embeddings(model, images, batch_size=2)
        count, errors = write_embeddings(parts, out)
        assert (count, [name for name, _ in errors]) == (5, [str(bad)])
        assert not list(out.parent.glob(".*"))
    values = np.load(tmp_path / "out" / "f.npy")
    assert values.dtype == np.float32
    assert np.allclose(values, expected.features, atol=1e-6)
    names = (tmp_path / "out" / "f.txt").read_text().splitlines()
    table = parquet.read_table(tmp_path / "f.parquet").to_pydict()
    assert names == table["file"] == list(map(str, files))
    assert np.allclose(table["features"], expected.features, atol=1e-6)
    assert not datasets.are_progress_bars_disabled()  # they are the caller's
    rows = datasets.load_from_disk(str(tmp_path / "rows"))
    assert rows["file"][:] == names
    assert np.allclose(rows["features"][:], expected.features, atol=1e-6)
    assert expected.to_dataset()["file"][:] == expected.to_pandas().index.tolist() == names


def test_a_copy_is_nearest_and_others_follow_by_their_cosine(run, files, tmp_path):
    picture(2, 130).save(tmp_path / "copy.png")
    found = embed(run, [*files, tmp_path / "copy.png"])
    near = found.near(found.features[2], 3)
    assert {near[0][0], near[1][0]} == {str(files[2]), str(tmp_path / "copy.png")}
    assert near[0][1] == pytest.approx(1, abs=1e-5)
    assert near[1][1] > near[2][1]
    small = Embeddings(("x", "y"), np.array([[1, 0], [0, 0]], np.float32))
    assert small.near(np.array([2.0, 0]), 5) == [("x", 1.0), ("y", 0.0)]
    lines, errors = embed_to(run, [*files, tmp_path / "copy.png"], near=files[2], top=2)
    assert lines[0] == f"1.000  {tmp_path / 'copy.png'}"
    assert (len(lines), errors) == (2, [])
    assert not any(str(files[2]) in line for line in lines)  # each image is most like itself


def test_mistakes_are_told_in_a_line(run, files, tmp_path):
    for options, said in (
        ({}, "--out FILE"),
        ({"out": tmp_path / "a.csv"}, "are written as .npy or .parquet"),
        ({"near": tmp_path / "absent.png"}, "there is no image or folder"),
        ({"near": tmp_path}, "--near takes one image, and .* stands for 5"),
    ):
        with pytest.raises(UserError, match=said):
            embed_to(run, files, **options)
    (tmp_path / "bad.png").write_bytes(b"x")
    with pytest.raises(UserError, match="bad.png"):
        embed_to(run, [tmp_path / "bad.png"], out=tmp_path / "f.npy")
    assert not list(tmp_path.glob("*.npy"))


def test_a_loaded_model_has_what_one_does_with_it_as_methods(run, files, tmp_path):
    model = hf_transfer.load(run)
    assert (model.task, len(model.labels)) == ("classification", 5)
    assert model.predict(files) == hf_transfer.predict(run, files)
    assert np.array_equal(model.embed(files).features, hf_transfer.embed(run, files).features)
    for label in model.labels[:2]:
        (tmp_path / "data" / label).mkdir(parents=True)
        picture(1).save(tmp_path / "data" / label / "1.png")
    found = model.evaluate(tmp_path / "data", compare=model)
    assert found["metrics"]["n"] == 2
    assert "5 labels" in repr(model)


def test_the_functions_take_a_loaded_model(run, files, tmp_path):
    model = hf_transfer.load(run)
    assert hf_transfer.predict(model, files) == hf_transfer.predict(run, files)
    assert len(hf_transfer.embed(model, files).files) == len(files)
    assert hf_transfer.explain(model, files[0])[0].error is None
    for label in model.labels[:2]:
        (tmp_path / "data" / label).mkdir(parents=True)
        picture(1).save(tmp_path / "data" / label / "1.png")
    found = hf_transfer.evaluate(model, tmp_path / "data", compare=model)
    assert found["comparison"]["difference"] == 0
    with pytest.raises(UserError, match="it takes Model, PreTrainedModel, OnnxModel, str or Path"):
        hf_transfer.predict(3, files)


@pytest.mark.parametrize("name", ["predict", "evaluate", "embed", "explain", "export", "push"])
def test_the_methods_of_a_loaded_model_take_what_the_functions_take(name):
    def options(call):
        _, *rest = inspect.signature(call).parameters.values()  # all but the model
        return [(each.name, each.kind, each.default) for each in rest]

    assert options(getattr(Model, name)) == options(getattr(hf_transfer, name))
