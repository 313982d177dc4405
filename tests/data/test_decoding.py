"""Decoding: what a file becomes, equal to what other loaders make of it; or why it is refused."""

import os
import struct
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from hf_transfer.base.errors import UserError
from hf_transfer.data import reading
from hf_transfer.data.decoding import decode, decode_noted, load_image
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.data.upright import ImageError

HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
OTHERS = pytest.mark.xdist_group("other loaders")  # one worker alone loads their libraries
FIT = ImageSettings(24, crop_pct=0.8, interpolation="bilinear")


def photo(width: int = 90, height: int = 60, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A smooth picture with some noise, unlike any other seed's."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def model_input(image, settings: ImageSettings) -> torch.Tensor:
    from hf_transfer.inputs.model_input import to_model_input  # takes long to load

    return to_model_input(torch.from_numpy(decode(image, settings))[None], settings)[0]


# --- evaluation ------------------------------------------------------------------------------

SIZES = [(90, 60), (61, 97), (64, 64), (237, 236), (259, 41), (20, 13), (33, 230)]


@OTHERS
@pytest.mark.parametrize("crop_pct", [1.0, 0.95, 0.875, 0.9, 224 / 232, 224 / 238, 0.77])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_equals_timms_transform_bit_for_bit(crop_pct, interpolation):
    from timm.data import create_transform

    for channels_mean in (HALF, {}):
        settings = ImageSettings(
            56, crop_pct=crop_pct, interpolation=interpolation, **channels_mean
        )
        transform = create_transform(
            (3, 56, 56),
            crop_pct=crop_pct,
            interpolation=interpolation,
            mean=settings.mean,
            std=settings.std,
        )
        for size in SIZES:
            image = photo(*size)
            assert torch.equal(model_input(image, settings), transform(image)), size


@OTHERS
@pytest.mark.parametrize("mode", ["squash", "border"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.9, 0.77])
def test_evaluation_equals_timms_squash_and_border_bit_for_bit(mode, crop_pct):
    from timm.data import create_transform

    how = {"crop_pct": crop_pct, "crop_mode": mode, "interpolation": "bicubic"}
    for statistics in (HALF, {"mean": (0.4, 0.2, 0.9), "std": (0.5,) * 3}):
        settings = ImageSettings(56, **how, **statistics)
        transform = create_transform((3, 56, 56), **how, **statistics)
        for size in SIZES:
            assert torch.equal(model_input(photo(*size), settings), transform(photo(*size))), size


@OTHERS
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (232, 224), (236, 224), (72, 64)])
def test_evaluation_equals_torchvisions_presets_bit_for_bit(resize, crop):
    from torchvision.transforms._presets import ImageClassification

    preset = ImageClassification(crop_size=crop, resize_size=resize, antialias=True)
    settings = ImageSettings(crop, crop_pct=crop / resize, interpolation="bilinear")
    assert settings.stored == resize
    for size in (*SIZES, (33, 450), (1201, 60)):
        assert torch.equal(model_input(photo(*size), settings), preset(photo(*size))), size


