"""The images that a report shows are those that say most, small, and left out where asked."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sample_report import FLOWERS, sample_images, sample_logits, sample_report, with_images

from hf_transfer.base.errors import UserError
from hf_transfer.data.audit import Audit
from hf_transfer.data.findings import finding
from hf_transfer.data.image_set import ImageSet
from hf_transfer.data.scale import Scale
from hf_transfer.results.card import model_card
from hf_transfer.results.examples import BUDGET, SIDE, examples, picture, shows_images
from hf_transfer.results.metrics.classification import softmax
from hf_transfer.results.page import report_page
from hf_transfer.results.places import published_report
from hf_transfer.results.report import RunReport


def shown(found: dict, kind: str) -> list[str]:
    return [found["rows"][at]["file"] for at in found[kind]]


def test_the_surest_mistakes_and_the_nearest_decisions_come_first():
    logits, labels = sample_logits(60, 5, seed=3)
    images = sample_images(60, FLOWERS)
    found = examples("classification", logits, images)
    shares = softmax(logits)
    wrong = [i for i in np.argsort(-shares.max(axis=1)) if shares[i].argmax() != labels[i]]
    assert shown(found, "mistakes") == [images.files[i] for i in wrong[:24]]
    for at in found["mistakes"]:
        row = found["rows"][at]
        assert row["answer"] != row["truth"] == row["file"].partition("/")[0]
    ranked = np.sort(shares, axis=1)
    margins = ranked[:, -1] - ranked[:, -2]
    nearest = [i for i in np.argsort(margins) if i not in wrong[:24] and margins[i] < 0.5]
    assert shown(found, "unsure") == [images.files[i] for i in nearest[:12]]
    assert all(found["rows"][at]["answer"] == found["rows"][at]["truth"] for at in found["right"])
    assert {name.partition("/")[0] for name in shown(found, "right")} == set(FLOWERS)


def test_every_pair_of_classes_that_was_confused_has_its_images():
    logits, labels = sample_logits(80, 5, seed=1)
    found = examples("classification", logits, sample_images(80, FLOWERS))
    said = logits.argmax(axis=1)
    pairs = {(int(a), int(b)) for a, b in zip(labels, said, strict=True) if a != b}
    assert {(i, j) for i, j, _ in found["cells"]} == pairs
    for i, j, places in found["cells"]:
        rows = [found["rows"][at] for at in places]
        assert {(row["truth"], row["answer"]) for row in rows} == {(FLOWERS[i], FLOWERS[j])}


def test_a_picture_is_a_small_webp_of_any_number_of_channels():
    for channels in (1, 2, 3, 4, 7):
        pixels = np.full((300, 300, channels), 200, np.uint8)
        image = Image.open(io.BytesIO(base64.b64decode(picture(pixels))))
        assert (image.format, image.size, image.mode) == ("WEBP", (SIDE, SIDE), "RGB")


def test_pictures_stay_within_three_megabytes_however_many_classes():
    names = tuple(f"class {i}" for i in range(40))
    logits, labels = sample_logits(2000, 40, seed=0)
    noise = np.random.default_rng(0).integers(0, 256, (2000, 128, 128, 3), dtype=np.uint8)
    found = examples("classification", logits, ImageSet(noise, labels, names))
    taken = [*found["mistakes"], *found["unsure"], *found["right"]]
    taken += [at for _, _, rows in found["cells"] for at in rows]
    assert sum(len(found["rows"][at]["picture"]) for at in taken) < BUDGET + 100_000
    report = replace(sample_report(names, n=2000), examples=found)
    assert len(report_page(report)) < 3 * 2**20 - 100_000


def test_images_that_the_audit_suspects_are_shown_from_any_split_in_their_order():
    logits, _ = sample_logits(10, 5, seed=0)
    images = sample_images(10, FLOWERS)
    train = ImageSet(images.pixels, images.labels, FLOWERS, [f"t/{i}.jpg" for i in range(10)])
    findings = (
        finding("near-duplicates-across-splits", ["t/3.jpg", "daisy/0.jpg", "gone.jpg"], "kept"),
        finding("grayscale", ["rose/2.jpg"], "read"),
        finding("likely-wrong-label", ["rose/2.jpg"], "kept"),
    )
    found = examples("classification", logits, images, findings, [train])
    first, second = found["suspects"]
    assert (first["kind"], second["kind"]) == (findings[0].kind, findings[2].kind)
    rows = [found["rows"][at] for at in first["rows"]]
    assert [row["file"] for row in rows] == ["t/3.jpg", "daisy/0.jpg"]
    assert [row["answer"] != "" for row in rows] == [False, True]
    page = report_page(replace(sample_report(), examples=found))
    assert "<h3>Near-duplicates across splits</h3>" in page
    assert "<h3>Likely wrong labels</h3>" in page
    assert "t/3.jpg: labelled sunflower" in page


def test_other_tasks_show_their_largest_errors():
    images = sample_images(4, ("a", "b"))
    flags = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], np.float32)
    logits = np.array([[5, -5], [5, 0.1], [5, 5], [-5, -4]])
    several = ImageSet(images.pixels, flags, ("a", "b"), images.files)
    found = examples("multi_label", logits, several)
    first = found["rows"][found["mistakes"][0]]
    assert (first["truth"], first["answer"], len(found["mistakes"])) == ("b", "a and b", 1)
    assert found["rows"][found["right"][-1]]["truth"] == "none"
    scale = Scale((10.0,), (2.0,))
    numbers = ImageSet(
        images.pixels, np.array([[0.0], [1], [2], [3]]), ("mm",), images.files, scale
    )
    found = examples("regression", np.array([[0.0], [1], [2], [5]]), numbers)
    first = found["rows"][found["mistakes"][0]]
    assert (first["truth"], first["answer"], first["sure"]) == ("16", "20", None)
    assert "unsure" not in found


def test_a_number_that_is_zero_is_shown_as_zero():
    """As float32 leaves it in standard numbers, 0 comes back as -3.8e-7."""
    counts = np.array([[0.0], [19], [18], [5]])
    scale = Scale.of(counts, ("cells",))
    standard = scale.to_standard(counts).astype(np.float32)
    images = sample_images(4, ("a", "b"))
    numbers = ImageSet(images.pixels, standard, ("cells",), images.files, scale)
    rows = examples("regression", np.zeros((4, 1)), numbers)["rows"]
    assert {row["truth"] for row in rows} <= {"0", "19", "18", "5"}
    assert "0" in {row["truth"] for row in rows}


def test_labels_are_there_from_the_probabilities_that_the_model_counts_them_from():
    labels = np.array([[1, 0], [1, 1], [0, 1]])
    shares = np.array([[0.3, 0.1], [0.3, 0.8], [0.1, 0.95]])
    images = sample_images(3, ("cat", "dog"))
    several = ImageSet(images.pixels, labels, images.names, images.files)
    found = examples("multi_label", np.log(shares / (1 - shares)), several, limits=(0.2, 0.9))
    told = {row["file"]: (row["answer"], round(row["sure"], 6)) for row in found["rows"]}
    assert [told[file] for file in several.files] == [("cat", 0.3), ("cat", 0.2), ("dog", 0.95)]
    assert shown(found, "mistakes") == [several.files[1]]


def test_errors_of_targets_in_other_units_count_alike():
    truth = np.array([[0.0, 0], [1, 1000], [2, 2000]])
    images = sample_images(3, ("a", "b"))
    numbers = ImageSet(images.pixels, truth, ("metres", "grams"), images.files)
    said = truth + np.array([[0.9, 0], [0, 300], [0, 0]])
    found = examples("regression", said, numbers)
    assert shown(found, "mistakes")[0] == numbers.files[0]


def test_images_are_shown_unless_the_recipe_or_a_dicom_file_says_otherwise():
    medical = Audit((finding("dicom", ["a.dcm"], "read"),))
    assert shows_images(None, Audit())
    assert not shows_images(None, medical)
    assert not shows_images("none", Audit())
    assert shows_images("page", medical)
    data = {**sample_report().data, "audit": medical.to_dict()}
    assert "which may show patients" in report_page(replace(sample_report(), data=data))
    off = replace(sample_report(), recipe={**sample_report().recipe, "page_images": "none"})
    assert "page_images: none" in report_page(off)


def test_no_image_is_published_unless_the_recipe_allows_it():
    report = with_images(sample_report(), 20)
    assert report.examples["rows"]
    assert published_report(report).examples == {}
    assert published_report(report).to_dict()["metrics"] == report.to_dict()["metrics"]
    first = report.examples["rows"][0]
    assert first["picture"] in report_page(report)
    assert first["picture"] not in model_card(report)
    allowed = replace(report, recipe={**report.recipe, "page_images": "card"})
    assert published_report(allowed).examples == report.examples


def test_a_report_with_images_survives_its_file_and_a_forged_picture_is_refused(tmp_path):
    report = with_images(sample_report(), 20)
    assert RunReport.load(report.save(tmp_path / "r.json")) == report
    values = report.to_dict()
    values["examples"]["rows"][0]["picture"] = '"><script>alert(1)</script>'
    with pytest.raises(UserError, match=r"examples.rows.0.picture must be"):
        RunReport.from_dict(values)


def test_images_that_are_not_there_are_left_out_of_the_page():
    report = with_images(sample_report(), 20)
    broken = {**report.examples, "mistakes": [10_000], "cells": [(90, 91, [0]), (0, 1, [10_000])]}
    assert "Surest mistakes" not in report_page(replace(report, examples=broken))
