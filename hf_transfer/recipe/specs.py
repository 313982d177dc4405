"""What a recipe says, as frozen dataclasses; `recipe.py` reads and writes them as YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Augment:
    """How training images are varied; everything off by default."""

    crop: tuple[float, float] | None = None  # share of the area that a random crop keeps
    flip: bool = False  # left to right, every other image
    vertical_flip: bool = False
    color: float = 0.0  # strength of brightness, contrast and saturation, 0 to 1
    erase: float = 0.0  # chance that a rectangle is erased
    rotate: float = 0.0  # degrees to either side


AUGMENTS = {
    "none": Augment(),
    "light": Augment(crop=(0.6, 1.0), flip=True),
    "standard": Augment(crop=(0.35, 1.0), flip=True, color=0.3),
}


@dataclass(frozen=True)
class Stop:
    """When a phase ends early: `patience` evaluations without a gain above `min_change`."""

    metric: str = "loss"
    patience: int = 3
    min_change: float = 0.0


@dataclass(frozen=True)
class PhaseSpec:
    """One phase as the recipe says it: what trains, for how long, at which rates, on what."""

    train: str | tuple[str, ...]  # selector, or several: their union, less those with "not "
    name: str | None = None
    epochs: float | None = None  # exactly one of epochs and steps, neither with `solve`
    steps: int | None = None
    lr: float = 1e-3  # rate of the head
    layer_decay: float | None = None  # factor on the rate from group to group below the head
    lrs: tuple[tuple[str, float], ...] = ()  # selector -> rate, the first that matches wins
    lr_geometric: tuple[float, float] | None = None  # first trained group's rate, last one's
    weight_decay: float = 0.01
    optimizer: str = "adamw"
    momentum: float | None = None  # of sgd and rmsprop
    schedule: str = "cosine"
    warmup: float = 0.0  # below 1: share of the phase, but not all; from 1: steps
    batch_size: int = 32
    accumulate: int = 1  # batches in one step
    augment: Augment = field(default_factory=Augment)
    label_smoothing: float = 0.0
    mixup: float = 0.0  # parameter of Beta(a, a); 0 = off
    cutmix: float = 0.0
    stop: Stop | None = None
    best: str = "loss"  # metric whose best epoch the phase ends with; "last" = the last epoch
    l2_sp: float = 0.0  # pull of the backbone towards its pretrained weights
    max_grad_norm: float = 1.0
    features: Literal["auto", "cached", "live"] = "auto"
    feature_precision: Literal["fp32", "fp16"] = "fp32"  # of cached features, on disk
    views: int = 1  # augmented versions of each image whose features are cached
    solve: Literal["lbfgs"] | None = None  # logistic regression to convergence, not steps
    still_norms: bool = False  # keep the statistics of normalisation still where it trains, too
    reestimate_norms: bool | int = False  # statistics anew before it, on all or so many images
    keep_adapters: bool = False  # write them as peft's folder, too, before they are merged
    on_nan: Literal["stop", "rollback"] = "stop"  # rollback: last good checkpoint, rates / 10
    cold_head: bool = False  # allow the backbone to train with a head that is not trained yet
    place: str = field(default="", compare=False, repr=False)  # "recipe.yaml:14", if from a file


@dataclass(frozen=True)
class GradualSpec:
    """Head first, then `count` more stages, blocks or percent of the blocks in each phase."""

    count: int
    grain: Literal["stages", "blocks", "%"]
    each: PhaseSpec  # settings of every phase; its `train` is filled in
    lr_drop: float = 1.0  # factor on the rates from one phase to the next
    thaws: int | None = None  # phases after the head's; None = until everything trains
    place: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True)
class DataSpec:
    """Where the images are and how they are split."""

    path: str | None = None
    validation: float = 0.2
    test: float = 0.0
    image_size: int | None = None
    train_per_class: int | None = None
    validation_per_class: int | None = None
    image_column: str = "image"
    label_column: str = "label"
    config: str | None = None
    max_bad: float = 0.01  # share of bad images that is tolerated
    min_per_class: int = 2
    label_columns: tuple[str, ...] = ()  # one for each label or target, instead of label_column
    channels: int | None = None  # of the images; None: as the backbone's checkpoint has seen


@dataclass(frozen=True)
class HeadSpec:
    """How many layers with weights, counted from the top, are newly initialised; or none: the
    checkpoint's own head is kept, which must be for the same labels."""

    replace: int = 1
    keep: bool = False


@dataclass(frozen=True)
class LettersSpec:
    """Drawn letters as a source task whose labels cost nothing."""

    fonts: int = 14
    images: int = 10_000  # in all


@dataclass(frozen=True)
class SourceSpec:
    """A task on which the backbone is trained first: a labelled folder, or drawn letters."""

    backbone: str
    phases: tuple[PhaseSpec | GradualSpec, ...]
    data: DataSpec | None = None
    letters: LettersSpec | None = None


@dataclass(frozen=True)
class CompareSpec:
    """A comparison over numbers of labelled images per class, each with several seeds."""

    per_class: tuple[int, ...]
    seeds: int = 3


@dataclass(frozen=True)
class Recipe:
    """Everything that a run is made of; the same recipe, data and seed give the same run."""

    name: str
    phases: tuple[PhaseSpec | GradualSpec, ...]
    task: Literal["classification", "multi_label", "regression"] = "classification"
    backbone: str | None = None
    pretrained: bool = True
    weights: str | None = None  # local file for a backbone whose library cannot load it
    head: HeadSpec = field(default_factory=HeadSpec)
    data: DataSpec = field(default_factory=DataSpec)
    loss: Literal["cross_entropy", "balanced", "squared_error"] = "cross_entropy"
    metrics: tuple[str, ...] = ()  # more of `evaluate`'s, by name or path
    seed: int = 0
    seeds: int = 1  # repeats with seed, seed + 1, …
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    workers: int = 0
    sync_batchnorm: bool = False  # batch statistics over the images of all processes
    compile: bool = False  # torch.compile in each phase
    ends_with: Literal["best", "last"] = "best"  # phase whose weights the model has
    gradient_checkpointing: bool = False  # forward runs twice, for less memory
    source: SourceSpec | None = None
    compare: CompareSpec | None = None
