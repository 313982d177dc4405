"""The sweep: a sample of every model file and type, the bars, and the table that it writes."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from timm.models import _registry

from hf_transfer.backbones import sweep as sweep_module
from hf_transfer.backbones.sweep import (
    LABELS,
    LEFT_OUT,
    Row,
    architectures,
    build,
    classifier_names,
    examine,
    largest,
    misses,
    out_of_order,
    outside,
    sweep_to,
    table,
    totals,
)
from hf_transfer.backbones.trace import head_names
from hf_transfer.base.errors import UserError
from hf_transfer.planning.groups import Group, LayerGroups
from hf_transfer.planning.layout import Layout

# Networks that needed care, beyond one of each file.
ODD = """
volo_d1_224 volo_d4_448 levit_128 levit_256d crossvit_9_240 hrnet_w18_small maxvit_nano_rw_256
coatnet_nano_rw_224 nasnetalarge pnasnet5large inception_v4 inception_next_atto cspdarknet53
cspresnet50 dla34 dla60_res2net tresnet_m ese_vovnet19b_slim xcit_nano_12_p8_224 twins_svt_small
beit_base_patch16_224 eva02_tiny_patch14_224 cait_xxs24_224 convit_tiny davit_tiny
naflexvit_base_patch16_gap efficientformer_l1 mobilevit_xxs pvt_v2_b0 samvit_base_patch16
resnetv2_50x1_bit swinv2_cr_tiny_224 vit_base_r50_s16_224 vit_base_patch16_siglip_224
deit_tiny_distilled_patch16_224 darknet53 legacy_senet154 mixnet_s
"""
TORCHVISION = """
alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3
maxvit_t mnasnet0_5 mobilenet_v2 mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18
resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_1 swin_t swin_v2_t vgg11 vgg11_bn vit_b_32
wide_resnet50_2
"""


def _sample() -> list[str]:
    """Return ids: the smallest-sounding network of every timm file, the odd ones, every type."""
    files = defaultdict(list)
    for name in timm.list_models():
        files[_registry._model_to_module[name]].append(name)
    firsts = [min(names, key=_weight) for _, names in sorted(files.items())]
    return [
        *(f"timm/{name}" for name in dict.fromkeys([*firsts, *ODD.split()])),
        *(f"torchvision/{name}" for name in TORCHVISION.split()),
        *(name for name in architectures() if name.startswith("transformers/")),
    ]


def _weight(name: str) -> tuple[int, str]:
    words = ("atto", "femto", "pico", "nano", "tiny", "xxs", "xs", "small", "_s", "_b0", "18", "_t")
    return (next((i for i, word in enumerate(words) if word in name), len(words)), name)


SAMPLE = _sample()


def test_the_sample_covers_every_file_and_type() -> None:
    assert len(SAMPLE) == len(set(SAMPLE)) >= 150


@pytest.mark.parametrize("name", SAMPLE)
def test_every_parameter_is_in_exactly_one_group_in_order(name: str) -> None:
    torch.set_num_threads(1)
    row = examine(name)
    if row.left_out:
        assert LEFT_OUT[name] == row.left_out
        return
    assert not row.failed
    assert (row.violations, row.outside) == (0, 0)
    assert row.groups >= 5
    assert row.stages >= 3
    assert row.head
    assert not row.uneven


@pytest.mark.parametrize("name", ["timm/resnet18", "timm/deit_tiny_distilled_patch16_224"])
def test_timms_classifier_is_what_a_second_network_shows(name: str) -> None:
    network = build(name, LABELS)
    assert classifier_names(network) == head_names(network, build(name, LABELS + 1)) != ()


@pytest.mark.parametrize("name", ["timm/volo_d1_224", "torchvision/resnet18"])
def test_without_a_classifier_that_is_all_made_for_the_labels_there_is_none(name: str) -> None:
    assert classifier_names(build(name, LABELS)) == ()


# --- counting --------------------------------------------------------------------------------


def _layout(*names: str, **more: tuple[str, ...]) -> Layout:
    return Layout(parameters=tuple((name, (2,)) for name in names), **more)  # type: ignore[arg-type]


def _groups(layout: Layout, *members: str) -> LayerGroups:
    return LayerGroups(
        tuple(
            Group(str(i), str(i), tuple(m.split()), 2 * len(m.split()))
            for i, m in enumerate(members)
        ),
        layout,
    )


def test_out_of_order_counts_what_runs_before_the_end_of_the_group_before() -> None:
    layout = _layout("a", "b", "c", "d")
    assert out_of_order(_groups(layout, "a b", "c d")) == 0
    assert out_of_order(_groups(layout, "a d", "b c")) == 2
    assert out_of_order(_groups(layout, "a c", "b d")) == 1


def test_out_of_order_passes_over_the_head_and_what_never_runs() -> None:
    layout = _layout("a", "h", "b", "x", head=("h",), unused=("x",))
    assert out_of_order(_groups(layout, "a x", "b", "h")) == 0


def test_outside_counts_the_missing_the_double_and_the_unknown() -> None:
    layout = _layout("a", "b", "c")
    assert outside(_groups(layout, "a", "b c")) == 0
    assert outside(_groups(layout, "a", "a b", "z")) == 3


def test_the_largest_share_is_of_what_runs() -> None:
    layout = _layout("a", "b", "c", "x", unused=("x",))
    assert largest(_groups(layout, "a x", "b c")) == pytest.approx(2 / 3)


# --- rows, tables, totals --------------------------------------------------------------------

GOOD = Row("timm/good", groups=9, stages=4, parameters=100, largest=0.5, head="fc", seconds=1.5)
BAD = Row("timm/bad", failed="does not run | at all")


def test_a_network_that_cannot_be_built_is_a_row_that_says_why() -> None:
    row = examine("timm/no_such_network")
    assert "no_such_network" in row.failed
    assert misses([row])


def test_the_table_is_csv_or_markdown() -> None:
    read = list(csv.DictReader(io.StringIO(table([GOOD, BAD], ".csv"))))
    assert read[0]["architecture"] == "timm/good"
    assert read[0]["largest"] == "0.500"
    assert read[1]["failed"] == "does not run | at all"
    lines = table([GOOD, BAD], ".md").splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[1].startswith("| --- |")


@pytest.mark.parametrize(
    "changed",
    [{"violations": 1}, {"outside": 1}, {"failed": "no"}, {"largest": 0.6, "groups": 11}],
    ids=lambda c: next(iter(c)),
)
def test_each_bar_can_be_missed(changed: dict[str, object]) -> None:
    assert not misses([GOOD])
    assert misses([GOOD, Row("timm/x", **changed)])  # type: ignore[arg-type]


def test_a_layer_that_is_most_of_a_network_cannot_be_divided() -> None:
    assert Row("x", groups=11, largest=0.6, layer=0.2).uneven
    assert not Row("x", groups=11, largest=0.6, layer=0.59).uneven  # VGG's first linear layer
    assert not Row("x", groups=9, largest=0.6, layer=0.2).uneven  # a block a stage


def test_the_totals_are_one_line() -> None:
    line = totals([GOOD, BAD, Row("transformers/imagegpt", left_out="no pixels")])
    assert "3 architectures" in line
    assert "1 unexplained failures" in line
    assert "imagegpt" in line
    assert "\n" not in line


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    monkeypatch.setattr(
        sweep_module, "architectures", lambda: ("timm/test_vit", "torchvision/squeezenet1_1")
    )
    return lambda bar: monkeypatch.setattr(sweep_module, "ARCHITECTURES", bar)


def test_the_sweep_writes_its_table_and_says_the_totals(
    few: Callable[[int], None], tmp_path: Path
) -> None:
    few(2)
    said: list[str] = []
    assert sweep_to(tmp_path / "new" / "table.csv", said.append) == 0
    assert len((tmp_path / "new" / "table.csv").read_text().splitlines()) == 3
    assert said[-1].startswith("2 architectures; ")


def test_too_few_architectures_miss_a_bar(few: Callable[[int], None]) -> None:
    few(3)
    said: list[str] = []
    assert sweep_to(None, said.append) == 1
    assert len(said) == 3


def test_another_suffix_is_refused_before_the_sweep(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.csv or \.md"):
        sweep_to(tmp_path / "table.xlsx", print)
