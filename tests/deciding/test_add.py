"""More images for a finished classifier: the head is solved again, the old classes stay."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hf_transfer
from hf_transfer.base.errors import UserError
from hf_transfer.cli import main
from hf_transfer.data.digests import digest
from hf_transfer.deciding import add
from hf_transfer.deciding.add import add_images, format_added
from hf_transfer.deciding.kept_features import KEPT, read_features
from hf_transfer.serving.familiar import FILE
from hf_transfer.serving.hub import gather
from hf_transfer.training.solver import solve_head

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def plain(folder: Path, *colours: str, count: int = 24, seed: int = 0) -> Path:
    """Write noisy images of one colour each."""
    random = np.random.default_rng(seed)
    for colour in colours:
        (folder / colour).mkdir(parents=True)
        for i in range(count):
            pixels = np.array(COLOURS[colour]) + random.integers(-30, 30, (40, 40, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / colour / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("add")
    options = ["pretrained=false", "data.image_size=64", "phases.0.epochs=1"]
    hf_transfer.train(
        "feature_extraction", data=plain(folder / "data", "red", "green"),
        backbone="timm/test_resnet.r160_in1k", overrides=options, out=folder / "run",
    )  # fmt: skip
    return folder / "run"


@pytest.fixture(scope="module")
def blue(run) -> add.Added:
    """The addition of one class to this run."""
    return add_images(run, plain(run.parent / "new", "blue", seed=1), out=run.parent / "more")


def test_a_new_class_comes_after_the_old_ones_which_are_still_known(run, blue, tmp_path):
    found, out = blue, blue.out
    assert found.labels == (*hf_transfer.load(run).labels, "blue")
    assert (found.new, found.images) == (("blue",), 24)
    assert found.after == 1.0
    assert found.everything["accuracy"] == 1.0
    model = hf_transfer.load(out)
    fresh = plain(tmp_path / "fresh", *COLOURS, count=3, seed=2)
    told = model.predict(fresh)
    assert [one.label for one in told] == [Path(one.file).parent.name for one in told]
    assert (out / "model" / FILE).is_file()
    report = hf_transfer.RunReport.load(out)
    assert report.labels == found.labels
    assert report.headline == 1.0
    assert [phase.name for phase in report.phases][-1] == "added images"
    assert sum(report.data["counts"]["train"].values()) == report.data["images"]["train"]
    assert report.data["path"] == "data and new"
    assert "blue" in (out / "report.html").read_text()
    card = gather(out)["README.md"]
    card = card if isinstance(card, bytes) else card.read_bytes()
    assert b"hf-transfer train MORE_IMAGES --add RUN" in card


def test_what_an_addition_costs_the_old_classes_is_on_the_page_and_the_card(blue, tmp_path):
    twin = plain(tmp_path / "twin", "red", count=96, seed=5)
    twin.joinpath("red").rename(twin / "crimson")  # looks as red does
    found = add_images(blue.out, twin, out=tmp_path / "more")
    assert found.after < found.before
    said = f"is {found.after:.3f}; it was {found.before:.3f} before the last images were added"
    assert said in (tmp_path / "more" / "report.html").read_text()
    assert said in (tmp_path / "more" / "model" / "README.md").read_text()


def test_the_backbone_stays_as_it_is(run, blue):
    old, new = (hf_transfer.load_model(folder) for folder in (run, blue.out))
    head = {f"{old.backbone.prefix}{name}" for name in old.backbone.layout.head}
    mine = dict(new.named_parameters())
    for name, parameter in old.named_parameters():
        assert name in head or torch.equal(parameter, mine[name])


def test_features_are_kept_so_that_the_old_images_are_not_needed_again(run, tmp_path, capsys):
    copied = shutil.copytree(run, tmp_path / "run")
    add_images(copied, plain(tmp_path / "new", "blue"), out=tmp_path / "more")
    assert (copied / KEPT).is_file()
    (copied / "recipe.yaml").unlink()
    more = plain(tmp_path / "again", "red", "blue", seed=3)
    words = ["train", str(more), "--add", str(tmp_path / "more"), "--out", str(tmp_path / "third")]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "images added: 48; 3 classes, none of them new" in told
    assert "old held-out images: 1.000, before 1.000" in told
    assert hf_transfer.load(tmp_path / "third").labels == hf_transfer.load(tmp_path / "more").labels


def test_pictures_that_the_run_has_already_are_left_out_and_never_test_it(run, tmp_path, capsys):
    grown = shutil.copytree(run.parent / "data", tmp_path / "grown")  # a folder that grows
    plain(tmp_path / "new", "blue", seed=1).joinpath("blue").rename(grown / "blue")
    assert main(["train", str(grown), "--add", str(run), "--out", str(tmp_path / "more")]) == 0
    told = capsys.readouterr().out
    assert "images added: 24; 3 classes, new: blue" in told
    assert "left out: 48 images that the run has already" in told
    counts = hf_transfer.RunReport.load(tmp_path / "more").data["counts"]
    assert sum(sum(of.values()) for of in counts.values()) == 72
    with pytest.raises(UserError, match="are in .* already; add other images"):
        add_images(run, run.parent / "data", out=tmp_path / "none")


@pytest.mark.parametrize("refit", [True, False])
def test_no_image_that_auto_trained_on_is_scored_as_held_out(tmp_path, refit, capsys):
    data = plain(tmp_path / "data", "red", "green", count=20)
    options = ["pretrained=false"]
    run = tmp_path / "run"
    hf_transfer.auto(
        data,
        "timm/test_resnet",
        minutes=1e-3,
        image_size=64,
        refit=refit,
        overrides=options,
        out=run,
    )
    new = plain(tmp_path / "new", "blue", seed=1)
    assert main(["train", str(new), "--add", str(run), "--out", str(tmp_path / "more")]) == 0
    told = capsys.readouterr().out
    report = hf_transfer.RunReport.load(tmp_path / "more")
    held = {label: n for label, n in report.data["counts"]["validation"].items() if n}
    if refit:
        assert list(held) == ["blue"]
        assert "old held-out" not in told
        assert "note: accuracy was not measured: the run was trained on all images" in told
        assert report.headline is None  # of one class alone it would say little
        again = plain(tmp_path / "again", "red", "green", "blue", seed=2)
        other = add_images(run, again, out=tmp_path / "other")
        assert other.everything["n"] > 0
        said = hf_transfer.RunReport.load(tmp_path / "other").warnings
        assert any("all held-out images are new, because" in text for text in said)
    else:
        assert held["red"] + held["green"] == 8  # of auto's fold
        assert "accuracy on the 8 old held-out images" in told


def test_what_cannot_be_added_to_is_named(run, tmp_path):
    new = plain(tmp_path / "new", "blue", count=4)
    with pytest.raises(UserError, match="is the run that is added to"):
        add_images(run, new, out=run)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "report.json").write_text("of an earlier addition")
    with pytest.raises(UserError, match="taken is not empty; choose another folder with --out"):
        add_images(run, new, out=tmp_path / "taken")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="is neither a folder nor a Hub repository"):
        add_images(tmp_path / "loop", new)
    model = shutil.copytree(run / "model", tmp_path / "model")
    with pytest.raises(UserError, match="holds neither recipe.yaml"):
        add_images(model, new, out=tmp_path / "more")
    convolution = hf_transfer.load_backbone(
        "torchvision/squeezenet1_1", ("a", "b"), pretrained=False, image_size=64
    )
    hf_transfer.save_model(convolution, tmp_path / "convolution")
    with pytest.raises(UserError, match="whose head is one dense layer"):
        add_images(tmp_path / "convolution", new, out=tmp_path / "more")
    assert not (tmp_path / "more").exists()


# --- groups ------------------------------------------------------------------------------------


def of_persons(folder: Path, colour: str, persons: range, each: int = 4, seed: int = 0) -> Path:
    """Write images of persons, whose number begins each name."""
    random = np.random.default_rng(seed)
    (folder / colour).mkdir(parents=True)
    for person in persons:
        own = np.array(COLOURS[colour]) + random.integers(-20, 20, 3)
        for i in range(each):
            pixels = (own + random.integers(-9, 9, (40, 40, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / colour / f"{person:03}_{seed}{i}.png")
    return folder


@pytest.fixture(scope="module")
def by_person(tmp_path_factory) -> Path:
    """A run whose recipe keeps the images of a person together."""
    folder = tmp_path_factory.mktemp("persons")
    of_persons(folder / "data", "red", range(6))
    of_persons(folder / "data", "green", range(6, 12))
    options = ["pretrained=false", "data.image_size=64", r"data.group='^(\d+)_'"]
    hf_transfer.train(
        "exact_head", data=folder / "data", backbone="timm/test_resnet.r160_in1k",
        overrides=options, out=folder / "run",
    )  # fmt: skip
    return folder / "run"


def persons_of(found: Path) -> list[tuple[bytes, bool]]:
    """Return whose each kept image is, and whether it is held out."""
    kept = read_features(found)
    return list(zip(map(bytes, kept.groups), kept.held_out.tolist(), strict=True))


def test_new_images_of_a_person_lie_on_the_side_where_the_run_has_this_person(by_person, tmp_path):
    new = of_persons(tmp_path / "new", "red", range(6), seed=1)
    of_persons(new, "blue", range(20, 26), seed=1)  # of persons that the run has not seen
    found = add_images(by_person, new, out=tmp_path / "more")
    assert found.images == 48
    assert found.followed == 24
    rows = persons_of(tmp_path / "more")
    sides = {person: {held for whose, held in rows if whose == person} for person, _ in rows}
    assert len(sides) == 18
    assert all(len(both) == 1 for both in sides.values())
    assert found.everything["groups"] == sum(both == {True} for both in sides.values())
    told = format_added(found)
    assert "24 of them are of groups that the run has, and train or are held out as those" in told


def test_a_further_addition_still_knows_whose_the_images_are(by_person, tmp_path):
    add_images(by_person, of_persons(tmp_path / "a", "blue", range(20, 26)), out=tmp_path / "one")
    (tmp_path / "one" / "recipe.yaml").unlink()
    again = of_persons(tmp_path / "b", "blue", range(20, 26), seed=2)
    found = add_images(tmp_path / "one", again, out=tmp_path / "two")
    assert found.followed == 24
    rows = persons_of(tmp_path / "two")
    assert len({whose for whose, _ in rows}) == len(set(rows)) == 18


def test_names_that_do_not_say_whose_the_images_are_ask_for_a_group(by_person, tmp_path, capsys):
    new = plain(tmp_path / "new", "blue", count=8)
    with pytest.raises(UserError, match=r"matches no image's name; .*--group") as refused:
        add_images(by_person, new, out=tmp_path / "more")
    assert "\n" not in str(refused.value)
    words = ["train", str(new), "--add", str(by_person), "--out", str(tmp_path / "more")]
    assert main([*words, "--group", "(.+)"]) == 0
    assert "of groups that the run has" not in capsys.readouterr().out


def test_a_group_given_for_a_run_without_any_keeps_the_new_images_together(run, tmp_path):
    new = of_persons(tmp_path / "new", "blue", range(6))
    found = add_images(run, new, out=tmp_path / "more", group=r"^(\d+)_")
    blue = persons_of(tmp_path / "more")[-24:]
    assert len({whose for whose, _ in blue}) == len(set(blue)) == 6
    assert any("the run itself kept no groups together" in text for text in found.notes)
    assert "kept no groups together" in (tmp_path / "more" / "report.html").read_text()


def test_a_new_class_of_persons_that_are_held_out_cannot_be_learned(by_person, tmp_path):
    first = add_images(
        by_person, of_persons(tmp_path / "a", "red", range(6), seed=3), out=tmp_path / "one"
    )
    kept = read_features(first.out)
    out = {bytes(kept.groups[row]) for row in np.flatnonzero(kept.held_out)}
    held = next(one for one in range(12) if digest(f"{one:03}".encode()) in out)
    new = of_persons(tmp_path / "b", "blue", range(held, held + 1))
    with pytest.raises(UserError, match="'blue' .* of groups that .* holds out"):
        add_images(by_person, new, out=tmp_path / "two")


def test_images_of_one_person_are_in_one_fold_of_the_new_head(by_person, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(add, "solve_head", lambda *x, **y: seen.append(y) or solve_head(*x, **y))
    add_images(by_person, of_persons(tmp_path / "a", "blue", range(20, 26)), out=tmp_path / "one")
    kept = read_features(tmp_path / "one")
    train = kept.groups[~kept.held_out]
    assert len(np.unique(seen[0]["images"])) == len(np.unique(train, axis=0))
