"""What the launcher says, and the launches that would not do what was asked for."""

import pytest

from hf_transfer.base import launch
from hf_transfer.base.errors import UserError
from hf_transfer.cli import main

# What accelerate launch --cpu --num_processes 2 leaves in the environment of its one process.
LONELY = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "ACCELERATE_MIXED_PRECISION": "no"}


@pytest.fixture
def given(monkeypatch):
    for name in (
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "ACCELERATE_USE_DEEPSPEED",
        "ACCELERATE_USE_FSDP",
        "ACCELERATE_DYNAMO_BACKEND",
        "FSDP_VERSION",
        "FSDP_CPU_RAM_EFFICIENT_LOADING",
        *LONELY,
    ):
        monkeypatch.delenv(name, raising=False)
    return lambda values: [monkeypatch.setenv(key, value) for key, value in values.items()]


def test_without_a_launcher_there_is_one_process(given):
    assert (launch.rank(), launch.count(), launch.is_main()) == (0, 1, True)
    launch.check()


def test_a_launcher_that_started_one_process_of_several_is_named(given, capsys):
    given(LONELY)
    with pytest.raises(UserError, match="asked for several processes and started one"):
        launch.check()
    assert main(["train", "lp_ft"]) == 2
    assert capsys.readouterr().err.startswith("hf-transfer: error: accelerate launch was asked for")
    given({"WORLD_SIZE": "1"})  # torchrun --nproc_per_node 1
    launch.check()


def test_one_process_that_accelerate_was_asked_for_is_fine(given):
    given({"ACCELERATE_MIXED_PRECISION": "no"})
    assert launch.check() is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported; to shard parameters"),
        ({"FSDP_VERSION": "1"}, "FSDP version 1 is not supported; set fsdp_version: 2"),
        (
            {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"},
            "fsdp_cpu_ram_efficient_loading is not supported; every process loads the weights",
        ),
    ],
)
def test_ways_to_shard_that_are_refused_say_so_before_anything_is_loaded(
    given, capsys, values, said
):
    given({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", **values})
    assert main(["train", "lp_ft"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"hf-transfer: error: {said}")
    assert error.count("\n") == 1


def test_sharding_by_the_second_version_is_taken(given):
    given({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"})
    given({"FSDP_CPU_RAM_EFFICIENT_LOADING": "false"})
    assert launch.check() is None


def test_the_first_process_speaks_for_all_and_one_that_is_left_says_why_it_ends(
    given, capsys, monkeypatch
):
    waits = []
    monkeypatch.setattr(launch.time, "sleep", waits.append)  # in which a launcher ends the others
    given({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"})
    assert main(["train", "no_such_recipe"]) == 2
    assert waits == [launch.MOMENT_SECONDS]
    assert capsys.readouterr().err.startswith("hf-transfer: error: process 1: there is no recipe")
    with pytest.raises(SystemExit):
        main(["train"])
    assert waits == [launch.MOMENT_SECONDS] * 2
    assert capsys.readouterr().err.startswith("hf-transfer: error: process 1: the following")
    given({"LOCAL_RANK": "0"})  # the first of another machine, whose files may be others
    assert main(["train", "no_such_recipe"]) == 2
    assert capsys.readouterr().err.startswith("hf-transfer: error: process 1: ")
    given({"RANK": "0"})
    assert main(["train", "no_such_recipe"]) == 2
    assert capsys.readouterr().err.startswith("hf-transfer: error: there is no recipe")
    assert waits == [launch.MOMENT_SECONDS] * 2
