"""What programs call: /predict and /explain an image, /train with progress while it trains."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import gradio as gr

from hf_transfer.space import answering, training
from hf_transfer.space.draft import new_draft
from hf_transfer.space.jobs import Job, events_of
from hf_transfer.space.limits import Refused
from hf_transfer.space.models import Shown
from hf_transfer.space.networks import LETTERS
from hf_transfer.space.parts import as_sent
from hf_transfer.space.site import Site, told
from hf_transfer.space.tab_try import ONCE
from hf_transfer.space.uploads import data_address
from hf_transfer.space.visitors import Visitor


def build_endpoints(site: Site) -> None:
    """Offer /predict, /explain and /train to programs."""
    _answers(Programs(site))
    _train(Programs(site))


def _answers(programs: Programs) -> None:
    image = _file("image")
    title = gr.Textbox(visible=False, label="model")
    label = gr.Textbox(visible=False, label="label")
    found = gr.JSON(visible=False, label="answers")
    heat = gr.JSON(visible=False, label="heat map")
    ask, ask_why = gr.Button(visible=False), gr.Button(visible=False)
    ask.click(told(programs.predict), [image, title], found, api_name="predict", **ONCE)
    ask_why.click(told(programs.explain), [image, label, title], heat, api_name="explain", **ONCE)


def _train(programs: Programs) -> None:
    archive = _file("zip file of folders; none: the example")
    network = gr.Textbox(visible=False, label="network")
    start = gr.Textbox(visible=False, label="recipe")
    size = gr.Number(visible=False, label="image size", precision=0)
    progress = gr.JSON(visible=False, label="progress")
    model = gr.File(visible=False, label="model")
    gr.Button(visible=False).click(
        programs.train,
        [archive, network, start, size],
        [progress, model],
        api_name="train",
        concurrency_limit=None,
    )


def _file(label: str) -> gr.File:
    """Return a field whose file comes as it was sent."""
    file = gr.File(visible=False, label=label)
    as_sent(file, attrgetter("path"))
    return file


class Programs:
    """The endpoints of one site."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def predict(self, image: str, model: str, request: gr.Request) -> dict[str, Any]:
        """Return the ranked labels of an image by each model, or by the one that is named."""
        visitor = self._visitor(request, image)
        chosen = _named(self.site, visitor, model)
        rows = answering.answers(answering.asked_of([image], self.site), chosen, self.site)
        if rows[0][0].error:
            raise Refused(rows[0][0].error)
        told_rows = [{**row.to_dict(), "file": Path(image).name} for row in rows[0]]
        return dict(zip([one.title for one in chosen], told_rows, strict=True))

    def explain(self, image: str, label: str, model: str, request: gr.Request) -> dict[str, Any]:
        """Return where a model sees a label: a picture under its heat map as a data: address."""
        visitor = self._visitor(request, image)
        (chosen, *_) = _named(self.site, visitor, model)
        (asked,) = answering.asked_of([image], self.site)
        overlay, name, share = answering.explained(asked, label, chosen, self.site)
        address = data_address(overlay)
        return {"model": chosen.title, "label": name, "said": share, "image": address}

    async def train(
        self,
        archive: str | None,
        network: str,
        recipe: str,
        image_size: int | None,
        request: gr.Request,
    ) -> AsyncIterator[Any]:
        """Train on the folders of a zip file and yield progress; last comes the model's folder."""
        asked = (archive, network, recipe, image_size, request)
        visitor, job = await asyncio.to_thread(told(self._begin), *asked)
        before: dict[str, Any] = {}
        async for _ in training.follow(self.site, visitor, job):
            now = self._progress(job)
            if now != before:
                before = now
                yield now, None
        if job.state != "done":
            raise gr.Error(f"The training {job.state}: {job.why}.", print_exception=False)
        newest = list(visitor.models)[-1]
        path, _, _ = await asyncio.to_thread(
            training.packed, self.site, visitor, visitor.models[newest]
        )
        yield {**before, "state": "done", "progress": 1.0}, str(path)

    def _begin(
        self,
        archive: str | None,
        network: str,
        recipe: str,
        image_size: int | None,
        request: gr.Request,
    ) -> tuple[Visitor, Job]:
        site, visitor = self.site, self.site.visitors.of(request.session_hash)
        if archive is None:
            return visitor, training.start_example(site, visitor)
        training.check_idle(visitor)
        visitor.digits = False
        visitor.pictures.clear()
        try:
            visitor.pictures.add_zip(Path(archive))
        finally:
            Path(archive).unlink(missing_ok=True)
        backbone = site.backbone(network or LETTERS)
        px = 32 if backbone == str(site.letters) else image_size or None
        data, start = visitor.pictures.folder, recipe or "exact_head"
        visitor.draft = new_draft(data, backbone, start, px, site.limits)
        return visitor, training.start_plan_of(site, visitor)

    def _progress(self, job: Job) -> dict[str, Any]:
        models = {event["way"]: event["accuracy"] for event in events_of(job, "model")}
        return {
            "state": job.state,
            "place": self.site.jobs.place(job),
            "progress": round(training.progress_of(job), 3),
            "why": job.why,
            "models": models,
        }

    def _visitor(self, request: gr.Request, image: str | None) -> Visitor:
        visitor = self.site.visitors.of(request.session_hash)
        if not image:
            raise Refused("Send an image.")
        self.site.visitors.note(visitor, [image])
        return visitor


def _named(site: Site, visitor: Visitor, title: str) -> list[Shown]:
    known = site.models_of(visitor)
    if not known:
        raise Refused("There is no model yet. Train one with /train.")
    if title and title not in known:
        raise Refused(f"There is no model {json.dumps(title)}; there are {', '.join(known)}.")
    return [known[title]] if title else list(known.values())
