"""Two processes train as one: they agree bit for bit, and with one process to rounding."""

import importlib
import json
import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from children import ended, free_port, join, log, python, results, start, together, train
from drawn import photos
from small import ALL, COLD, CONVNEXT, HEAD, RESNET, VIT, arguments, changed, network

from hf_transfer.backbones.load import load_model
from hf_transfer.base.errors import UserError
from hf_transfer.base.processes import Processes
from hf_transfer.cli import main
from hf_transfer.data.image_set import held_out, load_data
from hf_transfer.planning.groups import group_layers
from hf_transfer.planning.phases import make_phases
from hf_transfer.planning.plan import Machine, make_plan
from hf_transfer.recipe.load import parse_phase
from hf_transfer.recipe.specs import DataSpec, Recipe
from hf_transfer.results.report import RunReport
from hf_transfer.training.trainer import TransferTrainer

GRADUAL = [{"gradual": "2 stages", "epochs": 1, "lr": 2e-3, "lr_drop": 0.5, "batch_size": 4}]
MIXED = {"augment": "light", "mixup": 0.3, "label_smoothing": 0.1, "weight_decay": 0.05}


def test_one_process_is_alone():
    alone = Processes.here()
    assert (alone.count, alone.rank, alone.main) == (1, 0, True)
    assert alone.most(3) == 3
    assert alone.all("x") == ["x"]
    alone.wait()


def test_processes_that_did_not_find_each_other_are_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="started 2 processes and 1 found each other; start with"):
        Processes.here()


@pytest.mark.parametrize("backbone", [RESNET, VIT])
def test_every_phase_of_a_gradual_schedule_agrees_on_two_processes(tmp_path, backbone):
    """Statistics of BatchNorm included; the second process can write no file at all."""
    out = tmp_path / "out"
    options = {"backbone": backbone, "checkpoint_seconds": 1000, "mute": (1,)}
    assert together(2, out, GRADUAL, options) == [0, 0], log(out)
    facts = results(out)[1]
    assert [check["ranks"] for check in facts["checks"]] == [2] * len(facts["checks"])
    assert len(facts["checks"]) >= 3
    assert facts["features"][0] == "cached"
    assert all(check["unmoved"] == [] for check in facts["checks"])


@pytest.mark.parametrize(
    ("extra", "images", "each", "whole"),
    [
        ({"optimizer": "sgd", "lr": 0.05}, 22, 1e-5, 1e-6),  # the last batches have 3 and 1
        ({**MIXED, "optimizer": "sgd", "lr": 0.05, "l2_sp": 0.1, "accumulate": 2}, 19, 1e-5, 1e-6),
        ({}, 24, 1e-4, 1e-5),  # Adam's first steps make much of rounding where gradients are small
    ],
)
def test_two_processes_equal_one_with_twice_the_batch(tmp_path, extra, images, each, whole):
    """For a network without batch statistics: `each` tensor to its largest weight, and all.

    Of 19 images the last is one process's alone.
    """
    ends = []
    for count, batch_size in ((2, 3), (1, 6)):
        out = tmp_path / f"of-{count}"
        phases = [{**HEAD, **extra, "l2_sp": 0.0, "augment": "none", "batch_size": batch_size}]
        phases += [{**COLD, **extra, "epochs": 2, "batch_size": batch_size}]
        options = {"backbone": CONVNEXT, "dropout": 0.0, "images": images}
        assert together(count, out, phases, options) == [0] * count, log(out)
        ends.append(results(out))
    apart = {name: value - ends[1][0][name] for name, value in ends[0][0].items()}
    for name, difference in apart.items():
        scale = ends[0][0][name].abs().max().clamp(min=1e-2)
        assert difference.abs().max() / scale < each, name
    size = torch.cat([value.flatten() for value in ends[0][0].values()]).norm()
    assert torch.cat([value.flatten() for value in apart.values()]).norm() / size < whole
    for one, other in zip(ends[0][1]["history"], ends[1][1]["history"], strict=True):
        for key in ("loss", "eval_loss"):
            assert [row[key] for row in one] == pytest.approx([row[key] for row in other], rel=1e-4)


