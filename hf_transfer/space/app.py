"""The page, served until it is stopped: `hf-transfer demo` and the Space are this."""

from __future__ import annotations

import atexit
import contextlib
import gc
import logging
import os
import secrets
import signal
import threading
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_transfer.base.boundary import said
from hf_transfer.base.errors import UserError
from hf_transfer.base.signatures import checked
from hf_transfer.space.limits import Limits

if TYPE_CHECKING:
    import gradio

    from hf_transfer.space.site import Site

logger = logging.getLogger(__name__)
WAKE_SECONDS = 0.05  # between looks at the queue: a page that nobody uses should need no core
HERE = ("127.0.0.1", "localhost", "::1")
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial")
MONO = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")


@checked
def demo(
    *models: str | Path,
    port: int | None = None,
    host: str | None = None,
    backbones: Sequence[str] = (),
    examples: Sequence[str | Path] = (),
    announce: Callable[[str], object] | None = None,
    wait: bool = True,
    limits: Limits | None = None,
) -> gradio.Blocks:
    """Serve the page until Ctrl-C, or return it at once without `wait`; `.close()` ends it.

    `models` are run folders, model folders or Hub repositories, shown side by side; without any the
    page offers the example and training. `backbones` are networks that visitors may train, besides
    those in the Hub's cache; `examples` are images to click on. `announce` is called with the
    address; `limits` are those of a visitor. Without a port it is the first free one from 7860 on;
    `host` is this machine alone, or GRADIO_SERVER_NAME. Raises UserError, also for a port in use.
    """
    if port is not None and not 0 < port < 2**16:
        raise UserError(f"port is {port}; choose one from 1 to {2**16 - 1:,}, or leave it out")
    gr = _gradio()
    from hf_transfer.space.login import end_logins, on_a_space
    from hf_transfer.space.page import build_page
    from hf_transfer.space.site import Site

    site = Site(models, backbones, limits, examples, _is_alone(host))
    with contextlib.ExitStack() as undone:  # all of it, should the page not come up
        undone.callback(site.close)
        undone.callback(_uploads_to(site.visitors.uploads))
        page = build_page(site)
        page.queue(default_concurrency_limit=4, max_size=site.limits.visitors)
        page._queue.sleep_when_free = WAKE_SECONDS  # gradio's millisecond takes 5% of a core
        site.jobs.warm_up()
        if not models:  # the page begins with the example, which needs them
            site.learn_letters()
        address = _launch(gr, page, site.limits, host, port)
        if on_a_space():
            end_logins(page.app)
        _close_with(page, site, undone.pop_all().close)
    logger.info("serving %d models at %s", len(models), address)
    if announce:
        announce(address)
    if wait:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
        gc.freeze()  # what is loaded stays: going through it made the end take seconds more
        page.block_thread()
    return page


def _launch(
    gr: Any, page: gradio.Blocks, limits: Limits, host: str | None, port: int | None
) -> str:
    """Serve the page and return its address. Raises UserError where that cannot be."""
    page.space_id = None  # gradio would add a header to a Space, with fonts from elsewhere
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            max_file_size=limits.upload_bytes,
            css=_asset("style.css"),
            theme=_theme(gr),
            footer_links=["api"],
            run_history=False,  # gradio would keep what a visitor sent in the browser
            enable_monitoring=False,
        )
    except OSError as error:
        if port is None:
            raise UserError(f"the demo cannot be served: {said(error)}") from error
        raise UserError(f"port {port} is not free; choose another, or leave it out") from error
    return address


def _is_alone(host: str | None) -> bool:
    """Return whether no other machine reaches a page at this host."""
    return (host or os.environ.get("GRADIO_SERVER_NAME") or HERE[0]) in HERE


def _theme(gr: Any) -> Any:
    """Return gradio's theme with fonts that are on every machine, and enough contrast for all."""
    theme = gr.themes.Default(
        font=list(FONTS), font_mono=list(MONO), primary_hue="blue", neutral_hue="slate"
    )
    return theme.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        color_accent="*primary_700",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_cancel_background_fill="#b91c1c",
        button_cancel_background_fill_hover="#991b1b",
    )


def _uploads_to(folder: Path) -> Callable[[], None]:
    """Let uploads lie in the server's own folder while it serves; return what ends that.

    Each lies in a folder of its own there: gradio names it after the content, so that whoever has
    an image could ask whether another visitor sent it, and two who send the same share a file.
    """
    from gradio import route_utils

    whole = route_utils.GradioUploadFile
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(folder)

    class Upload(route_utils.GradioUploadFile):
        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **options)
            self.sha.update(secrets.token_bytes(32))

    route_utils.GradioUploadFile = Upload  # type: ignore[misc]  # its only way in

    def restore() -> None:
        route_utils.GradioUploadFile = whole  # type: ignore[misc]  # as above
        if before is None:
            os.environ.pop("GRADIO_TEMP_DIR", None)
        else:
            os.environ["GRADIO_TEMP_DIR"] = before

    return restore


def _close_with(page: gradio.Blocks, site: Site, undo: Callable[[], None]) -> None:
    """Close the site when the page closes, or the program ends."""
    close = page.close

    def closed(verbose: bool = True) -> None:
        close(verbose=verbose)
        atexit.unregister(undo)
        undo()

    page.close = closed  # type: ignore[method-assign]  # also when gradio closes it
    page.site = site  # type: ignore[attr-defined]  # our own, kept as long as the page
    atexit.register(undo)


def _asset(name: str) -> str:
    return resources.files("hf_transfer.space").joinpath(name).read_text(encoding="utf-8")


def _gradio() -> Any:
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise UserError(
            "the demo needs gradio; install it with: pip install 'hf-transfer-learning[demo]'"
        ) from error
    return gradio
