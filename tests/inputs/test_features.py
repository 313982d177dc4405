"""What is computed once trains what is above it as the live network does."""

import os
import re

import families
import numpy as np
import pytest
import torch
from PIL import Image
from small import (
    CONVNEXT,
    HEAD,
    NAMES,
    RESNET,
    VIT,
    Pixels,
    alexnet_like,
    changed,
    images,
    network,
    state,
    trained,
    trainer,
    untimed,
)
from torch import nn
from transformers import default_data_collator

from hf_transfer.base.cache import cache_entries, cache_folder, cache_report
from hf_transfer.base.errors import UserError
from hf_transfer.data import decoding, pixels
from hf_transfer.data.image_set import ImageSet
from hf_transfer.data.pixels import open_pixels
from hf_transfer.data.sources import scan
from hf_transfer.inputs.cut import PROBES
from hf_transfer.planning.cost import Speed
from hf_transfer.planning.frozen_prefix import feature_bytes
from hf_transfer.planning.phases import make_phases
from hf_transfer.planning.plan import Machine, make_plan
from hf_transfer.recipe.load import parse_phase
from hf_transfer.recipe.specs import DataSpec, Recipe


def both(tmp_path, make, phase, **options):
    """Return the reports and end weights of a phase trained live and on cached features."""
    found = []
    for features in ("live", "cached"):
        model = make()
        done = trained(tmp_path, [{**phase, "features": features}], model, **options)
        found.append((done.reports[0], state(model)))
    return found


def assert_equal(live, cached):
    assert (live[0].features, cached[0].features) == ("live", "cached")
    for one, other in zip(untimed(live[0].history), untimed(cached[0].history), strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert value == pytest.approx(other[key], rel=1e-5, abs=1e-5), key
    for name, value in live[1].items():
        assert torch.allclose(value, cached[1][name], rtol=1e-5, atol=1e-5), name
    assert live[0].metrics.keys() == cached[0].metrics.keys()


@pytest.mark.parametrize(
    ("backbone", "accumulate"),
    [(RESNET, 1), (RESNET, 2), (VIT, 2), (CONVNEXT, 1), ("torchvision/efficientnet_b0", 1)],
)
def test_a_cached_head_phase_equals_the_live_one(tmp_path, backbone, accumulate):
    """With dropout on the head's input, too: torchvision's efficientnet has it of itself."""
    phase = {**HEAD, "epochs": 3, "weight_decay": 0.05, "label_smoothing": 0.1, "batch_size": 5}
    phase["accumulate"] = accumulate
    live, cached = both(tmp_path, lambda: network(backbone, dropout=0.2), phase)
    assert_equal(live, cached)


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("train", ["head", "last 1 block", "last 1 stage"])
def test_every_family_trains_the_same_on_features_as_live(tmp_path, monkeypatch, family, train):
    """Loss curve, metrics and weights within 1e-5; with momentum, decay and moving statistics. On
    disk are the bytes that are planned, in all 14 families without exception."""
    monkeypatch.setenv("HF_TRANSFER_CACHE", str(tmp_path / "kept"))
    stored = images(12, size=families.SIZE)
    phase = {
        "train": train, "cold_head": True, "epochs": 2, "batch_size": 4, "lr": 1e-2,
        "optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1,
    }  # fmt: skip
    own = {"train_dataset": stored, "eval_dataset": images(5, size=families.SIZE, seed=1)}
    live, cached = both(tmp_path, lambda: families.make(family), phase, **own)
    assert_equal(live, cached)
    backbone = families.make(family).backbone
    (made,) = make_phases([parse_phase(phase)], backbone.groups)
    assert stored_bytes(tmp_path / "kept") == 17 * feature_bytes(made)


def stored_bytes(folder) -> int:
    return sum(np.load(path, mmap_mode="r").nbytes for path in folder.rglob("*.npy"))


def test_dropout_between_frozen_layers_is_off_live_and_cached(tmp_path):
    stored = images(12, size=224)
    options = {"head": ["classifier.6.*"], "train_dataset": stored, "eval_dataset": stored}
    assert_equal(*both(tmp_path, alexnet_like, HEAD, **options))


def test_class_weights_count_the_same_live_and_cached(tmp_path):
    weights = torch.tensor([3.0, 0.5, 0.5])
    assert_equal(*both(tmp_path, network, HEAD, class_weights=weights))


@pytest.mark.parametrize(
    ("change", "own", "why"),
    [
        ({"augment": "light"}, (), "images vary from epoch to epoch"),
        ({"train": "all", "cold_head": True}, (), "nothing is frozen below what trains"),
        ({}, ("train_dataset", "eval_dataset"), "gives no stored pixels"),
        ({}, ("eval_dataset",), "gives no stored pixels"),
    ],
)
def test_what_cannot_be_cached_runs_live_or_says_why(tmp_path, change, own, why):
    model = network()
    options = dict.fromkeys(own, Pixels(images(), model))
    if "train_dataset" in own:
        options["data_collator"] = default_data_collator
        done = trained(tmp_path, [{**HEAD, **change, "epochs": 1}], model, **options)
        assert done.reports[0].features == "live"
    with pytest.raises(UserError, match=f"features: cached is not possible, because .*{why}"):
        trained(tmp_path, [{**HEAD, **change, "features": "cached"}], model, **options)


@pytest.mark.parametrize("last", [{"features": "cached"}, {"solve": "lbfgs"}])
@pytest.mark.parametrize("lacking", ["room", "pixels"])
def test_what_a_later_phase_cannot_keep_is_refused_before_anything_trains(
    tmp_path, monkeypatch, last, lacking
):
    model, options = network(), {}
    if lacking == "room":
        monkeypatch.setenv("HF_TRANSFER_CACHE_GB", "0.000001")
        why = r"because .* the cache's 0.0 MB; raise HF_TRANSFER_CACHE_GB, or remove"
    else:
        options = {"eval_dataset": Pixels(images(), model)}
        why = "because the validation set gives no stored pixels; make it with load_data"
    before = state(model)
    phases = [{**HEAD, "features": "live"}, {"train": "head", **last}]
    made = trainer(tmp_path, phases, model, **options)
    with pytest.raises(UserError, match=why):
        made.train()
    assert made.reports == []
    assert not changed(before, state(model))


def drawn_on_disk(folder):
    """Write small images into class folders, and return what a scan of them finds."""
    drawn = images(24)
    for row in range(24):
        place = folder / drawn.names[drawn.labels[row]]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.pixels[row]).save(place / f"{row}.png")
    return scan(DataSpec(str(folder)))