def test_two_processes_train_in_bfloat16_near_to_float32_and_agree(tmp_path):
    losses, phases = [], [{**HEAD, "batch_size": 4}, {**ALL, "train": "last 1 stage"}]
    for low in (True, False):
        out = tmp_path / f"bf16-{low}"
        assert together(2, out, phases, {"backbone": RESNET, "bf16": low}) == [0, 0], log(out)
        end, facts = results(out)
        assert [check["ranks"] for check in facts["checks"]] == [2, 2]
        assert all(check["unmoved"] == [] for check in facts["checks"])
        moved = changed(network(RESNET).state_dict(), end)
        assert {name.split(".")[1] for name in moved} == {"layer4", "fc"}
        losses.append([row["loss"] for rows in facts["history"] for row in rows if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]


def test_a_phase_is_trained_together_after_an_exact_head_and_after_an_evaluation(tmp_path):
    """An evaluation alone marks the model as wrapped, and it would then train on each one's own."""
    out = tmp_path / "out"
    phases = [{"train": "head", "solve": "lbfgs"}, {**ALL, "batch_size": 4}]
    assert together(2, out, phases, {"backbone": VIT, "first": True}) == [0, 0], log(out)
    assert [check["ranks"] for check in results(out)[1]["checks"]] == [2, 2]


def test_each_step_reduces_the_bytes_of_the_plan_and_no_more(tmp_path):
    """Those of what trains, once a step however many batches it has; statistics are not sent."""
    out = tmp_path / "out"
    phases = [{**HEAD, "batch_size": 4}, {**ALL, "train": "last 1 stage", "accumulate": 2}, ALL]
    assert together(2, out, phases, {"backbone": RESNET, "reduced": True}) == [0, 0], log(out)
    layout = network(RESNET).backbone.layout
    groups = group_layers(layout)
    specs = [parse_phase(phase) for phase in phases]
    recipe = Recipe("small", tuple(specs), backbone="timm/test_resnet")
    counts = {"train": {"cat": 24}, "validation": {"cat": 12}}
    made = make_phases(specs, groups)
    plan = make_plan(recipe, groups, made, counts, Machine(processes=2))
    for planned in plan.phases:
        steps = results(out)[1]["reduced"][planned.phase.name]
        assert steps == [planned.reduced_bytes] * planned.steps
    assert plan.phases[0].reduced_bytes < plan.phases[2].reduced_bytes / 100


PHASES = [
    {**HEAD, "batch_size": 4},
    {**COLD, **MIXED, "epochs": 2, "batch_size": 4, "best": "accuracy"},
]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "out"
    assert together(2, out, PHASES, {"backbone": RESNET}) == [0, 0], log(out)
    return results(out)


KILLS = [  # in one run after the other: (function, n-th call of it), the ranks that are spared
    (("hf_transfer.base.shards:os.fsync", 2), (0,)),  # while features are written
    (("transformers:Trainer._save_rng_state", 2), ()),
    (("transformers:Trainer.prediction_step", 2), (1,)),  # within an evaluation
    (("hf_transfer.training.phase_run:PhaseRunner.apply", 2), ()),  # between the phases
    (("transformers:Trainer._save_rng_state", 2), (0,)),
]


def test_two_processes_killed_and_resumed_end_like_the_unbroken_two(tmp_path, unbroken):
    out = tmp_path / "out"
    options = {"backbone": RESNET, "checkpoint_seconds": 0, "cache": str(tmp_path / "cache")}
    for kill, spared in KILLS:
        own = {**options, "kill": kill, "spared": spared}
        statuses = together(2, out, PHASES, own)
        assert [status for i, status in enumerate(statuses) if i not in spared] == (
            [-signal.SIGKILL] * (2 - len(spared))
        ), log(out)
        assert 0 not in statuses, log(out)
    assert together(2, out, PHASES, options) == [0, 0], log(out)
    end, facts = results(out)
    assert changed(unbroken[0], end) == set()
    assert facts == unbroken[1]


def test_processes_share_the_features_and_wait_for_one_that_takes_its_time(tmp_path):
    """The second needs far longer for its share than a process that does not answer is given."""
    out, own = tmp_path / "out", {"backbone": RESNET, "cache": str(tmp_path / "cache")}
    own |= {"halting": (1, 0.6), "patience": 5, "ddp_timeout": 5}
    assert together(2, out, [{**HEAD, "epochs": 1}], own) == [0, 0], log(out)
    told = [(tmp_path / f"out-{rank}.log").read_text() for rank in range(2)]
    for text in told:  # of 24 and of 12 images
        assert "computed features of 12 images" in text
        assert "computed features of 6 images" in text


def test_three_processes_sum_in_one_order_before_and_after_they_are_resumed(tmp_path):
    """From three on a sum depends on its order, which a new wrapper is free to choose anew."""
    ends, options = [], {"backbone": CONVNEXT, "dropout": 0.0, "checkpoint_seconds": 0}
    phases = [{**COLD, "epochs": 2, "batch_size": 2, "best": "last"}]
    for kill in ({}, {"kill": ("transformers:Trainer.training_step", 4)}):
        out = tmp_path / f"out{len(kill)}"
        if kill:
            assert together(3, out, phases, {**options, **kill}) == [-signal.SIGKILL] * 3, log(out)
        assert together(3, out, phases, options) == [0] * 3, log(out)
        ends.append(results(out))
    assert changed(ends[0][0], ends[1][0]) == set()
    assert ends[0][1] == ends[1][1]


def test_another_number_of_processes_goes_on_at_a_phase_but_not_within_one(tmp_path):
    out = tmp_path / "out"
    options = {"backbone": RESNET, "checkpoint_seconds": 0}
    kill = {"kill": ("transformers:Trainer._save_rng_state", 8)}
    assert together(2, out, PHASES, {**options, **kill}) == [-signal.SIGKILL] * 2, log(out)
    assert (out / "phase-1-head" / "checkpoint-end").is_dir()
    assert ended(start(train, tmp_path / "out-0.log", out, PHASES, options)) == 9
    assert "written by 2 processes and this is a run of 1; start 2, or remove" in log(out)
    for path in (out / "phase-2-all").glob("checkpoint-*"):
        path.rename(tmp_path / path.name)
    assert ended(start(train, tmp_path / "out-0.log", out, PHASES, options)) == 0, log(out)
    assert results(out)[1]["checks"][0]["ranks"] == 2
    assert results(out)[1]["checks"][1]["ranks"] == 1


def test_sigterm_to_one_of_two_processes_saves_and_ends_both(tmp_path, unbroken):
    out, port = tmp_path / "out", free_port()
    out.mkdir()
    options = {"backbone": RESNET, "checkpoint_seconds": 1000}
    children = [
        start(
            train, tmp_path / f"out-{rank}.log", out, PHASES,
            {**options, "slow": 0.3, "processes": (rank, 2, port)},
        )
        for rank in range(2)
    ]  # fmt: skip
    while not (out / "stepped").exists():
        time.sleep(0.05)
        assert children[0].exitcode is None, log(out)
    os.kill(children[1].pid, signal.SIGTERM)
    assert [ended(child) for child in children] == [143, 143], log(out)
    assert log(out).count("stopped by SIGTERM in phase head; saved checkpoint-") == 1
    assert together(2, out, PHASES, options) == [0, 0], log(out)
    assert changed(unbroken[0], results(out)[0]) == set()


def test_a_disk_that_is_full_for_one_process_ends_both_in_one_line(tmp_path):
    out = tmp_path / "out"
    options = {"backbone": RESNET, "checkpoint_seconds": 0, "mute": (1,)}
    first, second = together(2, out, PHASES, options)
    assert first == 9, log(out)
    assert second != 0
    assert "cannot write" in (tmp_path / "out-0.log").read_text()
    assert not list(out.glob("phase-*/checkpoint-*"))


# --- by the command line -------------------------------------------------------------------------


def run_as(place, words, slow, broken, late):
    """Be one of several processes of the command line; of functions named as module:function the
    first process waits a second before each of `slow`, and the second fails in each of `broken`.
    The second starts `late`: when this path is there."""

    def surround(where, do):
        module, _, name = where.partition(":")
        owner = importlib.import_module(module)
        real = getattr(owner, name)
        setattr(owner, name, lambda *args, **options: do() or real(*args, **options))

    def fail():
        raise UserError("nothing to be seen here")

    while late and place[0] and not late.exists():
        time.sleep(0.05)
    join(*place)
    names, do = (broken, fail) if place[0] else (slow, lambda: time.sleep(1))
    for where in names:
        surround(where, do)
    raise SystemExit(main(words))


def commanded(out, words, slow=(), broken=(), late=None):
    """Run the command line in two processes; return their exit statuses and what they printed."""
    port, logs = free_port(), [out.with_name(f"{rank}.log") for rank in range(2)]
    words = [*map(str, words), "--out", str(out), "--set", "data.image_size=32"]
    children = [start(run_as, logs[i], (i, 2, port), words, slow, broken, late) for i in range(2)]
    return [ended(child) for child in children], [log.read_text() for log in logs]


def test_a_source_is_whole_before_any_process_loads_it(tmp_path):
    """Its letters are drawn after the folder is opened, however late the first process is."""
    (tmp_path / "two.yaml").write_text(
        "phases: [{train: head, epochs: 1, batch_size: 8}]\n"
        "source: {backbone: timm/test_resnet, letters: {fonts: 1, images: 111}, "
        "phases: [{train: all, epochs: 1, cold_head: true}]}\n"
    )
    words = ["train", tmp_path / "two.yaml", "--data", photos(tmp_path / "images")]
    out = tmp_path / "out"
    slow = ("hf_transfer.plans:plans_text", "hf_transfer.run:save_model")
    statuses, logs = commanded(out, words, slow)
    assert statuses == [0, 0], logs
    assert RunReport.load(out).environment["processes"] == 2


def test_a_pretext_trains_and_is_measured_alike_on_two_processes(tmp_path):
    """Its evaluation counts each image once, in the batches that one process would make; the second
    process finds the run's folder in use by the first."""
    images = photos(tmp_path / "images", count=48)
    (tmp_path / "free.yaml").write_text(
        "phases: [{train: head, epochs: 1, batch_size: 8}]\n"
        "source: {pretext: contrastive, backbone: timm/test_resnet, phases: "
        "[{train: all, epochs: 1, batch_size: 5, augment: light}]}\n"
    )
    words = ["train", tmp_path / "free.yaml", "--data", images, "--unlabelled", images]
    out = tmp_path / "out"
    statuses, logs = commanded(out, words, late=out / "recipe.yaml")
    assert statuses == [0, 0], logs
    source = RunReport.load(tmp_path / "out" / "source")
    assert source.phases[0].checks["ranks"] == 2
    row = source.phases[0].history[-1]
    model = load_model(tmp_path / "out" / "source")
    model.backbone = replace(model.backbone, task="contrastive")
    spec, image = DataSpec(path=str(images), image_size=32), model.backbone.image
    data = load_data(spec, image, task="contrastive", without=held_out(spec, image))
    assert len(data.validation) > 8
    alone = TransferTrainer(
        model, arguments(tmp_path / "alone", seed=0, per_device_eval_batch_size=64),
        [{**COLD, "augment": "light"}],
        train_dataset=data.train, eval_dataset=data.validation,
    )  # fmt: skip
    assert alone.evaluate()["eval_loss"] == pytest.approx(row["eval_loss"], rel=1e-4)


@pytest.mark.parametrize(
    "broken", ["hf_transfer.run:load_data", "hf_transfer.training.measuring:measure"]
)
def test_a_mistake_of_one_process_alone_is_told_by_it_and_the_other_says_it_is_gone(
    tmp_path, broken
):
    """Before they train as after it, and long before one that does not answer is lost."""
    (tmp_path / "one.yaml").write_text("phases: [{train: head, epochs: 1, batch_size: 8}]\n")
    words = ["train", tmp_path / "one.yaml", "--data", photos(tmp_path / "images")]
    words += ["--backbone", "timm/test_resnet", "--set", "pretrained=false"]
    started = time.monotonic()
    statuses, logs = commanded(tmp_path / "out", words, broken=(broken,))
    assert time.monotonic() - started < 60
    assert statuses == [2, 2], logs
    assert "hf-transfer: error: process 1: nothing to be seen here\n" in logs[1]
    assert "hf-transfer: error: the run: process 1 does not answer any more (" in logs[0]
    assert "Traceback" not in "".join(logs)


@pytest.mark.slow
def test_the_command_line_trains_under_accelerate_launch_which_starts_it_by_torchrun(tmp_path):
    photos(tmp_path / "images")
    (tmp_path / "small.yaml").write_text(
        "backbone: timm/test_resnet\npretrained: false\nseeds: 2\n"
        "data: {path: images, validation: 0.5, image_size: 32}\n"
        "phases:\n  - {train: head, epochs: 1}\n  - {train: all, epochs: 1, lr: 1e-4}\n"
    )
    words = [
        "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "bf16", "--dynamo_backend", "no",
        "--main_process_port", str(free_port()), "-m", "hf_transfer", "train", "small.yaml",
    ]  # fmt: skip
    launch = "from accelerate.commands import launch; launch.main()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = python(launch, *words, folder=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr[-4000:]
    out = tmp_path / "runs" / "small"
    report = json.loads((out / "report.json").read_text())
    assert [phase["checks"]["ranks"] for phase in report["phases"]] == [2, 2]
    assert report["environment"]["processes"] == 2
    told = "mixed_precision: bf16 of accelerate launch is not used: this run is in fp32"
    assert result.stderr.count(told) == 2  # once for each seed
    assert result.stdout.count(f"written to {out.relative_to(tmp_path)}") == 1
    assert (out / "model" / "model.safetensors").is_file()
