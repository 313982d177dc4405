"""Every architecture of timm, torchvision and transformers, grouped and judged.

`hf-transfer groups --all` runs it. Networks are built on the meta device: no weights, no downloads.
"""

from __future__ import annotations

import csv
import io
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_transfer.backbones.meta_device import on_meta
from hf_transfer.base.bars import shown
from hf_transfer.base.boundary import untrusted
from hf_transfer.base.errors import UserError
from hf_transfer.base.files import write_text
from hf_transfer.planning.groups import LayerGroups, group_layers
from hf_transfer.planning.layout import GroupsError, Layout

ARCHITECTURES = 1493  # in timm 1.0.31, torchvision 0.29 and transformers 5.23
LABELS = 10  # that a network is built for
DEEP = 10  # groups; with more of them, none should hold most of what trains
# Model types in transformers' mapping that cannot be built or run here as classifiers of images
# alone, and why. One that can after all (its library is there) is grouped like any other.
LEFT_OUT = {
    "transformers/dinat": "needs the natten library, which is not installed",
    "transformers/imagegpt": "reads a sequence of colour numbers, not pixels",
    "transformers/shieldgemma2": "judges an image against a written policy: it needs text as well",
    "transformers/siglip2": "reads a sequence of patches with their positions, not pixels",
}


@dataclass(frozen=True)
class Row:
    """What the sweep found of one architecture."""

    architecture: str
    groups: int = 0
    stages: int = 0
    parameters: int = 0
    largest: float = 0.0  # share of the largest group
    layer: float = 0.0  # share of the largest weight, which no grouping can divide
    violations: int = 0  # parameters out of order
    outside: int = 0  # parameters not in exactly one group
    head: str = ""
    norms: str = ""
    seconds: float = 0.0
    failed: str = ""
    left_out: str = ""  # why it cannot be built or run as a classifier of images alone

    @property
    def uneven(self) -> bool:
        """Whether a group of several layers holds most of a deep network."""
        return self.groups > DEEP and self.largest > 0.5 >= self.layer


def architectures() -> tuple[str, ...]:
    """Return the ids of all architectures that the three libraries know, as `timm/NAME`."""
    import timm
    import torchvision
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as KINDS,
    )

    return (
        *(f"transformers/{name}" for name in KINDS),
        *(f"torchvision/{n}" for n in torchvision.models.list_models(module=torchvision.models)),
        *(f"timm/{name}" for name in timm.list_models()),
    )


def sweep(
    names: Sequence[str] | None = None, each: Callable[[Row], None] | None = None
) -> list[Row]:
    """Return a row for each architecture, all of them where `names` is None.

    `each` sees the rows as they come. What cannot be built, run or grouped has a row that says why.
    """
    rows = []
    names = architectures() if names is None else names
    for name in shown(names, "grouping", "architectures"):
        rows.append(examine(name))
        if each:
            each(rows[-1])
    return rows


def examine(name: str) -> Row:
    """Return the row of one architecture."""
    start = time.perf_counter()
    try:
        with untrusted(name, verb="group"):
            network, layout = _observed(name)
            groups = group_layers(layout)
    except UserError as error:
        reason = str(error)
        seconds = time.perf_counter() - start
        if name in LEFT_OUT:
            return Row(name, seconds=seconds, left_out=LEFT_OUT[name])
        return Row(name, seconds=seconds, failed=reason)
    kinds = Counter(type(network.get_submodule(path)).__name__ for path in layout.norms)
    return Row(
        architecture=name,
        groups=len(groups.groups),
        stages=len(groups.stages),
        parameters=groups.total,
        largest=largest(groups),
        layer=max(layout.sizes.values()) / groups.total,
        violations=out_of_order(groups),
        outside=outside(groups),
        head=" ".join(dict.fromkeys(n.rpartition(".")[0] or n for n in layout.head)) or "none",
        norms=" ".join(kind for kind, _ in kinds.most_common()),
        seconds=time.perf_counter() - start,
    )


def largest(groups: LayerGroups) -> float:
    """Return the share that the largest group has of the parameters that forward uses."""
    layout = groups.layout
    unused = set(layout.unused)
    sizes = [
        sum(layout.sizes[name] for name in group.parameters if name not in unused)
        for group in groups.groups
    ]
    return max(sizes) / sum(sizes)


def out_of_order(groups: LayerGroups) -> int:
    """Return how many parameters below the head are first used before the last first use of the
    group before theirs."""
    layout = groups.layout
    place = {name: i for i, (name, _) in enumerate(layout.parameters)}
    aside = {*layout.head, *layout.unused}
    count, before = 0, -1
    for group in groups.groups:
        places = [place[name] for name in group.parameters if name not in aside]
        count += sum(here < before for here in places)
        before = max(places, default=before)
    return count


def outside(groups: LayerGroups) -> int:
    """Return how many parameters are in no group, or in several, or are none of the network's."""
    times = Counter(name for group in groups.groups for name in group.parameters)
    known = dict(groups.layout.parameters)
    return sum(times[name] != 1 for name in known) + sum(name not in known for name in times)


def _observed(name: str) -> tuple[nn.Module, Layout]:
    """Return a fresh network and its layout at the input size that it is made for."""
    from hf_transfer.backbones.trace import head_names, trace_layout

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old names and default arguments; nothing is trained here
        network = build(name, LABELS)
        head = classifier_names(network) or head_names(network, build(name, LABELS + 1))
        image = {"size": size_of(name, network), "channels": 3}
        try:
            return network, trace_layout(network, image=image, head=head, labels=LABELS)
        except GroupsError:  # some look at numbers while they run (perceiver)
            if name in LEFT_OUT:  # with its weights, ShieldGemma would take 17 GB
                raise
            network = build(name, LABELS, device="cpu")
            return network, trace_layout(network, image=image, head=head, labels=LABELS)


