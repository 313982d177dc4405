"""The example, and a push with the visitor's own login, from a browser through a provider."""

import re
import tempfile
from pathlib import Path

import hub_server
import login_server
import pytest
from drawn import picture

from hf_transfer.space.limits import PREFIX

pytestmark = [pytest.mark.alone, pytest.mark.slow]

httpx = pytest.importorskip("httpx")
pytest.importorskip("gradio_client")
pytest.importorskip("authlib")

PATIENCE = 300_000  # milliseconds, on a machine that is busy with something else
PEOPLE = {"alice": "hf_alices_own_token", "bob": "hf_bobs_own_token"}
APP = """
from hf_transfer.serving import hub
from hf_transfer.space import app, examples
examples.LETTERS, whole = 400, examples.load_recipe
shorter = ["phases.0.steps=20", "phases.1.steps=10"]
examples.load_recipe = lambda name: whole(name, shorter)
hub.check_loaders = lambda folder: None  # has tests of its own
app.demo(announce=print)
"""  # begins without a model


@pytest.fixture(scope="module")
def hub():
    with hub_server.serve() as hub:
        hub.people = {token: name for name, token in PEOPLE.items()}
        yield hub


@pytest.fixture(scope="module")
def provider():
    with login_server.serve(PEOPLE) as provider:
        yield provider


@pytest.fixture(scope="module")
def space(serve, hub, provider, tmp_path_factory):
    """A Space without a model, whose own token the Hub does not know."""
    app = tmp_path_factory.mktemp("space") / "app.py"
    app.write_text(APP)
    # What a Space has installed, for gradio; without it this repository's folder would be found.
    app.with_name("spaces.py").write_text("gradio_auto_wrap = lambda fn: fn")
    place = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_of_the_server"}
    place |= {"HF_HUB_DISABLE_XET": "1", "AUTHLIB_INSECURE_TRANSPORT": "1"}
    return serve(app=app, **place, **provider.settings)


def opened(browser, space):
    """Return the page of a new visitor; `page.asked` are the addresses that it asked for."""
    page = browser.new_context().new_page()
    page.set_default_timeout(PATIENCE)
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(space)
    page.get_by_role("link", name="Log in to the Hub").wait_for()
    return page


def log_in(page, name):
    """Log in in the tab that the page opens; it closes itself, and this page says who it is."""
    with page.expect_popup() as tab:
        page.get_by_role("link", name="Log in to the Hub").click()
    with tab.value.expect_event("close"):
        tab.value.get_by_role("link", name=f"I am {name}").click()
    page.get_by_text(f"Logged in as {name}.").wait_for()


def push(page, repository):
    """Ask for a push and return what the page says of it: an error, after a push that succeeded and
    is still told."""
    said, before = page.locator(".toast-body.error"), page.get_by_text("Pushed: ")
    said = said if before.count() else before.or_(said)
    page.get_by_label("Repository").fill(repository)
    page.get_by_role("button", name="Push to the Hub").click()
    said.last.wait_for()
    words = said.last.inner_text()
    for close in page.locator(".toast-close").all():
        close.click()
    # Else the next push would read what this one said.
    page.wait_for_function("!document.querySelector('.toast-body')")
    return words


