"""Groups from hand-made layouts: what the algorithm promises, without any network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from hf_transfer.backbones.sweep import out_of_order, outside
from hf_transfer.planning.groups import LayerGroups, group_layers, groups_text
from hf_transfer.planning.layout import GroupsError, Layout


def linear(path: str, size: int = 4) -> list[tuple[str, tuple[int, ...]]]:
    return [(f"{path}.weight", (size, size)), (f"{path}.bias", (size,))]


def norm(path: str) -> list[tuple[str, tuple[int, ...]]]:
    return [(f"{path}.weight", (4,)), (f"{path}.bias", (4,))]


def block(path: str, size: int = 4) -> list[tuple[str, tuple[int, ...]]]:
    """Return a block of two layers, each after its norm."""
    return [
        *norm(f"{path}.norm1"),
        *linear(f"{path}.attn", size),
        *norm(f"{path}.norm2"),
        *linear(f"{path}.mlp", size),
    ]


def layout(*parts: Sequence[tuple[str, tuple[int, ...]]], **more: object) -> Layout:
    """Return a layout of the parameters in this order; the head is what starts with `head.`."""
    parameters = tuple(parameter for part in parts for parameter in part)
    head = tuple(name for name, _ in parameters if name.startswith("head."))
    return Layout(parameters=parameters, **{"head": head, **more})  # type: ignore[arg-type]


def checked(layout: Layout) -> LayerGroups:
    """Return the groups after checking what holds of every network."""
    groups = group_layers(layout)
    assert outside(groups) == 0
    assert out_of_order(groups) == 0
    assert groups.total == sum(layout.sizes.values())
    assert len(set(groups.names)) == len(groups.names)
    stages = [group.stage for group in groups.groups]
    changes = sum(a != b for a, b in zip(stages, stages[1:], strict=False))
    assert changes + 1 == len(groups.stages), "a stage is one run of groups"
    if layout.head:
        assert groups.groups[-1].name == "head"
        assert set(groups.groups[-1].parameters) == set(layout.head)
    assert groups == group_layers(layout)
    return groups


VIT = layout(
    [("cls_token", (1, 1, 4)), ("pos_embed", (1, 5, 4))],
    linear("patch_embed.proj"),
    *(block(f"blocks.{i}") for i in range(4)),
    norm("norm"),
    linear("head"),
    sequences=("blocks",),
)
STAGED = layout(
    linear("stem.conv"),
    *(
        part
        for stage in range(3)
        for part in (
            linear(f"stages.{stage}.downsample"),
            block(f"stages.{stage}.blocks.0"),
            block(f"stages.{stage}.blocks.1"),
            norm(f"stages.{stage}.norm"),
        )
    ),
    linear("head.fc"),
    sequences=("stages", *(f"stages.{i}.blocks" for i in range(3))),
)


# --- blocks and stages -----------------------------------------------------------------------


def test_a_single_row_of_blocks_is_stem_blocks_norm_head() -> None:
    groups = checked(VIT)
    blocks = [f"blocks.{i}" for i in range(4)]
    assert groups.names == ("stem", *blocks, "norm", "head")
    assert groups.stages == ("stem", *blocks, "head")
    assert groups.of("norm.weight").stage == "blocks.3"
    assert set(groups.groups[0].parameters) == {
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
    }


def test_nested_lists_are_stages_and_blocks() -> None:
    groups = checked(STAGED)
    blocks = [f"stages.{s}.blocks.{b}" for s in range(3) for b in range(2)]
    assert groups.names == ("stem", *blocks, "stages.2.norm", "head")
    assert groups.stages == ("stem", "stages.0", "stages.1", "stages.2", "head")


def test_what_lies_between_blocks_goes_where_it_belongs_in_the_tree() -> None:
    groups = checked(STAGED)
    assert groups.of("stages.1.downsample.weight").name == "stages.1.blocks.0"
    assert groups.of("stages.0.norm.weight").name == "stages.0.blocks.1"


def test_what_belongs_to_neither_neighbour_goes_with_the_block_that_follows() -> None:
    between = layout(
        block("blocks.0"),
        linear("merge"),
        block("blocks.1"),
        linear("head"),
        sequences=("blocks",),
    )
    assert checked(between).of("merge.weight").name == "blocks.1"


def test_a_flat_network_is_grouped_layer_by_layer() -> None:
    flat = layout(
        linear("features.0"),
        norm("features.1"),
        linear("features.3"),
        linear("classifier.1"),
        linear("classifier.4"),
        linear("head"),
        sequences=("features", "classifier"),
        macs=(64, 0, 0, 0, *(16, 0) * 4),
    )
    groups = checked(flat)
    assert groups.names == ("features.0", "features.3", "classifier.1", "classifier.4", "head")
    assert groups.of("features.1.weight").name == "features.0"


def test_blocks_of_one_resolution_are_a_stage_where_only_that_tells() -> None:
    blocks = [block(f"features.{i}") for i in range(6)]
    macs = [
        side * side * 16 if name.endswith("attn.weight") or name.endswith("mlp.weight") else 0
        for side, part in zip((8, 8, 4, 4, 2, 2), blocks, strict=True)
        for name, _ in part
    ]
    net = layout(*blocks, linear("head"), sequences=("features",), macs=(*macs, 16, 0))
    stages = [group.stage for group in checked(net).groups]
    assert stages == [
        *("features.0", "features.0", "features.2", "features.2", "features.4", "features.4"),
        "head",
    ]


def test_a_wrapper_around_everything_is_not_in_the_names() -> None:
    wrapped = layout(
        linear("vit.embeddings.patch"),
        *(block(f"vit.encoder.layer.{i}") for i in range(3)),
        norm("vit.layernorm"),
        linear("head"),
        sequences=("vit.encoder.layer",),
    )
    names = checked(wrapped).names
    assert names[0] == "stem"
    assert not any(name.startswith("vit.") for name in names)


def test_the_parts_of_one_block_are_no_blocks() -> None:
    paths = [f"blocks.{stage}.layers.{i}" for stage in range(2) for i in range(2)]
    parts = [
        [*block(f"{path}.parts.conv"), *linear(f"{path}.parts.window.qkv"),
         *linear(f"{path}.parts.window.out")]
        for path in paths
    ]  # fmt: skip
    lists = ("blocks", "blocks.0.layers", "blocks.1.layers", *(f"{path}.parts" for path in paths))
    groups = checked(layout(*parts, linear("head"), sequences=lists))
    assert groups.names == (*paths, "head")


def test_children_named_in_a_row_are_blocks_though_no_list_holds_them() -> None:
    regnet = layout(
        linear("stem.conv"),
        *(block(f"s{stage}.b{i}") for stage in (1, 2) for i in (1, 2)),
        block("s3"),
        linear("head.fc"),
    )
    groups = checked(regnet)
    assert groups.names == ("stem", "s1.b1", "s1.b2", "s2.b1", "s2.b2", "s3", "head")
    assert groups.stages == ("stem", "s1", "s2", "s3", "head")


def test_branches_that_run_side_by_side_are_one_block() -> None:
    paths = [f"stage{s}.{i}" for s in (1, 2, 3) for i in range(3)]
    forks = [
        [p for branch in range(2) for i in range(2) for p in block(f"{path}.branches.{branch}.{i}")]
        for path in paths
    ]
    lists = [f"{path}.branches" for path in paths]
    lists += [f"{path}.{branch}" for path in lists for branch in range(2)]
    net = layout(*forks, linear("head"), sequences=("stage1", "stage2", "stage3", *lists))
    assert checked(net).names == (*paths, "head")


def test_a_stage_that_is_most_of_the_network_is_split() -> None:
    heavy = layout(
        block("stages.0.blocks.0"),
        block("stages.1.blocks.0"),
        linear("stages.2.conv_down", 40),
        block("stages.2.blocks.0", 40),
        linear("stages.2.conv_transition", 40),
        linear("head"),
        sequences=("stages", *(f"stages.{i}.blocks" for i in range(3))),
    )
    groups = checked(heavy)
    assert max(group.size for group in groups.groups) < 0.6 * groups.total
    assert {groups.of("stages.2.conv_down.weight").stage} == {"stages.2"}


# --- order -----------------------------------------------------------------------------------


def test_blocks_that_are_used_alternately_are_one_group() -> None:
    a, b = block("blocks.1"), block("blocks.2")
    mixed = layout(
        block("blocks.0"),
        [parameter for pair in zip(a, b, strict=True) for parameter in pair],
        block("blocks.3"),
        linear("head"),
        sequences=("blocks",),
    )
    groups = checked(mixed)
    assert groups.of("blocks.1.attn.weight") == groups.of("blocks.2.attn.weight")
    assert "blocks.3" in groups.names


def test_a_table_that_blocks_share_is_where_it_is_used_first() -> None:
    shared = layout(
        linear("patch"),
        norm("blocks.0.norm1"),
        [("rel_pos.table", (9, 4))],
        block("blocks.0")[2:],
        block("blocks.1"),
        linear("head"),
        sequences=("blocks",),
    )
    assert checked(shared).of("rel_pos.table").name == "blocks.0"


def test_a_head_that_runs_before_the_end_is_still_last() -> None:
    early = layout(
        block("blocks.0"), linear("head.aux"), block("blocks.1"), linear("head.fc"),
        sequences=("blocks",),
    )  # fmt: skip
    assert checked(early).names == ("blocks.0", "blocks.1", "head")


def test_a_network_whose_labels_are_kept_has_no_head() -> None:
    kept = replace(VIT, head=())
    assert "head" not in checked(kept).stages


def test_what_the_classifier_holds_below_the_new_layer_is_no_head() -> None:
    net = layout(
        block("blocks.0"),
        block("blocks.1"),
        norm("classifier.norm"),
        linear("classifier.fc"),
        sequences=("blocks",),
        head=("classifier.fc.weight", "classifier.fc.bias"),
    )
    groups = checked(net)
    assert groups.names[-2:] == ("classifier.norm", "head")


def test_a_network_that_is_nothing_but_head_is_refused() -> None:
    with pytest.raises(GroupsError, match="no parameters below its head"):
        group_layers(layout(linear("head")))


# --- what never runs, what has no parameters -------------------------------------------------


def test_unused_parameters_stay_with_their_relatives() -> None:
    spare = layout(
        linear("patch_embed.proj"),
        block("blocks.0"),
        block("blocks.1"),
        linear("head"),
        [("blocks.1.gate.weight", (4, 4)), ("mask_token", (1, 4)), ("patch_embed.spare", (4,))],
        sequences=("blocks",),
        unused=("blocks.1.gate.weight", "mask_token", "patch_embed.spare"),
    )
    groups = checked(spare)
    assert groups.of("blocks.1.gate.weight").name == "blocks.1"
    assert groups.of("patch_embed.spare").name == "stem"
    assert groups.of("mask_token").name == "stem"


def test_loose_dropout_goes_where_it_acts() -> None:
    dropped = replace(
        VIT, loose=(("pos_drop", 4), ("blocks.1.drop_path", 14), ("head_drop", len(VIT.parameters)))
    )
    groups = checked(dropped)
    owner = {path: group.name for group in groups.groups for path in group.modules}
    assert owner["pos_drop"] == "blocks.0"
    assert owner["head_drop"] == "head"
    assert "blocks.1.drop_path" not in owner  # its block's module stands for it


@pytest.mark.parametrize("net", [VIT, STAGED], ids=["vit", "staged"])
def test_modules_hold_their_own_groups_parameters_and_no_others(net: Layout) -> None:
    for group in checked(net).groups:
        for path in group.modules:
            inside = {name for name, _ in net.parameters if name.startswith(f"{path}.")}
            assert inside <= set(group.parameters)


# --- grains, JSON, print ---------------------------------------------------------------------


def test_the_grain_of_stages_joins_blocks_and_loses_nothing() -> None:
    blocks = checked(STAGED)
    stages = blocks.grain("stages")
    assert stages.names == blocks.stages
    assert stages.total == blocks.total
    assert outside(stages) == out_of_order(stages) == 0
    assert blocks.grain("blocks") == blocks


def test_a_layout_survives_json() -> None:
    full = replace(
        VIT,
        unused=("cls_token",),
        norms=("norm",),
        loose=(("pos_drop", 4),),
        no_decay=("pos_embed",),
        macs=tuple(range(len(VIT.parameters))),
        shared=(("a", "b"),),
        image={"size": 224, "mean": (0.5, 0.5, 0.5)},
        labels=7,
    )
    again = Layout.from_dict(json.loads(json.dumps(full.to_dict())))
    assert again == full
    assert group_layers(again) == group_layers(full)


def test_the_table_names_each_group_and_sums_up() -> None:
    groups = checked(STAGED)
    lines = groups_text(groups).splitlines()
    assert len(lines) == len(groups.groups) + 2
    assert all(name in line for name, line in zip(groups.names, lines[1:], strict=False))
    assert f"{groups.total:,} parameters" in lines[-1]