def test_features_that_find_no_room_beside_the_pixels_are_refused_before_anything_trains(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_TRANSFER_CACHE", str(tmp_path / "kept"))
    found, model = drawn_on_disk(tmp_path / "data"), network()
    some = open_pixels(found, model.backbone.image)[0]
    stored = ImageSet(some, np.array(found.targets.table)[found.targets.codes], NAMES)
    phases = [{**HEAD, "features": "live"}, {**HEAD, "features": "cached"}]
    made = trainer(tmp_path, phases, model, train_dataset=stored, eval_dataset=None)
    (entry,) = cache_entries(cache_folder("pixels"))
    monkeypatch.setenv("HF_TRANSFER_CACHE_GB", str((entry.size_bytes + 5000) / 1e9))
    with pytest.raises(UserError, match="cache's 0.1 MB beside 0.1 MB of pixels; raise HF_TR"):
        made.train()
    assert made.reports == []
    monkeypatch.setenv("HF_TRANSFER_CACHE_GB", str((entry.size_bytes + 20000) / 1e9))
    made.train()
    assert [report.features for report in made.reports] == ["live", "cached"]


class Odd(nn.Module):
    """A network whose logits are more than its head's output, or whose head is met twice."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body, self.top = nn.Conv2d(3, 8, 7, 16), nn.Linear(8, 3)
        self.kind = kind

    def forward(self, pixel_values):
        x = self.body(pixel_values).mean((2, 3))
        if self.kind == "dropout":  # a function's, which no module shows
            x = nn.functional.dropout(x, 0.5, self.training)
            x = x * 2
        if self.kind == "noise" and self.training:
            x = x + torch.randn_like(x)
        if self.kind == "twice":
            return self.top(x) + self.top(x * 2)
        return self.top(x) * (3 if self.kind == "scaled" else 1)


@pytest.mark.parametrize("kind", ["dropout", "noise", "twice", "scaled"])
def test_an_odd_head_learns_the_same_whether_it_is_cached_or_not(tmp_path, kind):
    stored = images(6, size=224)
    options = {"head": ["top.*"], "train_dataset": stored, "eval_dataset": stored}
    ends = []
    for features in ("live", "auto"):
        torch.manual_seed(0)
        model = Odd(kind)
        done = trained(tmp_path, [{**HEAD, "features": features}], model, **options)
        ends.append((state(model), [row["loss"] for row in done.reports[0].history]))
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-5)
    for name, value in ends[0][0].items():
        assert torch.allclose(value, ends[1][0][name], rtol=1e-5, atol=1e-5), name


class Turning(nn.Module):
    """A network whose frozen part takes another way where a bright image comes along."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.body, self.top = kind, nn.Conv2d(3, 8, 7, 16), nn.Linear(8, 3)

    def forward(self, pixel_values):
        x = self.body(pixel_values).mean((2, 3))
        bright = pixel_values.mean((1, 2, 3)) > 1
        if self.kind == "branch" and bright.any():
            x = x.abs()
        if self.kind == "sorted" and bright.float().max():
            x = torch.from_numpy(np.sort(x.detach().numpy()))
        if self.kind == "mixes":
            x = x + bright.float().mean()
        if self.kind == "many" and len(x) > 6:
            x = x * 2
        if self.kind == "many, as a number":
            x = x * (1 + (len(x) > 6))
        return self.top(x)


@pytest.mark.parametrize("kind", ["branch", "sorted", "mixes", "many", "many, as a number"])
def test_a_way_that_only_some_batches_take_is_seen_while_features_are_computed(
    tmp_path, monkeypatch, caplog, kind
):
    """Every image that the cut is tried with is dark. The phase runs live, or says why not."""
    caplog.set_level("INFO")
    drawn = images(20, size=224)
    pixels = drawn.pixels // 4
    pixels[5] = 255
    stored = ImageSet.from_arrays(pixels, drawn.labels, NAMES)
    options = {"head": ["top.*"], "train_dataset": stored, "eval_dataset": None}
    ends = []
    for features in ("live", "auto"):
        done = trained(tmp_path, [{**HEAD, "features": features}], Turning(kind), **options)
        assert done.reports[0].features == "live"
        ends.append(state(done.model))
    assert changed(*ends) == set()
    why = "depend on the|reads what the images hold"
    assert re.search(f"phase head: .*({why})", caplog.text)
    with pytest.raises(UserError, match=f"features: cached is not possible, because .*({why})"):
        trained(tmp_path, [{**HEAD, "features": "cached"}], Turning(kind), **options)


@pytest.mark.parametrize(
    ("phase", "cached"),
    [
        ({}, True),
        ({"features": "live"}, False),
        ({"augment": "light"}, False),
        ({"augment": "light", "views": 2, "epochs": 4}, True),
        ({"augment": "light", "views": 4, "epochs": 2}, False),
        ({"augment": "light", "views": 4, "epochs": 2, "features": "cached"}, True),
        ({"train": "last 1 stage", "cold_head": True}, True),
        ({"train": "all", "cold_head": True}, False),
        ({"feature_precision": "fp16"}, True),
    ],
)
def test_what_the_plan_says_of_features_is_what_the_run_does(tmp_path, monkeypatch, phase, cached):
    """Cached or live, and the bytes on disk."""
    monkeypatch.setenv("HF_TRANSFER_CACHE", str(tmp_path / "kept"))
    made = trainer(tmp_path / "run", [{**HEAD, **phase}])
    backbone, (planned,) = made.backbone, made.phases
    counts = {"train": {"a": 24}, "validation": {"a": 12}}
    recipe = Recipe("r", (planned.spec,), data=DataSpec(image_size=backbone.image.size))
    (plan,) = make_plan(recipe, backbone.groups, [planned], counts, Machine(Speed(1e9, 1e7))).phases
    made.train()
    assert (plan.live is None) == (made.reports[0].features == "cached") == cached
    assert plan.disk_bytes == stored_bytes(tmp_path / "kept")
    assert plan.seconds > 0


def test_no_view_is_computed_where_not_all_of_them_find_room(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    phase = {**HEAD, "epochs": 3, "augment": "light", "views": 3}
    for spare, how in ((0, "cached"), (-1, "live")):
        kept = tmp_path / f"kept{spare}"
        monkeypatch.setenv("HF_TRANSFER_CACHE", str(kept))
        done = trained(tmp_path, [phase])
        assert done.reports[0].features == how
        if how == "cached":
            size = sum(path.stat().st_size for path in kept.rglob("*.npy"))
            headers = 128 * len(list(kept.rglob("*.npy")))
            monkeypatch.setenv("HF_TRANSFER_CACHE_GB", str((size - headers - 1) / 1e9))
            caplog.clear()
        del done
    assert list(kept.rglob("*.npy")) == []
    assert "computed features" not in caplog.text
    assert "do not fit: the limit of all that is kept" in caplog.text


def test_images_that_are_not_stored_are_decoded_by_workers_beside_the_network(
    tmp_path, monkeypatch
):
    """And give what stored ones give; without workers the same to the last bit."""
    monkeypatch.setenv("HF_TRANSFER_CACHE", str(tmp_path / "kept"))
    found, real, ends = drawn_on_disk(tmp_path / "data"), decoding.decode, []

    def noting(*args):
        with (tmp_path / "decoders").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return real(*args)

    monkeypatch.setattr(pixels, "decode", noting)
    for limit, workers in ((1000, 2), (1000, 0), (None, 2)):
        model = network(dropout=0.2)
        some = open_pixels(found, model.backbone.image, limit_bytes=limit)[0]
        assert isinstance(some, pixels.LivePixels) == (limit is not None)
        stored = ImageSet(some, np.array(found.targets.table)[found.targets.codes], NAMES)
        own = {"train_dataset": stored, "eval_dataset": None, "dataloader_num_workers": workers}
        done = trained(tmp_path, [{**HEAD, "features": "cached"}], model, **own)
        ends.append(state(done.model))
        del done
        cache_report(clear=True)
    assert changed(ends[0], ends[1]) == set()
    for name, value in ends[0].items():
        assert torch.allclose(value, ends[2][name], rtol=1e-5, atol=1e-5), name
    decoders = (tmp_path / "decoders").read_text().split()
    by_us = [decoder == str(os.getpid()) for decoder in decoders]
    looks = 1 + PROBES  # at the first item, and at those that a cut is tried with
    assert len(decoders) == 2 * (24 + looks)
    assert by_us.count(False) == 24
    assert all(by_us[-24 - looks :])