@OTHERS
def test_evaluation_equals_transformers_processors():
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    vit = ViTImageProcessorPil(size={"height": 56, "width": 56}, resample=2)
    clip = CLIPImageProcessorPil(
        size={"shortest_edge": 64},
        crop_size={"height": 56, "width": 56},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    squash = ImageSettings(56, crop_mode="squash", interpolation="bilinear", **HALF)
    center = ImageSettings(56, crop_pct=0.875, interpolation="bicubic", **HALF)
    for processor, settings in ((vit, squash), (clip, center)):
        for size in ((90, 60), (62, 98), (64, 64)):
            theirs = processor(photo(*size), return_tensors="pt")["pixel_values"][0]
            ours = model_input(photo(*size), settings)
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_a_reduced_jpeg_stays_within_a_level_of_the_whole_one():
    image = photo(1500, 1100)
    whole = decode(image, ImageSettings(96))  # a picture in memory is never reduced
    reduced = decode(encoded(image, "JPEG", quality=97), ImageSettings(96))
    assert np.abs(whole.astype(int) - reduced).mean() < 0.5
    small = encoded(photo(300, 200), "JPEG")
    with Image.open(BytesIO(small)) as opened:
        opened.load()
        assert np.array_equal(decode(opened, FIT), decode(opened.convert("RGB"), FIT))


# --- unusual files ---------------------------------------------------------------------------


def test_exif_orientation_is_applied_for_all_eight():
    image = photo(60, 40)
    upright = decode(image, FIT)
    transpose = Image.Transpose
    undo = {
        2: transpose.FLIP_LEFT_RIGHT,
        3: transpose.ROTATE_180,
        4: transpose.FLIP_TOP_BOTTOM,
        5: transpose.TRANSPOSE,
        6: transpose.ROTATE_90,
        7: transpose.TRANSVERSE,
        8: transpose.ROTATE_270,
    }
    for orientation, operation in undo.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(image.transpose(operation), exif=exif)
        picture = decode_noted(data, FIT)
        assert np.array_equal(picture.pixels, upright), orientation
        assert (picture.width, picture.height, picture.notes) == (60, 40, ("rotated",))


@pytest.mark.parametrize("turned", [0, 9, 700])
def test_a_meaningless_orientation_is_no_orientation(turned):
    exif = Image.Exif()
    exif[0x0112] = turned
    assert decode_noted(encoded(photo(), exif=exif), FIT).notes == ()


@pytest.mark.parametrize(
    ("mode", "kind", "notes"),
    [
        ("L", "PNG", ("grayscale",)),
        ("1", "PNG", ("grayscale",)),
        ("LA", "PNG", ("grayscale", "alpha")),
        ("P", "PNG", ("palette",)),
        ("RGBA", "PNG", ("alpha",)),
        ("CMYK", "JPEG", ("cmyk",)),
        ("CMYK", "TIFF", ("cmyk",)),
        ("RGB", "WEBP", ()),
        ("RGB", "BMP", ()),
    ],
)
def test_every_mode_becomes_rgb_and_is_noted(mode, kind, notes):
    image = photo(mode=mode) if mode != "RGBA" else photo().convert("RGBA")
    picture = decode_noted(encoded(image, kind), FIT)
    assert picture.pixels.shape == (30, 30, 3)
    assert picture.pixels.dtype == np.uint8
    assert picture.notes == notes
    if mode in ("RGBA", "P"):
        expected = decode(image.convert("RGB"), FIT).astype(int)
        assert np.abs(picture.pixels - expected).max() <= 2


def pictures() -> dict[str, bytes]:
    """A file of every mode that a loader meets."""
    clear = photo().convert("RGBA")
    clear.putalpha(photo(seed=1, mode="L"))
    palette = photo(mode="P")
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "RGBA": encoded(clear),
        "RGBA WebP": encoded(clear, "WEBP", lossless=True, exact=True),
        "LA": encoded(clear.convert("LA")),
        "P": encoded(palette),
        "P with one clear colour": encoded(palette, transparency=3),
        "P with clear colours": encoded(palette, transparency=bytes(range(256))),
        "P GIF": encoded(palette, "GIF", transparency=3),
        "RGB with a clear colour": encoded(photo(), transparency=(0, 0, 0)),
        "1": encoded(photo(mode="1")),
        "L": encoded(photo(mode="L")),
        "CMYK": encoded(photo(mode="CMYK"), "JPEG"),
        "LAB": encoded(photo(mode="LAB"), "TIFF"),
        "turned": encoded(photo(), exif=exif),
        "16 bits that hold 8": encoded(Image.fromarray(np.arange(240, dtype=np.uint16)[None])),
        "32 bits that hold 8": encoded(
            Image.fromarray(np.arange(240, dtype=np.int32)[None]), "TIFF"
        ),
        "floats that hold 8": encoded(
            Image.fromarray(np.linspace(0, 254.9, 90, dtype=np.float32)[None]), "TIFF"
        ),
    }


def same(one: Image.Image, other: Image.Image) -> bool:
    return (one.mode, one.size, one.tobytes()) == (other.mode, other.size, other.tobytes())


@OTHERS
@pytest.mark.parametrize("kind", pictures())
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_a_picture_is_what_transformers_and_pillow_make_of_it(kind, tmp_path):
    from transformers.image_utils import load_image as theirs

    path = tmp_path / "picture"
    path.write_bytes(pictures()[kind])
    with Image.open(path) as opened:
        expected = theirs(opened)
    for source in (path, str(path), path.read_bytes()):
        assert same(load_image(source), expected)
    with Image.open(path) as opened:
        assert same(load_image(opened), expected)
        for channels, mode in ((1, "L"), (4, "RGBA")):
            if kind not in ("turned", "16 bits that hold 8", "LAB"):
                assert same(load_image(path, channels), opened.convert(mode)), mode
    settings = ImageSettings(16, crop_pct=0.9)
    assert np.array_equal(decode(path, settings), decode(expected, settings))


def test_transparency_is_dropped_except_in_four_channels():
    clear = encoded(Image.new("RGBA", (20, 20), (200, 0, 0, 0)))
    assert decode(clear, FIT)[0, 0].tolist() == [200, 0, 0]
    four = ImageSettings(16, channels=4, mean=(0.5,) * 4, std=(1,) * 4)
    assert (decode(clear, four)[..., 3] == 0).all()
    assert load_image(clear, 4).getpixel((0, 0)) == (200, 0, 0, 0)
    assert "alpha" in decode_noted(clear, FIT).notes


