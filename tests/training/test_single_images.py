"""A batch of one image that leaves BatchNorm one value is found before anything trains."""

import pytest
from small import ALL, COLD, HEAD, RESNET, VIT, images, network, trained, trainer

from hf_transfer.base.errors import UserError

LIVE = {**COLD, "features": "live"}


def refused(folder, phases, count, backbone=RESNET, **options):
    made = trainer(folder, phases, network(backbone), train_dataset=images(count), **options)
    with pytest.raises(UserError) as error:
        made.train()
    assert not list(folder.glob("phase*"))
    return str(error.value)


def test_a_last_batch_of_one_image_is_refused_with_sizes_that_work(tmp_path):
    said = refused(tmp_path, [HEAD, {**ALL, "batch_size": 8}], 17, checkpoint_seconds=1000)
    assert said.startswith("phase all: of 17 images in batches of 8 the last has one, and ")
    assert "one value a channel" in said
    assert "batch_size: 7" in said
    assert "still_norms: true" in said
    assert "\n" not in said


def test_batches_of_one_image_are_refused(tmp_path):
    said = refused(tmp_path, [{**LIVE, "batch_size": 1}], 6)
    assert said.startswith("phase all: each batch has one image, and ")
    assert "batch_size: 2" in said


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
