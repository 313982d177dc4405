"""What is changed of a Trainer after it was made is never passed over in silence."""

import pytest
import torch
from small import COLD, HEAD, Pixels, arguments, images, network, trainer
from torch import nn

from hf_transfer.base.errors import UserError
from hf_transfer.training.trainer import TransferTrainer


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("args.num_train_epochs", 5),
        ("args.learning_rate", 1e-2),
        ("phases", [{"train": "all", "epochs": 1}]),
        ("compute_loss_func", lambda outputs, labels, **_: outputs.logits.mean()),
        ("optimizer", torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)),
        ("model", network()),
    ],
)
def test_what_phases_were_planned_by_cannot_be_changed_later(tmp_path, name, value):
    made = trainer(tmp_path, [{"train": "head"}])
    place = made.args if name.startswith("args.") else made
    setattr(place, name.removeprefix("args."), value)
    with pytest.raises(UserError, match=f"^{name}: this was changed after the Trainer was made"):
        made.train()


def test_other_images_may_be_given_between_trainings(tmp_path):
    made = trainer(tmp_path, [HEAD])
    made.train()
    made.train_dataset = images(8)
    made.train()
    assert made.state.global_step == HEAD["epochs"]


def test_training_goes_on_after_a_failure(tmp_path):
    made = trainer(tmp_path, [HEAD])
    step, made.training_step = made.training_step, None
    with pytest.raises(TypeError):
        made.train()
    made.training_step = step
    made.train()


class OwnLoss(TransferTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = nn.functional.cross_entropy(outputs.logits, labels)
        return (loss, outputs) if return_outputs else loss


def test_a_compute_loss_of_a_subclass_trains_a_head_on_a_still_backbone(tmp_path):
    model = network()
    before = model.timm_model.bn1.running_mean.clone()
    data = {"train_dataset": Pixels(images(), model), "eval_dataset": Pixels(images(6), model)}
    OwnLoss(model, arguments(tmp_path), [HEAD], **data).train()
    assert torch.equal(model.timm_model.bn1.running_mean, before)


def test_what_would_change_the_loss_of_a_subclass_is_refused(tmp_path):
    with pytest.raises(UserError, match="mixup would change the loss, which is your own"):
        OwnLoss(
            network(), arguments(tmp_path), [{**COLD, "mixup": 0.2}], train_dataset=images()
        ).train()
    with pytest.raises(UserError, match="class_weights would change the loss"):
        OwnLoss(
            network(), arguments(tmp_path), [HEAD], train_dataset=images(), class_weights=[1, 2, 3]
        )


def test_a_compute_loss_that_calls_ours_may_have_everything(tmp_path):
    class Watched(TransferTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            return super().compute_loss(model, inputs, *args, **kwargs)

    made = Watched(network(), arguments(tmp_path), [{**COLD, "mixup": 0.2}], train_dataset=images())
    made.train()
    assert made.reports[0].settings["mixup"] == 0.2
    assert made.reports[0].checks["moved"]


def test_arguments_that_were_made_later_are_told(tmp_path):
    made = trainer(tmp_path, [HEAD])
    arguments(tmp_path)
    with pytest.raises(UserError, match="other TrainingArguments were made after this Trainer"):
        made.train()
