"""Train your own as a person meets it: images in, a plan, a training, the model to take away."""

import io
import json
import re
import time
import zipfile
from pathlib import Path

import pytest
import yaml
from tiny_model import picture

from hf_transfer.serving.predict import predict

pytestmark = [pytest.mark.alone, pytest.mark.slow]

pytest.importorskip("gradio_client")

PATIENCE = 120_000  # milliseconds
ZIP, FILES = "#train-zip input[type=file]", "#train-files input[type=file]"


def colour(label: str, seed: int) -> bytes:
    """A picture of a class that any network tells apart."""
    image = picture(seed, 48, 48)
    image.paste({"red": (200, 30, 30), "blue": (20, 40, 220)}[label], (0, 0, 48, 40))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("zip") / "colours.zip"
    with zipfile.ZipFile(path, "w") as found:
        for label in ("red", "blue"):
            for seed in range(10):
                found.writestr(f"colours/{label}/{seed}.png", colour(label, seed))
        found.writestr("colours/red/copy.png", colour("red", 0))
        found.writestr("colours/notes.txt", "nothing")
    return path


@pytest.fixture(scope="module")
def server(serve, run) -> str:
    """A page without a model; visitors may train the tiny network."""
    return serve(BACKBONES=str(run / "model"))


@pytest.fixture
def page(browser, server):
    page = browser.new_context(accept_downloads=True).new_page()
    page.set_viewport_size({"width": 1200, "height": 900})
    page.set_default_timeout(PATIENCE)
    page.goto(server)
    page.wait_for_selector("#train-example")
    yield page
    page.context.close()


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


def test_from_a_zip_of_folders_to_a_model_that_answers(page, archive, tmp_path):
    send(page, archive)
    assert "21 images added." in page.inner_text("#train-said")
    page.click("#train-look")
    page.wait_for_selector("#train-findings img")
    assert "repeated" in page.inner_text("#train-findings")
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
    rate.press("Tab")
    page.wait_for_function("document.querySelector('[data-act=rate]').value === '5e-3'")
    page.click("#train-go")
    page.wait_for_selector("#train-live [role=progressbar]")
    page.get_by_text("Right on validation").wait_for()
    assert page.locator("#train-live svg").count() == 2
    page.click("#train-lead")
    file = tmp_path / "red.png"
    file.write_bytes(colour("red", 99))
    page.wait_for_selector("#try-images input[type=file]", state="attached")
    page.set_input_files("#try-images input[type=file]", file)
    page.wait_for_selector("#try-answer .hft-bars li")
    shown = page.inner_text("#try-answer")
    assert "Most similar training images" in shown
    page.get_by_role("tab", name="How it was made").click()
    page.wait_for_selector("#made-matrix button.hft-count")
    page.locator("#made-matrix button.hft-count").first.click()
    page.wait_for_selector("#made-cell img")
    page.get_by_role("tab", name="Train your own").click()
    page.click("#take-pack")
    found = {}
    for words in ("Model folder (zip)", "Recipe", "Report"):
        with page.expect_download() as download:
            page.get_by_role("button", name=words).or_(page.get_by_role("link", name=words)).click()
        found[words] = Path(download.value.path()).read_bytes()
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


def test_a_class_is_added_from_files_and_removed_again(page, tmp_path):
    page.get_by_role("tab", name="Class by class").click()
    files = [tmp_path / f"{seed}.png" for seed in range(3)]
    for seed, file in enumerate(files):
        file.write_bytes(colour("red", seed))
    page.get_by_label("Class", exact=True).fill("rouge")
    page.set_input_files(FILES, files)
    page.wait_for_selector("#train-classes button[data-label=rouge]")
    assert "3 images" in page.inner_text("#train-classes")
    assert "at least two" in page.inner_text("#train-classes")
    page.click("#train-classes button[data-label=rouge]")
    page.get_by_text("No images yet").wait_for()


def test_stop_stops_and_the_next_training_starts(page, archive):
    send(page, archive)
    plan(page, "Head first, then everything")
    page.click("#train-go")
    page.wait_for_selector("#train-live [role=progressbar]")
    page.click("#train-stop")
    page.get_by_text("The training was stopped").wait_for(timeout=15_000)
    page.click("#train-stop")
    page.get_by_text("Nothing is being trained.").wait_for()


