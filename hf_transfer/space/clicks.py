"""What happens when a visitor clicks in Train your own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import gradio as gr

from hf_transfer.data.audit import audit
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.data.pixels import open_pixels
from hf_transfer.data.sources import scan
from hf_transfer.recipe.load import parse_recipe
from hf_transfer.recipe.specs import DataSpec
from hf_transfer.space import training
from hf_transfer.space.draft import advised_draft, draft_of, new_draft
from hf_transfer.space.drawn import classes_view, findings_view, note
from hf_transfer.space.drawn_made import made_views
from hf_transfer.space.drawn_plan import plan_view
from hf_transfer.space.examples import TUNED, example_ways
from hf_transfer.space.jobs import Job, events_of
from hf_transfer.space.limits import Refused
from hf_transfer.space.networks import LETTERS
from hf_transfer.space.site import Site, told
from hf_transfer.space.tab_try import SIDE_BY_SIDE, examples_view, no_model_view
from hf_transfer.space.visitors import Visitor

LETTERS_PX = 32  # the size that the built-in network knows
LISTS = 10  # parts of the page that show which models there are


class Clicks:
    """The handlers of one site."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def visitor(self, request: gr.Request) -> Visitor:
        """Return who clicked. Raises Refused."""
        return self.site.visitors.of(request.session_hash)

    def add_zip(self, path: str | None, request: gr.Request) -> Any:
        """Take the images of a zip file."""
        visitor = self.visitor(request)
        if not path:
            return gr.skip(), *self._changed(visitor, "")
        with visitor.lock:
            try:
                words = visitor.own.add_zip(Path(path))
            finally:
                Path(path).unlink(missing_ok=True)
            visitor.digits = False
            return gr.update(value=None), *self._changed(visitor, words)

    def add_files(self, label: str, paths: list[str] | str | None, request: gr.Request) -> Any:
        """Take the images of one class."""
        visitor = self.visitor(request)
        sent = [Path(one) for one in ([paths] if isinstance(paths, str) else paths or [])]
        if not sent:
            return [gr.skip()] * 4
        with visitor.lock:
            # What is sent while other files are read comes with those, which are gone by then.
            places = [place for place in sent if place.exists()] or sent
            try:
                words = visitor.own.add(label, [(place.name, place) for place in places])
            finally:
                for place in places:
                    place.unlink(missing_ok=True)
            visitor.digits = False
            return self._changed(visitor, words)

    def drop(self, event: gr.EventData, request: gr.Request) -> Any:
        """Remove a class."""
        visitor = self.visitor(request)
        label = str(getattr(event, "label", ""))
        with visitor.lock:
            training.check_idle(visitor)
            if label in visitor.pictures.labels:
                visitor.pictures.drop(label)
            return self._changed(visitor, f"Class {label} removed.")

    def start_over(self, request: gr.Request) -> Any:
        """Remove all images."""
        visitor = self.visitor(request)
        with visitor.lock:
            training.check_idle(visitor)
            visitor.digits = False
            visitor.pictures.clear()
            return self._changed(visitor, "All images removed.")

    def audited(self, request: gr.Request) -> str:
        """Show what is odd about the images."""
        return findings_view(findings_of(self.visitor(request)))

    def _choice(self, visitor: Visitor, network: str, size: int) -> tuple[str, int | None]:
        """Return the backbone and the size of images that are chosen. Raises Refused."""
        if len(visitor.pictures.labels) < 2:
            raise Refused("Add images of at least two classes first, or run the example.")
        backbone = self.site.backbone(network or "")
        return backbone, LETTERS_PX if backbone == str(self.site.letters) else size or None

    async def advised(self, network: str, size: int, request: gr.Request) -> AsyncIterator[Any]:
        """Look at the images, say what to freeze, and make that plan."""

        def start() -> tuple[Visitor, Job, str]:
            visitor = self.visitor(request)
            backbone, px = self._choice(visitor, network, size)
            return visitor, training.start_advice(self.site, visitor, backbone, px), backbone

        visitor, job, backbone = await asyncio.to_thread(told(start))
        async for view, _ in training.follow(self.site, visitor, job):
            yield view, gr.skip()
        if job.state != "done":
            return

        def plan() -> str:
            visitor.advice = (backbone, training.advice_view(job))
            text = next(events_of(job, "advice"))["recipe"]
            data = visitor.pictures.folder
            visitor.draft = advised_draft(text, data, backbone, self.site.limits)
            visitor.draft.chosen = (network, None, size)
            return plan_view(visitor.draft)

        shown = await asyncio.to_thread(told(plan))
        yield gr.skip(), shown

    def planned(self, network: str, start: str, size: int, request: gr.Request) -> str:
        """Make a plan."""
        visitor = self.visitor(request)
        backbone, px = self._choice(visitor, network, size)
        data = visitor.pictures.folder
        with visitor.lock:
            visitor.draft = new_draft(data, backbone, start, px, self.site.limits)
            visitor.draft.chosen = (network, start, size)
            return plan_view(visitor.draft)

    def change_plan(self, event: gr.EventData, request: gr.Request) -> str:
        """Change the plan as was clicked."""
        visitor = self.visitor(request)
        if visitor.draft is None:
            raise Refused("Make a plan first.")
        names = ("act", "phase", "stage", "value")
        with visitor.lock:  # a training that is asked for meanwhile waits for the change
            visitor.draft.change({name: str(getattr(event, name, "") or "") for name in names})
            return plan_view(visitor.draft)

    async def train_plan(
        self, network: str, start: str, size: int, request: gr.Request
    ) -> AsyncIterator[Any]:
        """Train the plan. Raises Refused where something else is chosen by now."""

        def begin(site: Site, visitor: Visitor) -> Job:
            with visitor.lock:
                if visitor.draft is not None:
                    visitor.draft.check_chosen((network, start, size))
                return training.start_plan_of(site, visitor)

        async for update in self._run(request, begin):
            yield update

    async def run_example(self, request: gr.Request) -> AsyncIterator[Any]:
        """Train the example, and show the plan of its fine-tuning."""
        async for update in self._run(request, training.start_example):
            yield update

    async def _run(
        self, request: gr.Request, begin: Callable[[Site, Visitor], Job]
    ) -> AsyncIterator[Any]:
        def start() -> tuple[Visitor, Job]:
            visitor = self.visitor(request)
            return visitor, begin(self.site, visitor)

        visitor, job = await asyncio.to_thread(told(start))
        shown, same = classes_view(visitor.pictures), [gr.skip()] * 3
        yield shown, *same, training.job_view(self.site, job), *_same()
        drawn = visitor.draft is not None  # the example's plan waits for its network
        async for view, news in training.follow(self.site, visitor, job):
            plan = same
            if not drawn and visitor.digits and any(events_of(job, "way")):
                drawn = True
                plan = [LETTERS, LETTERS_PX, await asyncio.to_thread(self._example_plan, visitor)]
            lists = model_updates(self.site, visitor) if news else _same()
            yield gr.skip(), *plan, view, *lists

    def _example_plan(self, visitor: Visitor) -> str:
        ways = example_ways(visitor.pictures.folder, self.site.letters)
        visitor.draft = draft_of(TUNED, parse_recipe(ways[TUNED], "example.yaml"), self.site.limits)
        return plan_view(visitor.draft)

    def stop(self, request: gr.Request) -> None:
        """Stop the training."""
        visitor = self.visitor(request)
        if visitor.job is None or visitor.job.is_over:
            raise Refused("Nothing is being trained.")
        visitor.job.stop()

    def _changed(self, visitor: Visitor, words: str) -> tuple[Any, ...]:
        """Return what shows a visitor's images after a change: the old plan is void."""
        visitor.draft, visitor.advice = None, ("", "")
        shown = classes_view(visitor.pictures)
        return note(words), shown, "", plan_view(None)


