"""The page as a person meets it: a real browser uploads an image and reads the answer."""

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image
from sample_report import FLOWERS, task_report
from tiny_model import picture, tiny_run

from hf_transfer.backbones.load import load_backbone, load_model
from hf_transfer.backbones.saving import save_model
from hf_transfer.base.errors import UserError
from hf_transfer.serving.demo import build_demo, launch
from hf_transfer.serving.predict import predict

pytestmark = pytest.mark.alone

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("gradio_client")  # comes with gradio, and is quick to import

SPACE = Path(__file__).resolve().parents[2] / "spaces" / "demo"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PATIENCE = 60.0  # seconds, on a machine that is busy with something else
LAUNCH = """
import sys
from hf_transfer.serving.demo import build_demo, launch
launch(sys.argv[1], int(sys.argv[2]))
"""
BARS = "[data-testid=label] meter"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run whose folder has an image as an example."""
    run = tiny_run(tmp_path_factory.mktemp("space") / "flowers-lp_ft")
    (run / "examples").mkdir()
    picture(7, 200, 120).save(run / "examples" / "seven.png")
    return run


@pytest.fixture(scope="module")
def server(run, tmp_path_factory) -> Iterator[str]:
    """The address of the Space's own app, served by a process that ends with the tests."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "MODEL": str(run), "GRADIO_SERVER_PORT": str(port)}
    log = tmp_path_factory.mktemp("log") / "app.log"
    address = f"http://127.0.0.1:{port}/"
    with log.open("wb") as out:
        command = [sys.executable, str(SPACE / "app.py")]
        app = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
    try:
        wait_for(address, app, log)
        yield address
    finally:
        app.terminate()
        try:
            app.wait(10)
        except subprocess.TimeoutExpired:
            app.kill()
            app.wait(10)


def wait_for(address: str, app: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 2 * PATIENCE
    while time.monotonic() < until:
        assert app.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"nothing answers at {address}: {log.read_text()}")


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=list(FLAGS), timeout=60_000)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server):
    """The open page, ready for an upload; `page.asked` are the addresses that it asked for."""
    page = browser.new_page(viewport={"width": 1100, "height": 800})
    page.set_default_timeout(PATIENCE * 1000)
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(server)
    page.wait_for_selector("input[type=file]", state="attached")
    yield page
    page.close()


def answer(page) -> list[tuple[str, float]]:
    """Wait for an answer and return its labels with their probabilities, as they are ranked."""
    page.wait_for_selector(BARS)
    bars = page.locator(BARS)
    return [
        (bar.get_attribute("aria-label"), float(bar.get_attribute("value"))) for bar in bars.all()
    ]


def assert_predicted(shown: list[tuple[str, float]], run: Path, file: Path) -> None:
    (expected,) = predict(load_model(run), file)
    assert [label for label, _ in shown] == [label for label, _ in expected.labels]
    shares = [share for _, share in expected.labels]
    assert [share for _, share in shown] == pytest.approx(shares, abs=1e-5)


@pytest.mark.slow
def test_an_uploaded_image_is_answered_as_predict_answers(page, run, tmp_path):
    file = tmp_path / "sideways.jpg"
    exif = picture(3).getexif()
    exif[0x0112] = 6  # turned by a quarter, as telephones write it
    picture(3).save(file, exif=exif, quality=95)
    page.set_input_files("input[type=file]", file)
    assert_predicted(answer(page), run, file)
    page.screenshot(path=tmp_path / "answer.png", full_page=True)
    top = page.locator("[data-testid=label-output-value]").inner_text()
    percent = page.locator("[data-testid=label] dd").first.inner_text()
    (expected,) = predict(load_model(run), file, top=1)
    assert (top, percent) == (expected.labels[0][0], f"{expected.labels[0][1]:.0%}")


@pytest.mark.slow
def test_the_page_names_the_model_and_its_measured_accuracy(page):
    assert page.title() == page.locator("h1").inner_text() == "flowers-lp_ft"
    text = page.inner_text("body")
    assert f"Distinguishes 5 classes: {', '.join(FLOWERS)}." in text
    assert "Accuracy 0.640 on n = 500 validation images, 95% interval 0.600 to 0.680." in text
    assert "Backbone timm/resnet10t.c3_in1k, recipe lp_ft, seed 0." in text


