"""What leaves the frozen prefix: computed once, kept on disk, replayed in every epoch.

The model's own forward runs on, from the cut; wrappers, losses and metrics stay what they are.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from hf_transfer.backbones.blueprint import Backbone
from hf_transfer.base.boundary import said
from hf_transfer.base.cache import cache_folder
from hf_transfer.base.locks import Hold
from hf_transfer.base.processes import Meetings, Processes
from hf_transfer.base.store import StoredRows, build_rows, open_rows, reserve
from hf_transfer.base.threads import fitting_work
from hf_transfer.data.image_set import ImageSet
from hf_transfer.inputs.cut import PROBES, Context, Cut, find_cut
from hf_transfer.inputs.extraction import Extraction, FeaturesError, TooLargeError
from hf_transfer.inputs.feature_key import feature_key
from hf_transfer.inputs.model_input import to_model_input
from hf_transfer.inputs.passage import CutError, digest
from hf_transfer.inputs.replay import Player
from hf_transfer.planning.frozen_prefix import PRETEXT, top_macs, view_count, why_live
from hf_transfer.planning.phase import Phase
from hf_transfer.recipe.specs import Augment
from hf_transfer.recipe.tasks import TASKS

logger = logging.getLogger(__name__)

TOO_LARGE = 2  # of what came of computing, the worst; 1 is no room, or no permission


class IndexSet(Dataset[dict[str, Any]]):
    """The places of images in a set, with their labels (N, …); batches like an ImageSet's."""

    def __init__(self, labels: np.ndarray, first: int = 0) -> None:
        self.labels, self.first = np.asarray(labels), first

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        rows = np.asarray(indices, np.int64)
        # An array, not a tensor: it stays on the host, where the features are.
        return {"rows": rows + self.first, "labels": torch.from_numpy(self.labels[rows])}

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"rows": index + self.first, "labels": int(self.labels[index])}


def replay_of(
    model: nn.Module,
    backbone: Backbone,
    phase: Phase,
    still: Sequence[nn.Module],
    train: Any,
    evaluation: Any,
    *,
    seed: int,
    context: Context = nullcontext,
    processes: Processes | None = None,
    sharded: bool = False,
    workers: int = 0,
) -> Replay | None:
    """Return the computed features that a phase trains on instead of images; None if it runs live.

    `sharded` says whether the parameters will be while it trains; `workers` decode images that are
    not stored. All processes call this together and get the same answer. Raises FeaturesError if
    the phase requires cached features, or an exact head, and cannot have them.
    """
    processes = processes or Processes()
    cut = _cut(model, backbone, phase, still, train, evaluation, context, sharded)
    reason = cut if isinstance(cut, str) else ""
    replay = None
    meetings = Meetings(processes)
    if isinstance(cut, Cut):
        replay = Replay(
            model,
            backbone,
            cut,
            phase,
            train,
            evaluation,
            seed=seed,
            context=context,
            workers=workers,
            meetings=meetings,
        )
    worst, reason = _prepared(replay, reason, meetings)
    if worst == TOO_LARGE:
        raise TooLargeError(phase.name)
    if worst:
        reason = reason or "another process cannot keep its features"
        wanted = "solve: lbfgs" if phase.spec.solve else "features: cached"
        if phase.spec.features == "cached" or phase.spec.solve:
            raise FeaturesError(f"phase {phase.name}: {wanted} is not possible, because {reason}")
        if phase.frozen_prefix:
            logger.info("phase %s: the frozen layers run in every epoch: %s", phase.name, reason)
        return None
    return replay


def _prepared(replay: Replay | None, reason: str, meetings: Meetings) -> tuple[int, str]:
    """Make room and compute features, all processes together.

    Returns what came of it in the worst of them, 0 where all is well, and why in this one.
    """
    worst = 0
    for step in (Replay.reserve, Replay.compute):
        found = int(bool(reason))
        try:
            if replay is not None:
                step(replay)
        except (OSError, CutError) as error:
            reason = said(error)
            found = 1
        except TooLargeError as error:  # told by the caller: the others, whose features fit, wait
            reason = str(error)
            found = TOO_LARGE
        meetings.end()
        worst = meetings.processes.most(found)
        if worst:
            break
    return worst, reason


def _cut(
    model: nn.Module,
    backbone: Backbone,
    phase: Phase,
    still: Sequence[nn.Module],
    train: Any,
    evaluation: Any,
    context: Context,
    sharded: bool,
) -> Cut | str:
    """Return where a phase's network is cut, or why its frozen prefix runs live."""
    images = len(train) if hasattr(train, "__len__") else None
    pretext = TASKS[backbone.task].is_pretext
    reason = PRETEXT if pretext else why_live(phase, images, sharded)
    if reason:
        return reason
    if not isinstance(train, ImageSet):
        return "the data set gives no stored pixels"
    if not (evaluation is None or isinstance(evaluation, ImageSet)):
        return "the validation set gives no stored pixels"
    some = np.linspace(0, len(train) - 1, PROBES).astype(np.int64)
    device = next(model.parameters()).device
    pixels = train.__getitems__(some.tolist())["pixels"].to(device)
    return find_cut(model, still, to_model_input(pixels, backbone.image), context)


