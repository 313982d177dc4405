"""Where the demo was in 0.1.0: Spaces that were published then import `launch` from here.

The function `hf_transfer.demo` has the same name. So it stands for this module, too, and whoever
imports either gets both.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hf_transfer.space.app import demo

if TYPE_CHECKING:
    import gradio

__all__ = ["launch"]


def launch(
    model: str | Path,
    port: int | None = None,
    *,
    host: str | None = None,
    examples: str | Path | None = None,
    announce: Callable[[str], object] | None = None,
    wait: bool = True,
) -> gradio.Blocks:
    """Serve the page of one model, with the images in the folder `examples`, as `demo` does."""
    shown = sorted(Path(examples).iterdir()) if examples else ()
    return demo(model, port=port, host=host, examples=shown, announce=announce, wait=wait)


demo.launch = launch  # type: ignore[attr-defined]
sys.modules[__name__] = demo  # type: ignore[assignment]
