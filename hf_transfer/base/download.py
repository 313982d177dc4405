"""The Hub as files: what is fetched from it, and its failures as one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_transfer.base.boundary import printable, redacted, said
from hf_transfer.base.errors import UserError

logger = logging.getLogger(__name__)
RANDOM = "give a local folder, or set pretrained: false for random weights"
ANSWER_SECONDS = 10  # for the Hub to say anything at all
# Weights only as safetensors: pickles run code when they are opened, checkpoints are not models.
PUBLISHED = ("*.json", "*.safetensors", "*.py", "README.md", "recipe.yaml")
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


class BackboneError(UserError):
    """A backbone that cannot be found, built or loaded."""


class HubError(UserError):
    """Something that the Hub, or the connection to it, refuses; one line with the next step."""


@contextmanager
def answering_hub() -> Iterator[None]:
    """If the Hub does not answer, use the cache at once: its client would retry for long."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    offline = constants.HF_HUB_OFFLINE
    if not offline:
        try:
            get_session().head(constants.ENDPOINT, timeout=ANSWER_SECONDS)
        except (OSError, httpx.TransportError) as error:
            logger.warning("no connection to %s; what is cached is used", constants.ENDPOINT)
            constants.HF_HUB_OFFLINE = True
            unanswered = error
    try:
        yield
    except Exception as error:
        if offline or not constants.HF_HUB_OFFLINE:
            raise
        raise error from unanswered  # the client would say that it was told to be offline
    finally:
        constants.HF_HUB_OFFLINE = offline


@contextmanager
def one_line(what: str, remedy: str = RANDOM) -> Iterator[None]:
    """Turn any failure to find, fetch, read or build `what` into a BackboneError of one line.

    `remedy` is what else can be done if the Hub does not deliver it.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of any class: libraries and files of others, like `untrusted`
        why = _of_hub(error)
        told = f"cannot load {what}: {why}, or {remedy}" if why else _of_weights(what, error)
        raise BackboneError(told) from error


@contextmanager
def hub_in_one_line(doing: str) -> Iterator[None]:
    """Turn any failure of the Hub's client into a HubError of one line: what, why, what to do."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of any class: of uploads the client raises some of its own
        raise HubError(f"{doing}: {_of_hub(error) or said(error)}") from error


def _of_hub(error: BaseException) -> str | None:
    """Return what the Hub or the connection refused, and what to do, from the root cause of an
    error; None if it was neither."""
    from urllib.error import URLError

    from huggingface_hub import constants, errors
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    chain = list(_causes(error))
    network = (ConnectionError, TimeoutError, URLError, httpx.HTTPError)
    for cause in chain:
        if isinstance(cause, errors.HfHubHTTPError):
            return _refusal(cause)
    for cause in chain:
        if isinstance(cause, network) and not isinstance(cause, errors.OfflineModeIsEnabled):
            at = constants.ENDPOINT
            return f"no connection ({said(cause)}); check the network and HF_ENDPOINT ({at})"
    lacking = (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)
    if any(isinstance(cause, lacking) for cause in chain):
        if constants.HF_HUB_OFFLINE:
            return "it is not in the cache, and HF_HUB_OFFLINE is set; unset it to download"
        return "it is not in the cache, and there is no connection; check the network"
    return None


def _of_weights(what: str, error: BaseException) -> str:
    """Return what is wrong with files that are there, and what to do."""
    import pickle

    from safetensors import SafetensorError

    if any(isinstance(cause, SafetensorError) for cause in _causes(error)):
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


def pull(repo_id: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """Return the local folder of a model on the Hub, downloaded unless it is there already.

    Weights other than safetensors stay where they are. Raises HubError.
    """
    from huggingface_hub import snapshot_download

    with hub_in_one_line(f"cannot load {repo_id} (no folder here) from the Hub"):
        found = snapshot_download(
            repo_id,
            revision=revision,
            token=token,
            allow_patterns=list(PUBLISHED),
            library_name="hf_transfer",
        )
    return Path(found)


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
    answer = printable(redacted(" ".join((error.server_message or "").split())))
    return f"the Hub answered {status}{answer and f' ({answer})'}; try again later"
