"""A batch of one image that leaves BatchNorm one value is found before anything trains."""

import re

import pytest
from small import ALL, COLD, HEAD, RESNET, VIT, images, network, trained, trainer

from hf_transfer.base.errors import RecipeError, UserError
from hf_transfer.planning.data_checks import check_batches
from hf_transfer.planning.phases import make_phases
from hf_transfer.recipe.load import parse_phase

LIVE = {**COLD, "features": "live"}


def refused(folder, phases, count, backbone=RESNET, **options):
    made = trainer(folder, phases, network(backbone), train_dataset=images(count), **options)
    with pytest.raises(UserError) as error:
        made.train()
    assert not list(folder.glob("phase*"))
    return str(error.value)


def test_a_last_batch_of_one_image_is_refused_with_sizes_that_work(tmp_path):
    said = refused(tmp_path, [HEAD, {**ALL, "batch_size": 8}], 17, checkpoint_seconds=1000)
    assert said.startswith(
        "phase all: batch_size: 8 with 17 images leaves a last batch of one image, and"
    )
    assert said.endswith("write batch_size: 9 or still_norms: true")
    assert "\n" not in said


def test_it_is_told_as_the_plan_tells_it(tmp_path):
    phases = make_phases([parse_phase({**LIVE, "batch_size": 8})], network().backbone.groups)
    said = refused(tmp_path, phases, 17)
    with pytest.raises(RecipeError) as error:
        check_batches(phases, 17)
    layer = r"BatchNorm layer \S+"
    assert re.sub(layer, "", said) == re.sub(layer, "", str(error.value))


def test_batches_of_one_image_are_refused(tmp_path):
    said = refused(tmp_path, [{**LIVE, "batch_size": 1}], 6)
    assert said.startswith("phase all: batch_size: 1 gives batches of one image, and BatchNorm ")
    assert "write batch_size: 2 or" in said


@pytest.mark.parametrize(
    ("phase", "backbone", "options"),
    [
        ({**LIVE, "batch_size": 8, "still_norms": True}, RESNET, {}),
        ({**HEAD, "batch_size": 8}, RESNET, {}),
        ({**LIVE, "batch_size": 8}, VIT, {}),
        ({**LIVE, "batch_size": 8}, RESNET, {"dataloader_drop_last": True}),
        ({**LIVE, "batch_size": 4}, RESNET, {"train_dataset": images(18)}),
    ],
)
def test_what_no_such_layer_sees_trains(tmp_path, phase, backbone, options):
    options = {"train_dataset": images(17), **options}
    assert trained(tmp_path, [phase], network(backbone), **options).reports[0].steps > 0
