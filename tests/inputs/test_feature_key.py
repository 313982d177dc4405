"""Whatever features depend on changes their name; what they do not depend on leaves it."""

import numpy as np
import pytest
import torch
from PIL import Image
from small import HEAD, images, network, trained

from hf_transfer.base.cache import cache_entries, cache_report
from hf_transfer.base.processes import Processes
from hf_transfer.data import decoding
from hf_transfer.data.image_set import ImageSet
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.data.pixels import open_pixels
from hf_transfer.data.sources import scan
from hf_transfer.inputs import extraction, feature_key, features
from hf_transfer.inputs.features import Replay
from hf_transfer.recipe.specs import DataSpec

AUGMENTED = {**HEAD, "epochs": 4, "augment": "light", "views": 2}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TRANSFER_CACHE", str(tmp_path / "kept"))


def keys(tmp_path, phase=HEAD, change=None, stored=None, **options):
    """Return the names of the entries of training images that a phase makes."""
    cache_report(clear=True)
    model = network()
    if change is not None:
        with torch.no_grad():
            change(model, dict(model.named_parameters()), dict(model.named_buffers()))
    options |= {"train_dataset": stored or images(), "eval_dataset": None}
    done = trained(tmp_path, [{**phase, "features": "cached"}], model, **options)
    del done
    return {entry.key for entry in cache_entries()}


def add_one_bit(model, parameters, buffers):
    next(iter(parameters.values())).view(-1)[0] *= 1 + 2**-20


def move_a_statistic(model, parameters, buffers):
    next(b for name, b in buffers.items() if name.endswith("running_var")).view(-1)[-1] += 1e-3


def other_head(model, parameters, buffers):
    for name in model.backbone.layout.head:
        parameters[model.backbone.prefix + name].add_(1.0)


def test_the_same_run_finds_its_features_again_and_another_head_too(tmp_path):
    first = keys(tmp_path)
    assert len(first) == 1
    assert keys(tmp_path) == first
    assert keys(tmp_path, change=other_head) == first
    assert keys(tmp_path, {**HEAD, "lr": 0.5, "epochs": 3}, seed=11) == first  # not augmented


@pytest.mark.parametrize("change", [add_one_bit, move_a_statistic])
def test_the_prefixs_weights_and_buffers_count_to_the_last_bit(tmp_path, change):
    assert not keys(tmp_path) & keys(tmp_path, change=change)


def test_a_statistic_that_moved_by_one_bit_gives_other_features_not_stale_ones(tmp_path):
    one = trained(tmp_path, [{**HEAD, "features": "cached"}])
    model = network()
    buffers = dict(model.named_buffers())
    with torch.no_grad():
        move_a_statistic(model, None, buffers)
        next(b for n, b in buffers.items() if n.endswith("running_mean")).add_(0.5)
    other = trained(tmp_path, [{**HEAD, "features": "cached"}], model)
    live = network()
    live.load_state_dict({**network().state_dict(), **buffers})
    again = trained(tmp_path, [{**HEAD, "features": "live"}], live)
    assert other.reports[0].metrics["loss"] == pytest.approx(
        again.reports[0].metrics["loss"], rel=1e-4
    )
    assert other.reports[0].metrics["loss"] != pytest.approx(
        one.reports[0].metrics["loss"], rel=1e-4
    )


def test_images_and_their_order_count_and_labels_do_not(tmp_path):
    first, stored = keys(tmp_path), images()
    pixels = np.array(stored.pixels)
    pixels[3, 0, 0, 0] ^= 1
    assert not first & keys(tmp_path, stored=ImageSet(pixels, stored.labels, stored.names))
    turned = ImageSet(stored.pixels[::-1].copy(), stored.labels, stored.names)
    assert not first & keys(tmp_path, stored=turned)
    relabelled = ImageSet(stored.pixels, stored.labels[::-1].copy(), stored.names)
    assert first == keys(tmp_path, stored=relabelled)


