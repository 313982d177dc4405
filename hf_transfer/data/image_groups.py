"""Images that belong together: of one patient, video, site or product, known by a column or a name.

They stay together in splits: else the same patient trains and judges, and scores come out too high.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from hf_transfer.base.boundary import untrusted
from hf_transfer.base.errors import DataError
from hf_transfer.data.dicom_files import GROUP, tag_groups, tag_values
from hf_transfer.data.findings import Finding, finding
from hf_transfer.data.scan import Scan
from hf_transfer.recipe.specs import DataSpec

EXAMPLE = r"^(\d+)_"
LIKELY = (  # how names begin or go on where they say whose image it is
    r"(?i)((?:patient|subject|case|person|video|clip|scene|site|plot|animal|slide)[-_ ]?\d+)",
    r"^(\d{3,})[-_ ]",
    r"^([A-Za-z]{1,5}[-_]?\d{2,})[-_ ]",
    r"^(.+?)[-_ ](?:frame|slice|img|view|crop|patch|tile)?[-_ ]?\d+\.\w+$",
)
LEAST_GROUPS = 10  # fewer, or one that holds a larger share of the images, are no groups to keep
LARGEST = 0.2
LEAST_MATCHED = 0.2  # of the images, whose names look so
LEAST_TOGETHER = 0.05  # of the images, in groups of several


def compiled(pattern: str) -> re.Pattern[str]:
    """Return a pattern with one group. Raises DataError for any other."""
    what = f"data.group {pattern!r} as a pattern"
    with untrusted(what, f"name a column of the table, or write one such as {EXAMPLE}", DataError):
        found = re.compile(pattern)
    if found.groups != 1:
        raise DataError(
            f"data.group is {pattern!r}: there is no such column, and a pattern needs one group in "
            f"parentheses, such as {EXAMPLE}"
        )
    return found


def groups_of(names: Sequence[str], pattern: str) -> list[str]:
    """Return the group of each image, by the last part of its name, or all of it where the pattern
    has a "/"; a name that does not match is a group of its own. Raises DataError if none does."""
    look = compiled(pattern)
    found = [look.search(name if "/" in pattern else posixpath.basename(name)) for name in names]
    if names and not any(found):
        name = posixpath.basename(names[0])
        raise DataError(f"data.group is {pattern!r}, which matches no image's name; one is {name}")
    return [match[1] or "" if match else name for name, match in zip(names, found, strict=True)]


def rule_groups(root: str | os.PathLike[str], names: Sequence[str], rule: str) -> list[str]:
    """Return the group of each file by a pattern on its name or by a DICOM tag. Raises DataError
    where no file has one."""
    by_tag = rule.startswith(GROUP)
    return tag_groups(root, names, rule) if by_tag else groups_of(names, rule)


def owners(found: Scan, rule: str | None) -> list[str]:
    """Return whose each image is, to compare with those of another source: the value of a DICOM
    tag, what a pattern finds in the name, or that of a column; "" for an image that has none."""
    if rule is None:
        return [""] * len(found.files)
    if found.table is not None or "(" not in rule and not rule.startswith(GROUP):
        return [""] * len(found.files) if found.groups is None else list(found.groups)
    if rule.startswith(GROUP):
        return tag_values(found.root, found.files, rule)
    look = compiled(rule)
    names = (name if "/" in rule else posixpath.basename(name) for name in found.files)
    return [match[1] or "" if (match := look.search(name)) else "" for name in names]


def together(found: Scan, spec: DataSpec) -> list[Finding]:
    """Return groups in several splits: those of the recipe, or those that names suggest."""
    if found.groups is None:
        likely = likely_groups(found.files, found.targets, found.splits)
        if likely is None:
            return []
        done = (
            f"kept: names suggest {likely.groups:,} groups of several images, these in more than "
            "one split; if they are patients, videos or the like, scores come out too high, "
            f"so set data.group: '{likely.pattern}'"
        )
        return [finding("likely-groups", likely.across, done)]
    findings = []
    splits: dict[str, set[str]] = {}
    for group, split in zip(found.groups, found.splits, strict=True):
        splits.setdefault(group, set()).add(split)
    across = sorted(group for group, its in splits.items() if len(its) > 1)
    if across:
        done = (
            "kept as the data have them: these groups are in several splits, so scores are too high"
        )
        findings.append(finding("group-in-two-splits", across, done))
    alone = [name for name, group in zip(found.files, found.groups, strict=True) if name == group]
    by_tag = (spec.group or "").startswith(GROUP)
    if alone and (by_tag or "(" in (spec.group or "")):
        why = "these files lack the tag" if by_tag else "data.group does not match these names"
        done = f"each kept as a group of its own: {why}"
        findings.append(finding("no-group", alone, done))
    return findings


@dataclass(frozen=True)
class Likely:
    """Groups that names suggest: the pattern, how many groups of several images it gives, and of
    these the names of those that are in several splits."""

    pattern: str
    groups: int
    across: tuple[str, ...]


def likely_groups(
    names: Sequence[str], labels: Sequence[object], splits: Sequence[str]
) -> Likely | None:
    """Return the groups that names suggest and that splits tear apart, or None.

    Names that only number the images of a class, or have a part for each image, suggest none.
    """
    files = [posixpath.basename(name) for name in names]
    for pattern in LIKELY:
        look = re.compile(pattern)
        members: dict[str, list[int]] = defaultdict(list)
        for row, file in enumerate(files):
            if match := look.search(file):
                members[match[1]].append(row)
        matched = sum(map(len, members.values()))
        several = [rows for rows in members.values() if len(rows) > 1]
        if (
            len(members) < LEAST_GROUPS
            or matched < LEAST_MATCHED * len(names)
            or sum(map(len, several)) < LEAST_TOGETHER * len(names)
            or max(map(len, several), default=0) > LARGEST * len(names)
            or _are_classes(members, labels)
        ):
            continue
        across = [k for k, rows in members.items() if len({splits[row] for row in rows}) > 1]
        if across:
            return Likely(pattern, len(several), tuple(sorted(across)))
    return None


def _are_classes(members: dict[str, list[int]], labels: Sequence[object]) -> bool:
    """Return whether groups are the classes once more: cat_001, cat_002, dog_001, …"""
    count = Counter(labels[row] for rows in members.values() for row in rows)
    alone = sum(len({labels[row] for row in rows}) == 1 for rows in members.values())
    return alone == len(members) and len(members) <= 2 * len(count)
