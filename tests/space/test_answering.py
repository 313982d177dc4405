"""Answers in short: a table of many images, its CSV, and the labels that one may ask about."""

import csv
from types import SimpleNamespace

import pytest
from drawn import picture

from hf_transfer.backbones.load import load_backbone
from hf_transfer.backbones.saving import save_model
from hf_transfer.serving.predict import Prediction
from hf_transfer.space.answering import Asked, many_view, write_csv
from hf_transfer.space.drawn import answer_card
from hf_transfer.space.limits import Limits
from hf_transfer.space.models import Networks, shown_model
from hf_transfer.space.tab_try import Answers

MODEL = SimpleNamespace(title="mine")


def test_a_table_tells_all_labels_that_an_image_shows(tmp_path):
    several = Prediction("a.png", (("cat", 0.9), ("dog", 0.7), ("cow", 0.1)), threshold=0.5)
    one = Prediction("b.png", (("cat", 0.9), ("dog", 0.1)))
    none = Prediction("c.png", (("cat", 0.1),), threshold=0.5)
    asked = [Asked(row.file, tmp_path / row.file) for row in (several, one, none)]
    view = many_view(asked, [MODEL], [[several], [one], [none]], SimpleNamespace(limits=Limits()))
    assert all(f"<td>{cell}</td>" in view for cell in ("cat 90%, dog 70%", "cat 90%", "none"))


def test_an_answer_of_several_labels_names_those_that_are_there_not_only_by_colour():
    pairs = (("cat", 0.9), ("dog", 0.4), ("cow", 0.3))
    row = Prediction("a.png", pairs, threshold=0.5, thresholds=(("dog", 0.35),))
    assert ">cat, dog</b>" in answer_card("mine", "", row)
    none = Prediction("a.png", (("cat", 0.1),), threshold=0.5)
    assert ">None of its labels</b>" in answer_card("mine", "", none)


def test_a_csv_keeps_numbers_below_zero_and_disarms_formulas(tmp_path):
    row = Prediction("=a.png", values=(("-height", -1.5), ("width", 2.0)))
    where = SimpleNamespace(served=tmp_path)
    path = write_csv(where, [Asked("=a.png", tmp_path)], [MODEL], [[row]])
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[1:] == [
        ["'=a.png", "mine", "'-height", "-1.5", ""],
        ["'=a.png", "mine", "width", "2", ""],
    ]


@pytest.fixture
def site(tmp_path):
    """A page with a model of numbers and one of classes."""
    networks, models = Networks(), {}
    for task, labels in (("regression", ("height", "width")), ("classification", ("a", "b"))):
        options = {"pretrained": False, "image_size": 32, "task": task}
        save_model(load_backbone("timm/test_resnet", labels, **options), tmp_path / task / "model")
        models[task] = shown_model(tmp_path / task)
    visitor = SimpleNamespace(served=tmp_path / "served", models={})
    visitors = SimpleNamespace(of=lambda _: visitor, note=lambda *_: None)
    yield SimpleNamespace(
        limits=Limits(),
        networks=networks,
        models=models,
        visitors=visitors,
        models_of=lambda _: models,
    )
    networks.close()


def test_one_may_ask_why_of_numbers_and_of_classes_side_by_side(site, tmp_path):
    picture(1).save(tmp_path / "one.png")
    request, sent = SimpleNamespace(session_hash="one"), [str(tmp_path / "one.png")]
    *_, row, pick, _, _ = Answers(site).of(sent, list(site.models), request)
    assert row["visible"]
    assert set(pick["choices"]) == {"height", "width", "a", "b"}
    view = Answers(site).why(sent, list(site.models), "height", request)
    assert view.count("<figure>") == 1
