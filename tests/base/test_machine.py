"""What the machine has."""

import pytest

from hf_transfer.base import machine


@pytest.mark.parametrize(
    ("flags", "has"),
    [("avx2 avx512f", False), ("avx512f avx512_bf16", True), ("amx_bf16 amx_tile", True)],
)
def test_bfloat16_is_multiplied_where_the_processors_flags_say_so(
    tmp_path, monkeypatch, flags, has
):
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpuinfo")
    assert not machine.multiplies_bf16()  # not Linux
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    assert machine.multiplies_bf16() is has
