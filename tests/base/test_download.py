"""The Hub's failures: one line each, that says what to do and shows no token."""

import pytest
from huggingface_hub import constants, errors
from huggingface_hub.utils import httpx

from hf_transfer.base.download import BackboneError, HubError, hub_in_one_line, one_line

TOKEN = "hf_secretSecret4secret"


def response(status: int, text: str = "") -> httpx.Response:
    return httpx.Response(status, text=text, request=httpx.Request("GET", "https://hub"))


def lines(error: BaseException) -> tuple[str, str]:
    """What both ways of telling a failure say of it."""
    said = []
    for told, kind in ((one_line("x/y", "give a folder"), BackboneError),
                       (hub_in_one_line("cannot pull x/y"), HubError)):  # fmt: skip
        with pytest.raises(kind) as caught, told:
            raise error
        assert "\n" not in str(caught.value)
        assert TOKEN not in str(caught.value)
        said.append(str(caught.value))
    return said[0], said[1]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            errors.RepositoryNotFoundError("404", response=response(404)),
            "there is no such model, or you",
        ),
        (errors.GatedRepoError("gated", response=response(403)), "it is gated; ask for access"),
        (errors.HfHubHTTPError("401", response=response(401)), "does not accept this token (401)"),
        (errors.HfHubHTTPError("500", response=response(500)), "the Hub answered 500"),
        (httpx.ConnectError(f"no route with {TOKEN}"), "no connection"),
        (ConnectionResetError("reset"), "no connection"),
        (OSError(f"header Bearer {TOKEN}\n is bad"), "header Bearer [hidden]"),
        (RuntimeError(f"https://user:{TOKEN}@hub/x"), "https://[hidden]@hub/x"),
    ],
)
def test_every_failure_is_worded_once(error, words):
    for line in lines(error):
        assert words in line


@pytest.mark.parametrize("kind", [errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError])
def test_offline_mode_is_said_to_be_offline_mode(monkeypatch, kind):
    for offline, words in ((True, "HF_HUB_OFFLINE is set; unset it"), (False, "no connection")):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        for line in lines(kind("not cached")):
            assert words in line


def test_what_the_hub_answers_is_shown_without_secrets_and_escapes():
    error = errors.HfHubHTTPError("500", response=response(500), server_message=f"\x1b[31m{TOKEN}")
    for line in lines(error):
        assert "\x1b" not in line
        assert "[hidden]" in line
