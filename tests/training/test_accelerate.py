"""The configurations for accelerate launch: its own parser takes them; each says how to run it."""

import os
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from children import python

from hf_transfer.cli import main
from hf_transfer.recipe.shipped import accelerate_configurations, shipped_recipes

CONFIGURATIONS = {
    "cpu": (DistributedType.MULTI_GPU, 2, 1),
    "eight_gpus": (DistributedType.MULTI_GPU, 8, 1),
    "fsdp2": (DistributedType.FSDP, 8, 1),
    "one_gpu": (DistributedType.NO, 1, 1),
    "two_machines": (DistributedType.MULTI_GPU, 16, 2),
}


def test_there_are_these_and_none_is_taken_for_a_recipe():
    assert list(accelerate_configurations()) == [f"accelerate/{name}" for name in CONFIGURATIONS]
    assert not set(CONFIGURATIONS) & set(shipped_recipes())


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_accelerate_reads_each_as_what_its_name_says(name):
    path = accelerate_configurations()[f"accelerate/{name}"]
    found = load_config_from_file(str(path))
    kind, processes, machines = CONFIGURATIONS[name]
    assert found.distributed_type == kind
    assert (found.num_processes, found.num_machines) == (processes, machines)
    assert found.use_cpu == (name == "cpu")
    assert found.mixed_precision == "no"  # the recipe's precision is not overruled
    first, second = path.read_text(encoding="utf-8").splitlines()[:2]
    assert first.startswith(f"# recipes/accelerate/{name}.yaml: ")
    assert f"accelerate launch --config_file {name}.yaml" in second
    assert "-m hf_transfer train" in path.read_text(encoding="utf-8")


def test_the_command_line_prints_one_to_copy(capsys):
    assert main(["recipes", "accelerate/cpu"]) == 0
    text = capsys.readouterr().out
    assert text == Path(accelerate_configurations()["accelerate/cpu"]).read_text(encoding="utf-8")
    assert main(["recipes"]) == 0
    assert "accelerate/eight_gpus" in capsys.readouterr().out.splitlines()[-1]


def test_the_configuration_for_the_cpu_starts_as_many_processes_as_asked_for(tmp_path):
    path = accelerate_configurations()["accelerate/cpu"]
    (tmp_path / "say.py").write_text(
        "import os; os.write(1, b'of ' + os.environb[b'WORLD_SIZE'] + b';')\n"
    )
    launch = "from accelerate.commands import launch; launch.main()"
    words = ["--config_file", str(path), "--num_processes", "3", "--main_process_port", "0"]
    result = python(launch, *words, "say.py", folder=tmp_path, env=dict(os.environ))
    assert result.stdout.count("of 3;") == 3, result.stderr[-2000:]


def test_the_sharding_configuration_says_what_is_supported():
    found = load_config_from_file(str(accelerate_configurations()["accelerate/fsdp2"])).fsdp_config
    assert found["fsdp_version"] == 2
    assert found["fsdp_cpu_ram_efficient_loading"] is False  # accelerate's own default is true
    assert found["fsdp_auto_wrap_policy"] == "TRANSFORMER_BASED_WRAP"
    assert "fsdp_transformer_layer_cls_to_wrap" not in found
