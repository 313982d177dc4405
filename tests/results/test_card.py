"""The model card holds the facts of the report, all of them named, none of them guessed."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, replace
from typing import Any

import pytest
from huggingface_hub import ModelCard
from sample_report import FLOWERS, sample_report, task_report, with_images

from hf_transfer.recipe.specs import AUGMENTS, PhaseSpec
from hf_transfer.results.card import model_card
from hf_transfer.results.card_metadata import base_model, keep_metadata
from hf_transfer.results.card_pictures import card_pictures
from hf_transfer.results.report import PhaseReport, RunReport, aggregate

METRICS: dict[str, Any] = {
    "n": 500,
    "accuracy": 0.702,
    "balanced_accuracy": 0.702,
    "macro_f1": 0.7009,
    "auroc": None,
    "ece": 0.041,
    "nll": 0.8123,
    "reasons": {"auroc": "no image of class 'x|y'"},
    "intervals": {"accuracy": [0.66, 0.742], "nll": [0.75, 0.88]},
    "per_class": [
        {"label": "daisy", "n": 250, "precision": 0.75, "recall": 0.8, "f1": 0.7742},
        {"label": "<b>a_b_</b>", "n": 250, "precision": None, "recall": 0.0, "f1": 0.0},
    ],
}

CARD = """\
---
base_model: timm/resnet10t.c3_in1k
library_name: timm
license: apache-2.0
metrics:
- accuracy
pipeline_tag: image-classification
tags:
- hf_transfer
- transfer-learning
- image-classification
base_model_relation: finetune
model-index:
- name: flowers-lp-ft
  results:
  - task:
      type: image-classification
      name: Image classification
    dataset:
      name: flowers
      type: flowers
      split: validation
    metrics:
    - type: accuracy
      value: 0.702
      name: Accuracy
    - type: balanced_accuracy
      value: 0.702
      name: Balanced accuracy
    - type: f1
      value: 0.7009
      name: Macro F1
      args:
        average: macro
---

# Image classifier: daisy, dandelion, rose, sunflower, tulip

An image classifier: `timm/resnet10t.c3_in1k` trained on flowers with hf_transfer's recipe \
`lp_ft`, from pretrained weights. It distinguishes 5 classes: daisy, dandelion, rose, sunflower \
and tulip. Input: images, resized to 96 px.

The model classifies 351 of 500 validation images correctly (70.2%); always giving the same \
answer or guessing reaches 50.0%. Add images of the classes that are never predicted, or train \
with 'loss: balanced' in the recipe.

On new images like the validation images, expect a little less than 70.2% accuracy \
(95% interval 66.0% to 74.2%), since the best epochs were chosen on them.

## Before you use it

- One class is never predicted on validation: \\<b\\>a_b\\_\\</b\\>.
- Class 'daisy' has 4 images that occur twice.

## Results

| Metric | Split | Value | 95% interval | Baseline | n |
| --- | --- | --- | --- | --- | --- |
| Accuracy | validation | 0.702 | 0.660 to 0.742 | 0.500 | 500 |
| Balanced accuracy | validation | 0.702 | not measured | 0.500 | 500 |
| Macro F1 | validation | 0.701 | not measured | – | 500 |
| AUROC, one against the rest | validation | not measured: no image of class 'x\\|y' | – | – | \
500 |
| Calibration error (ECE, 15 bins) | validation | 0.041 | not measured | – | 500 |
| Negative log-likelihood (nats) | validation | 0.812 | 0.750 to 0.880 | – | 500 |

The baseline needs no model. On validation, always giving the same answer or guessing: accuracy \
0.500.

This is the run with seed 0. Intervals are percentile bootstrap over images; they do not include \
the spread over seeds, which was not measured.

By class, on validation:

| Class | Images | Precision | Recall | F1 |
| --- | --- | --- | --- | --- |
| daisy | 250 | 0.750 | 0.800 | 0.774 |
| \\<b\\>a_b\\_\\</b\\> | 250 | – | 0.000 | 0.000 |

![Training: loss](curve-1.svg)

![Training: accuracy](curve-2.svg)

