"""The Hub as files: what is fetched from it, and its failures as one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_transfer.base.boundary import said
from hf_transfer.base.errors import UserError

logger = logging.getLogger(__name__)
RANDOM = "give a local folder, or set pretrained: false for random weights"
ANSWER_SECONDS = 10  # for the Hub to say anything at all
# Weights only as safetensors: pickles run code when they are opened, checkpoints are not models.
PUBLISHED = ("*.json", "*.safetensors", "*.py", "README.md", "recipe.yaml")
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


class BackboneError(UserError):
    """A backbone that cannot be found, built or loaded."""


@contextmanager
def answering_hub() -> Iterator[None]:
    """Use what is cached, at once, where the Hub does not answer: its client would try for long."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    offline = constants.HF_HUB_OFFLINE
    if not offline:
        try:
            get_session().head(constants.ENDPOINT, timeout=ANSWER_SECONDS)
        except (OSError, httpx.TransportError):
            logger.warning("no connection to %s; what is cached is used", constants.ENDPOINT)
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline


@contextmanager
def one_line(what: str, remedy: str = RANDOM) -> Iterator[None]:
    """Turn any failure to find, fetch, read or build `what` into a BackboneError of one line.

    `remedy` is what to do without a connection.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of any class: libraries and files of others, like `untrusted`
        raise BackboneError(_reason(what, error, remedy)) from error


def _reason(what: str, error: BaseException, remedy: str) -> str:
    """Return what was wrong and what to do, by the first failure behind the one that surfaced."""
    import pickle
    from urllib.error import URLError

    from huggingface_hub import errors
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]
    from safetensors import SafetensorError

    chain = list(_causes(error))
    unreachable = (
        ConnectionError, TimeoutError, URLError, httpx.TransportError,
        errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError,
    )  # fmt: skip
    if any(isinstance(cause, errors.RepositoryNotFoundError) for cause in chain):
        return (
            f"cannot read {what}: it does not exist, or you may not read it; check the name, log "
            f"in with `hf auth login`, or {remedy}"
        )
    if any(isinstance(cause, unreachable) for cause in chain):
        return f"cannot reach {what}: no connection; {remedy}"
    if any(isinstance(cause, SafetensorError) for cause in chain):
        return f"cannot read {what}: {said(error)}; the file is not whole, copy it again"
    if isinstance(error, (pickle.UnpicklingError, EOFError)):
        return (
            f"cannot read {what}: it holds more than tensors, and opening that may run code; "
            "convert it to safetensors"
        )
    if "loading state_dict" in str(error) or "ignore_mismatched_sizes" in str(error):
        return f"{what} are weights of another architecture: {said(error)}"
    return f"cannot load {what}: {said(error)}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


class HubError(UserError):
    """Something that the Hub, or the way to it, does not allow; one line with the next step."""


def pull(repo_id: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """Return the local folder of a model on the Hub, downloaded unless it is there already.

    Weights other than safetensors stay where they are. Raises HubError.
    """
    from huggingface_hub import snapshot_download

    with _one_line(f"cannot load {repo_id} (no folder here) from the Hub"):
        found = snapshot_download(
            repo_id,
            revision=revision,
            token=token,
            allow_patterns=list(PUBLISHED),
            library_name="hf_transfer",
        )
    return Path(found)


@contextmanager
def _one_line(doing: str) -> Iterator[None]:
    """Turn the client's errors into one line each: what, why, and what to do."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    try:
        yield
    except UserError:
        raise
    except (httpx.HTTPError, OSError, ValueError, RuntimeError) as error:
        # Of uploads, and of the cache that it tries without a connection, the client raises errors
        # of its own; what the Hub or the network said is behind them.
        cause: BaseException | None = error
        while cause and not isinstance(cause, (httpx.HTTPError, OfflineModeIsEnabled)):
            cause = cause.__cause__
        if isinstance(cause, HfHubHTTPError):
            why = _refusal(cause)
        elif isinstance(cause, OfflineModeIsEnabled):
            why = "HF_HUB_OFFLINE is set; unset it"
        elif cause:
            why = f"no connection ({cause}); check the network and HF_ENDPOINT"
        else:
            why = " ".join(str(error).split())
        raise HubError(f"{doing}: {why}") from error


def _refusal(error: Any) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return f"it is gated; ask for access on its page, then {LOGIN}"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no such model, or you may not read it; check the name, or {LOGIN}"
    if status == 401:
        return f"the Hub does not accept this token (401); {LOGIN}"
    if status == 403:
        return (
            "this token gives no right to (403); use one with write access, made at "
            "https://huggingface.co/settings/tokens"
        )
    answer = " ".join((error.server_message or "").split())
    return f"the Hub answered {status}{answer and f' ({answer})'}; try again later"