@pytest.mark.slow
def test_what_is_no_image_is_said_in_words_and_the_next_image_is_answered(page, run, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image at all")
    page.set_input_files("input[type=file]", bad)
    toast = page.wait_for_selector("[data-testid=toast-body]").inner_text()
    assert "This image cannot be read" in toast
    assert str(tmp_path) not in toast
    page.wait_for_selector("text=Drop Image Here")
    good = tmp_path / "good.png"
    picture(4).save(good)
    page.set_input_files("input[type=file]", good)
    assert_predicted(answer(page), run, good)


@pytest.mark.slow
def test_an_example_is_answered_on_a_click(page, run):
    page.click("button.gallery-item")
    assert_predicted(answer(page), run, run / "examples" / "seven.png")


@pytest.mark.slow
def test_the_page_asks_no_one_but_its_server(page, server, run):
    page.click("button.gallery-item")
    answer(page)
    elsewhere = [url for url in page.asked if not url.startswith((server, "data:", "blob:"))]
    assert page.asked
    assert elsewhere == []


@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_a_model_of_another_task_answers_with_all_its_labels_or_its_numbers(task, tmp_path):
    names = tuple("abcdefg")
    model = load_backbone("timm/test_resnet", names, pretrained=False, image_size=32, task=task)
    save_model(model, tmp_path / "model")
    task_report(task, names=names).save(tmp_path / "report.json")
    picture(1).save(tmp_path / "one.png")
    demo = build_demo(tmp_path)
    (asked,) = (fn.fn for fn in demo.fns.values() if fn.api_name == "predict")
    (expected,) = predict(tmp_path, tmp_path / "one.png")
    shown = asked(str(tmp_path / "one.png"))
    if task == "regression":
        assert [name for name, _ in shown] == list(names)
        values = [value for _, value in expected.values]
        assert [float(value) for _, value in shown] == pytest.approx(values, rel=1e-5)
    else:
        assert shown == dict(expected.labels)
        assert len(shown) == 7
    words = " ".join(str(block.value) for block in demo.blocks.values() if hasattr(block, "value"))
    assert {"multi_label": "Mean average precision", "regression": "R²"}[task] in words
    assert "classes" not in words


@pytest.fixture(scope="module")
def asked(run):
    """The function that answers an upload."""
    demo = build_demo(run)
    return next(fn.fn for fn in demo.fns.values() if fn.api_name == "predict")


def sparse(path: Path, size: int) -> Path:
    picture(1).save(path)
    with path.open("r+b") as file:
        file.truncate(size)
    return path


@pytest.mark.parametrize("kind", ["bytes", "pixels", "bomb", "none"])
def test_an_upload_that_is_no_small_image_is_refused_with_a_sentence(kind, asked, tmp_path):
    from gradio import Error

    path = tmp_path / "upload.png"
    if kind == "bytes":
        sparse(path, 1_500_000_000)
    elif kind == "none":
        path.write_bytes(b"no image")
    else:
        Image.new("L", (61_000, 1000) if kind == "pixels" else (200_000, 1000)).save(path)
    started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Error) as caught:
        asked(str(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - started < 50_000  # KiB
    said = str(caught.value)
    assert str(tmp_path) not in said
    expected = {
        "bytes": "This file is larger than 30 MB, the most that this page reads.",
        "none": "This image cannot be read",
    }
    assert expected.get(kind, "This image has more than 60 million pixels, the most") in said


def test_the_server_itself_reads_no_more_of_an_upload_than_the_limit(run, tmp_path):
    import httpx

    demo = launch(run, wait=False)
    try:
        with sparse(tmp_path / "big.png", 40_000_000).open("rb") as file:
            answer = httpx.post(f"{demo.local_url}gradio_api/upload", files={"files": file})
    finally:
        demo.close(verbose=False)
    assert answer.status_code == 413
    assert "exceeded maximum allowed size" in answer.text


@pytest.mark.parametrize("odd", ["{", "[1]", "metrics", "backbone", "data"])
def test_a_report_of_odd_values_takes_nothing_from_the_page(odd, run, tmp_path):
    shutil.copytree(run / "model", tmp_path / "model")
    report = json.loads((run / "report.json").read_text())
    changed = {"metrics": [1], "backbone": 3, "data": None}.get(odd)
    text = odd if odd in ("{", "[1]") else json.dumps({**report, odd: changed})
    (tmp_path / "report.json").write_text(text)
    demo = build_demo(tmp_path / "model")
    words = " ".join(str(block.value) for block in demo.blocks.values() if hasattr(block, "value"))
    assert "Accuracy: not measured" in words


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 390, 430, 600])
def test_at_the_width_of_a_phone_image_and_answer_are_wide_one_below_the_other(
    width, page, tmp_path
):
    page.set_viewport_size({"width": width, "height": 850})
    picture(1).save(tmp_path / "1.png")
    page.set_input_files("input[type=file]", tmp_path / "1.png")
    answer(page)
    image, told = (
        page.locator(where).bounding_box() for where in (".image-container", "[data-testid=label]")
    )
    assert image["width"] > 0.85 * width
    assert told["width"] > 0.75 * width
    assert told["y"] > image["y"] + image["height"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_space_without_a_model_says_what_to_set():
    env = {key: value for key, value in os.environ.items() if key != "MODEL"}
    command = [sys.executable, str(SPACE / "app.py")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == (
        "error: no model; set the variable MODEL to OWNER/NAME, or give a run folder\n"
    )


@pytest.mark.slow
def test_a_port_in_use_is_named(run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-c", LAUNCH, str(run), port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE)
    assert f"UserError: port {port} is not free; choose another" in done.stderr


def test_a_missing_gradio_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"pip install 'hf-transfer-learning\[demo\]'"):
        launch(run)


def test_the_front_matter_is_what_the_hub_expects():
    front = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert front["sdk"] == "gradio"
    assert (SPACE / front["app_file"]).is_file()
    assert len(front["short_description"]) <= 60
    colors = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {front["colorFrom"], front["colorTo"]} <= colors
    assert (SPACE / "requirements.txt").read_text() == "hf-transfer-learning[demo]\n"