class Replay:
    """Features of the images of a phase, and the model's forward that takes them.

    `train` and `evaluation` stand for the sets of images; `batch` puts features in place of the
    rows that they give. View v of a training image is varied as in epoch v, and serves the epochs
    v, v + views, v + 2 views, …
    """

    def __init__(
        self,
        model: nn.Module,
        backbone: Backbone,
        cut: Cut,
        phase: Phase,
        train: ImageSet,
        evaluation: ImageSet | None,
        *,
        seed: int,
        context: Context = nullcontext,
        workers: int = 0,
        meetings: Meetings | None = None,
        folder: Path | None = None,
    ) -> None:
        self.model, self.backbone, self.cut, self.folder = (
            model,
            backbone,
            cut,
            folder or cache_folder("features"),
        )
        self.meetings = meetings or Meetings(Processes())
        self.extraction = Extraction(
            model, backbone, cut, phase, seed, context, workers, self.meetings.working
        )
        varied = phase.spec.augment != Augment()
        self.images: list[tuple[ImageSet, int | None]] = [
            (train, view if varied else None) for view in range(view_count(phase))
        ]
        self.holds: list[Hold] = []
        self.views: list[StoredRows] = []
        self.held_out: StoredRows | None = None
        self.train, self.groups = IndexSet(train.labels), train.groups
        self.evaluation = None
        if evaluation is not None:
            self.images.append((evaluation, None))
            self.evaluation = IndexSet(evaluation.labels, len(self.train))
        self.device = next(model.parameters()).device
        above = top_macs(phase)
        self.work = above * phase.spec.batch_size if self.device.type == "cpu" else 0

    def reserve(self) -> None:
        """Make room for everything that is not stored yet, before any of it is computed.

        Raises StoreError if it does not fit.
        """
        weights = self._weights()
        self.entries = [self._entry(images, view, weights) for images, view in self.images]
        rows = {entry["key"]: entry["rows"] for entry in self.entries}
        self.holds = reserve(rows, self.extraction.columns, root=self.folder)

    def compute(self) -> None:
        """Compute and store the features of this process's share that are not stored yet.

        Raises StoreError where they cannot be kept.
        """
        rank, count = self.meetings.processes.rank, self.meetings.processes.count
        different = {entry["key"]: entry for entry in self.entries}.values()
        for number, entry in enumerate(different if count > 1 else ()):
            build_rows(**entry, share=((rank - number) % count, count))
        if count == 1:
            self._open()

    @contextmanager
    def playing(self) -> Iterator[None]:
        """Make the model's forward take features; the caller restores its own."""
        if not self.views:
            self._open()
        with Player(self.model, self.cut) as player:

            def forward(*args: Any, **kwargs: Any) -> Any:
                return player.forward(*args, **kwargs)

            self.model.forward = forward  # a bound method would be bound again, to the model
            try:
                with fitting_work(self.work):
                    yield
            finally:  # from here on the entries may be removed
                self.views, self.held_out, self.holds = [], None, []

    def _open(self) -> None:
        opened = [open_rows(**entry) for entry in self.entries]
        if self.evaluation is not None:
            self.held_out = opened.pop()
        self.views = opened

    def batch(self, inputs: dict[str, Any], epoch: int) -> dict[str, Any]:
        """Return a batch with features in place of the rows that an IndexSet gave."""
        rows, count = np.asarray(inputs["rows"]), len(self.train)
        kept = {key: value for key, value in inputs.items() if key != "rows"}
        if self.held_out is not None and rows[0] >= count:
            found = self.held_out[rows - count]
        else:
            found = self.views[epoch % len(self.views)][rows]
        return {**kept, "features": self._tensors(found)}

    def training_rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return all training features (views * N, D), their labels, and the images that they show
        or, where there are groups, the groups of these.

        Raises FeaturesError where an image's features are not one vector.
        """
        shapes = [crossing.shape for crossing in self.cut.stored]
        if len(shapes) != 1 or sum(side > 1 for side in shapes[0]) > 1:
            raise FeaturesError("solve: lbfgs needs one vector of features for each image")
        rows = np.arange(len(self.train))
        together = rows if self.groups is None else self.groups
        parts = [self._tensors(view[rows])[0].float().flatten(1).numpy() for view in self.views]
        labels = np.tile(self.train.labels, len(parts))
        return np.concatenate(parts), labels, np.tile(together, len(parts))

    # --- computing ---------------------------------------------------------------------------

    def _entry(self, images: ImageSet, view: int | None, weights: str) -> dict[str, Any]:
        """Return the arguments that open one entry of the store."""
        extraction = self.extraction
        key = feature_key(
            images,
            program=self.cut.program,
            weights=weights,
            image=self.backbone.image,
            variation=extraction.variation(view),
            device=self.device.type,
            precision=extraction.precision,
            columns=extraction.columns,
        )
        what = f"{self.backbone.id}, {len(images)} images of {self.backbone.image.size} px"
        what += f", variation {view}" if view is not None else ""
        return {
            "key": key,
            "columns": extraction.columns,
            "rows": len(images),
            "compute": lambda spans, write: extraction.run(images, view, spans, write),
            "about": what,
            "root": self.folder,
        }

    def _weights(self) -> str:
        named = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        return digest([named[name] for name in self.cut.uses])

    def _tensors(self, arrays: Sequence[np.ndarray]) -> list[Tensor]:
        """Return stored arrays as the tensors that crossed the cut."""
        found = []
        for array, crossing in zip(arrays, self.cut.stored, strict=True):
            tensor = torch.from_numpy(array)
            if crossing.dtype == torch.bfloat16 and tensor.dtype == torch.int16:
                tensor = tensor.view(torch.bfloat16)
            found.append(tensor.to(crossing.dtype))
        return found
