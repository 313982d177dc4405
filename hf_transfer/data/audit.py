"""What the data holds that a careful person would want to know, and what was done about it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_transfer.base.errors import DataError
from hf_transfer.data.findings import NO_LABELLED_IMAGE, Finding, finding
from hf_transfer.data.image_groups import together
from hf_transfer.data.image_settings import ImageSettings, share_lost
from hf_transfer.data.near_duplicates import near_duplicates
from hf_transfer.data.pixels import Seen
from hf_transfer.data.scan import check_validation
from hf_transfer.data.sources import SPLITS, Scan
from hf_transfer.data.targets import DOUBTFUL, MISSING, look_alikes
from hf_transfer.recipe.specs import DataSpec
from hf_transfer.recipe.tasks import TASKS

TINY_PX = 16
CROPPED = 0.25  # mean share of a picture that is not seen, from which it is a finding
IMBALANCE = 3.0  # largest class to smallest, from which it is a finding
NUMBER = re.compile(r"-?\d+(\.\d+)?")  # a label that may be an amount

LEFT_OUT = {
    "missing": "left out: the file is not there",
    "zero-byte": "left out: the file is empty",
    "not-an-image": "left out",
    "truncated": "left out: the file ends too early",
    "unreadable": "left out: damaged, or a kind of file that is not read",
    "too-large": "left out: too large, or it would take too much memory to decode",
}
TOLD = ("not-an-image", "unreadable", "too-large")  # kinds whose reasons differ
REASONS = 3  # of each kind that a message lists
HANDLED = {
    "dicom": "read as DICOM: rescaled, and its window becomes 0..255",
    "burnt-in-text": "text is burnt into the picture, the file says; it may name a person",
    "animated": "its first frame is used",
    "16-bit": "scaled to 8 bits: 0..65535 becomes 0..255",
    "dark-16-bit": "uses less than an eighth of 16 bits: looks dark; rescale 10- or 12-bit scans",
    "grayscale": "its one channel is repeated",
    "palette": "converted to RGB",
    "alpha": "converted to RGB: transparency is dropped, and what lies under it is seen",
    "cmyk": "converted to RGB without a colour profile",
    "rotated": "turned upright, as its EXIF says",
    "broken-exif": "its EXIF cannot be read, so it is not turned",
    "enormous": "more than 50 million pixels: reduced",
    "tiny": "much smaller than the model's input: enlarged",
}
CONTENT = {
    "two-labels": "left out everywhere: the same picture with different labels or numbers",
    "leak": "left out of training: the same picture is in validation or test",
    "leak-test": "left out of validation: the same picture is in test",
    "repeated": "kept: the same picture several times in training",
    "repeated-evaluation": "left out: the same picture is there already, and counts once",
}


@dataclass(frozen=True)
class Audit:
    """All findings about a data set of `images` files, of which `bad` gave no pixels.

    `imbalance` is the largest training class over the smallest.
    """

    findings: tuple[Finding, ...] = ()
    images: int = 0
    bad: int = 0
    imbalance: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return what `report.json` holds: {"findings": [{kind, count, files, done}, ...]}."""
        return {
            "findings": [
                {"kind": f.kind, "count": f.count, "files": list(f.files), "done": f.done}
                for f in self.findings
            ]
        }


def audit(
    found: Scan, seen: Seen, settings: ImageSettings, spec: DataSpec, folds: bool = False
) -> tuple[Audit, np.ndarray]:
    """Return the findings and the rows of the scan to use, int64, in order; with `folds` of the
    training images validating, there need be no others that do.

    Raises DataError, one line, where going on would be careless: more than `max_bad` of the files
    give no pixels (one is always forgiven, unless it is 0), a class is left with fewer than
    `min_per_class` images to train on, or validation or test holds a class that train lacks.
    """
    findings = _bad(found, seen, spec) + _unusual(found, seen, settings)
    findings += _cropped(found, seen, settings)
    if found.ignored:
        done = "not used" + (f": {NO_LABELLED_IMAGE}" if found.table is None else "")
        findings.append(finding("ignored", found.ignored, done))
    usable = np.ones(len(found.files), bool)
    usable[list(seen.errors)] = False
    same = _same_content(found, seen, usable)
    for kind, rows in same.items():
        if kind != "repeated":
            usable[rows] = False
        findings.append(finding(kind, [found.files[row] for row in rows], CONTENT[kind]))
    kept = np.flatnonzero(usable)
    chosen = found.take(kept)
    findings += together(chosen, spec)
    findings += near_duplicates(chosen, seen.hashes[kept], seen.pixels[kept])
    _check_splits(chosen, spec, same)
    if not folds:
        check_validation(found, chosen, spec)
    imbalance = 1.0
    if found.task != "regression":
        findings += _odd_names(found.labels)
        counts = chosen.counts
        _check_classes(chosen, counts, spec, same)
        findings += _about_labels(chosen) if found.task == "multi_label" else _imbalance(counts)
        findings += _absent(counts)
        imbalance = max(counts["train"].values()) / max(1, min(counts["train"].values()))
    return Audit(tuple(findings), len(found.files), len(seen.errors), imbalance), kept


