"""A finished model scored: labels by name, metrics with n and interval, two models compared."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from drawn import picture
from sample_report import FLOWERS
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, recall_score
from tiny_model import tiny_run

from hf_transfer.backbones.load import load_backbone, load_model
from hf_transfer.base.errors import UserError
from hf_transfer.recipe.specs import DataSpec
from hf_transfer.serving.evaluate import evaluate
from hf_transfer.serving.evaluate_text import format_evaluation
from hf_transfer.serving.paired import accuracy_interval
from hf_transfer.serving.predict import predict


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(tiny_run(tmp_path_factory.mktemp("evaluate") / "run"))


def labelled(folder: Path, labels=FLOWERS, each: int = 6) -> Path:
    for i, label in enumerate(labels):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for j in range(each):
            picture(100 * i + j).save(folder / label / f"{j}.png")
    return folder


def test_metrics_are_those_of_predict_against_the_folders(model, tmp_path):
    folder = labelled(tmp_path / "data")
    files = sorted(folder.rglob("*.png"))
    told = [row.label for row in predict(model, files)]
    truth = [file.parent.name for file in files]
    found = evaluate(model, folder)
    metrics = found["metrics"]
    assert metrics["n"] == 30
    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, told))
    low, high = metrics["intervals"]["accuracy"]
    assert low < metrics["accuracy"] < high
    recalls = recall_score(truth, told, labels=list(FLOWERS), average=None)
    assert [row["recall"] for row in metrics["per_class"]] == pytest.approx(recalls.tolist())
    for row in metrics["per_class"]:
        assert row["recall_interval"][0] <= row["recall"] <= row["recall_interval"][1]
    assert json.loads(json.dumps(found)) == found
    assert (found["split"], found["unreadable"]) == ("all", [])


def test_labels_are_matched_by_name_and_those_without_a_partner_are_told(model, tmp_path):
    folder = labelled(tmp_path / "data", ("tulip", "daisy", "ROSES", "cactus"))
    found = evaluate(model, folder)
    assert found["metrics"]["n"] == 12  # of daisy and tulip
    assert found["labels"] == {
        "matched": ["daisy", "tulip"],
        "only_in_data": [
            {"label": "ROSES", "images": 6, "nearest": "rose"},
            {"label": "cactus", "images": 6, "nearest": None},
        ],
        "only_in_model": ["dandelion", "rose", "sunflower"],
    }
    both = evaluate(model, labelled(tmp_path / "both", ("tulip", "daisy")))
    assert found["metrics"] == both["metrics"]
    assert [row["n"] for row in both["metrics"]["per_class"]] == [6, 0, 0, 0, 6]
    text = format_evaluation(found)
    assert re.search(r"ROSES +the data +6 not counted +rose\n", text)
    assert re.search(r"dandelion +the model +none to count", text)


def test_data_without_a_label_of_the_model_is_refused_in_a_line(model, tmp_path):
    folder = labelled(tmp_path / "data", ("cat", "dog"), 2)
    with pytest.raises(UserError, match=r"no label of .* \(cat, dog\) is one of the model's"):
        evaluate(model, folder)


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_scored(model, tmp_path):
    folder = labelled(tmp_path / "data", each=2)
    (folder / "rose" / "1.png").write_bytes(b"no image")
    found = evaluate(model, folder)
    assert found["metrics"]["n"] == 9
    assert [row["file"] for row in found["unreadable"]] == ["rose/1.png"]
    clean = evaluate(model, folder)
    assert [r["n"] for r in clean["metrics"]["per_class"]] == [2, 2, 1, 2, 2]


def test_a_table_is_scored_and_the_test_split_goes_first(model, tmp_path):
    folder = labelled(tmp_path / "data", each=4)
    rows = [
        (f.relative_to(folder).as_posix(), f.parent.name) for f in sorted(folder.rglob("*.png"))
    ]
    with (folder / "all.csv").open("w", newline="") as file:
        write = csv.writer(file)
        write.writerow(["image", "label", "split"])
        for i, (name, label) in enumerate(rows):
            write.writerow([name, label, "test" if i % 4 == 0 else "train"])
    found = evaluate(model, folder / "all.csv")
    assert (found["split"], found["metrics"]["n"]) == ("test", 5)
    assert evaluate(model, folder / "all.csv", split="train")["metrics"]["n"] == 15
    assert (
        evaluate(model, DataSpec(path=str(folder / "all.csv")), split="all")["metrics"]["n"] == 20
    )
    with pytest.raises(UserError, match="no split 'validation'; choose one of train, test, all"):
        evaluate(model, folder / "all.csv", split="validation")
    with pytest.raises(UserError, match="has no splits; leave out split 'validation' to"):
        evaluate(model, folder, split="validation")


def test_mirror_images_are_averaged(model, tmp_path):
    folder = labelled(tmp_path / "data", FLOWERS[:2], 3)
    mirrored = tmp_path / "mirrored"
    for file in folder.rglob("*.png"):
        (mirrored / file.parent.name).mkdir(parents=True, exist_ok=True)
        image = picture(100 * FLOWERS.index(file.parent.name) + int(file.stem))
        image.transpose(0).save(mirrored / file.parent.name / file.name)
    one, other = (evaluate(model, place, tta=True)["metrics"] for place in (folder, mirrored))
    assert one["nll"] == pytest.approx(other["nll"], abs=1e-6)
    assert evaluate(model, folder)["metrics"]["nll"] != one["nll"]


def test_a_threshold_counts_confident_answers_only(model, tmp_path):
    folder = labelled(tmp_path / "data")
    files = sorted(folder.rglob("*.png"))
    least = float(np.median([row.labels[0][1] for row in predict(model, files)]))
    sure = evaluate(model, folder, threshold=least)["confident"]
    rows = [
        (row.labels[0], f.parent.name) for row, f in zip(predict(model, files), files, strict=True)
    ]
    kept = [label == truth for (label, share), truth in rows if share >= least - 1e-7]
    assert (sure["n"], sure["of"]) == (pytest.approx(len(kept), abs=1), 30)
    assert sure["accuracy"] == pytest.approx(np.mean(kept), abs=0.07)
    for wrong in (0, 1, 2):
        with pytest.raises(UserError, match="between 0 and 1"):
            evaluate(model, folder, threshold=wrong)


@pytest.mark.parametrize(("name", "split"), [("test", "test"), ("val_images", "validation")])
def test_a_split_that_comes_alone_is_scored_as_the_split_that_it_is(model, tmp_path, name, split):
    inside = labelled(tmp_path / "data" / name)
    found = evaluate(model, tmp_path / "data")
    assert found["split"] == split
    assert found["metrics"] == evaluate(model, inside)["metrics"]


def test_images_of_one_class_and_of_no_training_split_are_scored(model, tmp_path):
    one = evaluate(model, labelled(tmp_path / "one", ("rose",), 1))
    assert (one["metrics"]["n"], one["labels"]["matched"]) == (1, ["rose"])
    table = tmp_path / "one" / "test.csv"
    table.write_text("image,label,split\nrose/0.png,rose,test\n")
    assert evaluate(model, table)["split"] == "test"
    nested = labelled(tmp_path / "archive" / "flowers").parent
    with pytest.raises(UserError, match="did you mean .*flowers"):
        evaluate(model, nested)


def test_a_table_with_columns_for_some_labels_is_scored_on_these(tmp_path):
    several, numbers = (
        load_backbone("timm/test_resnet", ("x", "y", "z"), pretrained=False, task=task)
        for task in ("multi_label", "regression")
    )
    lines = ["image,y,x,doctor"]
    for i in range(4):
        picture(i).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{i % 2},{i // 2},{i}")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(lines))
    found = evaluate(several, table)
    assert (found["labels"]["matched"], found["labels"]["only_in_model"]) == (["x", "y"], ["z"])
    with pytest.raises(UserError, match="has no target z, which the model predicts"):
        evaluate(numbers, table)
    table.write_text("image,y,doctor\n0.png,1,2\n1.png,0,1\n")
    found = evaluate(several, table)
    assert (found["labels"]["matched"], found["labels"]["only_in_model"]) == (["y"], ["x", "z"])
    assert found["metrics"]["n"] == 2
    table.write_text("image,labels\n0.png,x|y\n1.png,z\n")
    assert evaluate(several, table)["labels"]["only_in_model"] == []


def test_what_cannot_be_scored_is_refused_before_images_are_read(model, tmp_path, monkeypatch):
    folder = labelled(tmp_path / "data", each=1)
    other = load_backbone("timm/test_resnet", ("cat", "dog"), pretrained=False, image_size=32)
    numbers = load_backbone(
        "timm/test_resnet", ("x", "y"), pretrained=False, image_size=32, task="regression"
    )

    def never(*_):
        raise AssertionError

    monkeypatch.setattr("hf_transfer.serving.evaluate._scored", never)
    for one, options, said in (
        (model, {"compare": tmp_path / "gone"}, "gone"),
        (model, {"compare": numbers}, "different questions: classification and regression"),
        (model, {"compare": other}, r"\(daisy, .*\) is one of timm/test_resnet's \(cat, dog\)"),
        (model, {"unknown": True}, "has no unknown.safetensors"),
        (numbers, {"threshold": 0.5}, "leave --threshold out"),
    ):
        with pytest.raises(UserError, match=said):
            evaluate(one, folder, **options)


def test_two_models_are_compared_on_the_same_images(model, tmp_path):
    folder = labelled(tmp_path / "data")
    labels = tuple(reversed(FLOWERS))  # in another order: by name all the same
    other = load_backbone("timm/test_resnet", labels, pretrained=False, image_size=48, seed=3)
    found = evaluate(model, folder, compare=other)["comparison"]
    files = sorted(folder.rglob("*.png"))
    right = [
        np.array([r.label == f.parent.name for r, f in zip(predict(m, files), files, strict=True)])
        for m in (model, other)
    ]
    assert found["ours"] == pytest.approx(right[0].mean())
    assert found["theirs"] == pytest.approx(right[1].mean())
    only = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    assert (found["only_ours_right"], found["only_theirs_right"]) == only
    assert found["p_value"] == pytest.approx(binomtest(only[0], sum(only)).pvalue)
    low, high = found["interval"]
    assert low <= found["difference"] <= high
    same = evaluate(model, folder, compare=model)["comparison"]
    assert (same["difference"], same["p_value"], same["interval"]) == (0, 1, [0, 0])
    run = tiny_run(tmp_path / "second")
    text = format_evaluation(evaluate(model, folder, compare=run / "model"))
    assert re.search(r"compared with second on the same 30 images: accuracy 0\.\d+ against", text)
    assert re.search(r"only this model is right on \d+, only second on \d+ \(McNemar's exact", text)


@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_the_other_tasks_are_scored_and_compared(task, tmp_path):
    names = ("x", "y")
    options = {"pretrained": False, "image_size": 32, "task": task}
    one, other = (load_backbone("timm/test_resnet", names, seed=s, **options) for s in (1, 2))
    random = np.random.default_rng(0)
    with (tmp_path / "table.csv").open("w", newline="") as file:
        write = csv.writer(file)
        write.writerow(["image", "y", "x"])
        for i in range(12):
            picture(i).save(tmp_path / f"{i}.png")
            values = random.integers(0, 2, 2) if task == "multi_label" else random.normal(size=2)
            write.writerow([f"{i}.png", *values])
    found = evaluate(one, tmp_path / "table.csv", compare=other)
    leads = {"multi_label": "map", "regression": "r2"}[task]
    assert found["metrics"]["n"] == 12
    assert found["comparison"]["ours"] == pytest.approx(found["metrics"][leads])
    same = evaluate(one, tmp_path / "table.csv", compare=one)["comparison"]
    assert same["difference"] == 0
    assert format_evaluation(found)
    if task == "multi_label":
        every = evaluate(one, tmp_path / "table.csv", threshold=0.01)["metrics"]
        assert all(row["predicted"] == 12 for row in every["per_label"])
        assert every["map"] == pytest.approx(found["metrics"]["map"])


def test_the_interval_of_a_share_is_wilsons():
    assert accuracy_interval(8, 10) == pytest.approx([0.4902, 0.9433], abs=1e-3)
    assert accuracy_interval(0, 5)[0] == 0
    assert accuracy_interval(5, 5)[1] == 1


def test_groups_are_scored_one_by_one_and_intervals_draw_them_whole(model, tmp_path):
    folder = tmp_path / "data"
    for i, label in enumerate(FLOWERS):
        (folder / label).mkdir(parents=True)
        for j in range(6):
            picture(100 * i + j).save(folder / label / f"{j // 2}_{j}.png")
    found = evaluate(model, folder, group=r"^(\d+)_")
    metrics = found["metrics"]
    assert metrics["groups"] == 3
    assert [(row["group"], row["n"]) for row in metrics["per_group"]] == [
        ("0", 10), ("1", 10), ("2", 10)
    ]  # fmt: skip
    shares = [row["value"] for row in metrics["per_group"]]
    assert len(set(shares)) == 1  # so no draw of groups has another share: they count as three rows
    assert np.mean(shares) == pytest.approx(metrics["accuracy"])
    assert all(
        row["interval"][0] <= row["value"] <= row["interval"][1] for row in metrics["per_group"]
    )
    plain = evaluate(model, folder)["metrics"]
    assert plain["intervals"]["accuracy"] != metrics["intervals"]["accuracy"]
    low, high = metrics["intervals"]["accuracy"]
    assert high - low > 0.5
    text = format_evaluation(found)
    assert "30 images in 3 groups (all)" in text
    assert "The intervals are over 3 groups only, and probably too narrow." in text
    assert re.search(r"Group +n +Accuracy +95% interval", text)
    assert evaluate(model, folder, group=r"^(\d+)_", compare=model)["comparison"]["difference"] == 0


def test_an_evaluation_is_written_as_a_page_with_images(model, tmp_path):
    folder = labelled(tmp_path / "data", ("tulip", "daisy", "Rose"))
    other = load_backbone("timm/test_resnet", FLOWERS, pretrained=False, image_size=48, seed=3)
    out = tmp_path / "out"
    found = evaluate(model, folder, compare=other, threshold=0.5, tta=True, out=out)
    assert json.loads((out / "evaluation.json").read_text()) == found
    page = (out / "report.html").read_text()
    for words in (
        "labelled images correctly", "on these images", "scored on data", "data:image/webp",
        "Labels that do not match", "its 6 images are not counted", "mirror image",
        "a probability of 0.5", "McNemar",
        "evaluate MODEL --data FOLDER --threshold 0.5 --tta --compare OTHER",
    ):  # fmt: skip
        assert words in page
    for words in ("seed 0", "What the audit", "recipe evaluation", "Phases"):
        assert words not in page
    evaluate(model, folder, out=tmp_path / "none", page_images=False)
    assert "data:image" not in (tmp_path / "none" / "report.html").read_text()
    grouped = tmp_path / "grouped"
    evaluate(model, folder, out=grouped, group=r"^(\d)\.", tta=False)
    page = (grouped / "report.html").read_text()
    assert "Group by group" in page
    assert "probably too narrow" in page
    assert r"--data FOLDER --group &#39;^(\d)\.&#39; --no-tta" in page


@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_the_page_of_other_tasks_is_written_too(task, tmp_path):
    options = {"pretrained": False, "image_size": 32, "task": task}
    one = load_backbone("timm/test_resnet", ("x", "y"), seed=1, **options)
    rows = ["image,x,y,site"]
    for i in range(12):
        picture(i).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{i % 2},{(i // 2) % 2},{i % 4}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    found = evaluate(one, tmp_path / "table.csv", out=tmp_path / "out", group="site")
    assert len(found["metrics"]["per_group"]) == 4
    assert "data:image/webp" in (tmp_path / "out" / "report.html").read_text()
