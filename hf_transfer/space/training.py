"""A visitor's training: started, followed, stopped, and its models on the page as they appear."""

from __future__ import annotations

import re
import secrets
import shutil
import time
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from hf_transfer.base.errors import UserError
from hf_transfer.base.files import owned
from hf_transfer.planning.plan import Plan
from hf_transfer.results.charts import Band
from hf_transfer.results.svg import escape
from hf_transfer.space import examples
from hf_transfer.space.draft import check_cost
from hf_transfer.space.drawn import about, note, panel, progress_bar
from hf_transfer.space.drawn_made import Curve, live_charts
from hf_transfer.space.jobs import Job, events_of
from hf_transfer.space.limits import Refused, without_paths
from hf_transfer.space.models import Shown, shown_model
from hf_transfer.space.site import Site, free_title
from hf_transfer.space.visitors import Visitor

POLL_SECONDS = 0.5
FINISHING = 0.06  # share of a way that is neither steps nor features


def start_plan_of(site: Site, visitor: Visitor) -> Job:
    """Start the training of a visitor's plan. Raises Refused where it is not trained here."""
    with visitor.lock:
        return _start_plan(site, visitor)


def _start_plan(site: Site, visitor: Visitor) -> Job:
    draft = visitor.draft
    if draft is None or draft.plan is None:
        raise Refused("Make a plan first." if draft is None else draft.problem)
    check_cost(draft.plan, site.limits)
    title = free_title(draft.title, site.models_of(visitor))
    steps = {title: max(1, _steps(draft.plan))}
    asked = {"ways": {title: draft.text()}, "steps": steps, "seconds": draft.plan.seconds}
    network, seen = visitor.advice
    return _submit(site, visitor, asked, seen if network == draft.recipe.backbone else "")


def start_advice(site: Site, visitor: Visitor, backbone: str, image_px: int | None) -> Job:
    """Start to look at a visitor's images for advice on what to freeze. Raises Refused."""
    wanted = {
        "data": str(visitor.pictures.folder),
        "backbone": backbone,
        "image_px": image_px,
    }
    return _submit(site, visitor, {"advise": wanted, "ways": {}, "steps": {}})


def start_example(site: Site, visitor: Visitor) -> Job:
    """Start the three ways of the example on a visitor's digits."""
    check_idle(visitor)
    examples.add_digits(visitor.example)
    visitor.draft, visitor.advice, visitor.digits = None, ("", ""), True
    site.learn_letters()
    ways = examples.example_ways(visitor.pictures.folder, site.letters)
    named = {free_title(way, site.models_of(visitor)): text for way, text in ways.items()}
    steps = dict(zip(named, (100, 180, 80), strict=True))
    return _submit(site, visitor, {"ways": named, "steps": steps, "seconds": None})


def check_idle(visitor: Visitor) -> None:
    """Raise Refused while a training of the visitor goes on, which reads their pictures."""
    if visitor.job is not None and not visitor.job.is_over:
        raise Refused("Your training is still running. Wait for it, or stop it first.")


def _submit(site: Site, visitor: Visitor, asked: dict[str, Any], advice: str = "") -> Job:
    with visitor.lock:
        check_idle(visitor)
        over = len(visitor.models) + len(asked["ways"]) - site.limits.models
        for title in list(visitor.models)[: max(0, over)]:
            remove(visitor, title)
        folder = visitor.folder / secrets.token_urlsafe(16)
        visitor.job = site.jobs.submit(Job(asked, folder, advice=advice))
        return visitor.job


def remove(visitor: Visitor, title: str) -> None:
    """Remove one of a visitor's models."""
    model = visitor.models.pop(title, None)
    if model is not None and model.run is not None:
        shutil.rmtree(model.run, ignore_errors=True)


def _steps(plan: Plan) -> int:
    return sum(planned.steps or 20 for planned in plan.phases)


