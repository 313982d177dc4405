"""The benchmarks whose figures the documents show still run."""

from pathlib import Path

BENCHMARKS = Path(__file__).parent / "benchmarks"


def test_the_table_of_speed_is_measured(monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import speed

    case = "everything, 5 epochs, augmented, precision"
    small = "--random --backbone timm/test_resnet --images 40 --size 32 --epochs 0.1 --repeats 1"
    monkeypatch.setattr("sys.argv", ["speed.py", *small.split(), "--cases", case])
    speed.main()
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith(f"| {case}"))
    ours, plain, _, to_plain = (cell.strip() for cell in row.split("|")[2:6])
    assert float(ours) > 0
    assert float(plain) > 0
    assert to_plain.startswith("1/")
