"""Try as a person meets it: a real browser sends an image and reads the answer."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from children import python
from drawn import picture
from page_faults import assert_no_fault
from PIL import Image
from sample_report import FLOWERS, task_report

from hf_transfer.backbones.load import load_backbone, load_model
from hf_transfer.backbones.saving import save_model
from hf_transfer.base.errors import UserError
from hf_transfer.serving.predict import predict
from hf_transfer.space.app import demo
from hf_transfer.space.limits import Limits, Refused
from hf_transfer.space.uploads import refusal

pytestmark = pytest.mark.alone

gradio = pytest.importorskip("gradio")

SPACE = Path(__file__).resolve().parents[2] / "spaces" / "demo"
UPLOAD = "#try-images input[type=file]"
BARS = "#try-answer .hft-bars li"
PATIENCE = 60_000  # milliseconds


@pytest.fixture(scope="module")
def opened(browser, server):
    """The open page; `page.asked` are the addresses that it asked for."""
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(server)
    page.wait_for_selector(UPLOAD, state="attached")
    yield page
    page.close()


@pytest.fixture
def page(opened):
    """The same page, ready for an upload."""
    opened.set_viewport_size({"width": 1100, "height": 800})
    opened.get_by_role("tab", name="Try").click()
    empty = opened.get_by_text("the answer appears here")
    if not empty.is_visible():
        opened.locator("#try-images").get_by_label("Clear").first.click()
        empty.wait_for()
    opened.wait_for_selector(UPLOAD, state="attached")
    return opened


def answer(page) -> list[tuple[str, str]]:
    """Wait for an answer and return its labels with their probabilities, as they are ranked."""
    page.wait_for_selector(BARS)
    return [
        (bar.locator(".hft-name").inner_text(), bar.locator(".hft-share").inner_text())
        for bar in page.locator(BARS).all()
    ]


def assert_predicted(shown: list[tuple[str, str]], run: Path, file: Path) -> None:
    (expected,) = predict(load_model(run), file)
    assert shown == [(label, f"{share:.1%}") for label, share in expected.labels]


@pytest.mark.slow
def test_an_uploaded_image_is_answered_as_predict_answers_and_by_this_server_alone(
    page, server, run, tmp_path
):
    assert page.title() == page.locator("h1").inner_text() == "flowers-lp_ft"
    text = page.inner_text("body")
    assert f"Distinguishes 5 classes: {', '.join(FLOWERS)}." in text
    assert "Accuracy 0.640 on n = 500 validation images, 95% interval 0.600 to 0.680." in text
    assert "Backbone timm/resnet10t.c3_in1k, recipe lp_ft, seed 0." in text
    file = tmp_path / "sideways.jpg"
    exif = picture(3).getexif()
    exif[0x0112] = 6  # turned by a quarter, as telephones write it
    picture(3).save(file, exif=exif, quality=95)
    page.set_input_files(UPLOAD, file)
    assert_predicted(answer(page), run, file)
    (expected,) = predict(load_model(run), file, top=1)
    top = page.locator("#try-answer .hft-top").inner_text().split("\n")
    assert [word.strip() for word in top if word.strip()] == [
        expected.labels[0][0],
        f"{expected.labels[0][1]:.0%}",
    ]
    elsewhere = [url for url in page.asked if not url.startswith((server, "data:", "blob:"))]
    assert page.asked
    assert elsewhere == []


@pytest.mark.slow
def test_what_is_no_image_is_said_in_words_and_the_next_image_is_answered(page, run, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image at all")
    page.set_input_files(UPLOAD, bad)
    told = page.wait_for_selector("#try-answer [role=alert]").inner_text()
    assert "This image cannot be read" in told
    assert "/" not in told
    good = tmp_path / "good.png"
    picture(4).save(good)
    page.locator("#try-images").get_by_label("Clear").first.click()
    page.set_input_files(UPLOAD, good)
    assert_predicted(answer(page), run, good)


@pytest.mark.slow
def test_several_images_become_a_table_to_download(page, run, tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for i, file in enumerate(files):
        picture(i).save(file)
    (tmp_path / "=bad.png").write_bytes(b"no image")
    page.set_input_files(UPLOAD, [*files, tmp_path / "=bad.png"])
    page.wait_for_selector("#try-answer table")
    assert page.locator("#try-answer tbody tr").count() == 4
    page.set_viewport_size({"width": 390, "height": 850})
    for cell in page.locator("#try-answer tbody th, #try-answer tbody td + td").all():
        assert cell.bounding_box()["width"] > 100  # words stay whole; what is wider scrolls
    with page.expect_download() as download:
        page.click("#try-csv")
    rows = Path(download.value.path()).read_text().splitlines()
    assert rows[0] == "image,model,label,probability,error"
    (expected,) = predict(load_model(run), files[0], top=1)
    label, share = expected.labels[0]
    assert rows[1] == f"0.png,flowers-lp_ft,{label},{share:.6g},"
    assert any(row.startswith("'=bad.png,") for row in rows)  # no formula for a spreadsheet


@pytest.mark.slow
def test_an_example_is_answered_and_explained_at_all_widths(page):
    page.click(".hft-example")
    assert len(answer(page)) == 5
    for width in (360, 390, 430, 600):  # one below the other, and nothing wider than a phone
        page.set_viewport_size({"width": width, "height": 850})
        image, told = (page.locator(at).bounding_box() for at in ("#try-images", "#try-answer"))
        assert image["width"] > 0.85 * width
        assert told["width"] > 0.75 * width
        assert told["y"] > image["y"] + image["height"]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("#try-why-row input").click()
    page.get_by_role("option").last.click()
    label = page.locator("#try-why-row input").input_value()
    page.get_by_role("button", name="Show where it looks").click()
    page.get_by_text(f"Where the models see {label}").wait_for()
    assert page.locator("#try-why figure img").count() == 1
    assert_no_fault(page, "Try")


@pytest.mark.slow
def test_how_it_was_made_shows_the_run(page):
    page.get_by_role("tab", name="How it was made").click()
    view = page.locator("#made-view")
    view.wait_for()
    text = view.inner_text()
    assert all(words in text for words in ("What trained when", "1. head", "2. all", "64.0%"))
    assert "On new images like the validation images, expect a little less than 64.0%" in text
    assert view.locator("svg").count() >= 2
    cells = page.locator("#made-matrix button.hft-count")
    assert cells.count() > 5
    cells.first.click()
    page.wait_for_selector("#made-cell section")
    assert_no_fault(page, "How it was made")


@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_a_model_of_another_task_answers_with_all_its_labels_or_its_numbers(task, tmp_path):
    from hf_transfer.space.answering import answers, asked_of, one_view
    from hf_transfer.space.drawn_made import labels_of, told_of
    from hf_transfer.space.models import Networks, shown_model

    names = tuple("abcdefg")
    model = load_backbone("timm/test_resnet", names, pretrained=False, image_size=32, task=task)
    save_model(model, tmp_path / "model")
    task_report(task, names=names).save(tmp_path / "report.json")
    picture(1).save(tmp_path / "one.png")

    class Site:
        networks, limits = Networks(), Limits()

    shown = shown_model(tmp_path)
    asked = asked_of([tmp_path / "one.png"], Site)
    ((row,),) = answers(asked, [shown], Site)
    (expected,) = predict(tmp_path, tmp_path / "one.png")
    assert (row.labels, row.values) == (expected.labels, expected.values)
    view = one_view(asked[0], [shown], [row], Site)
    assert all(f">{name}<" in view for name in names)
    words = labels_of(names, task) + told_of(shown)
    assert {"multi_label": "Mean average precision", "regression": "R²"}[task] in words
    assert "classes" not in words


@pytest.mark.parametrize("kind", ["bytes", "pixels", "bomb", "none"])
def test_an_upload_that_is_no_small_image_is_refused_with_a_sentence(kind, tmp_path):
    path = tmp_path / "upload.png"
    limits = Limits(image_bytes=2**20)
    if kind == "bytes":
        picture(1).save(path)
        with path.open("r+b") as file:
            file.truncate(1_500_000_000)
    elif kind == "none":
        path.write_bytes(b"no image")
    else:
        Image.new("L", (61_000, 1000) if kind == "pixels" else (200_000, 1000)).save(path)
    expected = {
        "bytes": "This file is larger than 1 MB, the most that this page reads.",
        "none": None,  # decoding says it
    }.get(kind, "This image has more than 60 million pixels, the most")
    said = refusal(path, limits)
    assert said is None if expected is None else said.startswith(expected)


def test_more_images_at_once_than_the_page_answers_are_refused(tmp_path):
    from hf_transfer.space.answering import asked_of

    class Site:
        limits = Limits(tried=3)

    with pytest.raises(Refused, match="answers 3 images at once, and these are 4"):
        asked_of(["a.png"] * 4, Site)


@pytest.mark.slow
def test_the_server_itself_reads_no_more_of_an_upload_than_the_limit(server, tmp_path):
    import httpx

    path = tmp_path / "big.png"
    with path.open("wb") as file:
        file.truncate(Limits().upload_bytes + 5_000_000)
    with path.open("rb") as file:
        found = httpx.post(f"{server}gradio_api/upload", files={"files": file}, timeout=60)
    assert found.status_code == 413
    assert "exceeded maximum allowed size" in found.text


@pytest.mark.parametrize("odd", ["{", "[1]", "metrics", "backbone", "data"])
def test_a_report_of_odd_values_takes_nothing_from_the_page(odd, run, tmp_path):
    from hf_transfer.space.drawn_made import made_views, told_of
    from hf_transfer.space.models import shown_model

    shutil.copytree(run / "model", tmp_path / "model")
    report = json.loads((run / "report.json").read_text())
    changed = {"metrics": [1], "backbone": 3, "data": None}.get(odd)
    text = odd if odd in ("{", "[1]") else json.dumps({**report, odd: changed})
    (tmp_path / "report.json").write_text(text)
    shown = shown_model(tmp_path / "model")
    assert "Accuracy: not measured" in told_of(shown)
    assert "ot measured" in made_views(shown)[0]


def test_labels_from_outside_are_text_and_never_markup(tmp_path):
    from hf_transfer.serving.predict import Prediction
    from hf_transfer.space.drawn import answer_card, answer_table, note

    evil = '<img src=x onerror="alert(1)">${alert(1)}'
    row = Prediction("a.png", labels=((evil, 0.9),))
    for view in (
        answer_card(evil, evil, row),
        answer_table([evil], [(evil, "", [evil])]),
        note(evil),
    ):
        assert "<img src=x" not in view
        assert 'onerror="alert' not in view


FIRST_APP = """
import os, sys
from pathlib import Path
from hf_transfer.demo import launch
from hf_transfer.recipe import UserError
model = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("MODEL")
examples = Path(__file__).parent / "examples"
try:
    launch(model, examples=examples if examples.is_dir() else None, announce=print)
