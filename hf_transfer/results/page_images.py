"""The page's images: what the model got wrong, where it was unsure, and some that it got right."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from hf_transfer.results.report import RunReport
from hf_transfer.results.words import JsonDict

Cell = tuple[int, int]

GALLERIES = {  # of which examples, its title, what to look for there
    "mistakes": (
        "Surest mistakes",
        "Is the label wrong, or did something in the picture mislead the model?",
    ),
    "unsure": (
        "Least certain",
        "Another answer was nearly as likely. More images like these help.",
    ),
    "right": ("Right answers", "The surest ones of each {noun}."),
}
OF_NUMBERS = {
    "mistakes": ("Largest errors", "Is the number wrong, or what the picture shows unusual?"),
    "right": ("Smallest errors", ""),
}
SUSPECTS = {
    "near-duplicates-across-splits": (
        "Near-duplicates across splits",
        "Neighbours look almost alike, and one was trained on: the result looks too good.",
    ),
    "near-duplicates-two-labels": (
        "Near-duplicates with different labels",
        "Neighbours look almost alike: one of their labels is likely wrong.",
    ),
    "near-duplicates": ("Near-duplicates in one split", "Neighbours look almost alike."),
    "likely-wrong-label": (
        "Likely wrong labels",
        "Heads that never saw these images say something else.",
    ),
}


def galleries(report: RunReport) -> list[JsonDict]:
    """Return the images that are shown, in rows of a kind: title, note, and each with captions."""
    found = report.examples
    numbers = report.task.name == "regression"
    result = [
        _gallery(report, title, note.format(noun=report.task.noun), found[kind])
        for kind, (title, note) in (OF_NUMBERS if numbers else GALLERIES).items()
        if found.get(kind)
    ]
    for suspect in found.get("suspects", ()):
        title, note = SUSPECTS.get(suspect["kind"], (suspect["kind"], ""))
        result.append(_gallery(report, title, note, suspect["rows"]))
    return [one for one in result if one["images"]]


def sheets(report: RunReport) -> list[JsonDict]:
    """Return the pictures of many images: title, note and source."""
    return [
        {"title": one["title"], "note": one["note"], "source": _source(one["picture"])}
        for one in report.examples.get("sheets", ())
    ]


def cells(report: RunReport) -> dict[Cell, JsonDict]:
    """Return the images of each cell of the confusion matrix that has some, with its anchor; those
    of the diagonal are the right ones that are shown."""
    labels, found = report.labels, report.examples
    rows = found.get("rows", ())
    places = {label: i for i, label in enumerate(labels)}
    shown = {(i, j): listed for i, j, listed in found.get("cells", ())}
    for at in found.get("right", ()) if shown or found.get("mistakes") == [] else ():
        place = places.get(rows[at]["truth"]) if at < len(rows) else None
        if place is not None:
            shown.setdefault((place, place), []).append(at)
    result = {}
    for (i, j), listed in sorted(shown.items()):
        if i < len(labels) and j < len(labels) and listed:
            what = f"{labels[i]}, predicted right" if i == j else f"{labels[i]} → {labels[j]}"
            result[i, j] = {"anchor": f"pair-{i}-{j}", **_gallery(report, what, "", listed)}
    return result


def _gallery(report: RunReport, title: str, note: str, places: Sequence[int]) -> JsonDict:
    rows = report.examples.get("rows", ())
    images = [_image(report, rows[at]) for at in places if at < len(rows)]
    return {"title": title, "note": note, "images": images}


def _image(report: RunReport, row: JsonDict) -> JsonDict:
    sure = row["sure"]
    right = row["answer"] in ("", row["truth"])  # "": it was not asked
    numbers = report.task.name == "regression"
    return {
        "source": _source(row["picture"]),
        "answer": row["answer"] or row["truth"],
        "asked": bool(row["answer"]),
        "sure": "" if sure is None else _share(sure),
        "right": right and not numbers,
        "truth": f"true: {row['truth']}" if numbers else f"is {row['truth']}",
        "file": row["file"],
        "words": f"{row['file']}: {_said(row)}",
    }


def _said(row: JsonDict) -> str:
    if not row["answer"]:
        return f"labelled {row['truth']}"
    return f"predicted {row['answer']}, true {row['truth']}"


def _source(picture: str) -> Markup:
    """Return a picture's address; it is base 64 and nothing else, as a report's shape demands."""
    return Markup(f"data:image/webp;base64,{picture}")  # noqa: S704


def _share(share: float) -> str:
    """Return a probability in whole percent, never as 100% or 0% where it is not."""
    if 0.995 <= share < 1:
        return ">99%"
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"
