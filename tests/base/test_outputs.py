"""Where results go is looked at before the work whose results they are."""

from pathlib import Path

import pytest

import hf_transfer
from hf_transfer.base.errors import UserError
from hf_transfer.base.outputs import file_to_write, folder_to_write


@pytest.fixture
def taken(tmp_path: Path) -> Path:
    """A file."""
    (tmp_path / "taken").write_text("mine")
    return tmp_path / "taken"


def test_a_place_that_nothing_can_be_written_to_is_named_with_the_reason(tmp_path, taken):
    (tmp_path / "link").symlink_to("nowhere")
    for out, words in ((taken, "is a file"), (taken / "a" / "b", "is below .*taken, which is no")):
        with pytest.raises(UserError, match=f"--out .*{words}"):
            folder_to_write(out)
    with pytest.raises(UserError, match="--out .* is a link that leads nowhere"):
        folder_to_write(str(tmp_path / "link"))
    with pytest.raises(UserError, match="--out .* is a folder; name a file"):
        file_to_write(tmp_path)
    assert folder_to_write(tmp_path / "new" / "one") == tmp_path / "new" / "one"
    assert file_to_write(taken) == taken


@pytest.mark.parametrize(
    "work",
    [
        lambda out: hf_transfer.advise("images", backbone="timm/test_resnet", out=out),
        lambda out: hf_transfer.compare(["full"], data="images", out=out),
        lambda out: hf_transfer.evaluate("model", "images", out=out),
        lambda out: hf_transfer.explain("model", "images", out=out),
        lambda out: hf_transfer.embed("model", "images", out=out),
        lambda out: hf_transfer.embed("model", "images", out=out / "features.npy"),
        lambda out: hf_transfer.export("model", out / "model.onnx"),
        lambda out: hf_transfer.add_images("model", "images", out=out),
    ],
)
def test_results_that_could_not_be_written_are_refused_before_the_work(taken, work):
    """Neither the model nor the images are there: they are not looked for first."""
    with pytest.raises(UserError, match="--out .*(is a file|is below)"):
        work(taken)