except UserError as error:
    sys.exit(f"error: {error}")
"""  # what spaces/demo/app.py does in 0.1.0


TWICE = """
import importlib, json, os, signal, sys, threading, time
from hf_transfer.space.app import UserError, demo
first, pages = importlib.import_module("hf_transfer.demo"), []
whole = first.launch
first.launch = lambda *given, **options: pages.append(whole(*given, **options, wait=False))
__file__ = "app.py"
exec(compile(open(__file__).read(), __file__, "exec"))
page, looks = pages[0], []
print(json.dumps(page.config))
class Watched(type(page._queue)):
    def __len__(self):
        looks.append(1)
        return super().__len__()
page._queue.__class__ = Watched
time.sleep(0.5)
print(len(looks))
try:
    demo(sys.argv[1], port=page.server_port)
except UserError as error:
    print(error)
page.close()
end = lambda _: threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
print(page.site.visitors.root, demo(sys.argv[1], announce=end).site.visitors.root)
"""


@pytest.mark.slow
def test_a_space_of_the_first_version_shows_its_model_and_leaves_nothing_behind(run, tmp_path):
    (tmp_path / "app.py").write_text(FIRST_APP)
    (tmp_path / "examples").mkdir()
    picture(1).save(tmp_path / "examples" / "tulip.png")
    (tmp_path / "examples" / "README.md").write_text("where they are from")
    done = python(TWICE, str(run), folder=tmp_path, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    _, config, looks, port, *_, folders = done.stdout.splitlines()
    assert json.loads(config)["title"] == "flowers-lp_ft"
    assert "Try the example" in config
    assert 0 < int(looks) < 30  # at its queue, in half a second, while nobody is there
    assert re.fullmatch(r"port \d+ is not free; choose another, or leave it out", port)
    closed, terminated = map(Path, folders.split())
    assert closed != terminated
    assert not closed.exists()
    assert not terminated.exists()


@pytest.mark.parametrize("text", [(SPACE / "app.py").read_text(), FIRST_APP])
def test_a_model_that_is_not_there_is_named(text, monkeypatch):
    monkeypatch.setenv("MODEL", "./nothing-here")
    monkeypatch.setattr(sys, "argv", ["app.py"])
    with pytest.raises(SystemExit) as ended:
        exec(compile(text, "app.py", "exec"), {"__name__": "__main__", "__file__": "app.py"})
    assert str(ended.value).startswith("error: ")
    assert "nothing-here" in str(ended.value)


def test_a_missing_gradio_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"pip install 'hf-transfer-learning\[demo\]'"):
        demo(run)


def test_the_front_matter_is_what_the_hub_expects():
    front = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert front["sdk"] == "gradio"
    assert front["hf_oauth"] is True
    assert (SPACE / front["app_file"]).is_file()
    assert len(front["short_description"]) <= 60
    colors = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {front["colorFrom"], front["colorTo"]} <= colors
    assert (SPACE / "requirements.txt").read_text() == "hf-transfer-learning[demo]\n"