def classifier_names(network: nn.Module) -> tuple[str, ...]:
    """Return the parameters of timm's classifier, if they and no others have a dimension of LABELS.

    Else none: then a second network, for other labels, shows which parameters depend on them.
    """
    named: Any = getattr(network, "get_classifier", tuple)()
    layers = [m for m in (named if isinstance(named, tuple) else [named]) if m is not None]
    inside = {id(p) for layer in layers for p in layer.parameters()}
    parameters = dict(network.named_parameters())
    found = {name for name, p in parameters.items() if id(p) in inside}
    sized = {name for name, p in parameters.items() if LABELS in p.shape}
    return tuple(name for name in parameters if name in found) if found == sized else ()


def size_of(name: str, network: nn.Module) -> int:
    """Return the side of the images that a network is made for: 224 where nobody says."""
    from hf_transfer.backbones.building import draw
    from hf_transfer.backbones.origins import Origin

    source, _, rest = name.partition("/")
    if source != "transformers":
        return draw(Origin(source, rest)).image.size
    config = getattr(network.config, "vision_config", network.config)
    size = getattr(config, "image_size", None) or 224
    return int(size[-1] if isinstance(size, (list, tuple)) else size)


def sweep_to(out: Path | None, say: Callable[[str], None]) -> int:
    """Sweep all architectures, write the table to a .csv or .md file (or say each row), and say the
    totals. Returns 1 if a bar is missed: order, membership, evenness, failures, number; else 0."""
    if out is not None and out.suffix not in (".csv", ".md"):
        raise UserError(f"--out {out}: the table is written as .csv or .md")
    counted: list[Row] = []

    def each(row: Row) -> None:
        counted.append(row)
        if row.failed:
            say(f"{row.architecture}: {row.failed}")
        elif out is None:
            say(_line(row))
        elif len(counted) % 100 == 0:
            say(f"{len(counted):,} architectures so far")

    rows = sweep(each=each)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, table(rows, out.suffix))
    say(totals(rows))
    return int(misses(rows) or len(rows) < ARCHITECTURES)


def misses(rows: Sequence[Row]) -> bool:
    """Return whether a row is out of order, uneven, not in exactly one group each, or failed."""
    return any(row.violations or row.outside or row.uneven or row.failed for row in rows)


def totals(rows: Sequence[Row]) -> str:
    """Return the one line that sums up a sweep."""
    left_out = [row.architecture.partition("/")[2] for row in rows if row.left_out]
    words = [
        f"{len(rows):,} architectures",
        f"{sum(row.groups for row in rows):,} groups",
        f"{sum(row.violations for row in rows):,} order violations",
        f"{sum(row.outside for row in rows):,} parameters outside exactly one group",
        f"{sum(row.uneven for row in rows):,} deep networks with most parameters in one group",
        f"{sum(bool(row.failed) for row in rows):,} unexplained failures",
        f"{len(left_out)} left out for a reason ({', '.join(left_out) or 'none'})",
        f"{sum(row.seconds for row in rows):,.0f} s",
    ]
    return "; ".join(words)


def table(rows: Sequence[Row], suffix: str) -> str:
    """Return the rows as CSV (".csv") or as a Markdown table (".md")."""
    names = [column.name for column in fields(Row)]
    cells = [[_cell(getattr(row, name)) for name in names] for row in rows]
    if suffix == ".csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([names, *cells])
        return text.getvalue()
    lines = [names, ["---"] * len(names), *cells]
    return "".join("| " + " | ".join(c.replace("|", "/") for c in line) + " |\n" for line in lines)


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _line(row: Row) -> str:
    if row.left_out:
        return f"{row.architecture}: {row.left_out}"
    return (
        f"{row.architecture}: {row.groups} groups in {row.stages} stages, largest "
        f"{row.largest:.0%}, {row.violations} out of order, head {row.head or 'none'}, "
        f"{row.norms or 'no normalisation'}, {row.seconds:.1f} s"
    )


# --- building --------------------------------------------------------------------------------


def build(name: str, labels: int, *, device: str = "meta", **settings: Any) -> nn.Module:
    """Return a fresh network of `source/NAME` for this number of labels, by default on meta.

    Of transformers NAME is a model type, and `settings` go into its config. Raises UserError.
    """
    source, _, rest = name.partition("/")
    try:
        with on_meta() if device == "meta" else torch.device(device):
            return (
                _build_type(rest, labels, settings)
                if source == "transformers"
                else _build_named(source, rest, labels)
            )
    except UserError:
        if source != "torchvision" or device == "cpu":
            raise
    return build(name, labels, device="cpu")  # torchvision's regnets do not build on meta


def _build_named(source: str, name: str, labels: int) -> nn.Module:
    from hf_transfer.backbones.building import build_network
    from hf_transfer.backbones.origins import Origin

    return build_network(Origin(source, name), labels)


def _build_type(kind: str, labels: int, settings: dict[str, Any]) -> nn.Module:
    from transformers import AutoConfig, AutoModelForImageClassification

    config = AutoConfig.for_model(kind, num_labels=labels, **settings)
    config.architectures = []  # else types with several heads (deit) are not told apart
    network: nn.Module = AutoModelForImageClassification.from_config(config)
    return network


def traced(network: nn.Module, other: nn.Module, size: int, labels: int) -> Layout:
    """Return the layout of a network on images of `size`; `other` has another number of labels."""
    from hf_transfer.backbones.trace import head_names, trace_layout

    image = {"size": size, "channels": 3}
    return trace_layout(network, image=image, head=head_names(network, other), labels=labels)