def test_visitors_without_images_see_all_of_it_and_push_as_themselves(
    browser, space, serve, hub, provider, archive
):
    alice = opened(browser, space)
    alice.click("#train-example")
    alice.wait_for_selector("#train-plan table")
    alice.get_by_text("Accuracy on validation images").wait_for()
    assert "Log in to the Hub first" in push(alice, "alice/digits")
    log_in(alice, "alice")  # with a model that the page still has afterwards
    assert push(alice, "alice/digits") == f"Pushed: {hub.url}/alice/digits"
    pushed = hub.repositories["alice/digits"]
    assert pushed.private
    assert {"config.json", "model.safetensors", "README.md", "report.json"} <= set(pushed.files)

    bob = opened(browser, space)
    bob.set_input_files("#train-zip input[type=file]", archive)
    bob.wait_for_selector("#train-said [role=status]")
    bob.locator("#train-size input").click()
    bob.get_by_role("option", name="32 px").first.click()
    bob.click("#train-make")
    bob.wait_for_selector("#train-plan table")
    bob.click("#train-go")
    bob.get_by_text("Accuracy on validation images").wait_for()
    log_in(bob, "bob")
    assert "does not let you write to alice/digits" in push(bob, "alice/digits")
    assert push(bob, "colours") == f"Pushed: {hub.url}/bob/colours"
    assert provider.granted == ["alice", "bob"]
    assert set(hub.repositories) == {"alice/digits", "bob/colours"}
    assert len(pushed.commits) == 1
    assert_nobody_else_pushes(alice, space, provider)

    (cookie,) = [one for one in alice.context.cookies() if one["name"] == "session"]
    assert cookie["httpOnly"]
    assert cookie["secure"]
    bob.get_by_role("button", name="Log out").click()
    bob.get_by_role("link", name="Log in to the Hub").wait_for()
    assert "Log in to the Hub first" in push(bob, "colours")
    assert_secret([alice, bob], space, serve.logs[space], hub)

    alice.click("#train-lead")
    alice.click(".hft-example >> nth=3")
    alice.wait_for_selector("#try-answer .hft-bars li")
    shown = alice.inner_text("#try-answer")
    assert all(way in shown for way in ("Frozen", "Fine-tuned", "From scratch"))
    elsewhere = [url for url in alice.asked if not url.startswith((space, "data:", "blob:"))]
    assert elsewhere == []
    alice.context.close()
    bob.context.close()


def assert_nobody_else_pushes(page, space, provider):
    """A page from elsewhere, open in a browser that is logged in, cannot push for its visitor."""
    fns = httpx.get(f"{space}config").json()["dependencies"]
    (push,) = [fn["id"] for fn in fns if fn["api_name"] == "push"]
    body = {"data": [None, "alice/evil", False], "fn_index": push, "session_hash": "evil"}
    elsewhere = page.context.new_page()
    elsewhere.goto(f"{provider.url}/keys")
    sent = elsewhere.evaluate(
        """([url, body]) => fetch(url, {method: 'POST', credentials: 'include',
        headers: {'content-type': 'application/json'}, body: JSON.stringify(body)})
        .then(answer => answer.status, error => 'blocked')""",
        [f"{space}gradio_api/queue/join", body],
    )
    elsewhere.close()
    assert sent == 200  # gradio itself would let it
    said = httpx.get(f"{space}gradio_api/queue/data", params={"session_hash": "evil"}).text
    assert "only be asked for on this page" in said


def assert_secret(pages, space, log, hub):
    """No token is in a page or what it keeps, in a log, in the server's folder, or was pushed."""
    kept = "JSON.stringify(localStorage) + JSON.stringify(sessionStorage) + document.cookie"
    places = {"log": log.read_bytes(), "config": httpx.get(f"{space}config").content}
    for page in pages:
        places[f"page {page}"] = f"{page.content()} {page.evaluate(kept)}".encode()
    for name, repository in hub.repositories.items():
        places |= {f"{name}/{file}": data for file, data in repository.files.items()}
    assert not any(b"hf-transfer-space" in data for data in places.values())
    for root in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        places |= {str(file): file.read_bytes() for file in root.rglob("*") if file.is_file()}
    assert len(places) > 20
    found = [name for name, data in places.items() if re.search(rb"hf_\w+_token|hf_of_the", data)]
    assert found == []


def test_a_page_without_a_model_says_so_to_programs(space, tmp_path):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    picture(1).save(tmp_path / "one.png")
    client = Client(space, verbose=False)
    with pytest.raises(AppError, match="no model yet"):
        client.predict(handle_file(str(tmp_path / "one.png")), "", api_name="/predict")
    found = client.view_api(return_format="dict")
    assert set(found["named_endpoints"]) == {"/predict", "/explain", "/train"}
    client.close()
