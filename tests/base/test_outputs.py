"""Where results go is looked at before the work whose results they are."""

from pathlib import Path

import pytest

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
