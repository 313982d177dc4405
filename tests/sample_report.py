"""A report as a real run leaves it: `lp_ft` on flowers, numbers fixed by a seed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from hf_transfer.data.image_set import ImageSet
from hf_transfer.results.examples import examples
from hf_transfer.results.metrics.classification import classification_metrics
from hf_transfer.results.metrics.multi_label import multilabel_metrics
from hf_transfer.results.metrics.regression import regression_metrics
from hf_transfer.results.report import PhaseReport, RunReport

FLOWERS = ("daisy", "dandelion", "rose", "sunflower", "tulip")
RECIPE = {
    "name": "lp_ft",
    "backbone": "timm/resnet10t.c3_in1k",
    "data": {"path": "flowers", "validation": 0.2, "image_size": 96},
    "phases": [
        {"train": "head", "epochs": 5, "lr": 1e-3},
        {"train": "all", "epochs": 5, "lr": 5e-5, "layer_decay": 0.75},
    ],
}


def sample_logits(n: int, classes: int, seed: int, skill: float = 1.6) -> tuple[Any, Any]:
    """Return logits (n, classes) that are right more often than not, and labels (n,)."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    logits = generator.normal(size=(n, classes))
    logits[np.arange(n), labels] += skill
    # Some classes are confused with their neighbour.
    logits[np.arange(n), (labels + 1) % classes] += 0.8 * (labels % 3 == 0)
    return logits, labels


def sample_images(n: int, labels: tuple[str, ...], side: int = 40) -> ImageSet:
    """Return n images, each of one colour, named as those of a folder, labelled in turns."""
    colours = np.random.default_rng(1).integers(0, 256, (n, 1, 1, 3), dtype=np.uint8)
    pixels = np.broadcast_to(colours, (n, side, side, 3))
    files = [f"{labels[i % len(labels)]}/{i}.jpg" for i in range(n)]
    return ImageSet(pixels, np.arange(n) % len(labels), labels, files)


def with_images(report: RunReport, n: int = 100, seed: int = 0) -> RunReport:
    """Return a report of classes with the images of its first n rows."""
    logits, _ = sample_logits(n, len(report.labels), seed)
    shown = examples("classification", logits, sample_images(n, report.labels))
    return replace(report, examples=shown)


def history(epochs: int, start: float, end: float, lr: float, per_epoch: int = 4) -> list[Any]:
    """Return rows as the Trainer logs them: losses within each epoch, a validation at its end."""
    rows: list[dict[str, float]] = []
    for i in range(1, epochs * per_epoch + 1):
        share = i / (epochs * per_epoch)
        rows.append(
            {
                "epoch": i / per_epoch,
                "step": 8 * i,
                "loss": round(start + (end - start) * share**0.5 + 0.03 * (i % 3), 4),
                "learning_rate": lr * (1 - share),
                "grad_norm": 1.0,
            }
        )
        if i % per_epoch == 0:
            loss = start + (end - start) * 0.8 * share**0.5
            rows.append(
                {
                    "epoch": i / per_epoch,
                    "step": 8 * i,
                    "eval_loss": round(loss, 4),
                    "eval_accuracy": round(0.95 - 0.33 * loss, 4),
                    "eval_runtime": 0.5,
                }
            )
    return rows


