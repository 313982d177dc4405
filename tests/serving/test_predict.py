"""Images to ranked labels: as in training, in batches, and past what cannot be read."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as HeldImage
from drawn import picture
from PIL import Image, ImageOps
from sample_report import FLOWERS
from tiny_model import tiny_run
from transformers import pipeline

from hf_transfer.backbones.load import load_backbone, load_model
from hf_transfer.backbones.regression_units import take_scale
from hf_transfer.backbones.saving import save_model
from hf_transfer.base import machine
from hf_transfer.base.errors import UserError
from hf_transfer.data.decoding import decode
from hf_transfer.data.image_set import ImageSet
from hf_transfer.data.scale import Scale
from hf_transfer.inputs.model_input import to_model_input
from hf_transfer.serving.answers import Answers, format_predictions, lines_of
from hf_transfer.serving.pictures import find_images, images_below, named
from hf_transfer.serving.predict import (
    Prediction,
    iter_predictions,
    predict,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("predict") / "run")


@pytest.fixture(scope="module")
def model(run):
    return load_model(run)


@pytest.fixture
def files(tmp_path) -> list[Path]:
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        picture(i, 90 + 20 * i).save(path)
    return paths


def test_probabilities_are_the_softmax_of_what_evaluation_sees(model, files):
    settings = model.backbone.image
    pixels = torch.stack([torch.from_numpy(decode(file, settings).copy()) for file in files])
    with torch.no_grad():
        shares = model(to_model_input(pixels, settings)).logits.softmax(-1)
    for prediction, share in zip(predict(model, files), shares, strict=True):
        assert dict(prediction.labels) == dict(zip(FLOWERS, share.tolist(), strict=True))


def test_labels_are_ranked_and_probabilities_sum_to_one(model, files):
    for prediction in predict(model, files):
        shares = [share for _, share in prediction.labels]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1)
        assert sorted(label for label, _ in prediction.labels) == sorted(FLOWERS)


def test_the_answer_equals_that_of_transformers_pipeline(run, model, files):
    classify = pipeline("image-classification", model=str(run / "model"), device="cpu")
    for prediction, theirs in zip(
        predict(model, files), classify(list(map(str, files))), strict=True
    ):
        assert [label for label, _ in prediction.labels] == [row["label"] for row in theirs]
        ours = [share for _, share in prediction.labels]
        # Equal to 1e-6 where transformers resizes with Pillow as we do; torchvision rounds apart.
        assert ours == pytest.approx([row["score"] for row in theirs], abs=0.02)


def test_the_size_of_batches_changes_nothing_but_rounding(model, files):
    whole, single = predict(model, files), predict(model, files, batch_size=1)
    assert [row.file for row in whole] == [row.file for row in single] == list(map(str, files))
    for one, two in zip(whole, single, strict=True):
        assert dict(one.labels) == pytest.approx(dict(two.labels), abs=1e-6)


def test_top_keeps_the_likeliest(model, files):
    all_of_them, two = predict(model, files[0], top=99), predict(model, files[0], top=2)
    assert two[0].labels == all_of_them[0].labels[:2]
    assert len(all_of_them[0].labels) == 5


def test_a_run_folder_a_model_folder_and_a_model_answer_alike(run, model, files):
    if torch.accelerator.is_available():
        pytest.skip("a folder's model goes to the accelerator, which rounds otherwise")
    assert predict(run, files) == predict(run / "model", files) == predict(model, files)


def test_paths_bytes_and_pictures_answer_alike(model, files):
    sources = (files[0], str(files[0]), files[0].read_bytes(), Image.open(files[0]))
    answers = {row.labels for row in predict(model, sources)}
    assert len(answers) == 1


def test_an_image_that_cannot_be_read_is_reported_and_the_others_answered(model, files, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    empty = tmp_path / "empty.png"
    empty.touch()
    cut = tmp_path / "cut.png"
    cut.write_bytes(files[0].read_bytes()[:200])
    mixed = [files[0], bad, empty, files[1], cut, tmp_path / "absent.png", files[2]]
    rows = predict(model, mixed, batch_size=2)
    assert [row.file for row in rows] == list(map(str, mixed))
    assert [bool(row.labels) for row in rows] == [True, False, False, True, False, False, True]
    assert [row.error is None for row in rows] == [bool(row.labels) for row in rows]
    assert [rows[0], rows[3], rows[6]] == [predict(model, file)[0] for file in files[:3]]
    assert all("\n" not in row.error for row in rows if row.error)


def test_a_batch_of_nothing_but_bad_images_is_answered(model, tmp_path):
    (row,) = predict(model, tmp_path / "absent.png")
    assert row == Prediction(str(tmp_path / "absent.png"), error=row.error)
    assert "no such file" in row.error


def test_answers_come_as_soon_as_their_batch_is_done(model, files):
    read = []

    def source():
        for file in files:
            read.append(file)
            yield file

    answers = iter_predictions(model, source(), batch_size=2)
    next(answers)
    assert read == files[:2]


def test_a_model_that_is_training_goes_on_training(model, files):
    model.train()
    still = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    still.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    predict(model, files)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()


def test_predictions_are_plain_json(model, files):
    (row,) = predict(model, files[0], top=1)
    label, share = row.labels[0]
    assert json.loads(json.dumps(row.to_dict())) == {
        "file": str(files[0]),
        "labels": [{"label": label, "probability": share}],
        "error": None,
    }


def test_the_text_has_a_line_per_image_in_columns():
    rows = [
        Prediction("a.jpg", (("rose", 0.91234), ("sunflower", 0.08))),
        Prediction("folder/b.jpg", (("sunflower", 0.5), ("rose", 0.25))),
        Prediction("c.jpg", error="c.jpg: the file is empty"),
    ]
    assert format_predictions(rows).splitlines() == [
        "a.jpg          rose      0.912   sunflower 0.080",
        "folder/b.jpg   sunflower 0.500   rose      0.250",
        "c.jpg          error: the file is empty",
    ]
    assert format_predictions([]) == ""
    long = [Prediction("a.jpg", (("x" * 300, 0.5), ("rose", 0.25)))]
    assert format_predictions(long).endswith(f"0.500   rose{' ' * 36} 0.250")


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    names = ("cat", "dog", "fox")
    return load_backbone(
        "timm/test_resnet", names, pretrained=False, image_size=32, task="multi_label"
    )


def logits_of(model, file: Path) -> torch.Tensor:
    settings = model.backbone.image
    pixels = torch.from_numpy(decode(file, settings).copy())[None]
    with torch.inference_mode():
        return model.eval()(pixel_values=to_model_input(pixels, settings)).logits[0]


def test_of_several_labels_all_have_a_probability_of_their_own(several, files):
    (row,) = predict(several, files[0])
    expected = logits_of(several, files[0]).sigmoid()
    assert dict(row.labels) == pytest.approx(
        dict(zip(several.backbone.labels, expected.tolist(), strict=True)), abs=1e-6
    )
    assert [share for _, share in row.labels] == sorted(dict(row.labels).values(), reverse=True)
    told = json.loads(json.dumps(row.to_dict()))
    assert told["threshold"] == 0.5
    assert told["there"] == [label for label, share in row.labels if share >= 0.5]
    assert len(told["labels"]) == 3


def test_the_text_of_several_labels_shows_those_that_are_there_and_says_from_when_on():
    rows = [
        Prediction("a.jpg", (("rose", 0.9), ("tulip", 0.5), ("daisy", 0.49)), threshold=0.5),
        Prediction("b.jpg", (("daisy", 0.3), ("rose", 0.1)), threshold=0.5),
    ]
    assert format_predictions(rows).splitlines() == [
        "a.jpg   rose  0.900   tulip 0.500",
        "b.jpg   none; the likeliest is daisy 0.300",
        "Labels with a probability of 0.5 or more.",
    ]


def test_numbers_come_with_their_targets_in_units_saved_or_not(files, tmp_path):
    model = load_backbone(
        "timm/test_resnet", ("x", "y"), pretrained=False, image_size=32, task="regression"
    )
    scale = Scale((5000.0, 0.5), (300.0, 0.1))
    take_scale(model, ImageSet(np.zeros((1, 32, 32, 3), np.uint8), [[0, 0]], "xy", scale=scale))
    save_model(model, tmp_path / "model")
    (before,), (after,) = (predict(one, files[0]) for one in (model, tmp_path / "model"))
    expected = scale.to_units(logits_of(model, files[0]))
    assert [target for target, _ in before.values] == ["x", "y"]
    assert [value for _, value in before.values] == pytest.approx(expected.tolist())
    assert [value for _, value in after.values] == pytest.approx(expected.tolist(), rel=1e-6)
    assert before.to_dict()["values"][0] == {"target": "x", "value": before.values[0][1]}
    assert before.labels == ()
    shown = format_predictions([Prediction("a.jpg", values=(("x", 1234567.0), ("y", 0.5)))])
    assert shown == "a.jpg   x 1234567   y 0.5"


def given(images) -> list[str]:
    """The names of what stands for images, with errors as `error: why`."""
    return [getattr(item, "error", name) for name, item in named(images)]


def test_folders_give_their_images_sorted_and_files_are_kept(tmp_path):
    for name in ("b/2.JPG", "b/1.png", "b/notes.txt", "b/.hidden/3.png", "b/c/4.webp", "odd.xyz"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = given([tmp_path / "odd.xyz", str(tmp_path / "b")])
    names = ["odd.xyz", "b/1.png", "b/2.JPG", "b/c/4.webp"]
    assert found == [str(tmp_path / name) for name in names]


def test_folders_give_what_training_takes_from_them(tmp_path):
    for name in ("bare", "1.png", "__MACOSX/1.png", "@eaDir/2.png", "Thumbs.db", "cat.png/3"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\xff\xd8\xff")  # a name without a suffix: the content says it
    found = [path.relative_to(tmp_path).as_posix() for path in images_below(tmp_path)]
    assert found == ["1.png", "bare", "cat.png/3"]


def test_folders_reached_through_links_are_followed_once(tmp_path):
    (tmp_path / "store" / "rose").mkdir(parents=True)
    (tmp_path / "store" / "rose" / "1.png").touch()
    (tmp_path / "store" / "rose" / "up").symlink_to(tmp_path / "store")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rose").symlink_to(tmp_path / "store" / "rose")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for place in ("data", "link"):
        assert given(tmp_path / place) == [str(tmp_path / place / "rose" / "1.png")]


def test_paths_named_by_hand_that_stand_for_no_image_are_named(tmp_path):
    for place, why in (("absent", "there is no image or folder"), ("", "the folder holds no"),
                       ("*.png", "no file matches")):  # fmt: skip
        with pytest.raises(UserError, match=why):
            find_images([tmp_path / place])


def test_patterns_homes_and_lists_of_lists_give_their_files(tmp_path, monkeypatch):
    for name in ("a1.png", "a2.png", "b1.png", "c/a3.png", "x[1].png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    names = [str(tmp_path / name) for name in ("a1.png", "a2.png")]
    assert given(f"{tmp_path}/a*.png") == given("~/a*.png") == names
    assert given(f"{tmp_path}/**/a*.png") == [*names, str(tmp_path / "c" / "a3.png")]
    assert given([["~/a1.png"], ("~/a2.png",)]) == names
    assert given("~/x[1].png") == [str(tmp_path / "x[1].png")]
    assert given(file for file in names) == names


def test_what_is_no_image_has_an_error_of_its_own_and_the_others_go_on(model, files, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_bytes(b"\xff")  # of no encoding
    text = (tmp_path / "note.txt").open(encoding="utf-8")
    odd = [
        tmp_path / "absent.png", tmp_path / "empty", f"{tmp_path}/*.gif", "~nobody-here/1.png",
        "nul\0.png", None, 3, {"image": None}, np.zeros((5, 7, 9), np.uint8), np.zeros(4),
        np.full((8, 8, 3), 1.5), np.full((8, 8, 3), np.nan), np.array([["a"]]), text, b"", b"x",
        np.zeros((0, 4, 3), np.uint8), torch.zeros(()), object(), {"photo": 1, "label": 2},
        "https://example.org/rose.jpg",
    ]  # fmt: skip
    rows = predict(model, [files[0], *odd, files[1]], batch_size=4)
    text.close()
    assert [row.error is None for row in rows] == [True, *[False] * len(odd), True]
    assert not [row.error for row in rows if row.error and "\n" in row.error]
    said = " ".join(row.error for row in rows if row.error)
    assert "array of 5 x 7 x 9 is no image; give (H, W) or (H, W, C) with C of 1, 3, 4" in said
    assert "image 7: nothing (None) is no image; give paths" in said
    assert "float64 from 1.5 to 1.5 are no pixels; give uint8, or floats in 0..1" in said
    assert "note.txt: the file is open as text; open it with mode 'rb'" in said
    assert "a row with photo, label has no column 'image' or 'path'; give the column" in said
    assert "https://example.org/rose.jpg: an address is no file; download the image first" in said


def test_arrays_and_tensors_answer_as_the_picture_that_they_hold(model):
    image = picture(3, 90, 70)
    pixels = np.asarray(image)
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    alike = [
        image, pixels, pixels.astype(np.int64), pixels / 255, (pixels / 255).astype(np.float32),
        np.moveaxis(pixels, 2, 0), tensor, tensor.float() / 255, tensor.permute(1, 2, 0),
    ]  # fmt: skip
    (expected,), rows = predict(model, image), predict(model, alike, batch_size=1)
    assert {row.labels for row in rows} == {expected.labels}
    assert [row.file for row in rows] == [f"image {i + 1}" for i in range(len(alike))]
    gray = np.asarray(image.convert("L"))
    grays = [image.convert("L"), gray, gray[:, :, None], gray[None], gray / 255]
    assert len({row.labels for row in predict(model, grays, batch_size=1)}) == 1
    batch = predict(model, np.stack([pixels, pixels]), batch_size=1)
    assert [row.labels for row in batch] == [expected.labels] * 2


def test_open_files_and_rows_of_tables_are_taken(model, files):
    from pandas import DataFrame

    table = Dataset.from_dict({"image": list(map(str, files[:2]))}).cast_column(
        "image", HeldImage()
    )
    undecoded = table.cast_column("image", HeldImage(decode=False))
    expected = [row.labels for row in predict(model, files[:2])]
    frame = DataFrame({"image": list(map(str, files[:2])), "label": [1, 2]})
    frames = (frame, frame["image"], frame["image"].to_numpy(), np.array(frame["image"].tolist()))
    for images in (table["image"], table, table[:2], undecoded, undecoded["image"], *frames):
        assert [row.labels for row in predict(model, images)] == expected
    assert [row.labels for row in predict(model, frame.iloc[0])] == expected[:1]
    with files[0].open("rb") as file:
        (row,) = predict(model, file)
    assert (row.file, row.labels) == (str(files[0]), expected[0])


def test_any_number_of_threads_answers_alike_and_leaves_warnings_as_they_were(model, files):
    import warnings

    before = list(warnings.filters)
    assert predict(model, files, threads=1) == predict(model, files, threads=4)
    assert warnings.filters == before


def test_an_answer_that_is_no_number_is_an_error_and_not_an_answer(model, files):
    head = next(p for name, p in model.named_parameters() if name.endswith("fc.bias"))
    before = head.detach().clone()
    with torch.no_grad():
        head.fill_(float("nan"))
        (row,) = predict(model, files[0])
        head.copy_(before)
    assert row.labels == ()
    assert "the model's answer is not a number" in row.error


def test_json_lines_and_csv_have_a_line_for_each_image_as_soon_as_it_is_there(
    model, files, tmp_path
):
    images = [files[0], tmp_path / 'a "quoted", name.png', files[1]]
    rows = predict(model, images, top=2)
    told = list(lines_of(iter(rows), "jsonl", model.backbone, 2))
    assert [json.loads(line) for line in told] == [row.to_dict() for row in rows]
    header, *table = csv.reader(lines_of(iter(rows), "csv", model.backbone, 2))
    assert header == ["file", "error", "label_1", "probability_1", "label_2", "probability_2"]
    assert [line[0] for line in table] == list(map(str, images))
    assert table[0][2:] == [x for n, p in rows[0].labels for x in (n, f"{p:.6g}")]
    assert table[1][1:] == [rows[1].error, "", "", "", ""]


def test_the_csv_of_several_labels_has_a_column_for_each(several, files):
    rows = predict(several, files[:2])
    header, *table = csv.reader(lines_of(rows, "csv", several.backbone))
    assert header == ["file", "error", "cat", "dog", "fox"]
    for line, row in zip(table, rows, strict=True):
        assert [float(cell) for cell in line[2:]] == pytest.approx(
            [dict(row.labels)[name] for name in header[2:]], rel=1e-5
        )


def test_what_a_batch_frees_is_kept_for_the_next_and_given_back_after_the_last(
    model, files, monkeypatch
):
    asked = []

    class Library:
        def mallopt(self, name, size):
            asked.append(size == machine.KEPT)

        def malloc_trim(self, left):
            asked.append("trim")

    monkeypatch.setattr(machine, "glibc", Library)
    for _ in iter_predictions(model, files, batch_size=2):
        asked.append("answer")
    assert asked == [True, True, *["answer"] * len(files), False, False, "trim"]
    asked.clear()
    answers = iter_predictions(model, files, batch_size=2)
    next(answers)
    answers.close()
    assert asked == [True, True, False, False, "trim"]


@pytest.mark.parametrize("setting", [{"top": 0}, {"batch_size": 0}])
def test_settings_out_of_range_are_refused(model, files, setting):
    with pytest.raises(UserError, match="must be at least 1"):
        predict(model, files, **setting)


def test_a_model_that_is_not_there_is_named(tmp_path, files):
    with pytest.raises(UserError, match="absent"):
        predict(tmp_path / "absent", files)


def test_workers_decode_whatever_is_given_as_threads_do(run, tmp_path):
    for i in range(5):
        picture(i).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"x")
    mixed = [tmp_path, "absent.png", picture(7), np.asarray(picture(8)), None]
    expected = predict(run, mixed, batch_size=2)
    assert predict(run, (one for one in mixed), batch_size=2, workers=1) == expected


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_table_stands_for_its_images_whatever_labels_it_has(run, files, tmp_path, suffix):
    table, names = tmp_path / f"t{suffix}", [files[0].name, files[1].name, "absent.png"]
    if suffix == ".parquet":
        Dataset.from_dict({"path": names, "label": [0, None, 1]}).to_parquet(table)
    elif suffix == ".jsonl":
        table.write_text("".join(json.dumps({"image": name}) + "\n" for name in names))
    else:
        table.write_text("file_name\n" + "".join(f"{name}\n" for name in names))
    rows = predict(run, table, top=3)
    assert rows == predict(run, [tmp_path / name for name in names], top=3)
    assert list(Answers(run, [str(table)], "jsonl")) == list(lines_of(rows, "jsonl", None, 3))
    if suffix == ".parquet":
        Dataset.from_dict({"photo": ["1.png"]}).to_parquet(table)
    else:
        table.write_text('{"photo": "1.png"}\n' if suffix == ".jsonl" else "photo\n1.png\n")
    with pytest.raises(UserError, match=f"^{table}: no column of images; .* columns: photo$"):
        find_images([table])


def test_images_that_a_parquet_file_holds_are_read_in_their_turn(run, files, tmp_path):
    held = {"photo": [{"bytes": file.read_bytes(), "path": None} for file in files[:2]]}
    Dataset.from_dict(held, Features({"photo": HeldImage()})).to_parquet(tmp_path / "t.parquet")
    rows = predict(run, tmp_path / "t.parquet")
    assert [row.labels for row in rows] == [row.labels for row in predict(run, files[:2])]
    assert rows[1].file == f"{tmp_path}/t.parquet/train/00000001"


def test_names_that_are_no_text_go_into_tables_as_escapes(run, tmp_path):
    place = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    picture(0).save(place)
    found = predict(run, place)
    shown = f"{tmp_path}/\\udcff.png"
    assert found.to_dataset()["file"][0] == found.to_pandas()["file"][0] == shown
    assert json.loads(json.dumps(found[0].to_dict()))["file"] == place


def test_a_table_of_pandas_or_datasets_has_the_answers(run):
    found = predict(run, [picture(0), None], top=2)
    table = found.to_pandas()
    assert table["label"][0] == found[0].label
    assert table[found[0].label][0] == found[0].labels[0][1]
    assert table["error"][1] == found[1].error
    assert found.to_dataset()[0]["labels"] == found[0].to_dict()["labels"]


def test_means_with_the_mirror_image_are_a_setting_that_a_model_keeps(run, tmp_path):
    model = load_model(run)
    images = [picture(0), picture(1)]
    turned = [ImageOps.mirror(image) for image in images]
    plain, other = predict(model, images, top=5), predict(model, turned, top=5)
    asked = predict(model, images, top=5, tta=True)
    for row, one, two in zip(asked, plain, other, strict=True):
        for label, share in row.labels:
            mean = (dict(one.labels)[label] + dict(two.labels)[label]) / 2
            assert share == pytest.approx(mean, abs=1e-5)
    model.backbone = replace(model.backbone, tta=True)
    save_model(model, tmp_path / "model")
    kept = load_model(tmp_path / "model")
    assert kept.backbone.tta
    assert predict(kept, images, top=5)[0].labels == asked[0].labels
    assert predict(kept, images, top=5, tta=False)[0].labels == plain[0].labels
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace('"tta": true', '"tta": "yes"'))
    with pytest.raises(UserError, match="tta is 'yes', not true or false"):
        load_model(tmp_path / "model")
