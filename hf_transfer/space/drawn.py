"""Small pieces of HTML: all that comes from visitors, files and reports is escaped here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from hf_transfer.results.svg import escape
from hf_transfer.results.words import show_seconds
from hf_transfer.serving.predict import Prediction
from hf_transfer.space.limits import without_paths

if TYPE_CHECKING:
    from hf_transfer.space.uploads import Pictures

UNLIKE = "Unlike anything that this model was trained on: its answer should not count."
THUMBS = 5  # of a class that are shown
FINDING_THUMBS = 6
WAYS = 4  # colours of curves


def panel(content: str, title: str = "", style: str = "") -> str:
    """Return a titled section."""
    head = f"<h3>{escape(title)}</h3>" if title else ""
    return f'<section class="hft {style}">{head}{content}</section>'


def note(words: str, kind: str = "note") -> str:
    """Return a sentence as a note; `kind` problem: it is announced to screen readers."""
    role = "alert" if kind == "problem" else "status"
    text = escape(without_paths(words))
    return f'<p class="hft hft-{kind}" role="{role}">{text}</p>' if words else ""


def picture(address: str, words: str, style: str = "hft-thumb") -> str:
    """Return an image with its description."""
    return f'<img class="{style}" src="{escape(address)}" alt="{escape(words)}">'


# --- answers ---------------------------------------------------------------------------------


def answer_card(title: str, told: str, row: Prediction) -> str:
    """Return what one model says of one image: ranked labels with bars, or numbers."""
    head = f'<h3>{escape(title)}</h3><p class="hft-soft">{escape(told)}</p>'
    if row.error:
        return f'<article class="hft-answer">{head}{note(row.error, "problem")}</article>'
    if row.values is not None:
        cells = "".join(
            f"<tr><th scope='row'>{escape(name)}</th><td>{value:.7g}</td></tr>"
            for name, value in row.values
        )
        return f'<article class="hft-answer">{head}<table>{cells}</table></article>'
    top = note(UNLIKE, "problem") if row.unknown else ""
    if row.threshold is not None:
        names = ", ".join(name for name, _ in row.there) or "None of its labels"
        top += f'<p class="hft-top"><b class="hft-several">{escape(names)}</b></p>'
    elif row.labels:
        label, share = row.labels[0]
        top += f'<p class="hft-top"><b>{escape(label)}</b> <span>{share:.0%}</span></p>'
    there = {name for name, _ in row.there}
    bars = "".join(_bar(name, share, name in there) for name, share in row.labels)
    return f'<article class="hft-answer">{head}{top}<ol class="hft-bars">{bars}</ol></article>'


def _bar(label: str, share: float, there: bool) -> str:
    width = f"{max(0.5, 100 * share):.1f}"
    tone = "" if there else ' class="off"'
    return (
        f'<li{tone}><span class="hft-name">{escape(label)}</span>'
        f'<span class="hft-share">{share:.1%}</span>'
        f'<span class="hft-track"><i style="width:{width}%"></i></span></li>'
    )


def answer_table(models: Sequence[str], rows: Sequence[tuple[str, str, Sequence[str]]]) -> str:
    """Return a table of many images: thumbnail, name, and what each model says."""
    head = "".join(f"<th scope='col'>{escape(title)}</th>" for title in models)
    body = "".join(
        f"<tr><td>{picture(thumb, '', 'hft-small') if thumb else ''}</td>"
        f"<th scope='row'>{escape(name)}</th>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, thumb, cells in rows
    )
    top = f"<thead><tr><td></td><th scope='col'>Image</th>{head}</tr></thead>"
    return (
        '<div class="hft hft-scroll" tabindex="0" role="region" aria-label="Answers">'
        f'<table class="hft-table hft-answers">{top}<tbody>{body}</tbody></table></div>'
    )


def figures(pairs: Iterable[tuple[str, str, str]], style: str = "hft-figures") -> str:
    """Return pictures with captions: (address, caption, second line)."""
    cells = "".join(
        f"<figure>{picture(address, caption, 'hft-figure')}<figcaption>{escape(caption)}"
        f"<span>{escape(second)}</span></figcaption></figure>"
        for address, caption, second in pairs
    )
    return f'<div class="{style}">{cells}</div>'


# --- a visitor's pictures --------------------------------------------------------------------


def classes_view(pictures: Pictures) -> str:
    """Return the classes with some of their pictures and a button to remove each."""
    if not pictures.kept:
        return panel(
            '<p class="hft-soft">No images yet. Two classes with five images each are enough for '
            "a first try; twenty each are better.</p>"
        )
    rows = []
    for label in pictures.labels:
        own = pictures.of(label)
        shown = "".join(picture(one.thumb, one.name) for one in own[:THUMBS])
        more = f'<span class="hft-more">+{len(own) - THUMBS}</span>' if len(own) > THUMBS else ""
        rows.append(
            f'<li><div class="hft-class"><b>{escape(label)}</b>'
            f'<span class="hft-soft">{len(own):,} image{"s" * (len(own) != 1)}</span>'
            f'<button type="button" data-act="drop" data-label="{escape(label)}" '
            f'aria-label="Remove class {escape(label)}">Remove</button></div>'
            f'<div class="hft-strip">{shown}{more}</div></li>'
        )
    few = ""
    if len(pictures.labels) < 2:
        few = note("Add a second class: a classifier needs at least two.")
    return panel(f'<ul class="hft-classes">{"".join(rows)}</ul>{few}')


def findings_view(found: Sequence[tuple[str, str, int, Sequence[tuple[str, str]]]]) -> str:
    """Return what the audit found: (kind, what was done, how many, pictures with names)."""
    if not found:
        return panel('<p class="hft-soft">Nothing odd was found.</p>', "What the audit found")
    rows = []
    for kind, done, count, thumbs in found:
        shown = "".join(picture(address, name) for address, name in thumbs[:FINDING_THUMBS])
        words = kind.replace("-", " ").capitalize()
        rows.append(
            f'<li><div class="hft-class"><b>{escape(words)}</b>'
            f'<span class="hft-soft">{count:,}</span></div>'
            f'<p>{escape(_sentence(done))}</p><div class="hft-strip">{shown}</div></li>'
        )
    return panel(f'<ul class="hft-classes">{"".join(rows)}</ul>', "What the audit found")


def _sentence(words: str) -> str:
    text = words.strip()
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else ""


# --- progress --------------------------------------------------------------------------------


def progress_bar(share: float, words: str) -> str:
    """Return a bar of how much is done, 0..1, with words below."""
    percent = f"{100 * min(1.0, max(0.0, share)):.0f}"
    return (
        f'<div class="hft-progress" role="progressbar" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{percent}" aria-label="Training"><i style="width:{percent}%"></i></div>'
        f'<p class="hft-soft" aria-live="polite">{escape(words)}</p>'
    )


def about(seconds: float | None) -> str:
    """Return a time in words, roughly: time left is never known to a second."""
    if seconds is None:
        return "not known"
    if seconds < 8:
        return "a few seconds"
    return f"about {show_seconds(5 * round(seconds / 5))}"


def show_share(share: float) -> str:
    """Return a share in percent, never as 0% where it is not: 12%, 0.05%."""
    return f"{share:.0%}" if share == 0 or share >= 0.01 else f"{100 * share:.1g}%"


def plain(words: str) -> str:
    """Words from outside as Markdown text, without markup or line breaks."""
    return re.sub(r"([\\`*_\[\]<>&|~#!$])", r"\\\1", escape(" ".join(words.split())))
