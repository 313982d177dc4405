"""Phases that learn from images without labels by the network's own answers (`pseudo`)."""

import pytest
import torch
import torch.nn.functional as F
from small import HEAD, images, network, state, trainer
from transformers import TrainerCallback

from hf_transfer.base.errors import RecipeError, UserError
from hf_transfer.inputs.batches import training_inputs
from hf_transfer.inputs.pseudo import with_unlabelled
from hf_transfer.recipe.phase_parts import Pseudo
from hf_transfer.recipe.specs import AUGMENTS, PhaseSpec
from hf_transfer.training.pseudo_loss import pseudo_sum
from hf_transfer.training.step_loss import by_image


class Break(TrainerCallback):
    """Ends training as a failure would, in the middle of the phase with pseudo."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4 and "all" in args.output_dir:
            raise RuntimeError("cut off")


PSEUDO = {"train": "all", "epochs": 2, "lr": 1e-3, "batch_size": 10, "augment": "light",
          "pseudo": {"per_image": 2, "confidence": 0.4}}  # fmt: skip


def made(folder, *phases, **more):
    sets = {"train_dataset": images(), "eval_dataset": images(12, seed=1)}
    return trainer(folder, phases or (HEAD, PSEUDO), unlabelled=images(30, seed=2), **sets, **more)


def test_only_confident_answers_teach_and_no_gradient_passes_through_them():
    weak = torch.tensor([[[9.0, 0, 0], [0.1, 0, 0]]], requires_grad=True)  # sure, and not
    strong = torch.tensor([[[0.0, 2, 0], [0, 0, 5.0]]], requires_grad=True)
    outputs = torch.cat([weak, strong], 1).flatten(1)
    loss, share = pseudo_sum(outputs, 3, 0.95)
    loss.backward()
    assert share == 0.5
    assert loss.item() == pytest.approx(
        F.cross_entropy(strong[0, :1], torch.tensor([0])).item() / 2
    )
    assert not weak.grad.any()
    assert strong.grad[0, 0].any()
    assert not strong.grad[0, 1].any()


def test_images_without_labels_stand_beside_each_labelled_one_whatever_its_neighbours():
    """A little varied first, then the same ones strongly; a function of seed, epoch and index."""
    labelled, others, model = images(), images(30, seed=2), network()
    image, pseudo = model.backbone.image, Pseudo(per_image=3)
    spec = PhaseSpec("all", epochs=1, augment=AUGMENTS["light"], pseudo=pseudo)

    def batch(rows):
        found = labelled.__getitems__(rows)
        own = training_inputs(found, spec, image, labelled, 1, 5)
        made = with_unlabelled(own, found["index"], 1, 5, pseudo, spec.augment, others, image)
        assert torch.equal(made["pixel_values"][: len(rows)], own["pixel_values"])
        assert torch.equal(made["labels"], found["labels"])
        return by_image(made["pixel_values"].flatten(1), len(rows)).unflatten(1, (7, -1))

    four = batch([3, 9, 4, 11])
    assert torch.equal(batch([11, 3])[0], four[3])
    assert len(torch.unique(four.flatten(0, 1), dim=0)) == 28  # all differ


def test_a_phase_with_pseudo_resumes_bit_for_bit_and_tells_how_many_answers_counted(tmp_path):
    unbroken = made(tmp_path / "whole", logging_steps=1)
    unbroken.train()
    with pytest.raises(RuntimeError, match="cut off"):
        made(tmp_path / "broken", callbacks=[Break()], checkpoint_seconds=0).train()
    resumed = made(tmp_path / "broken", checkpoint_seconds=0)
    resumed.train(resume_from_checkpoint=True)
    one, two = state(unbroken.model), state(resumed.model)
    assert all(torch.equal(one[name], two[name]) for name in one)
    counted = [row["confident"] for row in unbroken.reports[1].history if "confident" in row]
    assert len(counted) == 6
    assert 0 < max(counted) <= 1
    changed = made(tmp_path / "broken", checkpoint_seconds=0)
    changed.unlabelled = images(30, seed=3)
    with pytest.raises(UserError, match="images without labels"):
        changed.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("ends_with", ["best", "last"])
def test_a_phase_that_makes_validation_worse_is_undone_and_the_next_starts_before_it(
    tmp_path, ends_with
):
    spoils = {**PSEUDO, "lr": 0.3, "epochs": 1, "best": "last"}
    last = {**HEAD, "epochs": 1, "lr": 1e-6, "best": "last"}
    run = made(tmp_path, {**HEAD, "epochs": 8}, spoils, last, ends_with=ends_with)
    run.train()
    first, spoilt, end = run.reports
    assert spoilt.metrics["accuracy"] < first.metrics["accuracy"]
    assert end.metrics["accuracy"] == first.metrics["accuracy"]
    assert any("is undone: accuracy" in note for note in run.notes)


def test_what_a_phase_with_pseudo_lacks_is_named(tmp_path):
    with pytest.raises(RecipeError, match="its head has not learned any yet"):
        made(tmp_path, {**PSEUDO, "cold_head": True})
    with pytest.raises(UserError, match="there are none; pass them as unlabelled="):
        trainer(tmp_path, [HEAD, PSEUDO], train_dataset=images()).train()
    with pytest.raises(RecipeError, match="mixup"):
        PhaseSpec("all", epochs=1, mixup=0.2, pseudo=Pseudo())