def _same() -> list[Any]:
    return [gr.skip()] * LISTS


def model_updates(site: Site, visitor: Visitor) -> list[Any]:
    """Return what changes on the page when a visitor's models have changed: the models of Try, the
    model of How it was made with its view, the model to take away, the hint without any, the
    button that leads to Try, the examples to click on, and the images of a cell."""
    known = site.models_of(visitor)
    titles, own = list(known), list(visitor.models)
    newest = own[-1] if own else (titles[0] if titles else None)
    chosen = (own[::-1][:SIDE_BY_SIDE][::-1] + list(site.models))[:SIDE_BY_SIDE]
    return [
        gr.update(choices=titles, value=chosen, visible=len(titles) > 1),
        gr.update(choices=titles, value=newest, visible=bool(titles)),
        *(made_views(known[newest]) if newest else [gr.skip()] * 3),
        gr.update(choices=own, value=own[-1] if own else None, visible=bool(own)),
        no_model_view(titles),
        gr.update(visible=bool(titles)),
        examples_view(site, visitor),
        "",
    ]


def findings_of(visitor: Visitor) -> list[tuple[str, str, int, list[tuple[str, str]]]]:
    """Return what the audit finds in a visitor's images, each with pictures. Raises UserError."""
    pictures = visitor.pictures
    if not pictures.kept:
        raise Refused("Add images first.")
    spec, settings = DataSpec(path=str(pictures.folder), max_bad=1.0), ImageSettings(64)
    found = scan(spec)
    _, seen = open_pixels(found, settings, visitor.folder / "looked-at")
    report, _ = audit(found, seen, settings, spec)
    known = {str(one.file.relative_to(pictures.folder)): one for one in pictures.kept}
    return [
        (
            one.kind,
            one.done,
            one.count,
            [(known[name].thumb, known[name].name) for name in one.files if name in known],
        )
        for one in report.findings
    ]