def test_a_visitor_sees_nothing_of_another(browser, page, server, archive):
    send(page, archive)
    other = browser.new_context().new_page()
    other.goto(server)
    other.wait_for_selector("#train-classes")
    assert "No images yet" in other.inner_text("#train-classes")
    assert "red" not in other.inner_text("#train-classes")
    other.context.close()


def test_no_token_and_no_path_of_the_server_is_in_the_page(page, archive):
    send(page, archive)
    content = page.content()
    assert not re.search(r"hf_[A-Za-z]{30,}", content)
    assert "hf-transfer-space" not in content


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_has_no_fault_that_axe_finds(width, theme, browser, server, archive):
    sync_playwright = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = browser.new_context(color_scheme=theme).new_page()
    page.set_viewport_size({"width": width, "height": 900})
    page.set_default_timeout(PATIENCE)
    page.goto(f"{server}?__theme={theme}")
    page.wait_for_selector("#train-example")
    send(page, archive)
    plan(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for tab in ("Train your own", "Try", "How it was made"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(400)
        found = sync_playwright.Axe().run(page).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"][:120]) for one in found] == [], tab
    page.context.close()


# --- programs ----------------------------------------------------------------------------------


def test_a_program_trains_and_asks(server, archive, tmp_path):
    from gradio_client import Client, handle_file

    client = Client(server, verbose=False)
    job = client.submit(handle_file(str(archive)), "model", "exact_head", 32, api_name="/train")
    told = list(job)
    states = [progress["state"] for progress, _ in told]
    assert states[-1] == "done"
    assert set(states) <= {"waiting", "running", "done"}
    progress, model = told[-1]
    assert progress["progress"] == 1.0
    ((name, accuracy),) = progress["models"].items()
    assert accuracy > 0.5
    file = tmp_path / "blue.png"
    file.write_bytes(colour("blue", 50))
    answers = client.predict(handle_file(str(file)), "", api_name="/predict")
    with zipfile.ZipFile(model) as packed:
        packed.extractall(tmp_path / "mine")
    (expected,) = predict(tmp_path / "mine" / "model", file)
    (first, *_) = answers[name]["labels"]
    assert first["label"] == expected.labels[0][0]
    assert first["probability"] == pytest.approx(expected.labels[0][1], abs=1e-5)
    heat = client.predict(handle_file(str(file)), "red", name, api_name="/explain")
    assert heat["label"] == "red"
    assert heat["image"].startswith("data:image/jpeg;base64,")
    client.close()


def test_a_program_is_told_what_is_wrong_in_a_sentence(server, tmp_path):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    client = Client(server, verbose=False)
    bad = tmp_path / "bad.zip"
    bad.write_bytes(b"nothing")
    with pytest.raises(AppError, match="This is no zip file"):
        client.predict(handle_file(str(bad)), "model", "exact_head", 32, api_name="/train")
    with pytest.raises(AppError, match="no model yet"):
        client.predict(handle_file(str(bad)), "", api_name="/predict")
    client.close()


def test_what_visitors_click_is_not_offered_to_programs(server):
    from gradio_client import Client

    client = Client(server, verbose=False)
    found = client.view_api(return_format="dict")
    assert set(found["named_endpoints"]) == {"/predict", "/explain", "/train"}
    assert found["unnamed_endpoints"] == {}
    client.close()


def test_the_training_of_a_visitor_who_leaves_ends(browser, server, archive):
    page = browser.new_context().new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(server)
    page.wait_for_selector("#train-example")
    send(page, archive)
    plan(page, "Head first, then everything")
    page.click("#train-go")
    page.wait_for_selector("#train-live [role=progressbar]")
    page.context.close()
    second = browser.new_context().new_page()
    second.set_default_timeout(PATIENCE)
    second.goto(server)
    second.wait_for_selector("#train-example")
    send(second, archive)
    plan(second)
    second.click("#train-go")
    started = time.monotonic()
    second.get_by_text("Right on validation").wait_for()
    assert time.monotonic() - started < 100
    second.context.close()