def test_pictures_have_one_three_or_four_channels_and_arrays_may_be_pictures(tmp_path):
    with pytest.raises(UserError, match="1, 3 or 4 channels, not 2"):
        load_image(photo(), 2)
    np.save(tmp_path / "a.npy", np.asarray(photo()))
    assert same(load_image(tmp_path / "a.npy"), photo())
    assert load_image(encoded(photo(mode="L")), 1).mode == "L"


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled_by_its_full_range(kind):
    values = np.linspace(0, 65535, 30 * 30).reshape(30, 30).astype(np.uint16)
    data = encoded(Image.fromarray(values), kind)
    gray = ImageSettings(30, channels=1, mean=(0.5,), std=(0.5,))
    picture = decode_noted(data, gray)
    assert picture.notes == ("16-bit", "grayscale")
    assert np.array_equal(picture.pixels[..., 0], np.round(values / 257).astype(np.uint8))
    dark = decode_noted(encoded(Image.fromarray(values // 16), kind), gray)
    assert dark.notes == ("16-bit", "grayscale", "dark-16-bit")


def test_16_bit_colour_is_noted():
    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + b"\x80\x00\x40\x00\x20\x00" * 4 for _ in range(4))
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    picture = decode_noted(png, ImageSettings(4))
    assert picture.notes == ("16-bit",)
    assert picture.pixels[0, 0].tolist() == [128, 64, 32]


def test_pixels_without_a_known_range_are_refused():
    for values in ([0.5, 300], [-1.0, 0], [float("nan"), 1]):
        data = encoded(Image.fromarray(np.array([values], np.float32)), "TIFF")
        with pytest.raises(ImageError, match="a range that is not known") as caught:
            decode(data, FIT)
        assert caught.value.kind == "unreadable"
    data = encoded(Image.fromarray(np.array([[0, 65536]], np.int32)), "TIFF")
    with pytest.raises(ImageError, match="numbers of 0 to 65536"):
        decode(data, FIT)


def test_floats_from_0_to_1_are_scaled():
    data = encoded(Image.fromarray(np.linspace(0, 1, 6, dtype=np.float32)[None]), "TIFF")
    assert np.asarray(load_image(data, 1)).tolist() == [[0, 51, 102, 153, 204, 255]]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_an_animation_gives_its_first_frame(kind):
    frames = [photo(seed=n) for n in range(3)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    picture = decode_noted(data, FIT)
    assert "animated" in picture.notes
    first = decode(encoded(frames[0], kind, **options), FIT).astype(int)
    assert np.abs(picture.pixels - first).max() <= (8 if kind == "GIF" else 0)


def test_a_phones_multi_picture_jpeg_is_no_animation():
    data = encoded(photo(), "MPO", save_all=True, append_images=[photo(seed=1)])
    assert decode_noted(data, FIT).notes == ()


def test_damaged_files_are_refused_with_one_line_that_says_why(tmp_path):
    jpeg, png = encoded(photo(200, 200), "JPEG"), encoded(photo(200, 200))
    bomb = bytearray(encoded(Image.new("1", (8, 8))))
    bomb[16:24] = struct.pack(">II", 60_000, 60_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bytes(bomb[12:29])))
    files = {
        "zero-byte": b"",
        "not-an-image": b"<html>404</html>" * 20,
        "truncated": jpeg[: len(jpeg) // 2],
        "too-large": bytes(bomb),
    }
    for kind, data in {**files, "truncated ": png[: len(png) // 2]}.items():
        path = tmp_path / f"{kind}.jpg"
        path.write_bytes(data)
        with pytest.raises(ImageError) as caught:
            decode(path, FIT)
        assert caught.value.kind == kind.strip()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ImageError, match="no such file"):
        decode(tmp_path / "gone.jpg", FIT)


def test_any_damage_is_an_image_error_or_pixels():
    rng = np.random.default_rng(0)
    whole = [
        encoded(photo(40, 30), kind)
        for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "PCX")
    ]
    refused = 0
    for trial in range(400):
        data = bytearray(whole[trial % len(whole)])
        for place in rng.integers(0, min(len(data), 200), rng.integers(1, 8)):
            data[place] = rng.integers(0, 256)
        try:
            assert decode(bytes(data), ImageSettings(8)).shape == (8, 8, 3)
        except ImageError:
            refused += 1
    assert 0 < refused < 400


def test_a_very_long_picture_costs_no_more_than_its_middle():
    pixels = decode(photo(20_000, 10), ImageSettings(224))
    assert pixels.shape == (224, 224, 3)


def test_a_share_computed_from_two_sides_gives_the_side_back():
    for side in range(32, 600, 7):
        for size in range(16, side + 1, 5):
            assert ImageSettings(size, crop_pct=size / side).stored == side
    assert ImageSettings(224, crop_pct=0.9).stored == 248  # timm rounds down


def test_settings_that_make_no_sense_are_refused():
    for wrong in (
        {"size": 0},
        {"size": 8, "channels": 2},
        {"size": 8, "channels": 1},
        {"size": 8, "interpolation": "cubic"},
        {"size": 8, "crop_pct": 1.5},
    ):
        with pytest.raises(UserError):
            ImageSettings(**wrong)


# --- what is no image, and bombs -------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "kind", "says"),
    [
        (
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
            "unreadable",
            "a HEIC picture; to read it: pip install",
        ),
        (b"\0" * 128 + b"DICM" + b"\0" * 99, "unreadable", "a DICOM file without a picture"),
        (b"%PDF-1.7 ...", "not-an-image", "a PDF document"),
        (b'<?xml version="1.0"?>\n<svg xmlns="...">', "not-an-image", "an SVG drawing"),
        (b"<!DOCTYPE html><html>", "not-an-image", "a web page"),
        (b"\0\0\0\x20ftypisom\0\0\2\0", "not-an-image", "a video"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not-an-image", "git lfs pull"),
        (b"hello", "not-an-image", "not an image, or one of a kind that is not read"),
    ],
)
def test_what_a_file_is_is_read_from_its_content(tmp_path, monkeypatch, data, kind, says):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "x.jpg").write_bytes(data)
    with pytest.raises(ImageError) as caught:
        decode(tmp_path / "x.jpg", FIT)
    assert says in str(caught.value)
    assert caught.value.kind == kind
    assert "\n" not in str(caught.value)


def test_a_png_with_a_long_text_is_read():
    from PIL.PngImagePlugin import PngInfo

    for compressed in (True, False):
        for method in ("add_text", "add_itxt"):
            info = PngInfo()
            getattr(info, method)("notes", "x" * 3_000_000, zip=compressed)
            data = encoded(photo(), pnginfo=info)
            assert np.array_equal(decode(data, FIT), decode(photo(), FIT)), (method, compressed)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large"])
def test_only_regular_files_of_a_sensible_size_are_read(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(reading, "FILE_BYTES", 1000)
    path = tmp_path / "x.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"x" * 1001)
    with pytest.raises(
        ImageError, match=r"it is not a regular file|are the limit|it is a folder"
    ) as caught:
        decode(path, FIT)
    assert caught.value.kind == "unreadable"
    assert "\n" not in str(caught.value)


def tiled(side: int) -> bytes:
    """A TIFF file of ten by ten pixels, in one tile of `side` by `side`."""
    tile = zlib.compress(bytes(side * side), 9)
    tags = [(256, 10), (257, 10), (258, 8), (259, 8), (262, 1), (277, 1)]
    tags += [(322, side), (323, side), (324, 8), (325, len(tile))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(tile)) + tile + directory


def bombs() -> dict[str, bytes]:
    """Small files that take more than 64 MiB to decode."""
    side = 3000
    black = Image.new("RGB", (side, side))
    return {
        "JPEG 2000": encoded(black, "JPEG2000"),
        "WebP": encoded(black, "WEBP"),
        "tiles of TIFF": tiled(6_000),
    }


MEASURED = """
import resource, sys
from hf_transfer.data import reading
from hf_transfer.data.decoding import decode
from hf_transfer.data.upright import ImageError
from hf_transfer.data.image_settings import ImageSettings
reading.PIXELS.limit = 2**26
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        decode(path, ImageSettings(8))
    except ImageError as error:
        print(error.kind, error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_files_that_would_take_too_much_memory_are_refused_before_they_are_decoded(tmp_path):
    files = bombs()
    paths = [tmp_path / kind for kind in files]
    for path, data in zip(paths, files.values(), strict=True):
        assert len(data) < 100_000
        path.write_bytes(data)
    command = [sys.executable, "-c", MEASURED, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *said, kilobytes = done.stdout.splitlines()
    assert len(said) == len(paths)
    assert all(line.startswith("too-large") and "decoding it takes" in line for line in said)
    assert int(kilobytes) < 30_000


def test_threads_share_the_memory_that_there_is():
    budget = reading.Budget(100)
    inside, most = 0, 0
    lock = threading.Lock()

    def work(size: int) -> None:
        nonlocal inside, most
        with budget.hold(size):
            with lock:
                inside += size
                most = max(most, inside)
            threading.Event().wait(0.002)
            with lock:
                inside -= size

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [40, 30, 70, 10, 20] * 8))
        list(pool.map(work, [500] * 3))
    assert most == 500  # alone
    assert inside == budget._used == 0


def test_an_array_that_claims_more_than_the_file_holds_is_refused_at_once():
    file = BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (200_000, 300_000, 3)}
    np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(ImageError, match="truncated") as caught:
        decode(file.getvalue() + b"x" * 100, FIT)
    assert caught.value.kind == "truncated"
