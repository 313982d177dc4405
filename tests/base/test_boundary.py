"""The boundary: any failure is one line, without secrets and without terminal escapes."""

import pytest

from hf_transfer.base.boundary import printable, redacted, said, untrusted
from hf_transfer.base.errors import DataError, UserError


class OddError(Exception):
    """An exception of no class that anyone would have listed."""


@pytest.mark.parametrize(
    "error", [OddError("odd"), MemoryError(), RecursionError("deep"), OSError()]
)
def test_any_failure_to_read_what_others_wrote_is_one_line_of_the_kind_asked_for(error):
    with pytest.raises(DataError) as caught, untrusted("table.csv", "mend it", DataError):
        raise error
    line = str(caught.value)
    assert line.startswith("cannot read table.csv: ")
    assert line.endswith("; mend it")
    assert "\n" not in line


def test_a_users_mistake_passes_the_boundary_unchanged():
    mistake = UserError("say it so")
    with pytest.raises(UserError) as caught, untrusted("table.csv"):
        raise mistake
    assert caught.value is mistake


def test_an_interruption_is_no_failure_to_read():
    with pytest.raises(KeyboardInterrupt), untrusted("table.csv"):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "text",
    [
        "Illegal header value b'Bearer hf_abcdefghijkl\\nmnop'",
        "https://user:secret99@host/file",
        "Authorization: Bearer secret99",
        "it was secret9999",
    ],
)
def test_no_token_and_no_password_is_left_in_a_text(text, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret9999\nmnopqrstu")
    shown = redacted(text)
    assert "hf_abcdefghijkl" not in shown
    assert "secret9" not in shown


def test_the_name_of_this_package_is_no_token():
    text = "No module named 'hf_transfer.serving.nothing'; hf_transfer 0.1.0"
    text += ', "model_type": "hf_transfer_torchvision"'
    assert redacted(text) == text
    assert "hf_transferABC" not in redacted("hf_transferABC12345")


def test_a_token_with_a_line_break_is_hidden_in_both_its_parts(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "abcdefghij\nklmnopqrst")
    text = said(ValueError("Illegal header value b'abcdefghij\\nklmnopqrst'"))
    assert "abcdefghij" not in text
    assert "klmnopqrst" not in text


def test_terminal_escapes_and_bytes_of_names_are_shown_not_obeyed():
    assert printable("a\x1b[31mb") == "a\\x1b[31mb"
    assert printable("\udcff") == "\\xff"
    assert printable("Gänseblümchen 雛菊") == "Gänseblümchen 雛菊"
    assert printable("abc\u202edef") == "abc\\u202edef"


def test_the_token_of_a_login_is_never_said(monkeypatch):
    import huggingface_hub

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "not-of-the-form\nof-a-token")
    told = said(ValueError("Illegal header value b'Bearer not-of-the-form\nof-a-token'"))
    assert "not-of-the-form" not in told
    assert "of-a-token" not in told
