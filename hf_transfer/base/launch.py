"""What the launcher says: how many processes there are, and which this one is; without torch."""

from __future__ import annotations

import os
import time

from hf_transfer.base.errors import UserError

SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")

MOMENT_SECONDS = 2.0  # in which the first process says what is wrong with all of them
NO_DEEPSPEED = (
    "is not supported; to shard parameters use accelerate/fsdp2, else accelerate/eight_gpus "
    "(hf-transfer recipes)"
)
NO_FSDP1 = "is not supported; set fsdp_version: 2, as accelerate/fsdp2 does (hf-transfer recipes)"
NOT_SHARDED = {  # settings of accelerate's FSDP, and what to do in their place
    "cpu_ram_efficient_loading": "every process loads the weights itself: set it to false",
    "offload_params": "set it to false, and for memory take a smaller batch_size",
    "activation_checkpointing": "write gradient_checkpointing: true in the recipe",
}


def rank() -> int:
    """Return this process's number among all that were launched; the first writes and prints."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Return whether this process is the one that writes and prints."""
    return rank() == 0


def count() -> int:
    """Return how many processes the launcher says that it started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def mixed_precision() -> str:
    """Return the precision that accelerate launch was told, "no" where it was told none."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()


def check() -> None:
    """Raise UserError for a launch that would not do what was asked for, before anything is loaded.

    accelerate launch --cpu starts one process, whatever number it is given; the only trace of the
    number is the address at which the processes were to meet.
    """
    if _on("ACCELERATE_USE_DEEPSPEED"):
        raise UserError(f"DeepSpeed {NO_DEEPSPEED}")
    if shards():
        version = os.environ.get("FSDP_VERSION", "2")
        if version != "2":
            raise UserError(f"FSDP version {version} {NO_FSDP1}")
        for name, instead in NOT_SHARDED.items():
            if _on(f"FSDP_{name.upper()}"):
                raise UserError(f"fsdp_{name} is not supported; {instead}")
    lonely = not any(name in os.environ for name in SIZES) and "MASTER_ADDR" in os.environ
    if lonely and "ACCELERATE_MIXED_PRECISION" in os.environ:
        raise UserError(
            "accelerate launch was asked for several processes and started one, as it does with "
            "--cpu; use torchrun --nproc_per_node 2, or accelerate launch --config_file cpu.yaml "
            "--num_processes 2 (recipes/accelerate)"
        )


def shards() -> bool:
    """Return whether accelerate was asked to shard parameters among the processes (FSDP)."""
    return _on("ACCELERATE_USE_FSDP")


def _on(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1")


def speaker() -> str:
    """Return how this process begins a line about a mistake: the first one with nothing.

    The others of a machine first wait a moment: where all make the same mistake, the first one's
    line is enough, and the launcher ends them meanwhile.
    """
    if is_main():
        return ""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(MOMENT_SECONDS)
    return f"process {rank()}: "
