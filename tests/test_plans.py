"""A recipe is planned whole: its source's task first, then its own, without loading anything."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_transfer.base.errors import DataError, UserError
from hf_transfer.planning.plan_text import format_plan
from hf_transfer.plans import plan, plans_of
from hf_transfer.recipe.load import load_recipe, parse_recipe
from hf_transfer.recipe.specs import Recipe

PHASES = "phases: [{train: head, epochs: 1}, {train: all, epochs: 2, lr: 1e-4}]\n"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "photos"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)).save(folder / name / f"{i}.png")
    return folder


def planned(text: str, *changes: str) -> Recipe:
    return parse_recipe(text, "mine.yaml", changes)


def test_a_plain_recipe_has_one_plan_and_needs_no_torch(photos: Path) -> None:
    code = (
        "import sys\nfrom hf_transfer.plans import plan, plans_of\n"
        "from hf_transfer.recipe.load import load_recipe\n"
        "plans = list(plans_of(load_recipe('lp_ft', ['data.path=' + sys.argv[1]])))\n"
        "print(len(plans), plans[0].counts, 'torch' in sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(photos)], capture_output=True, text=True, timeout=60
    )
    assert found.stdout.strip() == "1 {'train': 16, 'validation': 4} False", found.stderr


def test_a_source_is_planned_first_with_its_own_data_and_random_weights(photos: Path) -> None:
    text = PHASES + (
        "data: {path: PHOTOS, validation: 0.5}\n"
        "source:\n  backbone: timm/resnet50\n  data: {path: PHOTOS}\n"
        "  phases: [{train: all, epochs: 1, cold_head: true}]\n"
    )
    first, own = plans_of(planned(text.replace("PHOTOS", str(photos))))
    assert (first.counts, own.counts) == (
        {"train": 16, "validation": 4},
        {"train": 10, "validation": 10},
    )
    assert not first.recipe.pretrained
    assert "timm/resnet50, random weights" in format_plan(first)
    assert "timm/resnet50, trained first, on the recipe's source" in format_plan(own)
    assert [len(plan.phases) for plan in (first, own)] == [1, 2]


def test_the_quickstart_is_planned_with_its_letters_and_digits() -> None:
    first, own = plans_of(load_recipe("quickstart"))
    assert (first.labels, first.counts) == (37, {"train": 25160})
    assert (own.labels, own.counts) == (10, {"train": 500})
    assert first.image_px == own.image_px == 32


def test_a_recipe_without_backbone_or_source_is_told_so(photos: Path) -> None:
    with pytest.raises(UserError, match="has no backbone"):
        list(plans_of(planned(PHASES, f"data.path={photos}")))


def test_weights_that_are_not_there_are_told_by_the_plan(photos: Path, tmp_path: Path) -> None:
    wanted = ["weights=" + str(tmp_path / "gone.pth")]
    with pytest.raises(UserError, match=r"weights file .*gone\.pth does not exist"):
        plan("lp_ft", data=photos, backbone="timm/resnet18", overrides=wanted)


def test_a_cache_that_is_too_small_is_named_in_the_plan(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"data: {{path: {photos}}}\nbackbone: timm/resnet50\n" + PHASES
    recipe = planned(text, "phases.0.epochs=9")
    assert [plan.phases[0].live for plan in plans_of(recipe)] == [None]
    monkeypatch.setenv("HF_TRANSFER_CACHE_GB", "0.0001")
    (plan,) = plans_of(recipe)
    why = "0.2 MB of features do not fit into the cache's 0.1 MB; raise HF_TRANSFER_CACHE_GB"
    assert f"phase head: frozen layers run in every epoch, because {why}" in " ".join(
        format_plan(plan).split()
    )
    with pytest.raises(UserError, match="features: cached is not possible, because 0.2 MB"):
        list(plans_of(planned(text, "phases.0.features=cached")))


def test_features_are_planned_at_the_size_of_the_images(photos: Path) -> None:
    """Of 224 px AlexNet gives 27 x 27 positions to its second layer, of 96 px 11, not 11.6."""
    text = (
        f"data: {{path: {photos}, image_size: 96}}\nbackbone: torchvision/alexnet\n"
        "phases: [{train: from features.3, epochs: 1, cold_head: true, features: cached}]\n"
    )
    (plan,) = plans_of(planned(text))
    assert plan.phases[0].disk_bytes == 20 * 4 * 64 * 11 * 11


def test_plan_takes_a_name_a_path_or_a_recipe_with_what_changes_in_it(photos: Path, tmp_path: Path):
    backbone = "timm/resnet10t"
    named = plan("lp_ft", data=photos, backbone=backbone, overrides=["phases.1.epochs=7"])
    own = tmp_path / "own.yaml"
    own.write_text("phases: [{train: head, epochs: 7}]\n")
    by_path = plan(own, data=str(photos), backbone=backbone, seed=3)
    loaded = plan(load_recipe(own), data=photos, backbone=backbone, processes=2)
    assert named[0].phases[1].epochs == 7
    assert len(by_path) == len(loaded) == 1
    assert by_path[0].counts == loaded[0].counts == named[0].counts


def test_a_plan_says_what_is_not_used(photos: Path, tmp_path: Path):
    root = tmp_path / "photos"
    for split in ("train", "val"):
        shutil.copytree(photos, root / split)
    shutil.copytree(photos / "cat", root / "extra")
    (root / "notes.txt").touch()
    (note,) = plan("exact_head", data=root, backbone="timm/resnet10t")[0].notes
    assert note.startswith("not used: extra/, notes.txt (not an image by its name")


def test_a_plan_without_images_to_validate_is_refused_as_the_run_is(photos: Path):
    asked = {"data": photos, "backbone": "timm/resnet10t"}
    with pytest.raises(DataError, match="photos: no validation images: set data.validation above"):
        plan("exact_head", overrides=["data.validation=0"], **asked)
    with pytest.raises(DataError, match="^free_labels, source: .*photos: no validation images"):
        plan("free_labels", overrides=["source.data.validation=0"], unlabelled=photos, **asked)
    assert plan("exact_head", overrides=["data.validation=0", "folds=2"], **asked)