@pytest.mark.parametrize("limit", [None, 1000])
def test_of_decoded_images_content_and_decoder_count_and_their_place_does_not(
    tmp_path, monkeypatch, limit
):
    for place in ("a/x", "a/y", "b/x", "b/y"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (40, 40), "red").save(tmp_path / place / "1.bmp")

    def key(place="a", **settings):
        found = scan(DataSpec(str(tmp_path / place)))
        pixels, _ = open_pixels(found, ImageSettings(32, **settings), limit_bytes=limit)
        return feature_key.pixels_identity(ImageSet(pixels, [0, 1], found.labels))

    first = key()
    assert key() == key("b") == first
    Image.new("RGB", (40, 40), "blue").save(tmp_path / "b/y/1.bmp")
    assert key("b") != first
    assert key(interpolation="nearest") != first
    for module, name in ((decoding, "VERSION"), (decoding.PIL, "__version__")):
        with monkeypatch.context() as changed:
            changed.setattr(module, name, "0.1")
            assert key() != first


def test_preprocessing_counts(tmp_path):
    def other_mean(model, parameters, buffers):
        image = model.backbone.image
        object.__setattr__(
            model.backbone, "image", ImageSettings(image.size, mean=(0.4, 0.4, 0.4), std=image.std)
        )

    assert not keys(tmp_path) & keys(tmp_path, change=other_mean)


def test_views_variation_and_seed_count_where_images_vary(tmp_path):
    two = keys(tmp_path, AUGMENTED)
    assert len(two) == 2
    assert not two & keys(tmp_path)
    assert not two & keys(tmp_path, AUGMENTED, seed=11)
    assert not two & keys(tmp_path, {**AUGMENTED, "augment": "standard"})
    assert two < keys(tmp_path, {**AUGMENTED, "views": 3})  # the first two hold


@pytest.mark.parametrize("library", feature_key.LIBRARIES)
def test_versions_of_the_libraries_count(tmp_path, monkeypatch, library):
    first = keys(tmp_path)
    real = feature_key.version_of
    monkeypatch.setattr(feature_key, "version_of", lambda n: real(n) + ".1" * (n == library))
    assert not first & keys(tmp_path)


def test_precision_counts_in_computing_and_on_disk(tmp_path):
    first = keys(tmp_path)
    low = keys(tmp_path, bf16=True)
    half = keys(tmp_path, {**HEAD, "feature_precision": "fp16"})
    assert len(first | low | half) == 3


def test_half_precision_halves_the_disk_and_hardly_changes_the_result(tmp_path):
    found = []
    for precision in ("fp32", "fp16"):
        cache_report(clear=True)
        done = trained(tmp_path, [{**HEAD, "features": "cached", "feature_precision": precision}])
        size = sum(path.stat().st_size for path in (tmp_path / "kept").rglob("*.npy"))
        found.append((done.reports[0].metrics["loss"], size))
        del done
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-2)
    assert found[1][0] != found[0][0]
    headers = 2 * 128
    assert (found[1][1] - headers) * 2 == found[0][1] - headers


def test_what_float16_cannot_hold_is_refused_once_all_processes_know(tmp_path, monkeypatch):
    def huge(model, parameters, buffers):
        for name, buffer in buffers.items():
            if name.endswith("running_var"):
                buffer.mul_(1e-9)

    line = r"^phase head: feature_precision: fp16 .* write feature_precision: fp32$"
    with pytest.raises(extraction.FeaturesError, match=line):
        keys(tmp_path, {**HEAD, "feature_precision": "fp16"}, huge)
    asked = []
    monkeypatch.setattr(Processes, "most", lambda self, value: asked.append(value) or value)
    with pytest.raises(extraction.FeaturesError, match=line):
        keys(tmp_path, {**HEAD, "feature_precision": "fp16"}, huge)
    assert asked[-1] == 2  # the others are told before this one ends


def test_what_another_process_cannot_hold_in_float16_ends_all_with_the_same_line(
    tmp_path, monkeypatch
):
    compute = Replay.compute

    def beside_another(replay):
        compute(replay)
        monkeypatch.setattr(Processes, "most", lambda self, value: features.TOO_LARGE)

    monkeypatch.setattr(Replay, "compute", beside_another)
    with pytest.raises(extraction.FeaturesError, match=r"^phase head: feature_precision: fp16"):
        keys(tmp_path, {**HEAD, "feature_precision": "fp16"})
