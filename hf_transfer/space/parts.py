"""Parts of the page that all tabs are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.components import Component

CLICKS = """
element.addEventListener('click', event => {
  const one = event.target.closest('button[data-act]');
  if (!one) return;
  element.dataset.key = one.dataset.key || '';
  trigger('ask', {...one.dataset});
});
element.addEventListener('change', event => {
  const one = event.target.closest('input[data-act], select[data-act]');
  if (!one) return;
  element.dataset.key = one.dataset.key || '';
  trigger('ask', {...one.dataset, value: one.value});
});
watch('value', () => {
  const key = element.dataset.key;
  if (!key) return;
  const one = [...element.querySelectorAll('[data-key]')].find(el => el.dataset.key === key);
  if (one) one.focus({preventScroll: true});
});
"""
# Events that programs do not call, and that show no overlay over what they change.
HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
# gradio drops events that come while one before them is answered, unless told otherwise.
EACH: dict[str, Any] = {"trigger_mode": "multiple"}
LAST: dict[str, Any] = {"trigger_mode": "always_last"}
IN_ORDER: dict[str, Any] = {"concurrency_limit": 1}  # of all visitors, for what takes a moment


def html(
    value: str = "", name: str | None = None, clicks: bool = False, on_load: str | None = None
) -> gr.HTML:
    """Return a piece of HTML in our own style; with `clicks` its buttons and fields with data-act
    raise the event `ask`, which carries their data- attributes and their value. `on_load` is other
    JavaScript."""
    return gr.HTML(
        value, elem_id=name, js_on_load=CLICKS if clicks else on_load, apply_default_css=False
    )


def as_sent(part: Component, file: Callable[[Any], Any]) -> None:
    """Let a part give `file` of what was sent: gradio would open it first, and fail without a
    reason."""

    def preprocess(payload: Any) -> Any:
        return file(payload) if payload else None

    part.preprocess = preprocess  # type: ignore[method-assign]  # a subclass is another component


def heading(words: str) -> gr.HTML:
    """Return the heading of a step."""
    return html(f'<h2 class="hft-step">{words}</h2>')


def heard(words: str) -> gr.HTML:
    """Return the heading of a tab, for those who hear the page."""
    return gr.HTML(f"<h2>{words}</h2>", elem_classes="hft-heard", apply_default_css=False)


def button(words: str, **options: Any) -> gr.Button:
    """Return a button as wide as its words."""
    return gr.Button(words, **{"scale": 0, "min_width": 12 * len(words) + 48, **options})
