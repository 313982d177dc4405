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


@pytest.mark.parametrize(
    ("name", "beside", "work"),
    [
        ("x.npy", "x.txt", lambda out: hf_transfer.embed("model", "images", out=out)),
        ("x.xml", "x.bin", lambda out: hf_transfer.export("model", out, to="openvino")),
        ("x.pte", "x.json", lambda out: hf_transfer.export("model", out, to="executorch")),
    ],
)
def test_a_file_of_yours_is_not_replaced_by_what_is_written_beside_another(
    tmp_path, name, beside, work
):
    (tmp_path / beside).write_text("mine")
    with pytest.raises(UserError, match=f"{beside} is written beside it, and is there already"):
        work(tmp_path / name)
    (tmp_path / name).write_text("of an export before, as is what lies beside it")
    assert file_to_write(tmp_path / name, (Path(beside).suffix,)) == tmp_path / name
