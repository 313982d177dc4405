"""Which images of a model visitors may see, and which of them are similar to a new one."""

import base64
import io
from dataclasses import replace
from pathlib import Path

import pytest
from drawn import picture
from sample_report import sample_report
from tiny_model import tiny_run

from hf_transfer.data.digits import DIGITS
from hf_transfer.space.limits import Limits
from hf_transfer.space.models import Networks, shown_model
from hf_transfer.space.similar import CARRIED, TRAINED, learn
from hf_transfer.space.site import Site
from hf_transfer.space.training import packed


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run beside the folder of images that it was trained on."""
    root = tmp_path_factory.mktemp("made")
    for label in ("cat", "dog"):
        (root / "data" / label).mkdir(parents=True)
        for i in range(5):
            picture(10 * len(label + str(i)) + i, 40, 40).save(root / "data" / label / f"{i}.png")
    run = tiny_run(root / "run")
    (run / "recipe.yaml").write_text(
        f"backbone: timm/test_resnet\ndata: {{path: {root / 'data'}}}\n"
        "phases: [{train: head, epochs: 1}]\n"
    )
    return run


def told(run: Path, page_images: str | None, path: Path | str) -> None:
    """Rewrite the report: where images may be seen, and where its data is."""
    out = io.BytesIO()
    picture(3).save(out, "WEBP")
    row = {"file": "a.png", "truth": "rose", "answer": "tulip", "sure": 0.9}
    shown = {**row, "picture": base64.b64encode(out.getvalue()).decode()}
    report = sample_report()
    recipe = {**report.recipe, "page_images": page_images}
    data = {**report.data, "path": str(path), "images": {"train": 8, "validation": 2}}
    replace(report, recipe=recipe, data=data, examples={"rows": [shown]}).save(run / "report.json")


@pytest.mark.parametrize(
    ("alone", "page_images", "here", "title"),
    [
        (True, None, True, TRAINED),
        (False, "card", True, TRAINED),
        (False, "card", False, CARRIED),
        (False, None, True, None),
        (False, "page", False, None),
    ],
)
def test_images_of_a_model_are_seen_where_its_recipe_or_the_address_allows_it(
    alone, page_images, here, title, made, tmp_path
):
    told(made, page_images, made.parent / "data" if here else "elsewhere")
    model = shown_model(made, alone=alone)
    networks = Networks()
    learn([model], networks, tmp_path, lambda: False)
    assert (model.known and model.known.title) == title
    if title == TRAINED:
        file, label, cosine = model.known.near(model.known.features[0], 1)[0]
        assert (file, label) == (model.known.files[0], file.parent.name)
        assert cosine == pytest.approx(1, abs=1e-5)
    if title == CARRIED:
        assert model.known.labels == ("rose",)


def test_the_images_to_click_on_are_those_of_the_models(made):
    told(made, None, "elsewhere")
    for models, alone, count in (((), True, 6), ((made,), True, 1), ((made,), False, 0)):
        site = Site(models, limits=Limits(), alone=alone)
        try:
            assert len(site.examples_of()) == count
            visitor = site.visitors.of("one")
            visitor.models["Frozen"] = shown_model(made, own=True)
            report = visitor.models["Frozen"].report
            visitor.models["Frozen"].report = replace(
                report, data={**report.data, "labels": list(DIGITS)}
            )
            assert len(site.examples_of(visitor)) == (6 if not models else count + 6)
        finally:
            site.close()


def test_a_network_that_the_server_has_in_a_folder_is_called_by_its_name_in_downloads(made):
    network = made / "model"
    site = Site(backbones=[str(network)], limits=Limits())
    try:
        visitor = site.visitors.of("one")
        model = shown_model(made, own=True)
        (made / "recipe.yaml").write_text(f"backbone: {network}\n")
        told(made, None, "elsewhere")
        (made / "report.html").write_text(f"trained on {network}")
        model = replace(model, title="Fine-tuned: ../ä 2")
        files = packed(site, visitor, model)
        names = ["Fine-tuned-2.zip", "Fine-tuned-2-recipe.yaml", "Fine-tuned-2-report.html"]
        assert [file.name for file in files] == names
        _, recipe, page = files
        assert recipe.read_text() == "backbone: model\n"
        assert page.read_text() == "trained on model"
    finally:
        site.close()
