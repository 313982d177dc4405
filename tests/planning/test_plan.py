"""The plan: it counts right, warns where little will move, and changes nothing."""

import copy
from dataclasses import replace

import pytest

from hf_transfer.base.cache import Room
from hf_transfer.base.errors import UserError
from hf_transfer.planning.cost import (
    COLOR_PASSES,
    OUTPUT_PASSES,
    PHASE_SECONDS,
    STEP_SECONDS,
    WARP_PASSES,
    Speed,
    measure_speed,
)
from hf_transfer.planning.groups import Group, LayerGroups, group_layers
from hf_transfer.planning.layout import Layout
from hf_transfer.planning.phases import make_phases
from hf_transfer.planning.plan import Machine, make_plan
from hf_transfer.planning.plan_text import (
    format_bytes,
    format_operations,
    format_plan,
    format_seconds,
)
from hf_transfer.planning.recorded import recorded_layout
from hf_transfer.planning.steps import optimizer_steps, warmup_steps
from hf_transfer.recipe.specs import Augment, DataSpec, GradualSpec, PhaseSpec, Pseudo, Recipe

COUNTS = {"train": {"rose": 60, "tulip": 40}, "validation": {"rose": 12, "tulip": 8}}
MACS = 1000  # of each convolution below
SLOW, FAST = Speed(1e6, 1e4), Speed(1e9, 1e7)


