"""torch.compile and gradient checkpointing give what they would not change: the same training."""

import pytest
import torch
from small import COLD, HEAD, state, trained
from transformers import TrainerCallback, ViTConfig, ViTForImageClassification

PHASES = [
    {**HEAD, "epochs": 1, "features": "live"},
    {**COLD, "train": "last 1 stage"},
    {**COLD, "train": "head", "features": "live"},  # freezing again is a change, too
    COLD,
]
SGD = [{**phase, "optimizer": "sgd", "lr": 0.05} for phase in PHASES]


def apart(one, two):
    return max((one[name] - two[name]).abs().max().item() for name in one)


class Graphs(TrainerCallback):
    """Notes how many graphs dynamo has compiled since the start of each phase."""

    def __init__(self):
        self.counts = []

    def on_train_end(self, *args, **kwargs):
        self.counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.slow
def test_a_compiled_network_trains_in_each_phase_what_it_should(tmp_path):
    """What was compiled for other frozen layers is not used again."""
    plain = trained(tmp_path / "a", SGD, vit(2))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    graphs = Graphs()
    options = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    made = trained(tmp_path / "b", SGD, vit(2), callbacks=[graphs], **options)
    assert apart(state(plain.model), state(made.model)) < 1e-5
    assert len(set(graphs.counts)) == len(SGD)  # compiled anew in each phase
    assert [r.checks["moved"] for r in made.reports] == [r.checks["moved"] for r in plain.reports]


def vit(layers=4):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=8, num_labels=3,
    )  # fmt: skip
    return ViTForImageClassification(config)


def test_gradient_checkpointing_trains_the_same_above_a_frozen_prefix(tmp_path):
    """The kind that re-enters autograd would leave what trains above it without gradients."""
    ends, passes = [], []
    for on in (False, True):
        model, seen = vit(), []
        model.vit.layers[-1].layernorm_before.register_forward_hook(lambda *_, s=seen: s.append(1))
        ends.append(trained(tmp_path / str(on), SGD, model, activation_checkpointing=on))
        passes.append(len(seen))
    assert apart(state(ends[0].model), state(ends[1].model)) < 1e-6
    assert passes[1] > passes[0]  # forward ran again for the backward pass
    assert [r.checks for r in ends[1].reports] == [r.checks for r in ends[0].reports]


def test_gradient_checkpointing_counts_each_batch_once_in_running_statistics(tmp_path):
    plain, twice = (
        trained(tmp_path / str(on), [COLD], activation_checkpointing=on).model
        for on in (False, True)
    )
    assert apart(state(plain), state(twice)) < 1e-6
