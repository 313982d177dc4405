"""From a batch of a phase's data to what the model takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hf_transfer.data.image_set import ImageSet
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.inputs.batches import evaluation_inputs, training_inputs
from hf_transfer.inputs.pretexts import Pretext
from hf_transfer.inputs.pseudo import with_unlabelled
from hf_transfer.training.machine.image_weights import SHARE
from hf_transfer.training.phase_state import PhaseState

Batch = dict[str, Any]


def step_inputs(
    batch: Batch,
    epoch: int,
    image: ImageSettings,
    images: Any,
    state: PhaseState | None,
    training: bool,
    to_device: Callable[[Batch], Batch],
    pretext: Pretext | None = None,
    unlabelled: ImageSet | None = None,
) -> Batch:
    """Return a batch with features, or with stored pixels as the model takes them: varied while
    `training`, as a pure function of the phase's seed, the epoch and the image's place in `images`.
    The weight of a batch goes with it. A `pretext` makes its own pictures and labels; a phase with
    `pseudo` has `unlabelled` images beside its own. Frozen modules are set still: after Trainer's
    `model.train()`, and before a user's own loss.
    """
    if state is not None and training:
        state.hold_still()
    share = {key: batch[key] for key in (SHARE,) if key in batch}
    varies = state if training else None
    if pretext is None:
        made = _inputs(batch, epoch, image, images, state, training, to_device)
        pseudo = varies.phase.spec.pseudo if varies else None
        if varies is not None and unlabelled is not None and pseudo:
            own = epoch, varies.args.seed, pseudo, varies.phase.spec.augment
            made = with_unlabelled(made, batch["index"], *own, unlabelled, image)
    elif varies is None:
        made = pretext.inputs(to_device(batch), image)
    else:
        seed, spec = varies.args.seed, varies.phase.spec
        made = pretext.training_inputs(to_device(batch), image, epoch, seed, spec)
    return {**made, **share}


def _inputs(
    batch: Batch,
    epoch: int,
    image: ImageSettings,
    images: Any,
    state: PhaseState | None,
    training: bool,
    to_device: Callable[[Batch], Batch],
) -> Batch:
    if state is not None and state.replay is not None and "rows" in batch:
        batch = state.replay.batch(batch, epoch)
    batch = to_device(batch)
    if "pixels" not in batch:
        return batch
    if state is None or not training:
        return evaluation_inputs(batch, image)
    return training_inputs(batch, state.phase.spec, image, images, epoch, state.args.seed)