def network(depth: int = 3, macs: bool = True) -> LayerGroups:
    """Return `depth` groups of one convolution (4, 4, 1, 1) with a norm, and a dense head."""
    shapes: dict[str, tuple[int, ...]] = {}
    groups = []
    for i in range(depth):
        own = {f"b{i}.weight": (4, 4, 1, 1), f"b{i}.norm.weight": (4,)}
        shapes |= own
        groups.append(Group(f"b{i}", f"b{i}", tuple(own), 20))
    shapes |= {"fc.weight": (2, 4), "fc.bias": (2,)}
    groups.append(Group("head", "head", ("fc.weight", "fc.bias"), 10))
    cost = {"fc.weight": 8, **{f"b{i}.weight": MACS for i in range(depth)}}
    crossing = {name: 4 if "fc" in name else MACS // 4 for name in shapes}
    layout = Layout(
        parameters=tuple(shapes.items()),
        head=("fc.weight", "fc.bias"),
        norms=tuple(f"b{i}.norm" for i in range(depth)),
        macs=tuple(cost.get(name, 0) for name in shapes) if macs else (),
        crossing=tuple(crossing.values()) if macs else (),
        image={"size": 32, "channels": 3},
        labels=2,
    )
    return LayerGroups(tuple(groups), layout)


def planned(
    *specs, depth: int = 3, speed: Speed | None = FAST, macs: bool = True, processes=1,
    sharded=False, room=None, **settings
):  # fmt: skip
    recipe = Recipe("mine", tuple(specs), backbone="timm/tiny", **settings)
    groups = network(depth, macs).at(recipe.data.image_size or 32)
    phases = make_phases(recipe.phases, groups)
    return make_plan(recipe, groups, phases, COUNTS, Machine(speed, processes, sharded, room))


PROBE = PhaseSpec("head", epochs=5, batch_size=30)
WHOLE = PhaseSpec("all", epochs=2, batch_size=30)


def test_parameters_are_counted():
    plan = planned(PROBE, PhaseSpec("last 1 stage", epochs=1), WHOLE)
    assert [phase.parameters for phase in plan.phases] == [10, 30, 70]
    assert plan.counts == {"train": 100, "validation": 20}
    assert plan.labels == 2


@pytest.mark.parametrize(
    ("spec", "steps"),
    [
        (PhaseSpec("head", epochs=5, batch_size=30), 20),
        (PhaseSpec("head", epochs=0.5, batch_size=30), 2),
        (PhaseSpec("head", epochs=5, batch_size=30, accumulate=3), 10),
        (PhaseSpec("head", epochs=1, batch_size=1000), 1),
        (PhaseSpec("head", steps=7), 7),
        (PhaseSpec("head", solve="lbfgs"), 0),
    ],
)
def test_steps_are_those_that_the_trainer_takes(spec, steps):
    assert optimizer_steps(spec, 100) == steps


@pytest.mark.parametrize(
    ("warmup", "steps", "rise"), [(0.1, 1, 0), (0.1, 2, 1), (0.1, 100, 10), (0.99, 3, 2), (7, 9, 7)]
)
def test_a_warmup_given_as_a_share_never_takes_all_steps(warmup, steps, rise):
    assert warmup_steps(warmup, steps) == rise


def test_a_warmup_as_long_as_its_phase_is_refused_with_its_place():
    specs = [PhaseSpec("head", epochs=1, warmup=4, place="recipe.yaml:7"), WHOLE]
    with pytest.raises(UserError, match=r"recipe.yaml:7: warmup: 4 .* 4 steps .* such as 0\.1"):
        planned(*(replace(spec, batch_size=25) for spec in specs))
    assert planned(*(replace(spec, batch_size=20) for spec in specs)).phases[0].steps == 5
    with pytest.raises(UserError, match="phase's 3 steps"):
        planned(*(replace(spec, batch_size=20) for spec in specs), processes=2)


def test_several_processes_share_the_steps_and_reduce_only_what_trains():
    specs = (PROBE, PhaseSpec("all", epochs=1, batch_size=10))
    one, four = planned(*specs), planned(*specs, processes=4)
    assert [(p.steps, p.reduced_bytes) for p in one.phases][1] == (10, 0)
    assert four.phases[1].steps == 3
    assert [p.reduced_bytes for p in four.phases] == [4 * p.parameters for p in four.phases]
    text = format_plan(four)
    assert f"{4 * four.phases[0].parameters:,} bytes (head)" in text
    assert "bytes (head)" not in format_plan(one)


def test_what_is_sharded_runs_live_and_the_plan_says_so():
    plan = planned(PROBE, WHOLE, processes=4, sharded=True)
    assert [phase.live is None for phase in plan.phases] == [False, False]
    text = format_plan(plan)
    assert (
        "phase head: frozen layers run in every epoch, because the parameters are sharded (FSDP)"
        in text
    )
    assert "4 processes, each with its own batches, shard parameters" in text
    assert "bytes (head)" not in text
    (exact,) = planned(PhaseSpec("head", solve="lbfgs"), processes=4, sharded=True).phases
    assert exact.live is None  # a head is solved between phases that shard


def test_features_that_find_no_room_run_live_and_the_plan_says_why():
    probe = replace(PROBE, epochs=9)
    needed = 120 * 4 * 4  # of 120 images, 4 numbers of 4 bytes
    (fits,) = planned(probe, room=Room(needed, needed)).phases
    assert (fits.live, fits.disk_bytes) == (None, needed)
    plan = planned(probe, room=Room(needed - 1, needed))
    assert plan.phases[0].disk_bytes == 0
    assert plan.phases[0].operations > fits.operations
    why = "do not fit into the cache's 0.0 MB; raise HF_TRANSFER_CACHE_GB"
    assert why in format_plan(plan)
    assert "do not fit on the disk" in format_plan(planned(probe, room=Room(needed, needed - 1)))
    with pytest.raises(UserError, match=f"features: cached is not possible, because .* {why}"):
        planned(replace(probe, features="cached"), room=Room(0, 0))


def test_operations_of_a_live_phase_are_forward_and_backward_of_what_trains_and_above():
    (_, top) = planned(PROBE, PhaseSpec("last 1 stage", epochs=1)).phases
    forward = 2 * (3 * MACS + 8)
    # the block's gradient by its weights; the head's by its weights and its input
    backward = 2 * MACS + 2 * 2 * 8
    assert top.operations == 100 * (forward + backward) + 20 * forward


def test_operations_of_a_cached_phase_run_the_frozen_part_once_an_image():
    (head,) = planned(PROBE).phases
    frozen, forward, backward = 2 * 3 * MACS, 2 * 8, 2 * 8
    assert head.live is None
    assert head.operations == 120 * frozen + 500 * (forward + backward) + 5 * 20 * forward
    (live,) = planned(replace(PROBE, features="live")).phases
    assert live.live is not None
    assert live.operations > head.operations


def test_steps_count_as_the_images_that_they_see():
    steps = planned(PhaseSpec("head", steps=20, batch_size=10, accumulate=2)).phases[0]
    epochs = planned(PhaseSpec("head", epochs=4, batch_size=10, accumulate=2)).phases[0]
    assert steps.images == epochs.images == 400
    assert steps.operations == epochs.operations


def test_cost_grows_with_the_area_of_the_images():
    small = planned(PROBE, WHOLE).phases[1]
    large = planned(PROBE, WHOLE, data=DataSpec(image_size=64)).phases[1]
    assert large.operations / small.operations == pytest.approx(4, rel=0.01)
    assert large.memory_bytes > small.memory_bytes


def test_memory_grows_with_what_trains_and_with_the_optimizer_state():
    memory = [
        phase.memory_bytes for phase in planned(PROBE, PhaseSpec("b2", epochs=1), WHOLE).phases
    ]
    assert memory == sorted(memory)
    assert memory[0] >= 4 * 70
    # without activations: weights, and for what trains gradient, two of Adam, best weights
    plan = planned(PROBE, WHOLE, macs=False)
    assert plan.phases[1].memory_bytes == 4 * 70 + (4 + 8 + 4) * 70
    sgd = PhaseSpec("all", epochs=1, optimizer="sgd", best="last")
    assert planned(PROBE, sgd, macs=False).phases[1].memory_bytes == 4 * 70 + 4 * 70


def test_seeds_multiply_the_time_and_without_speed_none_is_stated():
    assert planned(PROBE, seeds=3).seconds == pytest.approx(3 * planned(PROBE).seconds)
    assert planned(PROBE, speed=None).seconds is None
    assert "not known" in format_plan(planned(PROBE, speed=None))


def test_time_counts_what_layers_give_besides_their_products_and_each_step_and_phase():
    whole = replace(WHOLE, cold_head=True)
    (dense,) = planned(whole, speed=SLOW).phases
    layout = network().layout
    shapes = {f"b{i}.weight": (16, 1, 1, 1) for i in range(3)}  # by depth: as many products
    parameters = tuple((name, shapes.get(name, shape)) for name, shape in layout.parameters)
    recipe = Recipe("mine", (whole,), backbone="timm/tiny")
    groups = replace(network(), layout=replace(layout, parameters=parameters))
    phases = make_phases(recipe.phases, groups)
    (light,) = make_plan(recipe, groups, phases, COUNTS, Machine(SLOW)).phases
    assert light.operations == dense.operations
    outputs = (light.seconds - dense.seconds) * SLOW.numbers / OUTPUT_PASSES
    more = 3 / 4 * MACS  # of a layer in one pass; the first layer's input has no gradient
    assert outputs == pytest.approx(more * (3 * (200 * 3 + 40) - 200))
    small = planned(replace(whole, batch_size=1), speed=SLOW).phases[0]
    assert small.seconds - dense.seconds == pytest.approx(STEP_SECONDS * (200 - 8))
    at_once = planned(whole, speed=Speed(1e20, 1e20)).phases[0]
    assert at_once.seconds == pytest.approx(PHASE_SECONDS + 8 * STEP_SECONDS)


def test_variation_takes_time_and_bfloat16_what_it_takes_on_the_processor():
    def seconds(spec, bf16=1.0, precision="fp32"):
        recipe = Recipe("mine", (PROBE, spec), backbone="timm/tiny", precision=precision)
        phases = make_phases(recipe.phases, network(3, True))
        machine = Machine(SLOW, bf16=bf16)
        return make_plan(recipe, network(3, True), phases, COUNTS, machine).phases[1].seconds

    plain, numbers = seconds(WHOLE), 2 * 100 * 3 * 32**2
    cropped = seconds(replace(WHOLE, augment=Augment(crop=(0.5, 1.0))))
    assert cropped - plain == pytest.approx(numbers * WARP_PASSES / SLOW.numbers)
    pseudo = seconds(replace(WHOLE, pseudo=Pseudo(per_image=2, augment=Augment(color=0.5))))
    own = 5 * (plain - PHASE_SECONDS) + 2 * numbers * COLOR_PASSES / SLOW.numbers
    assert pseudo == pytest.approx(own, rel=0.2)  # validation and steps count once
    assert seconds(WHOLE, bf16=0.5) == seconds(WHOLE, precision="bf16") == plain
    assert seconds(WHOLE, bf16=3, precision="auto") == plain  # it measures, and takes float32
    for bf16, precision in ((0.5, "bf16"), (0.5, "auto"), (3, "bf16")):
        low = seconds(WHOLE, bf16, precision)
        assert low - PHASE_SECONDS == pytest.approx(bf16 * (plain - PHASE_SECONDS), rel=0.01)


def test_a_plan_says_where_bfloat16_is_slow():
    def notes(bf16, precision):
        recipe = Recipe("mine", (PROBE, WHOLE), precision=precision)
        phases = make_phases(recipe.phases, network())
        return make_plan(recipe, network(), phases, COUNTS, Machine(SLOW, bf16=bf16)).notes

    assert any("bf16 takes about 3 times as long as fp32" in note for note in notes(3.0, "bf16"))
    for bf16, precision in ((0.55, "bf16"), (3.0, "auto"), (3.0, "fp32")):
        assert not any("bf16" in note for note in notes(bf16, precision))


def test_this_machine_has_a_speed_and_threads_that_are_asked_for_bound_it(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    eight = measure_speed()
    assert 1e8 < eight.products < 1e16
    assert 1e7 < eight.numbers < 1e15
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one = measure_speed()
    assert one.products < eight.products / 2
    assert one.numbers < eight.numbers / 2


def test_planning_changes_nothing_and_says_the_same_twice():
    groups = network()
    recipe = Recipe("mine", (PROBE, WHOLE))
    before = copy.deepcopy((recipe, groups))
    phases = make_phases(recipe.phases, groups)
    one, two = (make_plan(recipe, groups, phases, COUNTS, Machine(FAST)) for _ in range(2))
    assert one == two
    assert (recipe, groups) == before


def test_settings_for_kept_features_are_noted_where_the_data_keep_none():
    few = PhaseSpec("head", epochs=2, augment=Augment(flip=True), views=4)
    assert planned(few, WHOLE).notes == (
        "phase head: views has no effect, because 2 epochs are fewer than the 4 views",
    )
    assert planned(replace(few, epochs=4), WHOLE).notes == ()


# --- notes -----------------------------------------------------------------------------------


def test_a_rate_far_below_the_heads_is_noted():
    plan = planned(PROBE, PhaseSpec("all", epochs=1, layer_decay=0.05))
    (note,) = plan.notes
    assert "phase all: b0" in note
    assert "1.3e-04 of the head's rate" in note
    assert plan.phases[1].hardly_moves
    assert " !" in format_plan(plan)
    assert planned(PROBE, PhaseSpec("all", epochs=1, layer_decay=0.5)).notes == ()


def test_a_phase_far_below_the_highest_rate_is_noted():
    plan = planned(GradualSpec("1 stage", lr_drop=0.05, epochs=1))
    assert [note.split(":")[0] for note in plan.notes] == ["phase all"]


def test_a_hole_is_noted():
    assert "b1, b2 never train" in planned(PROBE, PhaseSpec(["head", "b0"], epochs=1)).notes[0]


# --- text ------------------------------------------------------------------------------------


def test_the_text_shows_what_a_person_asks():
    specs = (PROBE, PhaseSpec("last 1 stage", epochs=1), replace(WHOLE, layer_decay=0.75))
    text = format_plan(planned(*specs, data=DataSpec(path="flowers"), seeds=2))
    lines = text.splitlines()
    assert (
        "timm/tiny, pretrained: 70 parameters in 4 groups; new head of 10 for 2 labels" in lines[1]
    )
    assert "flowers: 2 labels, 100 train, 20 validation images at 32 px" in lines[2]
    row = next(line for line in lines if line.startswith("1 head"))
    assert row.split()[2:9] == ["head", "10", "14%", "0.001", "5", "20", "30"]
    assert "cached" in row
    assert "b2, head" in next(line for line in lines if line.startswith("2 last-1-stage"))
    row = next(line for line in lines if line.startswith("3 all"))
    assert "b0 … head" in row
    assert "100%" in row
    assert "live" in row
    assert "estimates" in text
    table = text[text.index("\nrates  ") + 1 :].splitlines()
    assert [line.split()[0] for line in table[1:]] == ["head", "b2", "b1", "b0"]
    assert all(len(line) <= 160 and line == line.rstrip() for line in lines)


def test_rates_are_a_table_only_where_they_differ():
    assert "\nrates  " not in format_plan(planned(PROBE, WHOLE))


def test_a_table_of_many_groups_or_phases_is_cut_in_the_middle():
    deep = format_plan(planned(PROBE, replace(WHOLE, layer_decay=0.9), depth=70))
    assert "… 51 more" in deep
    assert deep.count("\n") < 40
    long = planned(GradualSpec("1 stage", epochs=2, batch_size=30, layer_decay=0.9), depth=20)
    assert "… and 13 more phases" in format_plan(long)


def test_what_never_trains_is_counted():
    assert "never trained: 60 parameters (86%)" in format_plan(planned(PROBE))
    assert "never trained" not in format_plan(planned(PROBE, WHOLE))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "not known"),
        (0.2, "under 1 s"),
        (41.4, "about 41 s"),
        (150, "about 2 min"),
        (9000, "about 2.5 h"),
        (1e6, "about 278 h"),
    ],
)
def test_times_are_said_roughly(seconds, text):
    assert format_seconds(seconds) == text


def test_numbers_are_scaled():
    assert format_bytes(94e6) == "94 MB"
    assert format_bytes(4.7e9) == "4.7 GB"
    assert format_operations(2.8e12) == "2.8 TFLOP"
    assert format_operations(1e25) == "10000000 EFLOP"


def test_a_deep_network_is_warned_of_only_where_its_first_layers_hardly_learn():
    layout = recorded_layout("timm/densenet121", 2)
    groups = group_layers(layout)
    assert len(groups.groups) > 60
    notes = {}
    for decay in (0.75, 0.5):
        spec = PhaseSpec("all", epochs=1, layer_decay=decay, cold_head=True)
        phases = make_phases([spec], groups)
        plan = make_plan(Recipe("r", (spec,)), groups, phases, COUNTS)
        notes[decay] = [note for note in plan.notes if "will hardly move" in note]
        lowest = plan.phases[0].lowest / plan.phases[0].head_lr
        assert lowest == pytest.approx(decay**12)  # however many groups there are
    assert notes[0.75] == []
    assert "stem trains at 2.4e-04 of the head's rate" in notes[0.5][0]
