"""Store: an image is decoded once, and what is stored is right or built again."""

import multiprocessing
import os
import pickle
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_transfer.base.cache import Hold
from hf_transfer.base.errors import DataError
from hf_transfer.data import decoding as decoding_module
from hf_transfer.data import pixels as store
from hf_transfer.data.decoding import decode
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.data.pixels import open_pixels
from hf_transfer.data.rows import LivePixels, StoredPixels
from hf_transfer.data.sources import scan
from hf_transfer.recipe.specs import DataSpec

SETTINGS = ImageSettings(16, crop_pct=0.8, interpolation="bilinear")


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder of 2 x 12 pictures, all different."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 256, (30, 24 + number, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{number:02d}.png")
    return tmp_path / "data"


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The names of the files decoded while building, as they come."""
    names: list[str] = []
    original = decoding_module.decode_noted

    def noting(source, settings, name):
        names.append(name)
        return original(source, settings, name)

    monkeypatch.setattr(store, "decode_noted", noting)
    return names


def wanted(found) -> np.ndarray:
    return np.stack([decode(found.root / name, SETTINGS) for name in found.files])


def entry(cache: Path) -> Path:
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    return folder


def test_stored_pixels_are_the_decoded_ones_and_are_decoded_once(photos, cache, decoded):
    found = scan(DataSpec(str(photos)))
    pixels, facts = open_pixels(found, SETTINGS, cache)
    assert isinstance(pixels, StoredPixels)
    assert pixels.shape == (24, 20, 20, 3)
    assert sorted(decoded) == list(found.files)
    again, facts_again = open_pixels(found, SETTINGS, cache)
    assert len(decoded) == 24
    for opened in (pixels, again):
        assert np.array_equal(opened[np.arange(24)], wanted(found))
    assert np.array_equal(facts.pixels, facts_again.pixels)
    assert np.array_equal(facts.files, facts_again.files)
    assert facts.sizes[0].tolist() == [24, 30]
    held = sorted(path.name for path in entry(cache).iterdir())
    assert held == ["about.json", "facts.npz", "pixels.npy"]
    assert np.array_equal(np.load(entry(cache) / "pixels.npy", mmap_mode="r"), wanted(found))


def test_rows_can_be_taken_sliced_and_pickled(photos, cache):
    found = scan(DataSpec(str(photos)))
    pixels, _ = open_pixels(found, SETTINGS, cache)
    live = LivePixels(found, SETTINGS)
    right = wanted(found)
    for reader in (pixels, live):
        some = reader.take(np.array([20, 3, 3, 7]))
        assert some.shape == (4, 20, 20, 3)
        assert len(some) == 4
        assert np.array_equal(some[np.array([1, 0])], right[[3, 20]])
        assert np.array_equal(some[2], right[3])
        assert np.array_equal(some[1:], right[[3, 3, 7]])
        assert some[np.array([], dtype=int)].shape == (0, 20, 20, 3)
        assert np.array_equal(some.take(np.array([3]))[0], right[7])
        assert np.array_equal(pickle.loads(pickle.dumps(some))[0], right[20])
        assert some[np.array([0])].flags.writeable


@pytest.mark.parametrize(
    "change",
    [
        ImageSettings(15, crop_pct=0.75, interpolation="bilinear"),
        ImageSettings(20, interpolation="bilinear"),
        ImageSettings(16, crop_pct=0.8, interpolation="bicubic"),
        ImageSettings(16, crop_pct=0.8, interpolation="bilinear", crop_mode="squash"),
        ImageSettings(16, 1, (0.5,), (0.5,), crop_pct=0.8, interpolation="bilinear"),
    ],
)
def test_other_settings_are_another_entry(photos, cache, decoded, change):
    found = scan(DataSpec(str(photos)))
    open_pixels(found, SETTINGS, cache)
    pixels, _ = open_pixels(found, change, cache)
    assert len(decoded) == 48
    assert np.array_equal(pixels[0], decode(found.root / found.files[0], change))
    normal = ImageSettings(16, crop_pct=0.8, interpolation="bilinear", mean=(0.0,) * 3)
    open_pixels(found, normal, cache)  # normalising comes after
    assert len(decoded) == 48


def test_a_changed_file_is_decoded_again(photos, cache):
    found = scan(DataSpec(str(photos)))
    open_pixels(found, SETTINGS, cache)
    Image.new("RGB", (40, 40), "red").save(photos / found.files[5])
    pixels, facts = open_pixels(found, SETTINGS, cache)
    assert np.array_equal(pixels[np.arange(24)], wanted(found))
    (photos / found.files[5]).unlink()
    _, facts = open_pixels(found, SETTINGS, cache)
    assert facts.errors == {5: ("missing", f"{found.files[5]}: No such file or directory")}


def test_another_decoder_is_another_entry(photos, cache, decoded, monkeypatch):
    found = scan(DataSpec(str(photos)))
    for module, name, value in (
        (decoding_module, "VERSION", 99),
        (decoding_module.PIL, "__version__", "0.1"),
        (store, "VERSION", 99),
    ):
        open_pixels(found, SETTINGS, cache)
        before = len(decoded)
        monkeypatch.setattr(module, name, value)
        open_pixels(found, SETTINGS, cache)
        assert len(decoded) == before + 24


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("name", ["pixels.npy", "facts.npz"])
@pytest.mark.parametrize("damage", [cut, flip, zero, Path.unlink])
def test_a_torn_or_foreign_entry_is_built_again_never_used(photos, cache, decoded, name, damage):
    found = scan(DataSpec(str(photos)))
    open_pixels(found, SETTINGS, cache)
    damage(entry(cache) / name)
    pixels, facts = open_pixels(found, SETTINGS, cache)
    assert len(decoded) == 48
    assert np.array_equal(pixels[np.arange(24)], wanted(found))
    open_pixels(found, SETTINGS, cache)
    assert len(decoded) == 48


def test_damage_that_keeps_size_and_time_is_found_by_its_digest(photos, cache, decoded):
    found = scan(DataSpec(str(photos)))
    open_pixels(found, SETTINGS, cache)
    path = entry(cache) / "pixels.npy"
    times = path.stat()
    flip(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    pixels, _ = open_pixels(found, SETTINGS, cache)
    assert len(decoded) == 48
    assert np.array_equal(pixels[np.arange(24)], wanted(found))


def test_every_row_is_checked_where_that_is_cheap(photos, cache, decoded, monkeypatch, caplog):
    """And what does not hold is said once; of many pixels a sample is checked."""
    monkeypatch.setattr(store, "SAMPLED", 2)
    found = scan(DataSpec(str(photos)))
    open_pixels(found, SETTINGS, cache)
    path = entry(cache) / "pixels.npy"
    for checked, times in ((10**9, 48), (100, 48)):
        monkeypatch.setattr(store, "CHECKED_BYTES", checked)
        before, data = path.stat(), bytearray(path.read_bytes())
        data[-2 * 1200 : -1200] = bytes(1200)  # the last row but one
        path.write_bytes(data)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        open_pixels(found, SETTINGS, cache)
        assert len(decoded) == times
    assert caplog.text.count("is not what was written and is built again") == 1


def test_others_may_read_pixels_as_the_umask_says(photos, cache):
    before = os.umask(0o022)
    try:
        open_pixels(scan(DataSpec(str(photos))), SETTINGS, cache)
    finally:
        os.umask(before)
    assert entry(cache).stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in entry(cache).iterdir()} == {0o644}


def test_an_interrupted_build_leaves_nothing_and_is_not_used(photos, cache, monkeypatch):
    found = scan(DataSpec(str(photos)))
    original = decoding_module.decode_noted

    def interrupted(source, settings, name):
        if name == found.files[9]:
            raise KeyboardInterrupt
        return original(source, settings, name)

    monkeypatch.setattr(store, "decode_noted", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_pixels(found, SETTINGS, cache)
    assert [path for path in cache.iterdir() if path.is_dir()] == []
    monkeypatch.setattr(store, "decode_noted", original)
    pixels, _ = open_pixels(found, SETTINGS, cache)
    assert np.array_equal(pixels[np.arange(24)], wanted(found))


def test_what_a_killed_build_left_is_removed_and_what_is_being_written_is_not(photos, cache):
    """However long that takes: the time of a folder does not move while a file in it grows."""
    old, new = cache / ".key.killed", cache / ".key.running"
    old.mkdir(parents=True)
    writer = Hold(new)
    os.utime(new, (time.time() - 10**6,) * 2)
    open_pixels(scan(DataSpec(str(photos))), SETTINGS, cache)
    assert not old.exists()
    assert new.exists()
    writer.close()


def _opened(photos: str, cache: Path, results) -> None:
    pixels, _ = open_pixels(scan(DataSpec(photos)), SETTINGS, cache)
    results.put(pixels[np.arange(24)].tobytes())


def test_two_processes_at_once_do_not_corrupt_each_other(photos, cache):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [
        context.Process(target=_opened, args=(str(photos), cache, results)) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    right = wanted(scan(DataSpec(str(photos)))).tobytes()
    assert [results.get(timeout=120) == right for _ in workers] == [True] * 3
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert [path.name for path in cache.iterdir()] == [entry(cache).name]


def test_an_entry_that_another_process_put_there_first_stays(photos, cache, monkeypatch):
    found = scan(DataSpec(str(photos)))
    open_pixels(found, SETTINGS, cache)
    there = entry(cache)
    first = (there / "pixels.npy").stat().st_ino
    store._build(cache, there.name, found, SETTINGS, True)
    assert (there / "pixels.npy").stat().st_ino == first
    flip(there / "facts.npz")
    store._build(cache, there.name, found, SETTINGS, True)
    assert (there / "pixels.npy").stat().st_ino != first
    assert [path.name for path in cache.iterdir()] == [there.name]


def test_a_set_too_large_to_store_is_decoded_live(photos, cache, decoded):
    found = scan(DataSpec(str(photos)))
    pixels, facts = open_pixels(found, SETTINGS, cache, limit_bytes=1000)
    assert isinstance(pixels, LivePixels)
    assert np.array_equal(pixels[np.arange(24)], wanted(found))
    assert len(facts.pixels) == 24
    assert sum(path.stat().st_size for path in cache.rglob("*")) < 20_000
    _, again = open_pixels(found, SETTINGS, cache, limit_bytes=1000)
    assert np.array_equal(again.pixels, facts.pixels)
    assert len(decoded) == 24  # looked through once


def test_bad_files_are_facts_not_failures(photos, cache):
    (photos / "cat" / "00.png").write_bytes(b"")
    (photos / "dog" / "03.png").write_bytes(b"not a picture at all" * 9)
    found = scan(DataSpec(str(photos)))
    pixels, facts = open_pixels(found, SETTINGS, cache)
    assert facts.errors == {
        0: ("zero-byte", "cat/00.png: the file is empty"),
        15: ("not-an-image", "dog/03.png: not an image, or one of a kind that is not read"),
    }
    assert not pixels[0].any()
    assert open_pixels(found, SETTINGS, cache)[1].errors == facts.errors


def test_a_full_disk_is_one_line_and_leaves_nothing(photos, cache, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "_to_disk", full)
    with pytest.raises(DataError, match="No space left on device; decoded pixels") as caught:
        open_pixels(scan(DataSpec(str(photos))), SETTINGS, cache)
    assert "HF_TRANSFER_CACHE" in str(caught.value)
    assert [path for path in cache.iterdir() if path.is_dir()] == []


def test_a_place_that_is_no_folder_is_one_line(photos, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="HF_TRANSFER_CACHE"):
        open_pixels(scan(DataSpec(str(photos))), SETTINGS, tmp_path / "file" / "cache")


def test_the_default_place_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TRANSFER_CACHE", str(tmp_path))
    assert store.default_cache_dir() == tmp_path / "pixels"
    monkeypatch.delenv("HF_TRANSFER_CACHE")
    assert store.default_cache_dir() == Path.home() / ".cache" / "hf_transfer" / "pixels"


def test_memory_does_not_grow_with_what_is_read(tmp_path):
    """Reading 400 MB through the map leaves less than 100 MB resident with a 32 MB limit."""
    shape = (2000, 256, 256, 3)
    path = tmp_path / "pixels.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": shape}
        )
        file.truncate(file.tell() + int(np.prod(shape)))
    code = (
        "from pathlib import Path; import numpy as np; from hf_transfer.data import rows as store\n"
        "store.MAPPED_BYTES = 32 * 2**20\n"
        f"pixels = store.StoredPixels(Path({str(path)!r}), {shape})\n"
        "def resident():\n"
        "    return int(Path('/proc/self/statm').read_text().split()[1]) * 4096 / 2**20\n"
        "before = resident()\n"
        "most = 0\n"
        "for first in range(0, 2000, 50):\n"
        "    pixels[np.arange(first, first + 50)]\n"
        "    most = max(most, resident())\n"
        "print(most - before)"
    )
    if not Path("/proc/self/statm").exists() or resource.getpagesize() != 4096:
        pytest.skip("no /proc with pages of 4 KB to read resident memory from")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 100
