"""Other heads of transformers: segmentation and detection train by phases, with their own losses.

The example for each is the test itself: a model, its own collator or none, and `TransferTrainer`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small import arguments, changed, state
from torch.utils.data import Dataset
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    ResNetConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    TrainerCallback,
)

from hf_transfer.training.machine.image_weights import SHARE, counted, weighted
from hf_transfer.training.trainer import TransferTrainer

SIDE, WIDTH = 32, 12  # of an image, and of the square in it


class Squares(Dataset):
    """Images (3, 32, 32) with a red or a green square, told by pixel, or by class and box."""

    def __init__(self, count: int, boxes: bool, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.pixels = torch.from_numpy(random.normal(0, 0.3, (count, 3, SIDE, SIDE))).float()
        self.masks = torch.zeros(count, SIDE, SIDE, dtype=torch.long)
        self.boxes, self.told = boxes, []
        for number in range(count):
            kind = int(random.integers(2))
            x, y = map(int, random.integers(0, SIDE - WIDTH, 2))
            self.pixels[number, kind, y : y + WIDTH, x : x + WIDTH] += 3
            self.masks[number, y : y + WIDTH, x : x + WIDTH] = kind + 1
            box = [x + WIDTH / 2, y + WIDTH / 2, WIDTH, WIDTH]  # centre and size, as DETR wants
            told = {"class_labels": [kind], "boxes": [[side / SIDE for side in box]]}
            self.told.append({key: torch.tensor(value) for key, value in told.items()})

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        labels = self.told[index] if self.boxes else self.masks[index]
        return {"pixel_values": self.pixels[index], "labels": labels}


def together(items: list[dict[str, Any]]) -> dict[str, Any]:
    """A collator for detection: images have different numbers of objects, so labels are a list."""
    return {
        "pixel_values": torch.stack([item["pixel_values"] for item in items]),
        "labels": [item["labels"] for item in items],
    }


class States(TrainerCallback):
    """Keeps every weight and statistic at the start and at the end of each phase."""

    def __init__(self) -> None:
        self.starts: list[dict[str, torch.Tensor]] = []
        self.ends: list[dict[str, torch.Tensor]] = []

    def on_train_begin(self, args, state_, control, model=None, **_):
        self.starts.append(state(model))

    def on_train_end(self, args, state_, control, model=None, **_):
        self.ends.append(state(model))


def segformer() -> SegformerForSemanticSegmentation:
    torch.manual_seed(0)
    shape = {"depths": [1, 1], "hidden_sizes": [16, 32], "num_attention_heads": [1, 2]}
    shape |= {"sr_ratios": [2, 1], "patch_sizes": [7, 3], "strides": [2, 2], "mlp_ratios": [2, 2]}
    config = SegformerConfig(num_encoder_blocks=2, decoder_hidden_size=32, num_labels=3, **shape)
    return SegformerForSemanticSegmentation(config)


def detr() -> DetrForObjectDetection:
    torch.manual_seed(0)
    backbone = ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32],
        depths=[1, 1],
        layer_type="basic",
        out_features=["stage2"],
    )
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads"), 2)
    sizes |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "decoder_attention_heads": 2}
    config = DetrConfig(
        backbone_config=backbone, d_model=32, num_queries=4, num_labels=2, dropout=0.0, **sizes
    )
    return DetrForObjectDetection(config)


def rates(trainer: TransferTrainer) -> list[float]:
    return [row["lr"] for row in trainer.reports[-1].rates]


def mean_iou(prediction: Any) -> dict[str, float]:
    """`compute_metrics` for segmentation: the mean over classes of intersection over union."""
    logits = torch.from_numpy(prediction.predictions)
    size = prediction.label_ids.shape[-2:]
    guess = torch.nn.functional.interpolate(logits, size, mode="bilinear").argmax(1).numpy()
    truth = prediction.label_ids
    shares = [
        ((guess == k) & (truth == k)).sum() / max(1, ((guess == k) | (truth == k)).sum())
        for k in range(logits.shape[1])
    ]
    return {"mean_iou": float(np.mean(shares))}


def test_semantic_segmentation_trains_by_phases_with_its_own_loss_and_metric(tmp_path):
    seen, model = States(), segformer()
    trainer = TransferTrainer(
        model,
        arguments(tmp_path),
        [
            {"train": "head", "epochs": 1, "lr": 1e-2, "batch_size": 8},
            {"train": "all", "epochs": 12, "lr": 5e-3, "layer_decay": 0.8, "batch_size": 8,
             "best": "mean_iou"},
        ],
        head=["decode_head.*"],
        train_dataset=Squares(64, boxes=False),
        eval_dataset=Squares(16, boxes=False, seed=1),
        compute_metrics=mean_iou,
        callbacks=[seen],
    )  # fmt: skip
    trainer.train()
    head = {name for name in state(model) if name.startswith("decode_head.")}
    moved = changed(seen.starts[0], seen.ends[0])
    assert moved == head  # of its norm the statistics and their count, too; below nothing
    assert changed(seen.starts[1], seen.ends[1]) == set(state(model))
    assert trainer.backbone.groups.groups[-1].name == "head"
    assert len(trainer.backbone.groups.groups) > 3
    assert min(rates(trainer)) < 0.5 * max(rates(trainer))
    first, last = (report.metrics["mean_iou"] for report in trainer.reports)
    assert last > 0.6 > first, (first, last)
    trainer.save_model(str(tmp_path / "saved"))
    again = SegformerForSemanticSegmentation.from_pretrained(tmp_path / "saved").eval()
    x = Squares(2, boxes=False).pixels
    with torch.no_grad():
        assert torch.equal(again(x).logits, model.eval()(x).logits)


def test_object_detection_trains_by_phases_with_a_collator_and_its_own_loss(tmp_path):
    seen, model = States(), detr()
    trainer = TransferTrainer(
        model,
        arguments(tmp_path),
        [
            {"train": "head", "epochs": 1, "lr": 1e-2, "batch_size": 8},
            {"train": "all", "epochs": 12, "lr": 2e-3, "layer_decay": 0.9, "batch_size": 8},
        ],
        head=["class_labels_classifier.*", "bbox_predictor.*"],
        train_dataset=Squares(64, boxes=True),
        eval_dataset=Squares(16, boxes=True, seed=1),
        data_collator=together,
        compute_metrics=None,  # the loss alone is watched
        callbacks=[seen],
    )
    untrained = trainer.evaluate()["eval_loss"]
    trainer.train()
    head = {n for n in state(model) if n.startswith(("class_labels_classifier", "bbox_predictor"))}
    assert changed(seen.starts[0], seen.ends[0]) == head
    trained = {name for name, _ in model.named_parameters()}
    # The first decoder layer's queries start as zeros, so what reads their values gets no gradient.
    zeros = {"model.decoder.layers.0.self_attn.v_proj.weight"}
    assert changed(seen.starts[1], seen.ends[1]) & trained == trained - zeros
    assert set(trainer.reports[1].checks["unmoved"]) == zeros
    assert min(rates(trainer)) < 0.5 * max(rates(trainer))
    first, last = (report.metrics["loss"] for report in trainer.reports)
    assert last < first < untrained
    assert last < 0.8 * untrained
    trainer.save_model(str(tmp_path / "saved"))
    again = DetrForObjectDetection.from_pretrained(tmp_path / "saved").eval()
    x = Squares(2, boxes=True).pixels
    with torch.no_grad():
        assert torch.equal(again(x).pred_boxes, model.eval()(x).pred_boxes)


@pytest.mark.parametrize("make", [segformer, detr])
def test_the_groups_run_from_the_image_to_the_head(make, tmp_path):
    options = {"head": ["class_labels_classifier.*", "bbox_predictor.*"]} if make is detr else {}
    trainer = TransferTrainer(make(), arguments(tmp_path), [{"train": "head", "epochs": 1}],
                              **options)  # fmt: skip
    groups = trainer.backbone.groups
    names = [name for group in groups.groups for name in group.parameters]
    assert sorted(names) == sorted(trainer.backbone.layout.sizes)
    first, last = groups.groups[0], groups.groups[-1]
    assert "patch" in first.parameters[0] or "embedder" in first.parameters[0]
    assert any("classifier" in name for name in last.parameters)


def test_labels_in_a_list_are_shared_among_processes_like_their_images():
    """Five images in batches of four on two processes: the second has one of its own."""
    batch = together([Squares(4, boxes=True)[index] for index in range(4)])
    for rows in (4, 1):
        (mine,) = weighted([batch], [rows], [5], 2)
        assert len(mine["pixel_values"]) == len(mine["labels"]) == rows
    (none,) = counted([{**batch, SHARE: 0}])  # Trainer does not count the labels of detection
    assert none["labels"] == batch["labels"]
