"""What the machine has."""

import pytest

from hf_transfer.base import machine


@pytest.mark.parametrize(
    ("flags", "time"),
    [
        ("fpu sse2", 1.0),
        ("avx2", 10.0),
        ("avx2 avx512f", 3.0),
        ("avx512f avx512_bf16", 1.7),
        ("avx512f avx512_bf16 amx_bf16 amx_tile", 0.55),
    ],
)
def test_the_time_of_bfloat16_is_that_of_the_best_that_the_processor_has(
    tmp_path, monkeypatch, flags, time
):
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpuinfo")
    assert machine.bf16_time() == 1.0  # not Linux
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    assert machine.bf16_time() == time