## How it was trained

The phases ran one after the other; all layers that a phase does not list as trained were frozen.

| Phase | Trained | Parameters | Learning rate | Length | Time | Ended | Result on validation |
| --- | --- | --- | --- | --- | --- | --- | --- |
| 1 head | `head` | 2.56K of 4.93M | 1e-3 | 5 epochs, 160 steps | 4.2 s | validation loss rose \
for 3 epochs; best epoch 5 | 63.0% |
| 2 all | `stem` … `head` (7 groups) | 4.93M of 4.93M | 5e-5 down to 8.9e-6 | 5 epochs, 160 \
steps | 1 min 12 s | completed; best epoch 4 | 70.0% |

Training took 1 min 16 s, the whole run 1 min 28 s. To reproduce it, with recipe.yaml and the \
images:

```sh
hf-transfer train recipe.yaml --data FOLDER --seed 0
```

## Data

| Split | Images | Classes | Images of a class |
| --- | --- | --- | --- |
| train | 1,000 | 5 | 200 |
| validation | 500 | 5 | 100 |

The audit of the images found:

- 1 × truncated: left out
- 9 × grayscale: made RGB

## How to load it

```python
from transformers import pipeline

classify = pipeline("image-classification", model="someone/flowers-lp-ft")
print(classify("image.jpg"))
```

```python
import timm
import torch
from PIL import Image, ImageOps

model = timm.create_model("hf-hub:someone/flowers-lp-ft", pretrained=True).eval()
settings = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**settings, is_training=False)
image = ImageOps.exif_transpose(Image.open("image.jpg")).convert("RGB")
with torch.no_grad():
    answers = model(transform(image)[None])[0].softmax(-1)
print(dict(zip(model.pretrained_cfg["label_names"], answers.tolist())))
```

Gray images of 16 bits are clipped to white by other loaders. Give them \
`hf_transfer.load_image("image.png")` instead of the path.

```sh
hf-transfer predict someone/flowers-lp-ft image.jpg
```

## Limitations

- It gives every image one of its classes, even an image that shows none; with \
`unknown.safetensors` beside the weights, `hf-transfer predict --unknown` marks such images.
- Results on images that no choice was made on (a test split): not measured.
- The best epochs were chosen on the validation images, so new images will do a little worse.
- Weakest class on validation: \\<b\\>a_b\\_\\</b\\>, F1 0.000 (n = 250).
- How it does on other data, its robustness and its fairness towards groups of people: not \
measured.
- Licence of the pretrained weights: apache-2.0; licence and origin of the images: not stated.

## Environment

