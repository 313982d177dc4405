"""Train your own as a person meets it: images in, a plan, a training, the model to take away."""

import io
import json
import re
import time
import zipfile
from pathlib import Path

import pytest
import yaml
from colours import colour
from page_faults import assert_no_fault

from hf_transfer.serving.predict import predict

pytestmark = [pytest.mark.alone, pytest.mark.slow]

pytest.importorskip("gradio_client")

PATIENCE = 120_000  # milliseconds
ZIP, FILES = "#train-zip input[type=file]", "#train-files input[type=file]"


@pytest.fixture
def page(browser, server):
    page = opened(browser, server)
    yield page
    page.context.close()


def opened(browser, server: str):
    """Return the page of a new visitor, who is about to train."""
    page = browser.new_context(accept_downloads=True, permissions=["camera"]).new_page()
    page.set_viewport_size({"width": 1200, "height": 900})
    page.set_default_timeout(PATIENCE)
    page.goto(server)
    page.get_by_role("tab", name="Train your own").click()
    page.wait_for_selector("#train-example")
    return page


def send(page, archive: Path) -> None:
    page.wait_for_selector(ZIP, state="attached")
    page.set_input_files(ZIP, archive)
    page.wait_for_selector("#train-said [role=status]")


def choose(page, field: str, words: str) -> None:
    page.locator(f"{field} input").click()
    page.get_by_role("option", name=words).first.click()


def plan(page, start: str = "Train a new head") -> None:
    choose(page, "#train-start", start)
    choose(page, "#train-size", "32 px")
    page.click("#train-make")
    page.wait_for_selector("#train-plan table")


def held(page, address: str) -> list:
    """Hold requests of the page to an address back, in a list."""
    found: list = []
    page.route(re.compile(address), lambda route: found.append(route))
    return found


def release(page, requests: list) -> None:
    """Let the oldest of the requests that are held back go on, once there is one."""
    started = time.monotonic()
    while not requests and time.monotonic() - started < 60:
        page.wait_for_timeout(50)
    requests.pop(0).continue_()


def test_from_a_zip_of_folders_to_a_model_that_answers(page, archive, tmp_path):
    send(page, archive)
    assert "21 images added." in page.inner_text("#train-said")
    page.click("#train-look")
    page.wait_for_selector("#train-findings img")
    assert "Repeated" in page.inner_text("#train-findings")
    plan(page)
    head = page.locator("#train-plan button[data-stage=head]")
    assert head.get_attribute("aria-pressed") == "true"
    stem = page.locator("#train-plan button[data-stage=stem]")
    stem.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#train-plan button[data-stage=stem][aria-pressed=true]")
    focused = "document.activeElement.dataset.stage"
    page.wait_for_function(f"{focused} === 'stem'")  # the keyboard stays where it was
    page.keyboard.press("Enter")
    page.wait_for_selector("#train-plan button[data-stage=stem][aria-pressed=false]")
    rate = page.locator("#train-plan input[data-act=rate]")
    rate.fill("5e-3")
    stem.click()  # leaves the field, which changes the rate: neither is lost
    page.wait_for_function("document.querySelector('[data-act=rate]').value === '5e-3'")
    page.wait_for_selector("#train-plan button[data-stage=stem][aria-pressed=true]")
    stem.click()
    page.wait_for_selector("#train-plan button[data-stage=stem][aria-pressed=false]")
    page.click("#train-go")
    page.wait_for_selector("#train-live [role=progressbar]")
    assert_no_fault(page, "while it trains")
    page.get_by_text("Accuracy on validation images").wait_for()
    assert page.locator("#train-live svg").count() == 2
    assert_no_fault(page, "after training")
    page.click("#train-lead")
    file = tmp_path / "red.png"
    file.write_bytes(colour("red", 99))
    page.wait_for_selector("#try-images input[type=file]", state="attached")
    page.set_input_files("#try-images input[type=file]", file)
    page.wait_for_selector("#try-answer .hft-bars li")
    shown = page.locator("#try-answer .hft-cards > div", has_text="Train a new head").inner_text()
    assert "Most similar training images" in shown
    assert_no_fault(page, "an answer of two models")
    page.get_by_role("tab", name="How it was made").click()
    page.wait_for_selector("#made-matrix button.hft-count")
    page.locator("#made-matrix button.hft-count").first.click()
    page.wait_for_selector("#made-cell img")
    assert_no_fault(page, "a cell of the matrix")
    page.get_by_role("tab", name="Train your own").click()
    page.click("#take-pack")
    found = {}
    for words in ("Model folder (zip)", "Recipe", "Report"):
        with page.expect_download() as download:
            page.get_by_role("button", name=words).or_(page.get_by_role("link", name=words)).click()
        found[words] = Path(download.value.path()).read_bytes()
        assert download.value.suggested_filename.startswith("Train-a-new-head")
    assert_is_the_model(found, shown, file, tmp_path)


