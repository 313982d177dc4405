"""Unknown images: far from what training showed, at the stated rate of false alarms."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawn import photos, picture
from PIL import Image

import hf_transfer
from hf_transfer.base.errors import UserError
from hf_transfer.cli import main
from hf_transfer.serving.familiar import FILE, alarms, familiar_of, learn, load_familiar
from hf_transfer.serving.hub import gather


def drawn(count: int, seed: int, shift: float = 0.0, width: int = 40) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(1, 0.3, (count, width)) + shift * np.linspace(-1, 1, width)


def test_held_out_images_are_called_unknown_at_the_stated_rate_and_strangers_are_found():
    for held_out in (drawn(400, 1), None):
        found = learn(drawn(200, 0), np.arange(200) % 3, held_out, false_alarms=0.1)
        assert (found.unlike(drawn(1000, 2)) > 1).mean() == pytest.approx(0.1, abs=0.05)
        assert (found.unlike(drawn(100, 3, shift=1)) > 1).mean() > 0.95
    assert found.held_out == 200


def of_patients(count: int, seed: int, each: int = 8) -> np.ndarray:
    """Draw images of patients, which are much more like one another than like those of others."""
    random = np.random.default_rng(seed)
    own = np.repeat(random.normal(1, 0.3, (count, 40)), each, axis=0)
    return own + random.normal(0, 0.03, own.shape)


def test_images_of_new_patients_are_called_unknown_at_the_stated_rate():
    rows, patients = of_patients(30, 0), np.repeat(np.arange(30), 8)
    new = of_patients(200, 1)
    found = learn(rows, patients % 3, false_alarms=0.1, groups=patients)
    assert (found.unlike(new) > 1).mean() < 0.2
    assert (learn(rows, patients % 3, false_alarms=0.1).unlike(new) > 1).mean() > 0.4


def test_groups_that_are_whole_classes_are_not_left_out():
    rows, classes = drawn(60, 0), np.arange(60) % 3
    assert np.isclose(
        learn(rows, classes, groups=classes).threshold, learn(rows, classes).threshold
    )
    one = np.zeros(60, int)
    assert np.isclose(learn(rows, classes, groups=one).threshold, learn(rows, classes).threshold)


def test_distances_are_mahalanobis_with_the_shrunk_covariance():
    from sklearn.covariance import LedoitWolf

    rows, asked = drawn(150, 0, width=12), drawn(20, 1, width=12)
    found = replace(learn(rows), threshold=1.0)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    other = asked / np.linalg.norm(asked, axis=1, keepdims=True)
    theirs = LedoitWolf().fit(unit).mahalanobis(other)
    assert np.allclose(found.unlike(asked) ** 2, theirs, rtol=1e-4)


def test_a_file_holds_all_of_it(tmp_path):
    found = learn(drawn(60, 0), np.arange(60) % 2)
    (tmp_path / FILE).write_bytes(found.to_bytes())
    again = load_familiar(tmp_path)
    assert np.allclose(again.unlike(drawn(9, 1)), found.unlike(drawn(9, 1)), rtol=1e-4)
    assert (again.false_alarms, again.held_out) == (0.05, 60)
    (tmp_path / FILE).write_bytes(b"x")
    with pytest.raises(UserError, match="train the model again"):
        load_familiar(tmp_path)
    assert load_familiar(tmp_path / "nowhere") is None


def test_one_image_or_a_rate_of_none_tells_nothing():
    for rows, rate in ((drawn(1, 0), 0.05), (drawn(9, 0), 1.0)):
        with pytest.raises(UserError, match="what is familiar"):
            learn(rows, false_alarms=rate)


def test_alarms_are_counted_by_side():
    told = alarms([0.5, 1.5, 2.0, 0.7], [False, False, True, True])
    assert (told["false_alarms"], told["n"], told["found"], told["strangers"]) == (1, 2, 1, 2)
    assert told["auroc"] == 0.75
    assert alarms([0.5], [False])["auroc"] is None


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run on plain noise of two classes."""
    folder = tmp_path_factory.mktemp("familiar")
    data = photos(folder / "data", count=30)
    hf_transfer.train(
        "feature_extraction",
        data=data,
        backbone="timm/test_resnet.r160_in1k",
        overrides=["pretrained=false", "data.image_size=64", "phases.0.epochs=1"],
        out=folder / "run",
    )
    return folder


def test_a_run_keeps_with_its_model_what_is_familiar_and_predict_tells(run, tmp_path, capsys):
    model = run / "run" / "model"
    assert (model / FILE).is_file()
    assert FILE in gather(run / "run")
    assert familiar_of(hf_transfer.load_model(model)).held_out >= 12
    own = sorted((run / "data" / "cat").iterdir())[:5]
    flat = tmp_path / "flat.png"
    Image.new("RGB", (50, 50), (200, 10, 10)).save(flat)
    told = hf_transfer.predict(model, [*own, flat], unknown=True)
    assert told[-1].unknown
    assert told[-1].unlike > max(one.unlike for one in told[:-1])
    assert told[-1].to_dict()["unknown"] is True
    assert hf_transfer.predict(model, flat)[0].unlike is None
    assert hf_transfer.predict(model, flat)[0].to_dict().keys() == {"file", "labels", "error"}
    assert main(["predict", str(run / "run"), str(flat), "--unknown"]) == 0
    assert "none of these" in capsys.readouterr().out
    assert main(["predict", str(run / "run"), str(flat), "--unknown", "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("file,error,unknown,unlike,label_1")
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"x")
    (failed,) = hf_transfer.predict(model, bad, unknown=True)
    assert failed.error
    assert failed.unlike is None


def test_evaluate_counts_false_alarms_and_the_strangers_that_are_found(run, tmp_path, capsys):
    data = shutil.copytree(run / "data", tmp_path / "data")
    (data / "flat").mkdir()
    for i in range(4):
        picture(i).resize((4, 4)).resize((40, 40)).save(data / "flat" / f"{i}.png")
    words = ["evaluate", str(run / "run"), "--data", str(data), "--split", "all", "--unknown"]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["unknown"]
    assert (told["n"], told["strangers"]) == (60, 4)
    assert told["auroc"] > 0.9
    assert main(words) == 0
    assert "of 4 images of other labels; AUROC" in capsys.readouterr().out


def test_a_model_that_knows_nothing_of_its_training_says_so(run, tmp_path):
    model = shutil.copytree(run / "run" / "model", tmp_path / "model")
    (model / FILE).unlink()
    with pytest.raises(UserError, match=f"has no {FILE}"):
        hf_transfer.predict(model, picture(0), unknown=True)
