"""What a page must be at every width and in both themes, whatever it shows."""

from __future__ import annotations

FADED = """() => Promise.all(
    document.getAnimations()
        .filter(a => a.playState === "running" && a.effect.getComputedTiming().endTime < Infinity)
        .map(a => a.finished.catch(() => null))
).then(() => null)"""
SEEN = [(width, theme) for width in (390, 1280) for theme in ("light", "dark")]


def assert_no_fault(page, what: str) -> None:
    """The page has no fault that axe finds, and is no wider than the screen."""
    import pytest

    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    before = page.viewport_size
    for width, theme in SEEN:
        page.set_viewport_size({"width": width, "height": 900})
        page.evaluate("dark => document.body.classList.toggle('dark', dark)", theme == "dark")
        page.evaluate(FADED)  # colours change little by little
        assert page.evaluate("document.documentElement.scrollWidth") <= width, (what, width)
        found = axe.run(page).response["violations"]
        faults = [(one["id"], one["nodes"][0]["html"][:120]) for one in found]
        assert faults == [], (what, width, theme)
    page.evaluate("document.body.classList.remove('dark')")
    page.set_viewport_size(before)
