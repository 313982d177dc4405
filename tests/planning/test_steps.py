"""Steps: how many a phase takes, from its epochs and its floor."""

import pytest

from hf_transfer.planning.steps import epochs_of, images_seen, optimizer_steps
from hf_transfer.recipe.specs import PhaseSpec


@pytest.mark.parametrize(
    ("images", "epochs", "steps"),
    [(25, 200, 200), (320, 20, 200), (640, 10, 200), (6400, 10, 2000), (100, 50, 200)],
)
def test_a_phase_has_its_fewest_steps_in_whole_epochs(images, epochs, steps):
    spec = PhaseSpec(train="all", epochs=10, min_steps=200, batch_size=32)
    assert epochs_of(spec, images) == epochs
    assert optimizer_steps(spec, images) == steps
    assert images_seen(spec, images) == epochs * images
