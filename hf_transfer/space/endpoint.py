"""/train for programs: a zip file of folders in, progress while it trains, the model out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr

from hf_transfer.space import training
from hf_transfer.space.draft import new_draft
from hf_transfer.space.networks import LETTERS
from hf_transfer.space.site import Site, told


def build_endpoint(site: Site) -> None:
    """Offer /train to programs."""
    archive = gr.File(visible=False, label="zip file of folders; none: the example")
    network = gr.Textbox(visible=False, label="network")
    start = gr.Textbox(visible=False, label="recipe")
    size = gr.Number(visible=False, label="image size", precision=0)
    progress = gr.JSON(visible=False, label="progress")
    model = gr.File(visible=False, label="model")
    go = gr.Button(visible=False)
    archive.preprocess = lambda sent: sent.path if sent else None

    async def train(
        archive: str | None,
        network: str,
        recipe: str,
        image_size: int | None,
        request: gr.Request,
    ) -> AsyncIterator[Any]:
        """Train on the folders of a zip file and yield progress; last comes the model's folder."""

        @told
        def begin() -> Any:
            visitor = site.visitors.of(request.session_hash)
            if archive is None:
                return visitor, training.start_example(site, visitor)
            visitor.pictures.clear()
            try:
                visitor.pictures.add_zip(Path(archive))
            finally:
                Path(archive).unlink(missing_ok=True)
            backbone = site.backbone(network or LETTERS)
            px = 32 if backbone == str(site.letters) else image_size or None
            data, start = visitor.pictures.folder, recipe or "exact_head"
            draft = new_draft(data, backbone, start, px, site.limits)
            visitor.draft = draft
            return visitor, training.start_plan_of(site, visitor)

        visitor, job = await asyncio.to_thread(begin)
        before: dict[str, Any] = {}
        async for _ in training.follow(site, visitor, job):
            now = {
                "state": job.state,
                "place": site.jobs.place(job),
                "progress": round(training.progress_of(job), 3),
                "why": job.why,
                "models": {
                    event["way"]: event["accuracy"] for event in training.events_of(job, "model")
                },
            }
            if now != before:
                before = now
                yield now, None
        if job.state != "done":
            raise gr.Error(f"The training {job.state}: {job.why}.", print_exception=False)
        newest = list(visitor.models)[-1]
        path, _, _ = await asyncio.to_thread(training.packed, visitor, visitor.models[newest])
        yield {**before, "state": "done", "progress": 1.0}, str(path)

    go.click(
        train,
        [archive, network, start, size],
        [progress, model],
        api_name="train",
        concurrency_limit=None,
    )