def assert_is_the_model(found: dict, shown: str, file: Path, tmp_path: Path) -> None:
    """The downloads hold the model that answered, and no path of the server."""
    with zipfile.ZipFile(io.BytesIO(found["Model folder (zip)"])) as packed:
        packed.extractall(tmp_path / "mine")
    (answer,) = predict(tmp_path / "mine" / "model", file)
    assert f"{answer.labels[0][1]:.1%}" in shown
    recipe = yaml.safe_load(found["Recipe"])
    assert recipe["data"]["path"] == "images"
    assert recipe["phases"][0]["lr"] == 5e-3
    for text in (found["Recipe"], found["Report"]):
        assert b"hf-transfer-space" not in text
    report = json.loads((tmp_path / "mine" / "report.json").read_text())
    assert "hf-transfer-space" not in json.dumps(report)


def test_advice_is_a_picture_and_a_plan_that_can_be_trained(page, archive):
    send(page, archive)
    choose(page, "#train-size", "32 px")
    page.click("#train-advise")
    page.wait_for_selector("#train-advice svg")
    page.wait_for_selector("#train-plan table")
    assert page.locator("#train-advice dt").count() >= 2
    assert page.locator("#train-plan [role=alert]").count() == 0
    assert_no_fault(page, "advice")
    page.click("#train-go")
    page.get_by_text("Accuracy on validation images").wait_for()
    page.get_by_role("tab", name="How it was made").click()
    page.get_by_text("What advice saw in these images").wait_for()


def test_a_class_comes_from_files_and_the_camera_and_is_removed_again(page, tmp_path):
    page.get_by_role("tab", name="Class by class").click()
    files = [tmp_path / f"{seed}.png" for seed in range(5)]
    for seed, file in enumerate(files):
        file.write_bytes(colour("red", seed))
    page.get_by_label("Class", exact=True).fill("rouge")
    adding, sending = held(page, r"/queue/join"), held(page, r"/upload(\?|$)")
    page.set_input_files(FILES, files[:3])
    release(page, sending)
    page.wait_for_selector("#train-files table")
    page.set_input_files(FILES, files[3:])  # while the first are added
    release(page, adding)
    page.get_by_text("3 images", exact=True).wait_for()
    release(page, sending)
    release(page, adding)
    page.get_by_text("5 images", exact=True).wait_for()
    page.unroute_all()
    page.locator("#train-files table").wait_for(state="detached")
    assert "at least two" in page.inner_text("#train-classes")
    page.get_by_label("Class", exact=True).fill("test picture")
    page.locator("#train-camera").get_by_text("Click to Access Webcam").click()
    page.wait_for_function("document.querySelector('#train-camera video').videoWidth > 0")
    for count in ("1 image", *(f"{many} images" for many in range(2, 11))):  # it stays on
        page.locator("#train-camera").get_by_role("button", name="capture photo").click()
        page.get_by_text(count, exact=True).wait_for()
    for label in ("rouge", "test picture"):
        remove = page.locator(f"#train-classes button[data-label='{label}']")
        remove.click()
        remove.wait_for(state="detached")
    page.get_by_text("No images yet").wait_for()


def test_stop_stops_and_nothing_of_a_visitor_is_seen_by_another(browser, page, server, archive):
    send(page, archive)
    plan(page, "Head first, then everything")
    page.click("#train-go")
    page.wait_for_selector("#train-live [role=progressbar]")
    other = opened(browser, server)
    assert "No images yet" in other.inner_text("#train-classes")
    assert "red" not in other.inner_text("#train-classes")
    assert "Nothing has been trained yet." in other.inner_text("#train-live")
    other.context.close()
    page.click("#train-stop")
    page.get_by_text("The training was stopped").wait_for(timeout=15_000)
    page.click("#train-stop")
    page.get_by_text("Nothing is being trained.").wait_for()
    content = page.content()
    assert not re.search(r"hf_[A-Za-z]{30,}", content)
    assert "hf-transfer-space" not in content


def test_the_training_of_a_visitor_who_leaves_ends(browser, server, archive):
    page = opened(browser, server)
    send(page, archive)
    plan(page, "Head first, then everything")
    page.click("#train-go")
    page.wait_for_selector("#train-live [role=progressbar]")
    page.context.close()
    second = opened(browser, server)
    send(second, archive)
    plan(second, "Solve a new head")
    second.click("#train-go")
    started = time.monotonic()
    second.get_by_text("Accuracy on validation images").wait_for()
    assert time.monotonic() - started < 100
    second.context.close()
