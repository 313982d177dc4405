"""What all tests share: how they are spread over workers, and the real data where it is."""

import atexit
import gc
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_EVALUATE_OFFLINE", "1")
SCRATCH = tempfile.mkdtemp(prefix="hf-transfer-tests-")
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)
atexit.register(gc.freeze)  # workers end seconds earlier
gc.disable()  # until the tests run: of what is imported nothing is garbage
os.environ["HF_TRANSFER_CACHE"] = f"{SCRATCH}/cache"
os.environ["HF_MODULES_CACHE"] = f"{SCRATCH}/modules"  # code that evaluate and others copy
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

loaded = 0  # modules, when the garbage collection last learned of them
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
)
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Take three workers for two cores, as many tests wait for a page, a process or a disk; and
    none for a single file or test: workers take seconds to start."""
    one = len(config.args) == 1 and Path(config.args[0].partition("::")[0]).is_file()
    return 0 if one else 3


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave tests that share what a module makes, or the pages that are served, to one worker, so
    that it is made once. Have workers begin with what takes longest, so that none is left with it
    at the end; elsewhere it comes last."""
    groups: dict[str, str] = {}
    for item in items:
        made = (each for kind in item._fixtureinfo.name2fixturedefs.values() for each in kind)
        room = item.path.parent.name.replace("tests", "all")
        group = item.nodeid
        if item.get_closest_marker("alone"):
            group = "alone"
        elif any(fixture.scope == "module" for fixture in made):
            group = f"{room} {item.path.stem}"
        if group != item.nodeid:
            item.add_marker(pytest.mark.xdist_group(group))
        groups[item.nodeid] = group
    slow = {groups[item.nodeid] for item in items if item.get_closest_marker("slow")}
    if hasattr(config, "workerinput"):
        items.sort(key=lambda i: (groups[i.nodeid] != "alone", groups[i.nodeid] not in slow))
    else:
        items.sort(key=lambda i: i.get_closest_marker("alone") is not None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Begin to collect garbage, and fork what processes are forked off, before the first test."""
    gc.enable()
    if "children" in sys.modules:
        sys.modules["children"].begin()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """Keep what is loaded by now out of the garbage collection that every phase of a run does."""
    global loaded
    if len(sys.modules) > loaded + 50:
        gc.collect()
        gc.freeze()
        loaded = len(sys.modules)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Keep reports free of what UTF-8 cannot hold, such as names of other bytes: they are sent."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture(autouse=True)
def quiet_as_at_first() -> None:
    """Undo that commands, run in the tests before, made the package say what it does."""
    logging.getLogger("hf_transfer").setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium, the one of a whole process: its driver's loop never ends before it."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as driver:
        flags = list(BROWSER_FLAGS)
        browser = driver.chromium.launch(executable_path=found, args=flags, timeout=60_000)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def flowers() -> Path:
    """The folder of 4,317 flower photos in 5 classes."""
    folder = SHARED / "data" / "flowers"
    if not folder.is_dir():
        pytest.skip(f"real images are not there: {folder.name}")
    return folder


@pytest.fixture(scope="session")
def resnet10t() -> Path:
    """The timm folder with a ResNet-10-T pretrained on 200 classes at 64 px."""
    folder = SHARED / "weights" / "resnet10t_tiny_imagenet"
    if not folder.is_dir():
        pytest.skip(f"pretrained weights are not there: {folder.name}")
    return folder
