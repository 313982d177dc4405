"""Store: an image is decoded once, and what is stored is right or built again."""

import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_transfer.base import shards
from hf_transfer.base.cache import cache_entries, remove
from hf_transfer.base.errors import DataError
from hf_transfer.base.shards import Column
from hf_transfer.data import decoding as decoding_module
from hf_transfer.data import pixels as store
from hf_transfer.data.decoding import decode
from hf_transfer.data.digests import Reading
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.data.pixels import LivePixels, StoredPixels, open_pixels
from hf_transfer.data.sources import Scan, scan
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
    """The entry of the pixels; beside it lies that of the files' contents."""
    (found,) = (e for e in cache_entries(cache) if "digests" not in e.about)
    return found.folder


def shard(cache: Path, column: int = 0) -> Path:
    (path,) = entry(cache).glob(f"{column}-*.npy")
    return path


def live(found) -> LivePixels:
    contents = Reading(found).contents(Path("/nowhere"), read_all=True)
    return LivePixels(SETTINGS, contents, np.arange(len(found.files)), found, is_read=True)


def test_stored_pixels_are_the_decoded_ones_and_are_decoded_once(photos, cache, decoded):
    found = scan(DataSpec(str(photos)))
    pixels, seen = open_pixels(found, SETTINGS, cache)
    assert isinstance(pixels, StoredPixels)
    assert pixels.shape == (24, 20, 20, 3)
    assert sorted(decoded) == list(found.files)
    again, seen_again = open_pixels(found, SETTINGS, cache)
    assert len(decoded) == 24
    for opened in (pixels, again):
        assert np.array_equal(opened[np.arange(24)], wanted(found))
    assert np.array_equal(seen.pixels, seen_again.pixels)
    assert np.array_equal(seen.files, seen_again.files)
    assert seen.sizes[0].tolist() == [24, 30]
    assert np.array_equal(np.load(shard(cache), mmap_mode="r"), wanted(found))


def test_rows_can_be_taken_sliced_and_pickled(photos, cache):
    found = scan(DataSpec(str(photos)))
    pixels, _ = open_pixels(found, SETTINGS, cache)
    right = wanted(found)
    for reader in (pixels, live(found)):
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
    pixels, seen = open_pixels(found, SETTINGS, cache)
    assert np.array_equal(pixels[np.arange(24)], wanted(found))
    (photos / found.files[5]).unlink()
    _, seen = open_pixels(found, SETTINGS, cache)
    assert seen.errors == {5: ("missing", f"{found.files[5]}: No such file or directory")}


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


@pytest.mark.parametrize("column", [0, 1, 3])
@pytest.mark.parametrize("damage", [cut, flip, zero, Path.unlink])
def test_a_torn_or_foreign_entry_is_built_again_never_used(photos, cache, decoded, column, damage):
    found = scan(DataSpec(str(photos)))
    open_pixels(found, SETTINGS, cache)
    damage(shard(cache, column))
    pixels, seen = open_pixels(found, SETTINGS, cache)
    assert len(decoded) == 48
    assert np.array_equal(pixels[np.arange(24)], wanted(found))
    open_pixels(found, SETTINGS, cache)
    assert len(decoded) == 48


def test_damage_that_keeps_size_and_time_is_found_by_its_checksum(photos, cache, decoded, caplog):
    found = scan(DataSpec(str(photos)))
    open_pixels(found, SETTINGS, cache)
    path = shard(cache)
    times = path.stat()
    flip(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    pixels, _ = open_pixels(found, SETTINGS, cache)
    assert len(decoded) == 48
    assert np.array_equal(pixels[np.arange(24)], wanted(found))
    assert caplog.text.count("is not what was written and is built again") == 1


def test_what_has_been_found_to_hold_is_not_read_whole_again(photos, cache, monkeypatch):
    found = scan(DataSpec(str(photos)))
    open_pixels(found, SETTINGS, cache)
    read: list[Path] = []
    monkeypatch.setattr(shards, "_holds", lambda path, *rest: read.append(path) or True)
    open_pixels(found, SETTINGS, cache)
    assert read == []
    os.utime(shard(cache))
    open_pixels(found, SETTINGS, cache)
    assert read == [shard(cache)]


def test_others_may_read_pixels_as_the_umask_says(photos, cache):
    before = os.umask(0o022)
    try:
        open_pixels(scan(DataSpec(str(photos))), SETTINGS, cache)
    finally:
        os.umask(before)
    assert entry(cache).stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in entry(cache).iterdir()} == {0o644}


