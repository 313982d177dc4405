"""What is kept between runs: listed with its size, limited, never removed while it is used."""

import gc
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from hf_transfer.base import cache
from hf_transfer.base.cache import Room, cache_entries, cache_folder, cache_root, claim
from hf_transfer.base.locks import Hold
from hf_transfer.base.shards import Column
from hf_transfer.base.store import open_rows
from hf_transfer.cli import main
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.data.pixels import LivePixels, StoredPixels, open_pixels
from hf_transfer.data.sources import scan
from hf_transfer.recipe.specs import DataSpec

PIXELS = 24 * 20 * 20 * 3  # bytes of the photos' pixels


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TRANSFER_CACHE", str(tmp_path / "kept"))


def photos(folder, seed=0):
    for number in range(24):
        place = folder / ("cat" if number % 2 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(number + seed).integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(values).save(place / f"{number}.png")
    return scan(DataSpec(str(folder)))


def decoded(folder, seed=0):
    return open_pixels(photos(folder, seed), ImageSettings(20))[0]


def features(key, rows=1000):
    column = Column((8,), "float32")

    def compute(spans, write):
        for span in spans:
            write([np.zeros((len(span), 8), np.float32)])

    root = cache_folder("features")
    return open_rows(key, [column], rows, compute, root=root, about=f"features {key}")


def aged(kind, seconds):
    for folder in (cache_root() / kind).iterdir():
        os.utime(folder, (time.time() - seconds,) * 2)


def test_pixels_and_features_are_listed_with_what_they_are_the_last_used_first(tmp_path):
    decoded(tmp_path / "a"), features("key")
    aged("pixels", 100)
    first, second = (entry for entry in cache_entries() if entry.kind != "contents")
    assert (first.kind, first.about) == ("features", "features key")
    assert (second.kind, second.size_bytes >= PIXELS) == ("pixels", True)
    assert "24 images of 20 px" in second.about


def test_reading_pixels_again_counts_as_use(tmp_path):
    decoded(tmp_path / "a")
    aged("pixels", 1000)
    open_pixels(scan(DataSpec(str(tmp_path / "a"))), ImageSettings(20))
    assert time.time() - cache_entries()[0].used < 100


def test_pixels_and_features_share_one_limit(tmp_path, monkeypatch):
    decoded(tmp_path / "a"), features("old"), gc.collect()
    aged("pixels", 200), aged("features", 100)
    monkeypatch.setenv("HF_TRANSFER_CACHE_GB", str(90_000 / 1e9))
    features("new")  # 32 kB more, and the pixels were used first
    kept = [(e.kind, e.key) for e in cache_entries() if e.kind != "contents"]
    assert kept == [("features", "new"), ("features", "old")]


def test_pixels_in_use_stay_and_what_finds_no_room_is_decoded_live(tmp_path, monkeypatch, caplog):
    pixels = decoded(tmp_path / "a")
    part = pixels.take(np.arange(3))
    del pixels
    aged("pixels", 200)
    monkeypatch.setenv("HF_TRANSFER_CACHE_GB", str(1.5 * PIXELS / 1e9))
    assert isinstance(decoded(tmp_path / "b", seed=50), LivePixels)
    assert "decoded live" in caplog.text
    assert "in use" in caplog.text
    assert part[np.arange(3)].shape == (3, 20, 20, 3)
    del part
    assert isinstance(decoded(tmp_path / "c", seed=99), StoredPixels)


def test_the_command_lists_as_text_and_as_json_and_clears(tmp_path, capsys):
    decoded(tmp_path / "a")
    held = features("key")
    assert main(["cache"]) == 0
    text = capsys.readouterr().out
    assert "24 images of 20 px" in text
    assert "(in use)" in text
    assert "3 entries" in text.splitlines()[-1]
    assert "HF_TRANSFER_CACHE_GB" in text
    assert main(["cache", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {entry["kind"] for entry in found["entries"]} == {"contents", "pixels", "features"}
    assert found["limit_bytes"] == cache.LIMIT_BYTES
    assert main(["cache", "--clear"]) == 0
    assert "1 in use are kept" in capsys.readouterr().out
    assert [entry.key for entry in cache_entries()] == ["key"]
    del held
    assert main(["cache", "--clear", "ke"]) == 0
    assert cache_entries() == []


def test_a_key_that_begins_no_entry_is_a_mistake_and_nothing_is_cleared(tmp_path, capsys):
    features("key")
    assert main(["cache", "--clear", "ke", "nothing"]) == 2
    assert "no entry" in capsys.readouterr().err
    assert len(cache_entries()) == 1


def test_an_empty_cache_is_listed_as_such(capsys):
    assert main(["cache"]) == 0
    assert "0 entries" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf"])
def test_a_limit_that_is_no_number_is_one_line(monkeypatch, capsys, text):
    monkeypatch.setenv("HF_TRANSFER_CACHE_GB", text)
    assert main(["cache"]) == 2
    assert "write a number of gigabytes" in capsys.readouterr().err


def test_the_room_is_the_limit_and_what_of_the_disk_is_free_or_taken_by_entries(monkeypatch):
    usage = shutil.disk_usage(cache_root().parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=10**6))
    monkeypatch.setenv("HF_TRANSFER_CACHE_GB", "2")
    assert cache.room() == Room(2 * 10**9, 900_000)
    features("key")
    (kept,) = cache_entries()
    assert cache.room().disk_bytes == 900_000 + kept.size_bytes
    assert cache.room().lack(900_000) is None
    assert "on the disk" in cache.room().lack(10**9)[0]
    beside = cache.room(kept.folder)
    assert beside == Room(2 * 10**9, 900_000, kept.size_bytes)
    assert "beside" in beside.lack(2 * 10**9)[0]


def test_what_a_killed_build_left_is_listed_and_cleared_and_what_is_being_written_is_kept(capsys):
    left, written = (cache_root() / "pixels" / key for key in ("left", "written"))
    for folder in (left, written):
        claim(folder, "photos", 100)
        (folder / ".0123456789abcdef.part").write_bytes(bytes(2 * 10**6))
    hold = Hold(written)
    assert main(["cache"]) == 0
    text = capsys.readouterr().out
    assert "2 entries, 4.0 MB" in text
    assert text.count("photos  (unfinished)") == 2
    assert text.count("(in use)") == 1
    assert main(["cache", "--clear"]) == 0
    assert capsys.readouterr().out == "freed 2.0 MB; 1 in use are kept\n"
    assert [entry.key for entry in cache_entries()] == ["written"]
    hold.close()


def test_more_than_a_lowered_limit_is_said_plainly(tmp_path, monkeypatch, capsys):
    held = decoded(tmp_path / "a")
    monkeypatch.setenv("HF_TRANSFER_CACHE_GB", str(PIXELS / 2 / 1e9))
    assert main(["cache"]) == 0
    assert "what is beyond that goes once it is not in use" in capsys.readouterr().out
    del held


@pytest.fixture
def read_only():
    """Mount a folder so that nobody, not even root, can write there."""
    mounted = []
    if sys.platform != "linux" or shutil.which("mount") is None:
        pytest.skip("no mount as Linux has it")

    def mount(folder):
        for options in (["--bind", folder, folder], ["-o", "remount,ro,bind", folder]):
            if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
                pytest.skip("nothing can be mounted here")
            mounted.append(folder)

    yield mount
    for folder in mounted[:1]:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_complete_cache_that_is_read_only_is_used_and_what_cannot_go_is_not_freed(
    tmp_path, read_only, capsys, caplog
):
    right = decoded(tmp_path / "a")[np.arange(24)]
    features("key")
    read_only(cache_root())
    found = scan(DataSpec(str(tmp_path / "a")))
    pixels = open_pixels(found, ImageSettings(20))[0]
    assert isinstance(pixels, StoredPixels)
    assert np.array_equal(pixels[np.arange(24)], right)
    assert len(features("key")) == 1000
    assert caplog.text == ""
    del pixels
    gc.collect()
    assert main(["cache", "--clear"]) == 0
    told = f"freed 0.0 MB; 3 cannot be removed: {cache_root()} is read-only\n"
    assert capsys.readouterr().out == told


@pytest.mark.parametrize("begun", [True, False])
def test_images_are_decoded_live_where_a_cache_is_empty_and_read_only(
    tmp_path, read_only, caplog, begun
):
    found = photos(tmp_path / "a")
    for folder in ("pixels", "features") if begun else ():
        (cache_root() / folder).mkdir(parents=True)
    cache_root().mkdir(exist_ok=True)
    read_only(cache_root())
    pixels, facts = open_pixels(found, ImageSettings(20))
    assert isinstance(pixels, LivePixels)
    assert len(facts.pixels) == 24
    (line,) = (record.getMessage() for record in caplog.records)
    assert "24 images are decoded live" in line
    assert str(cache_root()) in line
    with pytest.raises(cache.StoreError, match="cannot be written"):
        features("key")