# --- files -----------------------------------------------------------------------------------


def _bad(found: Scan, seen: Seen, spec: DataSpec) -> list[Finding]:
    """Return what gave no pixels, by kind. Raises DataError if that is more than is allowed."""
    allowed = max(1, int(spec.max_bad * len(found.files))) if spec.max_bad else 0
    rows = sorted(seen.errors)
    if len(rows) > allowed:
        few = "; ".join(seen.errors[row][1] for row in rows[:3])
        lost = all(seen.errors[row][0] == "missing" for row in rows) and found.table is None
        where = f"; names are relative to {found.root}" if lost else ""
        raise DataError(
            f"{found.path}: {len(rows):,} of {len(found.files):,} images are unusable, and "
            f"data.max_bad allows {allowed:,}: {few}" + ("; ..." if len(rows) > 3 else "") + where
        )
    findings = []
    for kind, done in LEFT_OUT.items():
        members = [row for row in rows if seen.errors[row][0] == kind]
        if members:
            why = dict.fromkeys(_reason(found.files[row], seen.errors[row][1]) for row in members)
            few = "; ".join(list(why)[:REASONS]) + ("; ..." if len(why) > REASONS else "")
            names = [found.files[row] for row in members]
            findings.append(finding(kind, names, f"{done} ({few})" if kind in TOLD else done))
    return findings


def _reason(name: str, message: str) -> str:
    """Return why a file gives no pixels, without its name."""
    return message.removeprefix("cannot read ").removeprefix(f"{name}: ")


def _unusual(found: Scan, seen: Seen, settings: ImageSettings) -> list[Finding]:
    """Return what was handled while decoding, by kind."""
    by_kind: dict[str, list[int]] = {kind: [] for kind in HANDLED}
    for row in sorted(seen.notes):
        for kind in seen.notes[row]:
            by_kind[kind].append(row)
    short = seen.sizes.min(axis=1, initial=2**31 - 1)
    tiny = (short > 0) & (short < max(TINY_PX, settings.size / 4))
    by_kind["tiny"] = np.flatnonzero(tiny).tolist()
    done = dict(HANDLED)
    if settings.channels == 1:
        done["grayscale"] = "as the model wants it"
    if settings.channels == 4:
        done["alpha"] = "kept as the fourth channel"
    return [
        finding(kind, [found.files[row] for row in rows], done[kind])
        for kind, rows in by_kind.items()
        if rows
    ]


def _cropped(found: Scan, seen: Seen, settings: ImageSettings) -> list[Finding]:
    """Return how much of the pictures lies outside of what the model sees, where that is much."""
    sizes = seen.sizes[seen.sizes.min(axis=1, initial=2**31 - 1) > 0]
    lost = share_lost(settings, sizes)
    if lost < CROPPED:
        return []
    done = (
        f"{lost:.0%} of a picture, on average, is cropped away; set data.fit to squash or pad to "
        "see all of it"
    )
    return [Finding("cropped", len(sizes), (), done)]


# --- content ---------------------------------------------------------------------------------


def _same_content(found: Scan, seen: Seen, usable: np.ndarray) -> dict[str, list[int]]:
    """Return the rows that show the same picture as another, by what that means."""
    same: dict[str, list[int]] = {kind: [] for kind in CONTENT}
    for rows in _groups(seen.pixels, np.flatnonzero(usable)):
        by_split = {split: [row for row in rows if found.splits[row] == split] for split in SPLITS}
        train, validation, test = by_split.values()
        if len({found.targets[row] for row in rows}) > 1:
            same["two-labels"] += rows
            continue
        if validation or test:
            same["leak"] += train
        elif len(train) > 1:
            same["repeated"] += train
        if test:
            same["leak-test"] += validation
        else:
            same["repeated-evaluation"] += validation[1:]
        same["repeated-evaluation"] += test[1:]
    return {kind: sorted(rows) for kind, rows in same.items() if rows}


