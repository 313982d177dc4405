"""A page that is served, for a browser that looks at it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from children import Child, started
from colours import zip_of_colours
from drawn import picture
from tiny_model import tiny_run

SPACE = Path(__file__).resolve().parents[2] / "spaces" / "demo"
APPS: list[Child] = []
RUN = """
import importlib, runpy, sys
from gradio import block_function, http_server, oauth
block_function.spaces = None  # a folder of this repository has the name of that package
for module in (http_server, oauth):  # which have read the environment
    importlib.reload(module)
sys.path.insert(0, sys.argv[1].rpartition("/")[0])
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""
FRESH = "import os, sys; os.execv(sys.executable, [sys.executable, sys.argv[1]])"
PATIENCE = 60.0  # seconds, on a machine that is busy with something else


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    """A run's folder with a report."""
    return tiny_run(tmp_path_factory.mktemp("space") / "flowers-lp_ft")


@pytest.fixture(scope="session")
def serve(tmp_path_factory) -> Iterator[Callable[..., str]]:
    """Serve the Space's own app; a function from MODEL to the page's address, with the file of
    all that each app says, by address. One with another Hub loads its libraries itself."""

    def start(*models: Path | str, app: Path = SPACE / "app.py", **more: str) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        env = {**os.environ, "GRADIO_SERVER_PORT": str(port), **more}
        env["MODEL"] = " ".join(map(str, models))
        log = tmp_path_factory.mktemp("log") / "app.log"
        address = f"http://127.0.0.1:{port}/"
        served = started(
            FRESH if "HF_ENDPOINT" in more else RUN,
            str(app),
            folder=app.parent,
            env=env,
            said=[log, log],
        )
        APPS.append(served)
        start.logs[address] = log
        wait_for(address, served, log)
        return address

    start.logs = {}
    yield start
    stop_apps()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """Stop what is served after the last test here: an app is never quite idle."""
    if nextitem is None or nextitem.path.parent != Path(__file__).parent:
        stop_apps()


def stop_apps() -> None:
    while APPS:
        app = APPS.pop()
        if app.is_alive():
            os.kill(app.pid, signal.SIGTERM)
        app.join(20)
        app.kill()


@pytest.fixture(scope="session")
def archive(tmp_path_factory) -> Path:
    """A zip of folders to train on."""
    return zip_of_colours(tmp_path_factory.mktemp("zip") / "colours.zip")


@pytest.fixture(scope="session")
def server(serve, run, tmp_path_factory) -> str:
    """A page with a model and an image to click on; visitors may train the model's tiny network."""
    app = Path(shutil.copy(SPACE / "app.py", tmp_path_factory.mktemp("app")))
    (app.parent / "examples").mkdir()
    picture(7, 200, 120).save(app.parent / "examples" / "seven.png")
    return serve(run, app=app, BACKBONES=str(run / "model"))


def wait_for(address: str, app: Child, log: Path) -> None:
    until = time.monotonic() + 2 * PATIENCE
    while time.monotonic() < until:
        assert app.is_alive(), log.read_text()
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"nothing answers at {address}: {log.read_text()}")
