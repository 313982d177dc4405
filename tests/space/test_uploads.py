"""What visitors send: every kind of hostile file has a test of its own."""

import io
import os
import resource
import stat
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from drawn import picture
from PIL import Image

from hf_transfer.base.errors import DataError
from hf_transfer.data.scan import Scan
from hf_transfer.data.sources import list_source, scan
from hf_transfer.recipe.specs import DataSpec
from hf_transfer.space.limits import Limits, Refused
from hf_transfer.space.uploads import Pictures, class_name, refusal, thumbnail

LIMITS = Limits(
    upload_bytes=4_000_000, image_bytes=400_000, total_bytes=3_000_000, images=40, classes=5
)


def content(kind: str = "PNG", seed: int = 0) -> bytes:
    out = io.BytesIO()
    picture(seed).save(out, kind)
    return out.getvalue()


def zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


GOOD = {"cat/1.png": content(seed=1), "dog/2.png": content(seed=2)}


@pytest.fixture
def pictures(tmp_path) -> Pictures:
    return Pictures(tmp_path / "visitor" / "pictures", LIMITS)


# --- archives ----------------------------------------------------------------------------------


def entry(name: str, mode: int, data: bytes) -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = mode << 16
    return info, data


def special(path: Path, name: str, mode: int, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for good, inside in GOOD.items():
            archive.writestr(good, inside)
        archive.writestr(*entry(name, mode, data))
    return path


def bomb(path: Path, size: int) -> Path:
    return zipped(path, {"cat/0.png": bytes(size), **GOOD}, zipfile.ZIP_DEFLATED)


def lying(path: Path) -> Path:
    """An archive whose directory says 100 bytes where 5 MB come out."""
    zipped(path, {"cat/1.png": bytes(5_000_000), "dog/2.png": GOOD["dog/2.png"]}, 8)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(struct.pack("<L", 5_000_000), struct.pack("<L", 100)))
    return path


def encrypted(path: Path) -> Path:
    raw = bytearray(zipped(path, GOOD).read_bytes())
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = raw.find(signature)
        raw[place + at] |= 1
    path.write_bytes(raw)
    return path


def torn(path: Path) -> Path:
    raw = zipped(path, GOOD).read_bytes()
    path.write_bytes(raw.replace(b"PK\x01\x02", b"PK\x01\x09"))
    return path


def many(path: Path, count: int) -> Path:
    return zipped(path, {f"cat/{i}.png": b"" for i in range(count)})


def claiming(path: Path) -> Path:
    """An end record that claims more entries than any directory could hold."""
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, 0xFFFFFFFF, 0, 0)
    path.write_bytes(content() + end)
    return path


def tarred(path: Path) -> Path:
    import tarfile

    with tarfile.open(path, "w") as archive:
        data = content()
        info = tarfile.TarInfo("cat/1.png")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return path


def twice(path: Path) -> Path:
    raw = zipped(path, {"cat/1.png": content(), "cat/2.png": content()}).read_bytes()
    path.write_bytes(raw.replace(b"cat/2.png", b"cat/1.png"))
    return path


def linked(path: Path) -> Path:
    target = zipped(path.with_name("real.zip"), GOOD)
    path.symlink_to(target)
    return path