def _groups(digests: np.ndarray, rows: np.ndarray) -> Iterable[list[int]]:
    """Yield the rows that share a digest, two at least in each list."""
    keys = np.ascontiguousarray(digests[rows]).view(f"V{digests.shape[1]}")[:, 0]
    _, group, counts = np.unique(keys, return_inverse=True, return_counts=True)
    shared = np.flatnonzero(counts[group] > 1)
    order = shared[np.argsort(group[shared], kind="stable")]
    for members in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        if len(members):
            yield rows[members].tolist()


# --- classes ---------------------------------------------------------------------------------


def _check_splits(found: Scan, spec: DataSpec, same: dict[str, list[int]]) -> None:
    least = max(1, spec.min_per_class) if found.task != "classification" else 0
    if found.images.get("train", 0) < least:
        raise DataError(f"{found.path}: fewer than {least} usable training images{_copies(same)}")


def _check_classes(
    found: Scan, counts: dict[str, dict[str, int]], spec: DataSpec, same: dict[str, list[int]]
) -> None:
    train = counts.get("train", dict.fromkeys(found.labels, 0))
    kind, kinds = TASKS[found.task].noun, TASKS[found.task].nouns
    for split in ("validation", "test"):
        unknown = [label for label, n in counts.get(split, {}).items() if n and not train[label]]
        if unknown:
            close = [group for group in look_alikes(found.labels) if set(group) & set(unknown)]
            hint = f" ({' and '.join(map(repr, close[0]))} look alike)" if close else _copies(same)
            raise DataError(
                f"{found.path}: {split} holds {kinds} without a training image: {_few(unknown)}; "
                f"add images of them to train, or take them out of {split}{hint}"
            )
    few = [f"{label} ({n})" for label, n in train.items() if n < max(1, spec.min_per_class)]
    if few:
        raise DataError(
            f"{found.path}: fewer than {max(1, spec.min_per_class)} usable training images in: "
            f"{_few(few)}; add images, remove the {kind} or lower data.min_per_class"
            f"{_amounts(found)}{_copies(same)}"
        )


def _amounts(found: Scan) -> str:
    """Return what to do where all labels are numbers; "" where they are not."""
    if found.task != "classification" or not all(map(NUMBER.fullmatch, found.labels)):
        return ""
    return "; if the labels are amounts, set task=regression"


def _odd_names(labels: Sequence[str]) -> list[Finding]:
    """Return labels that may be one, and labels that may mean that there is none."""
    findings = []
    alike = look_alikes(labels)
    if alike:
        pairs = "; ".join(" and ".join(map(repr, group)) for group in alike[:5])
        done = f"kept as classes of their own: {pairs}; merge them if they mean the same"
        findings.append(finding("alike-labels", [x for group in alike for x in group], done))
    doubtful = [label for label in labels if label.lower() in (*DOUBTFUL, *MISSING)]
    if doubtful:
        done = "kept as a class: remove its images if it means that the label is missing"
        findings.append(finding("doubtful-label", doubtful, done))
    return findings


def _copies(same: dict[str, list[int]]) -> str:
    """Return a hint where pictures that are the same are the reason."""
    count = sum(len(same.get(kind, ())) for kind in ("two-labels", "leak"))
    return f" ({count:,} copies of other pictures were left out)" if count else ""


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _absent(counts: dict[str, dict[str, int]]) -> list[Finding]:
    findings = []
    for split in ("validation", "test"):
        absent = [label for label, n in counts.get(split, {}).items() if not n]
        if absent:
            done = f"trained on, but {split} has no image of {_few(absent)}: nothing is measured"
            findings.append(Finding(f"not-in-{split}", len(absent), (), done))
    return findings


def _imbalance(counts: dict[str, dict[str, int]]) -> list[Finding]:
    train = counts["train"]
    most, least = max(train, key=train.__getitem__), min(train, key=train.__getitem__)
    if train[most] < IMBALANCE * train[least]:
        return []
    done = (
        f"kept: {train[most]:,} images of {most}, {train[least]:,} of {least}; "
        "`loss: balanced` weighs the classes alike"
    )
    return [Finding("imbalance", len(train), (), done)]


def _about_labels(found: Scan) -> list[Finding]:
    """Return what is odd about several labels at once: none, or one that every image has."""
    findings = []
    bare = [name for name, target in zip(found.files, found.targets, strict=True) if not target]
    if bare:
        findings.append(finding("no-label", bare, "kept: images that show none of the labels"))
    train = found.counts["train"]
    always = [label for label, count in train.items() if count == found.images["train"]]
    if always:
        done = f"kept: every training image has {_few(always)}, so nothing tells it apart"
        findings.append(Finding("always-there", len(always), (), done))
    return findings