def sample_report(
    labels: tuple[str, ...] = FLOWERS, seed: int = 0, n: int = 500, test: bool = False
) -> RunReport:
    """Return a complete report of a two-phase run with these labels."""
    classes = len(labels)
    metrics = classification_metrics(*sample_logits(n, classes, seed), labels)
    if test:
        metrics["test"] = classification_metrics(*sample_logits(n, classes, seed + 100), labels)
    counts = {
        "train": dict.fromkeys(labels, 200),
        "validation": dict.fromkeys(labels, n // classes),
        "test": dict.fromkeys(labels, n // classes) if test else {},
    }
    blocks = [f"stages.{i}.{j}" for i in range(4) for j in range(1 if i < 3 else 2)]
    groups = ("stem", *blocks, "head")
    rates = [
        {
            "label": f"{group}{kind}",
            "parameters": 80_000 + 1000 * i,
            "lr": 5e-5 * 0.75 ** (len(groups) - 1 - i),
            "weight_decay": 0.01 if not kind else 0.0,
        }
        for i, group in reversed(list(enumerate(groups)))
        for kind in ("", ", no decay")
    ]
    phases = (
        PhaseReport(
            name="head",
            groups=("head",),
            trainable_parameters=513 * classes,
            total_parameters=4_922_696 + 513 * classes,
            epochs=5.0,
            steps=160,
            seconds=4.2,
            stopped="validation loss rose for 3 epochs",
            best_epoch=5.0,
            metrics={"accuracy": 0.63},
            history=history(5, 1.6, 0.95, 1e-3),
            rates=[{"label": "head", "parameters": 2565, "lr": 1e-3, "weight_decay": 0.01}],
            features="cached",
            checks={"moved": 2, "unmoved": [], "still": 78, "ranks": 1},
        ),
        PhaseReport(
            name="all",
            groups=groups,
            trainable_parameters=4_922_696 + 513 * classes,
            total_parameters=4_922_696 + 513 * classes,
            epochs=5.0,
            steps=160,
            seconds=71.8,
            best_epoch=4.0,
            metrics={"accuracy": 0.70},
            history=history(5, 0.95, 0.6, 5e-5),
            rates=rates,
            checks={"moved": 62, "unmoved": [], "still": 0, "ranks": 1},
        ),
    )
    return RunReport(
        name="lp_ft",
        recipe={**RECIPE, "seed": seed},
        backbone={
            "id": "timm/resnet10t.c3_in1k",
            "source": "timm",
            "weights": "pretrained",
            "parameters": 4_922_696,
            "license": "apache-2.0",
            "image_size": 96,
        },
        data={
            "path": "flowers",
            "labels": labels,
            "counts": counts,
            "fingerprint": "9f3b6c1d",
            "audit": {
                "findings": [
                    {
                        "kind": "truncated",
                        "count": 1,
                        "files": ["rose/a<b>.jpg"],
                        "done": "left out",
                    },
                    {
                        "kind": "grayscale",
                        "count": 9,
                        "files": [f"daisy/{i}.jpg" for i in range(9)],
                        "done": "made RGB",
                    },
                ]
            },
        },
        phases=phases,
        metrics=metrics,
        seconds={"wall": 88.3, "training": 76.0},
        environment={
            "hf_transfer": "0.1.0",
            "python": "3.11.9",
            "torch": "2.15.0",
            "transformers": "5.23.0",
            "timm": "1.0.31",
            "device": "cpu",
            "processes": 1,
        },
        seed=seed,
        warnings=("class 'daisy' has 4 images that occur twice",),
        created="2026-01-02T03:04:05+00:00",
    )


def task_report(task: str, n: int = 200, names: tuple[str, ...] = ("x<y", "z")) -> RunReport:
    """Return the same as a run of another task leaves it."""
    generator = np.random.default_rng(0)
    truth = generator.normal(5, 2, (n, len(names)))
    if task == "multi_label":
        flags = truth > 5
        metrics = multilabel_metrics(flags + generator.normal(-0.5, 0.6, truth.shape), flags, names)
        own: dict[str, Any] = {}
    else:
        metrics = regression_metrics(truth + generator.normal(0, 0.5, truth.shape), truth, names)
        row = {"target": names[0], "mean": 5.0, "std": 2.0, "min": -1.0, "max": 11.0}
        own = {"targets": {"train": [row]}}
    counts = {"train": dict.fromkeys(names, 90), "validation": dict.fromkeys(names, 95)}
    report = sample_report()
    data = {"labels": names, "counts": counts, "images": {"train": 150, "validation": n}, **own}
    leads = {"multi_label": "map", "regression": "r2"}[task]
    rows = [{"epoch": i, "step": i, f"eval_{leads}": 0.2 * i, "eval_loss": 1 / i} for i in (1, 2)]
    return replace(
        report,
        recipe={**report.recipe, "task": task},
        data={**report.data, **data},
        metrics=metrics,
        phases=(replace(report.phases[0], metrics={leads: 0.4}, history=tuple(rows)),),
    )