async def follow(site: Site, visitor: Visitor, job: Job) -> AsyncIterator[tuple[str, bool]]:
    """Yield the view of a training until it is over, and whether new models have come."""
    import asyncio

    shown = ""
    while True:
        job.read = visitor.used = time.monotonic()
        over = job.is_over  # before the models are looked for: the last ones count, too
        found = 0
        if any("seen" not in event for event in events_of(job, "model")):
            # Not here: it waits for whatever else the visitor asked for, and others would with it.
            found = await asyncio.to_thread(new_models, visitor, job)
        view = job_view(site, job)
        if view != shown or found:
            shown = view
            yield view, bool(found)
        if over:
            return
        await asyncio.sleep(POLL_SECONDS)


def new_models(visitor: Visitor, job: Job) -> int:
    """Put the models that a training has finished on the page; return how many are new."""
    count = 0
    with visitor.lock:
        for event in events_of(job, "model"):
            title = event["way"]
            run = job.folder / title
            known = any(model.run == run for model in visitor.models.values())
            if known or event.get("seen"):
                continue
            event["seen"] = True
            try:
                model = shown_model(run / "model", title, own=True)
            except UserError:  # removed meanwhile
                continue
            model.advice = job.advice
            visitor.models[title] = model
            count += 1
    return count


# --- views -----------------------------------------------------------------------------------


def job_view(site: Site, job: Job | None) -> str:
    """Return what there is to see of a training: place, progress, curves, how it ended."""
    if job is None:
        return ""
    if job.state == "waiting":
        before = site.jobs.place(job)
        words = "Yours is next." if before <= 1 else f"{before} trainings come before yours."
        return panel(progress_bar(0, f"In the queue. {words}"), "Training")
    curves = curves_of(job)
    charts = live_charts(curves)
    if not job.is_over:
        share = progress_of(job)
        return panel(progress_bar(share, _doing(job, share)) + charts, "Training")
    if job.state == "done" and "advise" in job.asked:
        return panel(advice_view(job), "Advice")
    if job.state == "done":
        results = _results(job)
        return panel(progress_bar(1, results) + charts, "Trained")
    what = "The training was stopped" if job.state == "stopped" else "The training failed"
    why = "" if job.why == "stopped" else f": {job.why.rstrip('.')}"
    kept = " The models that were finished are kept." * any(events_of(job, "model"))
    return panel(note(f"{what}{why}.{kept}", "problem") + charts, "Training")


def advice_view(job: Job) -> str:
    """Return what the advice says, with its picture: accuracy against depth."""
    found = next(events_of(job, "advice"), None)
    if found is None:
        return ""
    pairs = "".join(
        f"<dt>{escape(title)}</dt><dd>{escape(text)}</dd>" for title, text in found["sentences"]
    )
    chart = (
        '<div class="hft-depth" tabindex="0" role="region" aria-label="Accuracy against depth">'
        f"{found['chart']}</div>"
    )
    words = without_paths(found["answer"])
    return f'<p class="hft-lede">{escape(words)}</p>{chart}<dl class="hft-said">{pairs}</dl>'


def _results(job: Job) -> str:
    told = [
        f"{event['way']} {event['accuracy']:.1%}"
        for event in events_of(job, "model")
        if event["accuracy"] is not None
    ]
    took = about(job.ended - job.started).removeprefix("about ")
    right = f"Accuracy on validation images: {', '.join(told)}. " if told else ""
    return f"{right}Took {took}. You can try them now."


def progress_of(job: Job) -> float:
    """Return which share of a training is done, 0..1, by its steps."""
    planned: dict[str, int] = job.asked["steps"]
    total = sum(planned.values())
    done = 0.0
    current, base, phase_steps = "", 0, 0
    ended = {event["way"] for event in events_of(job, "model")}
    for event in list(job.events):
        if event["kind"] == "way":
            current, base, phase_steps = event["way"], 0, 0
        elif event["kind"] == "phase":
            base, phase_steps = base + phase_steps, event["steps"]
        elif event["kind"] == "step" and current not in ended:
            way = min(1.0, (base + event["step"]) / planned.get(current, 1))
            done = way * planned.get(current, 1) * (1 - FINISHING)
    if current in ended:
        done = 0.0
    return min(0.99, (sum(planned.get(way, 0) for way in ended) + done) / max(1, total))


