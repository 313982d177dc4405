"""DICOM files become the picture that a viewer shows, and nothing else of them is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dicoms import NAME, SECRET, dicom, ramp
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_windowing
from pydicom.sequence import Sequence

from hf_transfer.base.errors import DataError
from hf_transfer.data.decoding import decode, decode_noted, depends_on, load_image
from hf_transfer.data.image_set import load_data
from hf_transfer.data.image_settings import ImageSettings, with_dicom
from hf_transfer.data.sources import list_source, scan
from hf_transfer.data.upright import ImageError
from hf_transfer.recipe.load import RecipeError, parse_recipe
from hf_transfer.recipe.specs import DataSpec

SMALL = ImageSettings(size=16)


def shown(path: Path, **options) -> np.ndarray:
    return np.asarray(load_image(path, 1, **options))


def test_values_are_rescaled_and_the_files_window_becomes_black_to_white(tmp_path):
    stored = ramp(most=2000)
    tags = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": 500, "WindowWidth": 400}
    path = dicom(tmp_path / "a.dcm", stored, **tags)
    data = Dataset()
    data.PhotometricInterpretation, data.BitsStored, data.PixelRepresentation = "MONOCHROME2", 16, 1
    data.WindowCenter, data.WindowWidth = 500, 400
    exact = stored * 2.0 - 1000
    theirs = apply_windowing(exact, data)  # the standard's formula, over the range of 16 bits
    least, most = -(2**15), 2**15 - 1
    wanted = ((theirs - least) / (most - least) * 255 + 0.5).astype(np.uint8)
    assert np.abs(shown(path).astype(int) - wanted).max() <= 1
    assert shown(path)[0, 0] == 0
    assert shown(path)[0, -1] == 255


def test_a_window_of_ones_own_goes_before_the_files(tmp_path):
    path = dicom(tmp_path / "a.dcm", ramp(most=1000), WindowCenter=500, WindowWidth=1000)
    own = shown(path, window=(100, 101))
    assert (own[0] == 255).sum() > 25
    assert own[0, 0] == 0
    assert not np.array_equal(own, shown(path))


def test_without_a_window_the_least_value_is_black_and_the_greatest_white(tmp_path):
    stored = ramp(least=-500, most=300)
    assert (shown(dicom(tmp_path / "a.dcm", stored)).min(), shown(tmp_path / "a.dcm").max()) == (
        0,
        255,
    )
    stored = stored.copy()
    stored[:, :4] = -2000  # around the picture
    padded = shown(dicom(tmp_path / "b.dcm", stored, PixelPaddingValue=-2000))
    assert padded[0, 4] < 30
    assert padded[0, -1] == 255
    assert (shown(dicom(tmp_path / "flat.dcm", np.full((8, 8), 7, np.uint16))) == 0).all()


def test_monochrome1_is_turned_so_that_more_is_brighter(tmp_path):
    one = shown(dicom(tmp_path / "1.dcm", ramp(), PhotometricInterpretation="MONOCHROME1"))
    two = shown(dicom(tmp_path / "2.dcm", ramp()))
    assert np.array_equal(one, 255 - two)


def test_palettes_and_colours_keep_their_colours(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    path = dicom(tmp_path / "rgb.dcm", colours)
    assert np.array_equal(np.asarray(load_image(path)), colours)
    deep = (colours.astype(np.uint16) * 257).astype(np.uint16)
    assert np.array_equal(np.asarray(load_image(dicom(tmp_path / "deep.dcm", deep))), colours)
    table = np.zeros((3, 256), np.uint16)
    table[0] = np.arange(256) * 257  # red rises, the others are black
    palette = {}
    for i, name in enumerate(("Red", "Green", "Blue")):
        palette[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        palette[f"{name}PaletteColorLookupTableData"] = table[i].tobytes()
    index = ramp(dtype="uint8", most=255)
    path = dicom(tmp_path / "p.dcm", index, PhotometricInterpretation="PALETTE COLOR", **palette)
    found = np.asarray(load_image(path))
    assert np.array_equal(found[..., 0], index)
    assert not found[..., 1:].any()


def test_a_lookup_table_of_the_file_is_used(tmp_path):
    item = Dataset()
    item.LUTDescriptor = [4, 0, 16]
    item.LUTData = np.array([0, 10 * 257, 20 * 257, 65535], np.uint16).tobytes()
    values = np.array([[0, 1], [2, 3]], np.uint16)
    path = dicom(tmp_path / "a.dcm", values, VOILUTSequence=Sequence([item]))
    assert shown(path).tolist() == [[0, 10], [20, 255]]


def test_of_several_frames_one_is_taken_by_number_or_all_are_refused(tmp_path):
    frames = np.stack([np.full((8, 8), 50 * i, np.uint8) for i in range(4)])
    path = dicom(tmp_path / "a.dcm", frames, WindowCenter=128, WindowWidth=256)
    with pytest.raises(ImageError, match=r"a\.dcm: a DICOM file of 4 frames; choose one with data"):
        load_image(path)
    assert shown(path, frame=3)[0, 0] == pytest.approx(100, abs=1)
    with pytest.raises(ImageError, match="has no frame 5"):
        load_image(path, frame=5)
    alone = dicom(tmp_path / "b.dcm", frames[0])
    assert shown(alone, frame=1).shape == (8, 8)


def test_frames_have_windows_and_rescales_of_their_own(tmp_path):
    def item(centre):
        inner, outer = Dataset(), Dataset()
        inner.WindowCenter, inner.WindowWidth = centre, 100
        outer.FrameVOILUTSequence = Sequence([inner])
        return outer

    frames = np.stack([ramp(16, "uint16", 0, 400)] * 2)
    tags = {"PerFrameFunctionalGroupsSequence": Sequence([item(50), item(350)])}
    path = dicom(tmp_path / "a.dcm", frames, **tags)
    first, second = (shown(path, frame=number) for number in (1, 2))
    assert first[0, 8] == 255
    assert second[0, 8] == 0


def test_it_is_decoded_to_the_models_square_and_noted(tmp_path):
    path = dicom(tmp_path / "a.dcm", ramp(40), BurnedInAnnotation="YES")
    picture = decode_noted(path, SMALL)
    assert picture.pixels.shape == (16, 16, 3)
    assert picture.notes == ("dicom", "burnt-in-text", "grayscale")
    image = load_image(path)
    assert np.array_equal(decode(image, SMALL), picture.pixels)
    assert np.array_equal(decode(path.read_bytes(), SMALL), picture.pixels)


def test_stored_pixels_depend_on_window_and_frame():
    plain = depends_on(SMALL)
    assert plain == depends_on(with_dicom(SMALL, None, None))
    assert (
        plain
        != depends_on(with_dicom(SMALL, (40, 400), None))
        != depends_on(with_dicom(SMALL, (40, 80), None))
    )
    assert plain != depends_on(with_dicom(SMALL, None, 2))


@pytest.mark.parametrize("cut", [140, 400, 1200])
def test_a_damaged_file_is_refused_in_a_line_that_repeats_nothing_of_it(tmp_path, cut):
    content = dicom(tmp_path / "a.dcm", ramp()).read_bytes()
    (tmp_path / "cut.dcm").write_bytes(content[:cut])
    with pytest.raises(ImageError, match=r"cut\.dcm: a DICOM file(: | without)") as caught:
        load_image(tmp_path / "cut.dcm")
    for told in (str(caught.value), repr(caught.value)):
        assert NAME not in told
        assert SECRET not in told
        assert "4711" not in told


def test_an_unknown_kind_of_pixels_and_far_too_many_are_refused(tmp_path):
    odd = dicom(tmp_path / "a.dcm", ramp(), PhotometricInterpretation="CMYK")
    with pytest.raises(ImageError, match="neither gray, RGB, YBR nor of a palette"):
        load_image(odd)
    huge = dicom(tmp_path / "b.dcm", ramp(), Rows=60000, Columns=60000)
    with pytest.raises(ImageError, match="more than .* pixels"):
        load_image(huge)


def test_without_pydicom_the_message_says_what_to_install(tmp_path):
    path = dicom(tmp_path / "a.dcm", ramp())
    code = (
        "import sys; sys.modules['pydicom'] = None\n"
        "from hf_transfer.data.decoding import load_image\n"
        f"try: load_image({str(path)!r})\nexcept Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'a DICOM file; to read it: pip install "hf-transfer-learning[dicom]"' in done.stdout


# --- data sets ------------------------------------------------------------------------------


def patients(folder: Path) -> Path:
    """Write 24 images of 8 patients, three of each, in two classes."""
    for number in range(24):
        label = ("sick", "well")[number % 2]
        values = np.random.default_rng(number).integers(0, 1000, (24, 24)).astype(np.uint16)
        dicom(folder / label / f"{number:02d}.dcm", values, PatientID=f"secret-{number // 3}")
    return folder


def test_a_tag_keeps_a_patient_in_one_split_and_is_never_told(tmp_path):
    spec = DataSpec(path=str(patients(tmp_path / "data")), group="dicom:PatientID")
    found = scan(spec)
    splits = {}
    for group, split in zip(found.groups, found.splits, strict=True):
        splits.setdefault(group, set()).add(split)
    assert len(splits) == 8
    assert all(len(its) == 1 for its in splits.values())
    assert not any("secret" in group for group in splits)
    data = load_data(spec, SMALL, cache_dir=tmp_path / "cache")
    assert "secret" not in str(data.audit)
    assert {one.kind for one in data.audit.findings} >= {"dicom"}
    assert len(set(data.train.groups) & set(data.validation.groups)) == 0


def test_tags_that_do_not_exist_or_that_no_file_has_are_named(tmp_path):
    folder = str(patients(tmp_path / "data"))
    with pytest.raises(DataError, match="DICOM has no tag 'Patient'; write one such as dicom:Pat"):
        list_source(DataSpec(path=folder, group="dicom:Patient"))
    with pytest.raises(DataError, match="none of the 24 files has this tag"):
        list_source(DataSpec(path=folder, group="dicom:AccessionNumber"))
    for label in ("sick", "well"):
        Image.new("L", (24, 24)).save(tmp_path / "data" / label / "plain.png")
    found = list_source(DataSpec(path=folder, group="dicom:PatientID"))
    assert {g for g in found.groups if "PatientID" not in g} == {"sick/plain.png", "well/plain.png"}


def test_the_window_of_a_recipe_reaches_the_pixels(tmp_path):
    folder = str(patients(tmp_path / "data"))
    plain = load_data(DataSpec(path=folder), SMALL, cache_dir=tmp_path / "cache")
    own = load_data(DataSpec(path=folder, window=(100, 50)), SMALL, cache_dir=tmp_path / "cache")
    assert not np.array_equal(plain.train.pixels[[0, 1]], own.train.pixels[[0, 1]])
    text = "backbone: timm/x\ndata: {window: [40, 0]}\nphases: [{train: head, epochs: 1}]"
    with pytest.raises(RecipeError, match="the width, must be at least 1"):
        parse_recipe(text, "mine.yaml")