def test_an_interrupted_build_leaves_no_half_of_a_shard(photos, cache, monkeypatch):
    found = scan(DataSpec(str(photos)))
    original = decoding_module.decode_noted

    def interrupted(source, settings, name):
        if name == found.files[9]:
            raise KeyboardInterrupt
        return original(source, settings, name)

    monkeypatch.setattr(store, "decode_noted", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_pixels(found, SETTINGS, cache)
    assert list(entry(cache).glob("*.npy")) == list(entry(cache).glob(".*.part")) == []
    monkeypatch.setattr(store, "decode_noted", original)
    pixels, _ = open_pixels(found, SETTINGS, cache)
    assert np.array_equal(pixels[np.arange(24)], wanted(found))


def _decode_slowly(photos: str, cache: Path) -> None:
    shards.SHARD_ROWS, original = 3, store.decode_noted

    def slow(*given):
        time.sleep(0.02)
        return original(*given)

    store.decode_noted = slow
    open_pixels(scan(DataSpec(photos)), SETTINGS, cache)


def test_a_decoding_that_was_killed_goes_on_with_the_rest(photos, cache, decoded, monkeypatch):
    child = multiprocessing.get_context("fork").Process(
        target=_decode_slowly, args=(str(photos), cache)
    )
    child.start()
    deadline = time.monotonic() + 60
    while len(list(cache.glob("*/4-*.npy"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    left = list(cache.glob("*/4-*.npy"))
    assert 2 <= len(left) < 8
    monkeypatch.setattr(shards, "SHARD_ROWS", 3)
    found = scan(DataSpec(str(photos)))
    pixels, seen = open_pixels(found, SETTINGS, cache)
    assert len(decoded) == 24 - 3 * len(left)
    assert np.array_equal(pixels[np.arange(24)], wanted(found))
    assert seen.sizes[:, 1].tolist() == [30] * 24
    assert not list(cache.glob("*/.*.part"))


def _decode_a_share(photos: str, cache: Path, rank: int, results) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2")
    names, original = [], store.decode_noted

    def noting(data, settings, name):
        names.append(name)
        time.sleep(0.05)
        return original(data, settings, name)

    shards.SHARD_ROWS, store.decode_noted = 3, noting
    pixels, _ = open_pixels(scan(DataSpec(photos)), SETTINGS, cache)
    results.put((names, pixels[np.arange(24)].tobytes()))


def test_the_processes_of_a_launch_share_the_decoding(photos, cache):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [
        context.Process(target=_decode_a_share, args=(str(photos), cache, rank, results))
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    done = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    right = wanted(scan(DataSpec(str(photos)))).tobytes()
    assert [pixels == right for _, pixels in done] == [True, True]
    assert all(3 <= len(names) <= 21 for names, _ in done)


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
    assert not list(cache.glob("*/.*.part"))


def test_a_set_too_large_to_store_is_decoded_live(photos, cache, decoded):
    found = scan(DataSpec(str(photos)))
    pixels, seen = open_pixels(found, SETTINGS, cache, limit_bytes=1000)
    assert isinstance(pixels, LivePixels)
    assert np.array_equal(pixels[np.arange(24)], wanted(found))
    assert len(seen.pixels) == 24
    assert sum(path.stat().st_size for path in cache.rglob("*.npy")) < 20_000
    _, again = open_pixels(found, SETTINGS, cache, limit_bytes=1000)
    assert np.array_equal(again.pixels, seen.pixels)
    assert len(decoded) == 24  # looked through once


def test_bad_files_are_facts_not_failures(photos, cache):
    (photos / "cat" / "00.png").write_bytes(b"")
    (photos / "dog" / "03.png").write_bytes(b"not a picture at all" * 9)
    found = scan(DataSpec(str(photos)))
    pixels, seen = open_pixels(found, SETTINGS, cache)
    assert seen.errors == {
        0: ("zero-byte", "cat/00.png: the file is empty"),
        15: ("not-an-image", "dog/03.png: not an image, or one of a kind that is not read"),
    }
    assert not pixels[0].any()
    assert open_pixels(found, SETTINGS, cache)[1].errors == seen.errors


def test_a_full_disk_is_one_line_and_leaves_nothing(photos, cache, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards.os, "fsync", full)
    with pytest.raises(DataError, match="No space left on device; decoded pixels") as caught:
        open_pixels(scan(DataSpec(str(photos))), SETTINGS, cache)
    assert "HF_TRANSFER_CACHE" in str(caught.value)
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_place_that_is_no_folder_is_one_line(photos, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="HF_TRANSFER_CACHE"):
        open_pixels(scan(DataSpec(str(photos))), SETTINGS, tmp_path / "file" / "cache")


def test_images_of_equal_size_and_time_are_other_images(photos, cache):
    """As tar, rsync -a and the layers of containers leave them."""
    found = scan(DataSpec(str(photos)))
    path = photos / found.files[5]
    Image.new("RGB", (30, 24), "red").save(path, "BMP")
    _, seen = open_pixels(found, SETTINGS, cache)
    times = path.stat()
    Image.new("RGB", (30, 24), "blue").save(path, "BMP")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    pixels, again = open_pixels(found, SETTINGS, cache)
    assert not np.array_equal(again.files[5], seen.files[5])
    assert np.array_equal(pixels[5], wanted(found)[5])


def test_the_same_images_elsewhere_or_touched_are_not_decoded_again(photos, cache, decoded):
    first, _ = open_pixels(scan(DataSpec(str(photos))), SETTINGS, cache)
    shutil.copytree(photos, photos.parent / "moved")
    for path in photos.rglob("*.png"):
        path.touch()
    for place in (photos, photos.parent / "moved"):
        again, _ = open_pixels(scan(DataSpec(str(place))), SETTINGS, cache)
        assert again.identity() == first.identity()
    assert len(decoded) == 24


def test_files_are_read_again_only_where_that_is_asked(photos, cache, monkeypatch):
    found = scan(DataSpec(str(photos)))
    open_pixels(found, SETTINGS, cache)
    read: list[int] = []
    original = Scan.opened
    monkeypatch.setattr(Scan, "opened", lambda self, row: read.append(row) or original(self, row))
    open_pixels(found, SETTINGS, cache)
    assert read == []
    open_pixels(found, SETTINGS, cache, read_all=True)
    assert sorted(read) == list(range(24))


def test_a_file_that_changes_while_it_is_used_is_named(photos, cache, monkeypatch):
    found = scan(DataSpec(str(photos)))
    pixels, _ = open_pixels(found, SETTINGS, cache, limit_bytes=1000)
    assert isinstance(pixels, LivePixels)
    Image.new("RGB", (40, 40), "red").save(photos / found.files[5])
    with pytest.raises(DataError, match=f"{found.files[5]}: it has changed since the run began"):
        pixels[np.arange(24)]


def test_what_is_no_regular_file_or_too_large_is_not_read(photos, cache, monkeypatch):
    (photos / "cat" / "00.png").unlink()
    os.mkfifo(photos / "cat" / "00.png")
    (photos / "cat" / "01.png").unlink()
    (photos / "cat" / "01.png").symlink_to("/dev/zero")
    with (photos / "cat" / "02.png").open("wb") as file:
        file.truncate(2**40)  # none of it is on the disk
    names = [
        f"{label}/{number:02d}.png,{label}" for label in ("cat", "dog") for number in range(12)
    ]
    (photos / "list.csv").write_text("\n".join(["image,label", *names]))
    found = scan(DataSpec(str(photos / "list.csv")))
    seen = open_pixels(found, SETTINGS, cache)[1]
    assert {row: kind for row, (kind, _) in seen.errors.items()} == {
        0: "unreadable", 1: "unreadable", 2: "too-large"
    }  # fmt: skip
    assert seen.errors[0][1] == "cat/00.png: it is not a regular file"
    assert "1,074 MB are the limit" in seen.errors[2][1]


def test_files_of_others_in_the_cache_are_never_touched(photos, cache, tmp_path):
    """However old they are, and however little room there is."""
    foreign = [cache / ".git" / "HEAD", cache / "thesis" / "text.tex", cache / "0.npy"]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        os.utime(path.parent, (0, 0))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "0-0000000000-24-00000000.npy").write_text("mine")
    (cache / "linked").symlink_to(outside)
    found = scan(DataSpec(str(photos)))
    open_pixels(found, SETTINGS, cache)
    (entry(cache) / "notes.txt").write_text("mine")
    place = entry(cache)
    sum(map(remove, cache_entries(cache)))
    open_pixels(found, SETTINGS, cache, limit_bytes=30_000)
    assert [path.read_text() for path in foreign] == ["mine"] * 3
    assert (place / "notes.txt").read_text() == "mine"
    assert (outside / "0-0000000000-24-00000000.npy").read_text() == "mine"
    assert (cache / "linked").is_symlink()


def test_memory_does_not_grow_with_what_is_read(tmp_path):
    """Reading 400 MB through the map leaves less than 100 MB resident with a 32 MB limit."""
    column = Column((256, 256, 3), "uint8")
    path = tmp_path / "0-0000000000-2000-00000000.npy"
    with path.open("wb") as file:
        file.truncate(2000 * column.row_bytes)
    code = (
        "from pathlib import Path; import numpy as np; from hf_transfer.base import store\n"
        "store.MAPPED_BYTES = 32 * 2**20\n"
        f"paths, column = [Path({str(path)!r})], store.{column}\n"
        "pixels = store.StoredRows(paths[0].parent, [paths], [column], 2000)\n"
        "def resident():\n"
        "    return int(Path('/proc/self/statm').read_text().split()[1]) * 4096 / 2**20\n"
        "before = resident()\n"
        "most = 0\n"
        "for first in range(0, 2000, 50):\n"
        "    pixels.column(0, np.arange(first, first + 50))\n"
        "    most = max(most, resident())\n"
        "print(most - before)"
    )
    if not Path("/proc/self/statm").exists() or resource.getpagesize() != 4096:
        pytest.skip("no /proc with pages of 4 KB to read resident memory from")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 100