def _doing(job: Job, share: float) -> str:
    way = next((e["way"] for e in reversed(list(job.events)) if "way" in e), None)
    if "advise" in job.asked:
        return "Looking at your images: features of every depth, heads solved on each."
    if way is None:
        return "Starting. Images are read first."
    phase = next((e for e in reversed(list(job.events)) if e["kind"] == "phase"), None)
    last = job.events[-1]["kind"]
    what = f"{way}: reading images and computing features"
    if last == "finishing":
        what = f"{way}: answering the validation images"
    elif phase is not None and phase["way"] == way:
        what = f"{way}: training, phase {phase['phase'].removeprefix('phase-').partition('-')[0]}"
    gone = time.monotonic() - job.started
    left: float | None = job.asked.get("seconds")
    if share > 0.05:
        left = gone * (1 - share) / share
    words = f", {about(left)} left" if left is not None else ""
    return f"{what}{words}."


def curves_of(job: Job) -> list[Curve]:
    """Return the curves of each way so far, over the epochs of all its phases."""
    found: dict[str, Curve] = {}
    offset: dict[str, float] = {}
    last: dict[str, float] = {}
    for event in list(job.events):
        way = event.get("way")
        if way is None or event["kind"] not in ("phase", "accuracy", "loss"):
            continue
        curve = found.setdefault(way, Curve(way, [], [], []))
        if event["kind"] == "phase":
            offset[way] = last.get(way, 0.0)
            if curve.bands:
                curve.bands[-1] = Band(curve.bands[-1].name, curve.bands[-1].start, offset[way])
            name = event["phase"].split("-", 2)[-1]
            curve.bands.append(Band(name, offset[way], offset[way]))
            continue
        x = offset.get(way, 0.0) + event["epoch"]
        last[way] = max(last.get(way, 0.0), x)
        (curve.accuracy if event["kind"] == "accuracy" else curve.loss).append((x, event["value"]))
    for way, curve in found.items():
        if curve.bands:
            curve.bands[-1] = Band(curve.bands[-1].name, curve.bands[-1].start, last.get(way, 0.0))
    return list(found.values())


# --- downloads -------------------------------------------------------------------------------


def packed(site: Site, visitor: Visitor, model: Shown) -> tuple[Path, Path, Path]:
    """Return files to download, named after the model: its folder as a zip file, its recipe and
    its report."""
    if not model.own or model.run is None:
        raise Refused("Only models that you trained here can be downloaded.")
    place = visitor.served / secrets.token_urlsafe(16)
    place.mkdir(parents=True)
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", model.title).strip("-") or "model"
    path = place / f"{stem}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(owned(model.folder)):
            archive.write(model.folder / name, f"model/{name}")
        for name in ("report.json", "report.html", "recipe.yaml"):
            if (model.run / name).is_file():
                archive.writestr(name, _without_paths(model.run / name, site, visitor))
    texts = []
    for name in ("recipe.yaml", "report.html"):
        texts.append(place / f"{stem}-{name}")
        texts[-1].write_text(_without_paths(model.run / name, site, visitor), encoding="utf-8")
    return path, texts[0], texts[1]


def _without_paths(path: Path, site: Site, visitor: Visitor) -> str:
    """Return a text without the server's folders: the images are called `images`, and a network
    that the server was given by its folder as visitors see it."""
    text = path.read_text(encoding="utf-8")
    for title, network in site.here.items():
        if Path(network).is_absolute():
            text = text.replace(network, title)
    text = text.replace(str(visitor.pictures.folder), "images")
    text = text.replace(f"{visitor.folder}/", "")
    return text.replace(f"{visitor.folder.parent}/", "")
