"""Places in a report: of a path only the last part is shown to others; it tells who and where."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_transfer.base.boundary import redacted
from hf_transfer.results.report import RunReport

REPOSITORY = re.compile(r"(?:transformers/)?[\w][\w.-]*/[\w][\w.-]*")
# Of a report what may hold a place: the rest are numbers and the names of labels.
TOLD = ("name", "recipe", "backbone", "environment", "warnings")
TOLD_OF_PHASE = ("name", "stopped", "features", "checks", "solve")
TOLD_OF_DATA = ("path", "repo", "audit")
PLACES = ("path", "backbone", "weights", "metrics", "id", "repo")  # their values are places
# A path in a sentence: it starts at the root, a home or a drive, and ends at a blank or a quote.
IN_A_SENTENCE = re.compile(
    r"(?<![\w.:/\\])(?:~?/(?=[^\s/])|[A-Za-z]:[\\/]|\\\\)[^\s'\"`;,()\[\]]*[^\s'\"`;,()\[\].:]"
)


def published_report(report: RunReport) -> RunReport:
    """Return what others may read of a report: of paths the last part, and no images, unless the
    recipe says `page_images: card`."""
    allowed = report.recipe.get("page_images") == "card"
    return without_paths(report if allowed else replace(report, examples={}))


def without_paths(report: RunReport) -> RunReport:
    """Return the report with the last part only of every path that it holds."""
    values = report.to_dict()
    known = places(values)
    for key in TOLD:
        values[key] = without_places(values[key], key, known)
    for key in TOLD_OF_DATA:
        if key in values["data"]:
            values["data"][key] = without_places(values["data"][key], key, known)
    for phase in values["phases"]:
        for key in TOLD_OF_PHASE:
            phase[key] = without_places(phase[key], key, known)
    return RunReport.from_dict(values)


def place_name(place: str) -> str:
    """Return what others may read of a place: a library's name or a repository; of a path the end.

    What could be either is a path if it is there.
    """
    library = place.startswith(("timm/", "torchvision/")) and place.count("/") == 1
    if library or (REPOSITORY.fullmatch(place) and not Path(place).expanduser().exists()):
        return place
    return re.split(r"[\\/]", place.rstrip("\\/"))[-1]


def without_places(value: Any, key: str, known: Mapping[str, str]) -> Any:
    """Return a report's or recipe's part with names in the place of paths."""
    if isinstance(value, Mapping):
        return {name: without_places(entry, str(name), known) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_places(entry, key, known) for entry in value]
    if not isinstance(value, str):
        return value
    if key in PLACES:
        return redacted(place_name(value))
    for place, name in known.items():  # the longest first
        value = value.replace(place, name)
    return redacted(IN_A_SENTENCE.sub(lambda found: place_name(found.group()), value))


def places(value: Any) -> dict[str, str]:
    """Return the paths that a report or recipe holds as such, the longest first, with their names.

    Sentences, of warnings, may repeat them.
    """
    found: dict[str, str] = {}

    def collect(value: Any, key: str) -> None:
        if isinstance(value, Mapping):
            for name, entry in value.items():
                collect(entry, str(name))
        elif isinstance(value, (list, tuple)):
            for entry in value:
                collect(entry, key)
        elif key in PLACES and isinstance(value, str) and re.search(r"[\\/]", value):
            found[value] = place_name(value)

    collect(value, "")
    return {place: found[place] for place in sorted(found, key=len, reverse=True)}
