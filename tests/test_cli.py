"""The command line: what a user types, what comes back, and one line for each mistake."""

import errno
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from children import python
from drawn import photos
from PIL import Image

from hf_transfer.cli import main
from hf_transfer.cli.arguments import data_of
from hf_transfer.cli.training import TRACKERS
from hf_transfer.recipe.mistakes import allowed, schema_of
from hf_transfer.recipe.specs import Recipe
from hf_transfer.results.report import RunReport

HEAD = "phases:\n  - {train: head, epochs: 1}\n"


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return photos(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, images) -> Path:
    """A finished run of a small network with random weights, made through the command line."""
    folder = tmp_path_factory.mktemp("run")
    recipe = folder / "small.yaml"
    recipe.write_text(HEAD + "  - {train: all, epochs: 1, lr: 1e-4}\n")
    out = folder / "out"
    options = ["--backbone", "timm/test_resnet", "--set", "pretrained=false"]
    size = ["--set", "data.image_size=32", "--set", "data.validation=0.5"]
    assert (
        main(["train", str(recipe), "--data", str(images), "--out", str(out), *options, *size]) == 0
    )
    return out


def test_help_answers_fast_and_imports_nothing_heavy():
    code = (
        "import sys, time\nfrom hf_transfer.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'numpy', 'yaml', 'transformers') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert "commands:" in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"


def test_a_plan_of_a_recorded_backbone_imports_no_torch_and_reads_no_weights(images):
    code = (
        "import sys\nfrom hf_transfer.cli import main\n"
        f"main(['plan', 'gradual', '--data', {str(images)!r}, '--backbone', 'timm/resnet50'])\n"
        "print([m for m in ('torch', 'transformers', 'timm') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert result.stdout.splitlines()[-1] == "[]", result.stderr
    assert "head" in result.stdout


def test_python_m_is_the_same_program():
    command = [sys.executable, "-m", "hf_transfer", "recipes"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0
    assert "lp_ft" in result.stdout


def test_a_run_leaves_its_folder_as_described(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"recipe.yaml", "report.json", "report.html", "model"} <= names
    assert {"phase-1-head", "phase-2-all"} <= names
    model = {path.name for path in (finished / "model").iterdir()}
    files = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
    pictures = {name for name in model if name.endswith(".svg")}  # of the card
    assert {"confusion.svg", "calibration.svg"} <= pictures
    assert model - pictures == {*files, "unknown.safetensors", ".hf_transfer"}
    report = json.loads((finished / "report.json").read_text())
    assert 0 <= report["metrics"]["accuracy"] <= 1
    assert [phase["name"] for phase in report["phases"]] == ["head", "all"]
    assert report["phases"][0]["features"] == "cached"


def test_predict_ranks_the_labels_of_files_and_folders(finished, images, capsys):
    assert main(["predict", str(finished), str(images / "cat"), "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert len(answers) == 8
    assert {row["label"] for row in answers[0]["labels"]} == {"cat", "dog"}


def test_recipes_lists_and_prints(capsys):
    assert main(["recipes"]) == 0
    assert "small_medical" in capsys.readouterr().out
    assert main(["recipes", "lp_ft"]) == 0
    assert "phases:" in capsys.readouterr().out


def test_groups_prints_the_groups_of_a_backbone(capsys):
    assert main(["groups", "timm/resnet50", "--grain", "stages"]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[1] for line in printed.splitlines()[1:7]] == [
        "stem", "layer1", "layer2", "layer3", "layer4", "head",
    ]  # fmt: skip


def test_names_of_any_bytes_and_letters_go_all_the_way(tmp_path, capsys):
    data = photos(tmp_path / os.fsdecode(b"caf\xe9 \xf0\x9f\x98\x80"))
    name = os.fsdecode(b"caf\xe9.png")
    Image.new("L", (40, 40), 99).save(data / "cat" / name)
    words = [*map(str, small(tmp_path, "--data", data))]
    assert main(words) == 0
    findings = RunReport.load(tmp_path / "out").data["audit"]["findings"]
    assert f"cat/{name}" in findings[0]["files"]
    assert "caf\\xe9.png" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    (tmp_path / "out" / "report.json").unlink()
    assert main([*words, "--resume"]) == 0
    assert main(["predict", str(tmp_path / "out"), str(data)]) == 0
    assert "caf\\udce9.png" in capsys.readouterr().out


# --- mistakes --------------------------------------------------------------------------------


def mistake(capsys, *argv: object) -> str:
    """Run a command that must fail, and return its one line."""
    try:
        status = main([str(word) for word in argv])
    except SystemExit as exit_:
        status = exit_.code
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("hf-transfer: error: ")]
    assert status == 2, printed
    assert len(lines) == 1, printed.err
    assert "Traceback" not in printed.err
    return lines[0]


RECIPES = {
    "unknown key": (HEAD + "speed: 3\n", "speed"),
    "unknown key of a phase": ("phases:\n  - {train: head, epochs: 1, rate: 3}\n", "rate"),
    "duplicate key": (HEAD + "seed: 1\nseed: 2\n", "seed"),
    "not YAML": ("phases: [", "yaml"),
    "no phases": ("seed: 1\n", "phases"),
    "a phase without length": ("phases:\n  - {train: head}\n", "epochs"),
    "epochs and steps": ("phases:\n  - {train: head, epochs: 1, steps: 3}\n", "steps"),
    "a rate that is text": ("phases:\n  - {train: head, epochs: 1, lr: fast}\n", "lr"),
    "a negative rate": ("phases:\n  - {train: head, epochs: 1, lr: -1}\n", "lr"),
    "an unknown optimizer": (
        "phases:\n  - {train: head, epochs: 1, optimizer: adamm}\n", "adam"),
    "an unknown augmentation": ("phases:\n  - {train: head, epochs: 1, augment: wild}\n", "wild"),
    "a stop without patience": (
        "phases:\n  - {train: head, epochs: 1, stop: {patience: 0}}\n", "patience"),
    "a selector that matches nothing": (
        "phases:\n  - {train: layer9, epochs: 1}\n", "layer9"),
    "last 0 stages": ("phases:\n  - {train: last 0 stages, epochs: 1}\n", "0"),
    "more stages than there are": (
        "phases:\n  - {train: head, epochs: 1}\n  - {train: last 99 stages, epochs: 1}\n", "99"),
    "from an unknown group": (
        "phases:\n  - {train: head, epochs: 1}\n  - {train: from layer9, epochs: 1}\n", "layer9"),
    "a phase that is there twice": (
        "phases:\n  - {train: head, epochs: 1, lr: 0}\n", "lr"),
    "an unknown metric": (HEAD + "metrics: [nonsense_score]\n", "nonsense_score"),
    "a metric that no phase has": (
        "phases:\n  - {train: head, epochs: 1, best: beauty}\n", "beauty"),
    "an unknown loss": (HEAD + "loss: hinge\n", "hinge"),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_mistake_in_a_recipe_is_one_line(name, tmp_path, images, capsys):
    text, word = RECIPES[name]
    recipe, out = tmp_path / "mine.yaml", tmp_path / "out"
    recipe.write_text(text)
    line = mistake(
        capsys, "train", recipe, "--data", images, "--out", out,
        "--backbone", "timm/test_resnet", "--set", "pretrained=false",
        "--set", "data.image_size=32",
    )  # fmt: skip
    assert word in line
    assert not (out / "report.json").exists()
    assert not (out / "model").exists()


def small(tmp_path: Path, *extra: object) -> list[object]:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(HEAD)
    given = {"--backbone": "timm/test_resnet", "--out": tmp_path / "out"}
    words: list[object] = ["train", recipe]
    for key, value in given.items():
        words += [] if key in extra else [key, value]
    return [*words, "--set", "pretrained=false", "--set", "data.image_size=32", *extra]


def test_an_unknown_recipe_names_those_there_are(capsys):
    assert "lp_ft" in mistake(capsys, "train", "lp_ff")


def test_a_misspelt_folder_or_table_of_images_is_found_beside_it(tmp_path, capsys, monkeypatch):
    (tmp_path / "flowers").mkdir()
    (tmp_path / "labels.csv").touch()
    (tmp_path / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    line = mistake(capsys, "train", "flower", "--minutes", "3")
    assert "no recipe 'flower'; nearest: lora; did you mean the folder flowers?" in line
    assert "did you mean the folder" in mistake(capsys, "train", tmp_path / "flower")
    assert "did you mean the table labels.csv?" in mistake(capsys, "train", "label.csv")
    assert "did you mean" not in mistake(capsys, "train", "note.txt")


def test_a_recipe_file_that_is_not_there(tmp_path, capsys):
    assert "gone.yaml" in mistake(capsys, "train", tmp_path / "gone.yaml")


def test_a_setting_without_a_value(tmp_path, images, capsys):
    assert "seed" in mistake(capsys, *small(tmp_path, "--data", images, "--set", "seed"))


def test_a_setting_of_an_unknown_key(tmp_path, images, capsys):
    assert "sed" in mistake(capsys, *small(tmp_path, "--data", images, "--set", "sed=1"))


def test_no_data(tmp_path, capsys):
    assert "data" in mistake(capsys, *small(tmp_path))


def test_a_data_folder_that_is_not_there(tmp_path, images, capsys):
    line = mistake(capsys, *small(tmp_path, "--data", images.with_name("imagse")))
    assert "imagse" in line
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_a_data_folder_without_images(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "empty" in mistake(capsys, *small(tmp_path, "--data", tmp_path / "empty"))


def test_data_of_one_class(tmp_path, capsys):
    data = photos(tmp_path / "one", classes=("cat",))
    assert "class" in mistake(capsys, *small(tmp_path, "--data", data))


def test_a_class_with_too_few_images(tmp_path, capsys):
    data = photos(tmp_path / "few")
    for path in sorted((data / "dog").iterdir())[1:]:
        path.unlink()
    assert "dog" in mistake(capsys, *small(tmp_path, "--data", data))


def test_a_table_without_the_label_column(tmp_path, images, capsys):
    table = tmp_path / "list.csv"
    table.write_text(f"image,kind\n{images / 'cat' / '0.png'},cat\n")
    assert "label" in mistake(capsys, *small(tmp_path, "--data", table))


def test_too_many_bad_images(tmp_path, capsys):
    data = photos(tmp_path / "broken")
    for name in ("0.png", "1.png", "2.png"):
        (data / "cat" / name).write_bytes(b"not an image")
    assert "cat/0.png" in mistake(capsys, *small(tmp_path, "--data", data))


@pytest.mark.parametrize(
    ("backbone", "word"),
    [
        ("resnet50", "timm/"),
        ("timm/resnet5o", "resnet50"),
        ("torchvision/alexnett", "alexnet"),
        ("timm/test_resnet.no_such_tag", "no_such_tag"),
        ("./nowhere", "nowhere"),
    ],
)
def test_a_backbone_that_is_not_there(backbone, word, tmp_path, images, capsys):
    options = ("--data", images, "--backbone", backbone)
    assert word in mistake(capsys, *small(tmp_path, *options))


def test_a_backbone_folder_without_a_configuration(tmp_path, images, capsys):
    (tmp_path / "net").mkdir()
    options = ("--data", images, "--backbone", tmp_path / "net")
    assert "config.json" in mistake(capsys, *small(tmp_path, *options))


def test_weights_that_cannot_be_reached(tmp_path, images, capsys):
    options = ("--data", images, "--set", "pretrained=true", "--backbone", "timm/resnet18.a1_in1k")
    assert "pretrained" in mistake(capsys, *small(tmp_path, *options))


def test_truncated_weights(tmp_path, images, finished, capsys):
    folder = tmp_path / "net"
    shutil.copytree(finished / "model", folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    options = ("--data", images, "--backbone", folder, "--set", "pretrained=true")
    assert "net" in mistake(capsys, *small(tmp_path, *options))
    assert not (tmp_path / "out" / "model").exists()


def test_a_folder_in_use_is_not_overwritten(finished, tmp_path, images, capsys):
    before = (finished / "report.json").read_bytes()
    line = mistake(capsys, *small(tmp_path, "--data", images, "--out", finished))
    assert "--resume" in line
    assert (finished / "report.json").read_bytes() == before


def test_resuming_another_recipe_is_refused(finished, tmp_path, images, capsys):
    line = mistake(capsys, *small(tmp_path, "--data", images, "--out", finished, "--resume"))
    assert "another" in line


def test_an_output_that_is_a_file(tmp_path, images, capsys):
    (tmp_path / "file").write_text("")
    assert "file" in mistake(capsys, *small(tmp_path, "--data", images, "--out", tmp_path / "file"))


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_an_output_without_permission(tmp_path, images, capsys):
    (tmp_path / "locked").mkdir(mode=0o500)
    out = tmp_path / "locked" / "out"
    assert "locked" in mistake(capsys, *small(tmp_path, "--data", images, "--out", out))


def test_a_full_disk_is_one_line(tmp_path, images, capsys, monkeypatch):
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "phase-1-head")

    monkeypatch.setattr("hf_transfer.training.recovery.checkpoints.write_phase", full)
    assert "No space left" in mistake(capsys, *small(tmp_path, "--data", images))
    assert not (tmp_path / "out" / "report.json").exists()


def test_predict_with_no_model(tmp_path, images, capsys):
    assert "nothing" in mistake(capsys, "predict", tmp_path / "nothing", images)


def test_predict_of_a_file_that_is_not_there(finished, tmp_path, capsys):
    assert "gone.png" in mistake(capsys, "predict", finished, tmp_path / "gone.png")


def test_predict_reads_paths_from_standard_input_and_answers_in_json_lines(
    finished, images, tmp_path, capsys, monkeypatch
):
    paths = [*sorted((images / "cat").iterdir())[:2], tmp_path / "gone\udcff.png"]
    lines = os.fsencode("".join(f"{path}\n\n" for path in paths[1:]))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="ascii"))
    assert main(["predict", str(finished), str(paths[0]), "-", "--format", "jsonl"]) == 2
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["file"] for row in rows] == list(map(str, paths))
    assert [row["error"] is None for row in rows] == [True, True, False]


def test_predict_reads_what_find_print0_writes_also_names_with_line_breaks(
    finished, images, tmp_path, capsys, monkeypatch
):
    broken = tmp_path / "two\nlines.png"
    paths = [next((images / "cat").iterdir()), Path(shutil.copy(images / "cat" / "0.png", broken))]
    names = b"".join(os.fsencode(path) + b"\0" for path in paths)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(names)))
    assert main(["predict", str(finished), "-", "--format", "jsonl"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["file"] for row in rows] == list(map(str, paths))


def test_predict_of_an_empty_list_says_so_and_answers_nothing(finished, capsys, monkeypatch):
    for form, answers in (("text", ""), ("json", "[]\n"), ("jsonl", "")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
        assert main(["predict", str(finished), "-", "--format", form]) == 0
        assert capsys.readouterr() == (answers, "hf-transfer: no paths on standard input\n")


def test_two_formats_are_one_too_many(capsys):
    said = "--json is --format json, not --format csv; remove one of them"
    assert said in mistake(capsys, "predict", "a/b", "c.png", "--json", "--format", "csv")


def test_evaluate_and_embed_tell_what_they_found(finished, images, tmp_path, capsys):
    assert main(["evaluate", str(finished), "--data", str(images), "--tta"]) == 0
    told = capsys.readouterr().out
    assert "Accuracy" in told
    assert "95% interval" in told
    assert main(["evaluate", str(finished), "--data", str(images), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["labels"]["only_in_model"] == []
    table = tmp_path / "table.csv"
    table.write_text(f"species,photo\ncat,{images / 'cat' / '0.png'}\n")
    keys = ["--set", "data.label_column=species", "--set", "data.image_column=photo"]
    assert main(["evaluate", str(finished), "--data", str(table), *keys]) == 0
    assert "1 images (all)" in capsys.readouterr().out
    named = data_of("table.csv", ["data.label_columns=[weight kg,height]"])
    assert named.label_columns == ("weight kg", "height")
    said = "--set seed=1: here it changes keys of data"
    assert said in mistake(capsys, "evaluate", finished, "--data", table, "--set", "seed=1")
    assert main(["embed", str(finished), str(images), "--out", str(tmp_path / "f.npy")]) == 0
    assert "features of" in capsys.readouterr().out
    near = next((images / "cat").iterdir())
    assert main(["embed", str(finished), str(images), "--near", str(near), "--top", "2"]) == 0
    told = capsys.readouterr().out
    assert (len(told.splitlines()), str(near) in told) == (2, False)


def test_predict_of_what_is_not_an_image(finished, tmp_path, capsys):
    (tmp_path / "note.png").write_text("hello")
    assert main(["predict", str(finished), str(tmp_path / "note.png")]) == 2
    assert "note.png" in capsys.readouterr().out


def test_pushing_an_unfinished_run(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    assert "run" in mistake(capsys, "push", tmp_path / "run", "me/model")


def test_pushing_to_a_bad_name(finished, capsys):
    assert "my model" in mistake(capsys, "push", finished, "me/my model")


def test_groups_of_nothing(capsys):
    assert "--all" in mistake(capsys, "groups")


def test_groups_of_an_unknown_backbone(capsys):
    assert "nearest" in mistake(capsys, "groups", "timm/resnet5o")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["traim"], "unknown command 'traim'; nearest: train"),
        (["zzz"], "unknown command 'zzz'; choose train or plan or"),
        (["auto"], "unknown command 'auto'; use hf-transfer train FOLDER;"),
        (["Fit"], "unknown command 'Fit'; use hf-transfer train;"),
        (["recipes", "lp"], "there is no shipped recipe 'lp'; nearest: lp_ft"),
        (["train", "lp"], "there is no recipe 'lp'; nearest: lp_ft"),
        (["train", "lp_ft", "--bakcbone", "x"], "unknown argument '--bakcbone'; nearest: --back"),
        (["train", "lp_ft", "--fast"], "unknown argument '--fast'"),
        (["train", "lp_ft", "--set", "seed=1", "epochs=2"], "'epochs=2'; write --set epochs=2"),
        (
            ["train", "lp_ft", "--report-to", "wandb", "--report-to", "tensorbord"],
            "argument --report-to: no choice 'tensorbord'; nearest: tensorboard",
        ),
        (
            ["explain", "run", "a.png", "--label", "-x"],
            "no value; write --label=VALUE for one that",
        ),
        (["export", "run", "--to", "onx"], "argument --to: no choice 'onx'; nearest: onnx"),
        (["export", "run", "--to", "coreml"], "to coreml is not supported; its files run on a Mac"),
        (["groups", "timm/resnet18", "--grain", "stage"], "no choice 'stage'; nearest: stages"),
    ],
)
def test_what_is_unknown_is_told_with_the_nearest(words, says, capsys):
    assert says in mistake(capsys, *words)


def test_the_trackers_of_the_command_line_are_those_of_a_recipe():
    assert f"one of {', '.join(TRACKERS[:-1])} and {TRACKERS[-1]}, or a list" == allowed(
        schema_of(Recipe)["properties"]["report_to"]
    )


def test_what_is_no_number_is_told_so(capsys):
    assert "'two' is not a number; see" in mistake(capsys, "train", "x", "--minutes", "two")
    assert "'1.5' is not a whole number; see" in mistake(capsys, "plan", "x", "--seed", "1.5")


@pytest.mark.parametrize("count", ["-3", "0", "two"])
def test_a_number_that_counts_nothing(count, finished, images, capsys):
    said = f"{count} is not a whole number of 1 or more"
    assert said in mistake(capsys, "plan", "lp_ft", "--processes", count)
    assert said in mistake(capsys, "predict", finished, images, "--top", count)


def test_a_time_to_wait_that_is_no_number_leaves_no_folder(tmp_path, images, capsys, monkeypatch):
    monkeypatch.setenv("HF_TRANSFER_PEER_SECONDS", "10m")
    assert "'10m'" in mistake(capsys, *small(tmp_path, "--data", images))
    assert not (tmp_path / "out").exists()


# --- paths and names -------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["--out=~/mine", "--out"])
def test_a_tilde_is_the_home_folder_however_it_is_written(form, tmp_path, images, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(images, tmp_path / "photos")
    words = small(tmp_path, "--data=~/photos", "--out", tmp_path / "unused")[:-2]
    words = [*words, *([form] if "=" in form else [form, "~/mine"])]
    assert main([*map(str, words)]) == 0
    assert (tmp_path / "mine" / "report.json").is_file()
    assert not (tmp_path / "~").exists()


def test_ctrl_c_while_the_command_line_is_imported_is_a_line(monkeypatch, capsys):
    class Slow(types.ModuleType):
        def __getattr__(self, name):
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "hf_transfer.cli", Slow("hf_transfer.cli"))
    assert importlib.import_module("hf_transfer.__main__").main() == 130
    assert capsys.readouterr() == ("", "hf-transfer: interrupted\n")


def test_no_such_user(capsys):
    assert "no home folder" in mistake(capsys, "plan", "lp_ft", "--data", "~nosuchuser/x")
    assert "argument --data: it is empty" in mistake(capsys, "plan", "lp_ft", "--data", "")


@pytest.mark.parametrize("name", ["../../x", "a/b", "..", "a\\\\b", "\\e[31mred"])
def test_the_name_of_a_recipe_is_no_path(name, tmp_path, images, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(f'name: "{name}"\n{HEAD}')
    line = mistake(capsys, "train", "mine.yaml", "--data", images, "--backbone", "timm/test_resnet")
    assert "mine.yaml:1: name must be a name without / and" in line
    assert {path.name for path in tmp_path.iterdir()} == {"mine.yaml"}


def test_metrics_that_are_code_run_only_where_that_is_allowed(tmp_path, images, capsys):
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    code = f"metrics=[{tmp_path / 'mine.py'}]"
    line = mistake(capsys, *small(tmp_path, "--data", images, "--set", code))
    assert "is code that would run; if you trust it, add --allow-code" in line
    assert not (tmp_path / "ran").exists()
    mistake(capsys, *small(tmp_path, "--data", images, "--set", code, "--allow-code"))
    assert (tmp_path / "ran").exists()  # though it defines no metric


def test_terminal_escapes_in_labels_are_shown_and_not_sent(tmp_path, capsys):
    data = photos(tmp_path / "data", classes=("cat", "\x1b[31mdog"))
    assert main(["plan", "lp_ft", "--data", str(data)]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\\x1b[31mdog" in printed


def test_a_folder_that_cannot_be_written_is_told_before_the_plan(finished, tmp_path, capsys):
    gone = tmp_path / "link"
    gone.symlink_to(tmp_path / "nowhere")
    for out, says in ((finished, "is not empty"), (gone, "a link that leads nowhere")):
        line = mistake(capsys, *small(tmp_path, "--data", "nothing", "--out", out))
        assert says in line


def test_random_weights_have_nothing_to_spoil(tmp_path, images, capsys):
    (tmp_path / "all.yaml").write_text("phases: [{train: all, epochs: 1}]\n")
    words = ["plan", str(tmp_path / "all.yaml"), "--data", str(images), "--backbone"]
    assert "would spoil the backbone" in mistake(capsys, *words, "timm/resnet18")
    assert main([*words, "timm/resnet18", "--set", "pretrained=false"]) == 0


# --- readers that leave, and tracebacks -------------------------------------------------------


def command(*words: object, shell: str = "{}", **env: str) -> subprocess.CompletedProcess[str]:
    """Run the program as a shell does, and return what came of it."""
    line = " ".join([sys.executable, "-m", "hf_transfer", *map(str, words)])
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", shell.format(line)],
        capture_output=True, text=True, timeout=120, env={**os.environ, **env},
    )  # fmt: skip


HEAD_1 = """
import os, subprocess, sys
reader = subprocess.Popen(["head", "-1"], stdin=subprocess.PIPE)
os.dup2(reader.stdin.fileno(), 1)
reader.stdin.close()
sys.stdout = open(1, "w", closefd=False)
from hf_transfer.__main__ import main
sys.exit(main())
"""


def test_a_reader_that_leaves_stops_no_run(tmp_path, images):
    words = map(str, small(tmp_path, "--data", images))
    done = python(HEAD_1, *words, folder=tmp_path, env=dict(os.environ))
    assert (done.returncode, "error" in done.stderr) == (0, False), done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert (tmp_path / "out" / "report.json").is_file()


def test_output_and_errors_that_nobody_reads_are_dropped():
    assert command("recipes", shell="{} >&-").returncode == 0
    assert command("recipes", "nothing", shell="{} 2>&1 | true").returncode == 2
    assert command("recipes", shell="{} | true").stderr == ""


def test_an_error_comes_with_its_traceback_where_that_is_asked_for():
    assert "Traceback" not in command("recipes", "nothing").stderr
    for done in (
        command("recipes", "nothing", "--traceback"),
        command("recipes", "nothing", HF_TRANSFER_TRACEBACK="1"),
    ):
        assert "Traceback" in done.stderr
        assert done.stderr.splitlines()[-1].startswith("hf-transfer: error: there is no shipped")
        assert done.returncode == 2


def test_a_defect_is_one_line_that_says_how_to_see_more(capsys, monkeypatch):
    def broken(*args: object) -> None:
        raise AttributeError("'NoneType' object has no attribute 'x'")

    monkeypatch.setattr("hf_transfer.recipe.shipped.listing", broken)
    assert main(["recipes"]) == 1
    assert capsys.readouterr().err == (
        "hf-transfer: error: AttributeError: 'NoneType' object has no attribute 'x'; this is a "
        "defect: set HF_TRANSFER_TRACEBACK=1 for more\n"
    )


# --- interrupted -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "words", "more"),
    [
        (
            "plans.plans_of",
            ["train", "lp_ft", "--data", "my photos"],
            "; to continue: hf-transfer train lp_ft --data 'my photos' --resume",
        ),
        ("deciding.quickstart.run_quickstart", ["train", "quickstart"], ""),
        ("plans.plans_of", ["plan", "lp_ft"], ""),
        ("serving.answers.answering", ["predict", "owner/model", "photo.png"], ""),
    ],
)
def test_resuming_is_suggested_where_it_can_be_done(where, words, more, capsys, monkeypatch):
    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"hf_transfer.{where}", stop)
    assert main(words) == 130
    assert capsys.readouterr().err == f"hf-transfer: interrupted{more}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--add", "run", "--epochs", "3"], "--add does not use --epochs; remove it"),
        (["--add", "run", "--set", "seed=1"], "--add does not use --set; remove it"),
        (["--add", "run", "--report-to", "wandb"], "--add does not use --report-to; remove it"),
        (["--allow-code"], "auto does not use --allow-code; remove it"),
        (["--unlabelled", "more"], "auto does not use --unlabelled; remove it"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(tmp_path, capsys, words, said):
    assert main(["train", str(photos(tmp_path / "photos")), *words]) == 2
    assert said in capsys.readouterr().err


def test_names_of_nothing_are_refused_before_torch_is_imported(tmp_path):
    """With it, a misspelt name takes ten seconds to be told."""
    refused = {
        "groups timm/resnet18.a1_in1kk": "no weights 'resnet18.a1_in1kk'; it has resnet18.a1_in1k",
        "groups torchvision/resnet18.V9": "no weights 'resnet18.V9'; it has resnet18.IMAGENET1K",
        "groups transformers/vitt": "no model type 'vitt'; nearest: vit",
        "predict nowhere a.png": "'nowhere' is neither a folder nor a Hub repository",
        "predict nowhere.onnx a.png": "no file nowhere.onnx",
        "evaluate . --data .": "holds no model; give a run folder",
        "evaluate made --data nowhere": "no such folder",
        "evaluate made --data . --compare nowhere": "'nowhere' is neither a folder nor a Hub",
        "evaluate made --data . --compare nowhere.onnx": "no file nowhere.onnx",
        "export made --int8 --data nowhere": "no such folder",
        "demo nowhere": "no run or model nowhere",
        "compare lpft --data .": "nearest: lp_ft",
        "compare lp_ft --data nowhere": "no such folder",
        "advise --data . --backbone timm/resnt18": "nearest: resnet18",
        "advise --data . --backbone timm/resnet18 --out taken": "taken is a file",
    }
    (tmp_path / "taken").touch()
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "config.json").write_text('{"architecture": "test_resnet"}')
    code = (
        "import sys\nfrom hf_transfer.cli import main\nfor words in sys.argv[1:]:\n"
        "    assert main(words.split()) == 2, words\nprint('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *refused], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout == "False\n", done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(refused)
    for line, words in zip(lines, refused.values(), strict=True):
        assert words in line