LINK = stat.S_IFLNK | 0o777
HOSTILE = {
    "traversal": (lambda p: zipped(p, {**GOOD, "../../x.png": content()}), "leads out"),
    "traversal-inside": (lambda p: zipped(p, {**GOOD, "cat/../../x.png": b"x"}), "leads out"),
    "absolute": (lambda p: zipped(p, {**GOOD, "/etc/x.png": content()}), "leads out"),
    "backslashes": (lambda p: zipped(p, {**GOOD, "..\\..\\x.png": content()}), "leads out"),
    "drive": (lambda p: zipped(p, {**GOOD, "C:\\x\\y.png": content()}), "leads out"),
    "link": (lambda p: special(p, "cat/link.png", LINK, b"/etc/passwd"), "link or a device"),
    "folder-link": (lambda p: special(p, "fish", LINK, b"/etc"), "link or a device"),
    "pipe": (lambda p: special(p, "cat/p.png", stat.S_IFIFO | 0o666, b""), "link or a device"),
    "device": (lambda p: special(p, "cat/d.png", stat.S_IFCHR | 0o666, b""), "link or a device"),
    "bomb": (lambda p: bomb(p, 40_000_000), "unpacks to more than 2 MB"),
    "encrypted": (encrypted, "has a password"),
    "entries": (lambda p: many(p, LIMITS.entries + 1), "up to 4,000 entries"),
    "claimed-entries": (claiming, "up to 4,000 entries"),
    "twice": (twice, "two files of the same name"),
    "too-large": (lambda p: zipped(p, {"cat/1.png": os.urandom(4_100_000)}), "up to 3 MB"),
    "no-zip": (lambda p: p.write_bytes(b"GIF89a nothing") and p, "not a zip file"),
    "empty": (lambda p: p.write_bytes(b"") or p, "not a zip file"),
    "cut": (lambda p: p.write_bytes(zipped(p, GOOD).read_bytes()[:-30]) and p, "not a zip file"),
    "torn": (torn, "damaged"),
    "tar": (tarred, "a tar archive"),
    "rar": (lambda p: p.write_bytes(b"Rar!\x1a\x07\x01\x00" + bytes(100)) and p, "a RAR archive"),
    "7z": (lambda p: p.write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(100)) and p, "a 7-Zip archive"),
    "gzip": (lambda p: p.write_bytes(b"\x1f\x8b" + bytes(100)) and p, "a gzip archive"),
    "no-folders": (lambda p: zipped(p, {"1.png": content()}), "holds no folders"),
    "no-images": (lambda p: zipped(p, {"cat/run.exe": b"MZ", "cat/x.py": b"1"}), "holds no images"),
    "nested-zip": (
        lambda p: zipped(p, {"cat/in.zip": zipped(p.with_name("in.zip"), GOOD).read_bytes()}),
        "holds no images",
    ),
    "server-link": (linked, "not a regular file"),
    "odd-class": (lambda p: zipped(p, {"a\u202eb/1.png": content()}), "cannot name a class"),
    "long-class": (lambda p: zipped(p, {f"{'a' * 90}/1.png": content()}), "at most 60 characters"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_refused_with_a_sentence_and_leaves_nothing(kind, pictures, tmp_path):
    make, why = HOSTILE[kind]
    path = make(tmp_path / f"{kind}.zip")
    started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Refused, match=why) as caught:
        pictures.add_zip(path)
    assert str(caught.value).endswith(".")
    assert str(tmp_path) not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - started < 60_000  # KiB
    assert not [file for file in pictures.folder.rglob("*") if file.is_file()]
    assert not (tmp_path / "x.png").exists()


