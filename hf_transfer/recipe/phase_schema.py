"""The schema of a phase: which keys there are, what each may be, and what goes with what."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hf_transfer.recipe import yaml_nodes
from hf_transfer.recipe.specs import AUGMENTS, Augment, GradualSpec, PhaseSpec, Stop
from hf_transfer.recipe.yaml_nodes import (
    Mistakes,
    Node,
    Pairs,
    Reader,
    items,
    number,
    one_of,
    or_none,
    switch,
)
from hf_transfer.recipe.yaml_nodes import text as words

OPTIMIZERS = ("adamw", "sgd", "adafactor", "adagrad", "rmsprop")
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "polynomial", "inverse_sqrt")
# What sets the steps, the rates or the loss, and a head that is solved for has none of.
UNSOLVED = (
    *("epochs", "steps", "lr", "lrs", "layer_decay", "weight_decay", "optimizer", "momentum"),
    *("schedule", "warmup", "batch_size", "accumulate", "label_smoothing", "mixup", "cutmix"),
    *("stop", "best", "l2_sp", "max_grad_norm", "on_nan"),
)
GRADUAL = re.compile(r"(\d+) ?(stage|block|%)s?")


def read_phase(node: Node, any_name: bool = False) -> PhaseSpec | GradualSpec:
    """Return the phase that a mapping describes; `gradual` has the settings of any other.

    With `any_name` optimizer and schedule are not checked: they may be any of transformers'.
    """
    readers: dict[str, Reader] = {
        "name": or_none(words),
        "epochs": or_none(number(above=0)),
        "steps": or_none(number(1, whole=True)),
        "lr": _rate,
        "layer_decay": or_none(number(above=0, high=1)),
        "lrs": _rates,
        "weight_decay": number(0),
        "optimizer": words if any_name else one_of(*OPTIMIZERS),
        "momentum": or_none(number(0, below=1)),
        "schedule": words if any_name else one_of(*SCHEDULES),
        "warmup": _warmup,
        "batch_size": number(1, whole=True),
        "accumulate": number(1, whole=True),
        "augment": _augment,
        "label_smoothing": number(0, below=1),
        "mixup": number(0),
        "cutmix": number(0),
        "stop": or_none(_stop),
        "best": words,
        "l2_sp": number(0),
        "max_grad_norm": number(0),
        "features": one_of("auto", "cached", "live"),
        "feature_precision": one_of("fp32", "fp16"),
        "views": number(1, whole=True),
        "solve": or_none(one_of("lbfgs")),
        "still_norms": switch,
        "reestimate_norms": _images,
        "keep_adapters": switch,
        "on_nan": one_of("stop", "rollback"),
        "cold_head": switch,
    }
    _check_closed(node)
    gradual = isinstance(node.value, Pairs) and "gradual" in dict(node.value)
    if gradual:
        own: dict[str, Reader] = {
            "gradual": _gradual,
            "lr_drop": number(above=0, high=1),
            "thaws": or_none(number(1, whole=True)),
        }
        values = yaml_nodes.fields(node, {**own, **readers})
        (count, grain), lr_drop, thaws = (
            values.pop(key, default) for key, default in zip(own, (None, 1.0, None), strict=True)
        )
        spec = _phase_spec(node, {**values, "train": "head"})
        _check_gradual(node, spec)
        return GradualSpec(count, grain, spec, lr_drop, thaws, spec.place)
    values = yaml_nodes.fields(node, {"train": _selector, **readers}, needs=("train",))
    return _phase_spec(node, values)


def _check_closed(node: Node) -> None:
    """Raise Mistakes where a comma has parted the settings of adapters into keys of their own."""
    train = dict(node.value).get("train") if isinstance(node.value, Pairs) else None
    text = getattr(train, "value", None)
    if isinstance(text, str) and "(" in text and ")" not in text:
        raise node.wrong(
            f"{text!r} is not closed; write 'lora(r=8, alpha=16)' in quotes, or no comma"
        )


def _phase_spec(node: Node, values: dict[str, Any]) -> PhaseSpec:
    if isinstance(values.get("lr"), tuple):
        values["lr_geometric"], values["lr"] = values["lr"], values["lr"][1]
    spec = PhaseSpec(**values, place=node.place if node.line else "")
    given = [key for key, child in node.value if child.value is not None]
    _check_phase(node, spec, [key for key in UNSOLVED if spec.solve and key in given])
    return spec


# --- the parts of a phase --------------------------------------------------------------------


def _selector(node: Node) -> str | tuple[str, ...]:
    if isinstance(node.value, tuple) and not isinstance(node.value, Pairs):
        return tuple(items(words, "selectors")(node))
    return words(node)


def _gradual(node: Node) -> tuple[int, str]:
    found = GRADUAL.fullmatch(node.value) if isinstance(node.value, str) else None
    if found is None or int(found[1]) == 0 or (found[2] == "%" and int(found[1]) > 100):
        raise node.wrong(
            f"gradual must be a step such as 1 stage, 2 blocks or 25%, got {node.shown()}"
        )
    return int(found[1]), found[2] if found[2] == "%" else found[2] + "s"


def _rate(node: Node) -> float | tuple[float, float]:
    if isinstance(node.value, tuple):
        return _pair(node, "the rate of the first group and that of the last", number(above=0))
    rate: float = number(above=0)(node)
    return rate


def _rates(node: Node) -> tuple[tuple[str, float], ...]:
    if not isinstance(node.value, Pairs) or not node.value:
        raise node.wrong(
            f"lrs must be a mapping such as {{head: 1e-3, last 1 stage: 1e-4}}, got {node.shown()}"
        )
    values = yaml_nodes.fields(node, dict.fromkeys(dict(node.value), number(above=0)))
    return tuple(values.items())


def _pair(node: Node, what: str, read: Reader) -> tuple[float, float]:
    if not isinstance(node.value, tuple) or isinstance(node.value, Pairs) or len(node.value) != 2:
        raise node.wrong(f"{node.name} must be two numbers: {what}; got {node.shown()}")
    first, last = items(read, "numbers")(node)
    return first, last


def _warmup(node: Node) -> float:
    value: float = number(0)(node)
    if value > 1 and value != int(value):
        raise node.wrong(
            f"warmup must be a share of the phase below 1 or a whole number of steps, got {value:g}"
        )
    return value


def _images(node: Node) -> bool | int:
    """Return true or false, or a number of images."""
    if isinstance(node.value, bool):
        return node.value
    try:
        count: int = number(2, whole=True)(node)
    except Mistakes:
        raise node.wrong(
            f"{node.name} must be true, false or a number of images from 2, got {node.shown()}"
        ) from None
    return count


def _augment(node: Node) -> Augment:
    if isinstance(node.value, Augment):
        return node.value
    if not isinstance(node.value, Pairs):
        if isinstance(node.value, str) and node.value in AUGMENTS:
            return AUGMENTS[node.value]
        raise node.wrong(
            f"augment must be {', '.join(AUGMENTS)} or a mapping such as "
            f"{{crop: [0.5, 1], flip: true}}, got {node.shown()}"
        )
    readers: dict[str, Reader] = {
        "crop": or_none(_crop),
        "flip": switch,
        "vertical_flip": switch,
        "color": number(0, 1),
        "erase": number(0, 1),
        "rotate": number(0, 180),
    }
    return Augment(**yaml_nodes.fields(node, readers))


def _crop(node: Node) -> tuple[float, float]:
    low, high = _pair(node, "the smallest and largest share of the area", number(above=0, high=1))
    if low > high:
        raise node.wrong(f"crop has its numbers the wrong way round; write [{high:g}, {low:g}]")
    return low, high


def _stop(node: Node) -> Stop | None:
    if isinstance(node.value, Stop):
        return node.value
    if not isinstance(node.value, Pairs):
        if node.value == "rises":
            return Stop(patience=1)
        raise node.wrong(
            "stop must be rises (until validation loss rises) or a mapping such as "
            f"{{metric: loss, patience: 3}}, got {node.shown()}"
        )
    readers: dict[str, Reader] = {
        "metric": words,
        "patience": number(1, whole=True),
        "min_change": number(0),
    }
    return Stop(**yaml_nodes.fields(node, readers))


# --- what goes with what ---------------------------------------------------------------------


def _check_phase(node: Node, spec: PhaseSpec, unsolved: Sequence[str]) -> None:
    """Raise Mistakes where settings of a phase contradict each other or would have no effect.

    `unsolved` are the keys given that mean nothing to a solver.
    """
    lengths = [key for key in ("epochs", "steps") if getattr(spec, key) is not None]
    augmented, mixed = spec.augment != Augment(), spec.mixup > 0 or spec.cutmix > 0
    conflicts = (
        (
            not lengths and spec.solve is None,
            "a phase needs epochs or steps, such as epochs: 10",
        ),
        (
            len(lengths) == 2,
            "a phase has either epochs or steps, not both; remove one",
        ),
        (
            bool(unsolved),
            f"solve: lbfgs runs until it converges; remove {', '.join(unsolved)}, which it does "
            "not use",
        ),
        (
            spec.lr_geometric is not None and spec.layer_decay is not None,
            "lr with two rates and layer_decay both set the rate of each group; remove one",
        ),
        (
            spec.momentum is not None and spec.optimizer not in ("sgd", "rmsprop"),
            f"momentum does nothing in {spec.optimizer}; remove it or write optimizer: sgd",
        ),
        (
            spec.warmup > 0 and spec.schedule == "constant",
            "schedule: constant has no warmup; write schedule: constant_with_warmup",
        ),
        (
            spec.schedule == "constant_with_warmup" and spec.warmup == 0,
            "schedule: constant_with_warmup needs warmup, such as warmup: 0.1",
        ),
        (
            spec.views > 1 and not augmented,
            f"views: {spec.views} would be the same pixels each time; add augment: light",
        ),
        (
            spec.views > 1 and spec.features == "live",
            "views are for cached features; remove features: live or views",
        ),
        (
            spec.feature_precision != "fp32" and spec.features == "live",
            "feature_precision is for cached features; remove features: live or feature_precision",
        ),
        (
            mixed and spec.features == "cached",
            "mixup and cutmix mix pixels, not features; remove them or features: cached",
        ),
        (
            spec.solve is not None and spec.features == "live",
            "solve: lbfgs works on cached features; remove features: live",
        ),
    )
    problems = [problem for bad, what in conflicts if bad for problem in node.wrong(what).problems]
    if problems:
        raise Mistakes(problems)


def _check_gradual(node: Node, spec: PhaseSpec) -> None:
    for key, remedy in (
        ("solve", "put {train: head, solve: lbfgs} before it"),
        ("lrs", "use layer_decay"),
        ("cold_head", "it starts with the head, so remove it"),
    ):
        if getattr(spec, key):
            raise node.wrong(f"gradual cannot have {key}; {remedy}")