| Fact | Value |
| --- | --- |
| hf_transfer | 0.1.0 |
| python | 3.11.9 |
| torch | 2.15.0 |
| transformers | 5.23.0 |
| timm | 1.0.31 |
| device | cpu |
| processes | 1 |
| seed | 0 |
| data fingerprint | 9f3b6c1d |
| created | 2026-01-02T03:04:05+00:00 |
"""


def test_the_whole_card_of_a_fixed_report() -> None:
    report = replace(sample_report(), metrics=METRICS)
    assert model_card(report, "someone/flowers-lp-ft") == CARD


def test_the_hub_client_reads_the_front_matter() -> None:
    card = ModelCard(model_card(sample_report(test=True), "someone/flowers"))
    assert card.data.base_model == "timm/resnet10t.c3_in1k"
    assert card.data.library_name == "timm"
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.license == "apache-2.0"
    assert card.data.tags == ["hf_transfer", "transfer-learning", "image-classification"]
    assert card.data.model_name == "flowers"
    found = [(r.dataset_split, r.metric_type) for r in card.data.eval_results]
    kinds = ["accuracy", "balanced_accuracy", "f1", "roc_auc"]
    assert found == [(s, kind) for s in ("test", "validation") for kind in kinds]
    assert card.data.eval_results[0].metric_value == pytest.approx(
        sample_report(test=True).metrics["test"]["accuracy"], abs=1e-4
    )


def test_the_test_split_counts_where_there_is_one() -> None:
    text = model_card(sample_report(test=True))
    assert text.index("| Accuracy | test |") < text.index("| Accuracy | validation |")
    assert "Weakest class on test" in text
    assert "chosen on the validation" not in text


def test_an_empty_report_says_what_is_missing_and_invents_nothing() -> None:
    empty = RunReport("x", {}, {}, {}, (), {}, {}, {}, 3)
    text = model_card(empty)
    front = ModelCard(text).data.to_dict()
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
        "tags": ["hf_transfer", "transfer-learning", "image-classification"],
    }
    for words in (
        "Accuracy: not measured.",
        "Phases: not stated.",
        "Images: not stated.",
        "Audit of the images: not measured.",
        "Classes: not stated.",
        "Licence of the pretrained weights: not stated",
        "| data fingerprint | not stated |",
        "| seed | 3 |",
    ):
        assert words in text
    assert "None" not in text


def test_a_phase_without_rates_or_an_early_end_is_told_as_such() -> None:
    phase = PhaseReport("head", ("head",), 10, 100, 1.0, 4, 0.5)
    text = model_card(replace(sample_report(), phases=(phase,), seconds={}))
    assert (
        "| 1 head | `head` | 10 of 100 | not stated | 1 epoch, 4 steps | 0.5 s | completed |"
        in text
    )
    assert "Training took not measured, the whole run not measured." in text
    assert "chosen on the validation" not in text  # no best epoch was chosen


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ({"id": "timm/resnet50.a1_in1k", "source": "timm", "weights": "pretrained"}, True),
        ({"id": "timm/resnet50", "source": "timm", "weights": "pretrained"}, None),
        ({"id": "timm/resnet50.a1_in1k", "source": "timm", "weights": "random"}, None),
        ({"id": "timm/resnet50.a1_in1k", "source": "timm", "weights": "a.safetensors"}, None),
        ({"id": "runs/a.b", "source": "timm", "weights": "pretrained"}, None),
        ({"id": "torchvision/alexnet", "source": "torchvision", "weights": "pretrained"}, None),
        ({"id": "transformers/runs/model", "source": "transformers"}, None),
    ],
)
def test_base_model_is_a_repository_only_where_that_is_certain(
    backbone: dict[str, str], expected: bool | None
) -> None:
    found = base_model(replace(sample_report(), backbone=backbone))
    assert found == (backbone["id"] if expected else None)
    stated = replace(sample_report(), backbone={**backbone, "repo": "google/vit"})
    assert base_model(stated) == "google/vit"


def test_what_somebody_added_to_the_metadata_is_kept_where_nothing_else_is_known() -> None:
    own = sample_report()
    unknown = replace(own, backbone={**own.backbone, "id": "mine", "repo": None, "license": None})
    first = model_card(unknown, "a/b")
    stated = "---\nbase_model: c/d\nlicense: mit\ndatasets: [{}, e/f]\n"
    added = ModelCard(first.replace("---\n", stated, 1), ignore_metadata_errors=True)
    for report, base, licence in ((unknown, "c/d", "mit"), (own, base_model(own), "apache-2.0")):
        card = ModelCard(model_card(report, "a/b"))
        keep_metadata(card, str(added))
        front = card.data.to_dict()
        assert (front["base_model"], front["license"]) == (base, licence)
        assert front["datasets"] == [{}, "e/f"]


def test_how_to_load_depends_on_the_source() -> None:
    report = sample_report()
    assert 'timm.create_model("local-dir:path/to/model", pretrained=True)' in model_card(report)
    vision = replace(report, backbone={**report.backbone, "source": "torchvision"})
    text = model_card(vision, "a/b")
    assert 'model="a/b", trust_remote_code=True)' in text
    assert "import timm" not in text
    assert "library_name: transformers" in text


def test_a_hub_data_set_is_named_as_one() -> None:
    report = sample_report()
    card = ModelCard(model_card(replace(report, data={**report.data, "repo": "someone/flowers5"})))
    assert card.data.datasets == ["someone/flowers5"]
    assert card.data.eval_results[0].dataset_type == "someone/flowers5"


def test_many_classes_are_shown_by_their_weakest() -> None:
    labels = tuple(f"class {i}" for i in range(80))
    text = model_card(sample_report(labels, n=800))
    assert "class 29 and 50 more." in text
    assert "The 10 weakest classes, on validation:" in text


def test_names_cannot_break_the_front_matter_or_a_table() -> None:
    nasty = 'a: "b" | #c\n---\n'
    report = replace(sample_report((nasty, *FLOWERS)), name=nasty, warnings=(nasty,))
    report = replace(report, data={**report.data, "path": "x/" + nasty})
    text = model_card(report)
    assert text.count("\n---\n") == 1
    assert ModelCard(text).data.eval_results[0].dataset_name == 'a: "b" | #c ---'
    rows = [line for line in text.splitlines() if line.startswith("| a: ")]
    assert rows
    assert all(line.replace("\\|", "").count("|") == 6 for line in rows)


def test_further_metrics_of_a_recipe_are_listed_with_their_n() -> None:
    report = replace(sample_report(), metrics={**METRICS, "mcc": 0.5678})
    assert "| mcc | validation | 0.568 | not measured | – | 500 |" in model_card(report)


def test_the_spread_over_seeds_is_told_where_it_was_measured() -> None:
    runs = [sample_report(seed=seed) for seed in range(3)]
    report = replace(runs[1], seeds=aggregate(runs))
    low, high = (f(run.metrics["accuracy"] for run in runs) for f in (min, max))
    text = model_card(report)
    assert "This is the run with seed 1." in text
    assert "Over 3 seeds (0, 1, 2):" in text
    assert re.search(rf"\| Accuracy \| validation \| 0.\d+ \| {low:.3f} \| {high:.3f} \|", text)
    assert "not measured." not in text.split("## How it was trained")[0]


def test_no_path_of_this_machine_is_published() -> None:
    report = sample_report()
    report = replace(
        report,
        data={**report.data, "path": "/home/someone/pictures/flowers"},
        backbone={**report.backbone, "weights": "/home/someone/w.safetensors"},
    )
    assert "/home" not in model_card(report)


def test_the_card_of_several_labels_says_so_and_has_a_row_each() -> None:
    report = task_report("multi_label")
    card = ModelCard(model_card(report))
    (entry,) = card.data.to_dict()["model-index"][0]["results"]
    assert entry["task"]["name"] == "Multi-label image classification"
    kinds = {metric["type"]: metric["value"] for metric in entry["metrics"]}
    assert kinds["mean_average_precision"] == round(report.metrics["map"], 4)
    assert "multi-label-classification" in card.data.tags
    row = report.metrics["per_label"][1]
    shares = " | ".join(f"{row[key]:.3f}" for key in ("precision", "recall", "f1"))
    assert f"| z | {row['n']} | {shares} |" in card.text
    assert "It says which of 2 labels an image shows: x\\<y and z." in card.text
    assert "| train | 150 | 2 | 90 |" in card.text
    assert "Weakest label on validation" in card.text


def test_the_card_of_numbers_has_errors_in_their_own_units() -> None:
    report = replace(task_report("regression"), warnings=())
    card = ModelCard(model_card(report))
    (entry,) = card.data.to_dict()["model-index"][0]["results"]
    assert entry["task"] == {"type": "other", "name": "Image regression"}
    assert [metric["type"] for metric in entry["metrics"]] == ["r_squared"]
    assert card.data.metrics == ["r_squared"]
    assert card.data.pipeline_tag == "image-classification"  # which opens it
    row = report.metrics["per_target"][1]
    errors = f"{row['r2']:.3f} | {row['mae']:.4g} | {row['rmse']:.4g}"
    assert f"| z | 200 | {errors} |" in card.text
    assert "class" not in card.text.partition("## How to load it")[0].lower()
    one = ModelCard(model_card(task_report("regression", names=("age",))))
    (entry,) = one.data.to_dict()["model-index"][0]["results"]
    assert [metric["type"] for metric in entry["metrics"]] == ["r_squared", "mae"]


# --- how it was made, and its pictures ------------------------------------------------------

INPUT = {
    "size": 128, "stored": 146, "channels": 3, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2],
    "interpolation": "bicubic", "crop_mode": "center", "crop_offset": "nearest",
    "window": None, "frame": None,
}  # fmt: skip


def test_the_card_tells_the_input_and_the_settings_of_each_phase() -> None:
    report = sample_report()
    spec = PhaseSpec(
        "all", epochs=5, batch_size=16, accumulate=2, augment=AUGMENTS["light"], mixup=0.2
    )
    solved = replace(report.phases[0], solve="lbfgs", settings=asdict(PhaseSpec("head", epochs=1)))
    tuned = replace(report.phases[1], settings=asdict(spec))
    backbone = {**report.backbone, "preprocessing": INPUT}
    report = replace(report, backbone=backbone, phases=(solved, tuned))
    text = model_card(report, "someone/flowers")
    for words in (
        "| Input size | 128 × 128 px, RGB |",
        "shorter side is resized to 146 px, and the middle 128 × 128 px are cut out (bicubic)",
        "| Standard deviation | 0.2, 0.2, 0.2 |",
        "| 1 head | none: solved (lbfgs) |",
        "| 2 all | adamw | cosine | 16 × 2 steps | 0.01 | crops of 60% to 100% of the area, "
        "mirrored left to right | mixup 0.2 |",
        "hf-transfer export someone/flowers --out model.onnx",
        "round((side - 128) / 2)",
    ):
        assert words in text
    assert RunReport.from_dict(report.to_dict()) == report


def test_the_card_says_how_dicom_files_are_read() -> None:
    report = sample_report()
    found = {"kind": "dicom", "count": 1, "files": [], "done": "read"}
    data = {**report.data, "audit": {"findings": [found]}}
    assert 'load_image("image.dcm")' in model_card(replace(report, data=data))
    own = {**INPUT, "window": (40.0, 400.0), "frame": 2}
    text = model_card(replace(report, backbone={**report.backbone, "preprocessing": own}))
    assert 'load_image("image.dcm", window=(40, 400), frame=2)' in text
    assert "onnxruntime" not in text  # which would not know how
    assert "dcm" not in model_card(report)


def test_pictures_are_files_of_their_own_that_need_nothing() -> None:
    report = with_images(sample_report(("<a> & b", *FLOWERS[1:])), 40)
    figure = {"title": "A <b>", "x": "x", "y": "y", "lines": [{"name": "n", "points": [[1, 2]]}]}
    report = replace(report, figures=(figure,))
    found = card_pictures(report)
    assert set(found) == {
        "confusion.svg", "calibration.svg", "curve-1.svg", "curve-2.svg", "figure-1.svg",
    }  # fmt: skip
    for _, drawn in found.values():
        root = ElementTree.fromstring(drawn)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert float(root.attrib["width"]) > 0
        assert "prefers-color-scheme" in drawn
        assert not re.search(r"url\(|@import|<script|href", drawn)
    card = model_card(report)
    assert all(f"]({name})" in card for name in found)


def test_images_are_among_the_pictures_where_the_recipe_allows_it_only() -> None:
    report = with_images(sample_report(), 40)
    assert "examples.svg" not in card_pictures(report)
    allowed = replace(report, recipe={**report.recipe, "page_images": "card"})
    drawn = card_pictures(allowed)["examples.svg"][1]
    root = ElementTree.fromstring(drawn)
    images = [node for node in root.iter() if node.tag.endswith("image")]
    assert len(images) > 8
    assert all(node.attrib["href"].startswith("data:image/webp;base64,") for node in images)
    assert "](examples.svg)" in model_card(allowed)


def test_the_expected_result_is_that_of_images_that_chose_nothing() -> None:
    report = sample_report(test=True)
    value = report.metrics["test"]["accuracy"]
    assert f"On new images like the test images, expect {value:.1%} accuracy" in model_card(report)
    metrics = {**report.metrics, "test": {**report.metrics["test"], "groups": 12}}
    assert ", over 12 groups)" in model_card(replace(report, metrics=metrics))