# --- single files ------------------------------------------------------------------------------


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>'
BAD = {
    "svg": (SVG, "SVG drawings can hold scripts"),
    "svg-bare": (b"  <svg onload='alert(1)'></svg>", "SVG drawings can hold scripts"),
    "html": (b"<!doctype html><script>alert(1)</script>", "web page"),
    "pdf": (b"%PDF-1.7\n" + bytes(200), "PDF"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "executable": (b"\x7fELF" + bytes(500), "not an image"),
    "pickle": (b"\x80\x04\x95" + bytes(80), "not an image"),
    "empty": (b"", "empty"),
    "cut": (content("JPEG")[:300], "cannot be read"),
    "bomb": (png_of(60_000, 60_000), "more than 60 million pixels"),
    "tall": (png_of(1, 2_000_000_000), "cannot be read|more than 60 million"),
    "wide-gif": (b"GIF89a\xff\xff\xff\xff\x00\x00\x00;", "not an image"),
    "heavy": (os.urandom(LIMITS.image_bytes + 1), "larger than 0 MB"),
    "npy": (b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'shape': (9**9, 9**9)}", "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_harmless_image_is_not_kept(kind, pictures, tmp_path):
    data, why = BAD[kind]
    path = tmp_path / "upload.png"
    path.write_bytes(data)
    started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Refused, match=why) as caught:
        pictures.add("cat", [("upload.png", path)])
    assert str(tmp_path) not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - started < 60_000  # KiB
    assert pictures.kept == []


def test_a_link_among_the_uploads_is_not_followed(pictures, tmp_path):
    (tmp_path / "secret.png").write_bytes(content())
    (tmp_path / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(Refused, match="not a regular file"):
        pictures.add("cat", [("link.png", tmp_path / "link.png")])


def test_a_lie_about_the_size_in_an_archive_takes_no_memory(pictures, tmp_path):
    assert "1 image added. Left out: 1.png" in pictures.add_zip(lying(tmp_path / "lie.zip"))


@pytest.mark.parametrize(
    "name", ["../up", "a/b", "a\\b", ".hidden", "", "   ", "a\0b", "con:1", "x" * 61, "a\u202eb"]
)
def test_no_name_of_a_class_leads_out_of_its_folder(name):
    with pytest.raises(Refused):
        class_name(name)


@pytest.mark.parametrize("name", ["rose", "Röschen rot", "猫", "1", "a-b_c.d"])
def test_names_of_all_scripts_are_classes(name):
    assert class_name(name) == name


# --- what is kept ------------------------------------------------------------------------------


def test_a_zip_of_folders_becomes_classes_and_the_rest_is_told(pictures, tmp_path):
    files = {f"flowers/{name}": data for name, data in GOOD.items()}
    files |= {"flowers/cat/notes.txt": b"x", "__MACOSX/cat/._1.png": b"x", "flowers/.DS_Store": b""}
    files |= {"flowers/LICENSE.txt": b"x"}
    words = pictures.add_zip(zipped(tmp_path / "a.zip", files))
    assert (
        words == "2 images added. Left out: LICENSE.txt (not an image); notes.txt (not an image)."
    )
    assert pictures.labels == ("cat", "dog")
    assert {one.file.parent.name for one in pictures.kept} == {"cat", "dog"}


def test_splits_in_an_archive_stay_splits(pictures, tmp_path):
    files = {
        f"data/{split}/{label}/{i}.png": content(seed=i)
        for i, split in enumerate(("train", "val"))
        for label in ("cat", "dog")
    }
    pictures.add_zip(zipped(tmp_path / "a.zip", files))
    assert {one.split for one in pictures.kept} == {"train", "validation"}
    assert pictures.labels == ("cat", "dog")


LAYOUTS = {
    "nested": ("cat/white/1", "cat/black/2", "dog/3"),
    "splits in classes": ("cat/train/1", "cat/val/2", "dog/train/3", "dog/val/4"),
    "splits that repeat": ("train/train/cat/1", "train/train/dog/2", "val/val/cat/3", "val/dog/4"),
    "an image beside classes": ("1", "cat/2", "dog/3"),
    "an image beside splits": ("train/cat/1", "train/dog/2", "val/dog/3", "more/4"),
    "the same folders twice": ("a/cat/1", "a/dog/2", "b/cat/3", "b/dog/4"),
    "years": ("train2017/cat/1", "train2017/dog/2", "val2017/cat/3", "val2017/dog/4"),
    "two that train": ("train/cat/1", "train/dog/2", "training/cat/3", "training/dog/4"),
}


def read(folder: Path) -> Scan | str:
    """Return what training reads in a folder, or why it refuses it."""
    try:
        return list_source(DataSpec(path=str(folder)))
    except DataError as error:
        return str(error)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_zip_is_read_as_training_reads_its_folder(layout, pictures, tmp_path):
    files = {f"{name}.png": content(seed=int(name[-1])) for name in LAYOUTS[layout]}
    archive = zipped(tmp_path / "a.zip", files)
    with zipfile.ZipFile(archive) as folder:
        folder.extractall(tmp_path / "folder")
    own = read(tmp_path / "folder")
    if isinstance(own, str):
        with pytest.raises(Refused) as refused:
            pictures.add_zip(archive)
        said = str(refused.value).removeprefix("This zip file: ").rstrip(".")
        assert said in own
        return
    said = pictures.add_zip(archive)
    found = {(one.name, one.label, one.split) for one in pictures.kept}
    assert found == {
        (name.rpartition("/")[2], own.labels[label], split)
        for name, label, split in zip(own.files, own.targets, own.splits, strict=True)
    }
    left = [name.rpartition("/")[2] for name in files if name not in own.files]
    assert said.endswith(f" Left out: {left[0]} (it lies in no folder of a class)." if left else "")


def test_a_file_name_from_outside_never_becomes_a_path(pictures, tmp_path):
    path = tmp_path / "upload"
    path.write_bytes(content())
    pictures.add("cat", [("../../etc/cron d/x;rm -rf.PNG", path)])
    (kept,) = pictures.kept
    assert kept.file.parent == pictures.folder / "cat"
    assert kept.file.name == "00000-x-rm--rf.png"


@pytest.mark.parametrize("limit", ["images", "classes"])
def test_each_limit_of_a_visitor_is_told(limit, tmp_path):
    data = content()
    pictures = Pictures(tmp_path / "own", Limits(**{limit: 2}))
    files = {f"{'abc'[i]}/{i}.png": data for i in range(3)}
    words = pictures.add_zip(zipped(tmp_path / "a.zip", files))
    assert words.startswith("2 images added. Left out: 2.png (the page takes")


def test_the_bytes_of_all_archives_together_are_limited(tmp_path):
    data = content()
    pictures = Pictures(tmp_path / "own", Limits(total_bytes=3 * len(data)))
    for i in range(2):
        path = zipped(tmp_path / f"{i}.zip", {f"{label}/{i}.png": data for label in "ab"})
        words = pictures.add_zip(path)
    assert words.startswith("1 image added. Left out: 1.png (the page takes")


def test_a_class_can_be_removed_with_its_files(pictures, tmp_path):
    pictures.add_zip(zipped(tmp_path / "a.zip", GOOD))
    pictures.drop("cat")
    assert pictures.labels == ("dog",)
    assert pictures.total_bytes == len(GOOD["dog/2.png"])
    assert not (pictures.folder / "cat").exists()


def test_a_thumbnail_is_a_small_picture_within_the_page():
    address = thumbnail(content("WEBP"), LIMITS)
    assert address.startswith("data:image/jpeg;base64,")
    assert len(address) < 10_000


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_nothing_is_against_an_ordinary_image(kind, tmp_path):
    path = tmp_path / "one"
    Image.new("RGB", (40, 30), "red").save(path, kind)
    assert refusal(path, LIMITS) is None


def test_images_with_splits_and_without_are_not_mixed(pictures, tmp_path):
    picture(1).save(tmp_path / "one.png")
    pictures.add("cat", [("one.png", tmp_path / "one.png")])
    parts = {f"{split}/{name}": data for split in ("train", "val") for name, data in GOOD.items()}
    split = zipped(tmp_path / "split.zip", parts)
    with pytest.raises(Refused, match="choose Start over"):
        pictures.add_zip(split)
    pictures.clear()
    assert pictures.add_zip(split).startswith("4 images added.")


def test_a_zip_is_split_as_training_on_its_folder_splits_it(tmp_path, pictures):
    files = {f"{label}/{i}.png": content(seed=i) for i in range(9, -1, -1) for label in "ab"}
    archive = zipped(tmp_path / "unsorted.zip", files)
    pictures.add_zip(archive)
    with zipfile.ZipFile(archive) as folder:
        folder.extractall(tmp_path / "folder")
    page, own = (scan(DataSpec(path=str(at))) for at in (pictures.folder, tmp_path / "folder"))
    assert list(page.files) == list(own.files)
    assert page.splits.where("validation").tolist() == own.splits.where("validation").tolist()


@pytest.mark.parametrize("name", ["../.x.png", ".x.png", "a/../..", "x", "ü.png", "a.png\n"])
def test_a_name_that_is_odd_or_taken_is_numbered(name, tmp_path, pictures):
    (tmp_path / "sent.png").write_bytes(content())
    for sent in (name, "good.png", "good.png"):
        pictures.add("cat", [(sent, tmp_path / "sent.png")])
    odd, good, taken = (one.file for one in pictures.kept)
    assert odd.name.startswith("00000-")
    assert good.name == "good.png"
    assert taken.name == "00002-good.png"
    assert {file.parent for file in (odd, good, taken)} == {pictures.folder / "cat"}
