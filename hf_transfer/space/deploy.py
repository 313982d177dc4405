"""A Space of one's own: the page for a model on the Hub, put there with one command."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_transfer.base.download import hub_in_one_line
from hf_transfer.base.errors import UserError
from hf_transfer.serving.hub import push

logger = logging.getLogger(__name__)


def push_space(
    run: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    announce: Callable[[str], None] | None = None,
    **options: Any,
) -> str:
    """Upload a run as a model and a Space of the same name that shows it; return its address.

    The Space trains visitors' own models, too. `options` are those of `push` for the model's card
    and commit. Raises HubError, or UserError for a folder that
    holds no finished model.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    options |= {"private": private, "token": token, "announce": announce}
    address = push(run, repo_id, **options)
    model = "/".join(address.rstrip("/").split("/")[-2:])
    api = HfApi(token=token, library_name="hf_transfer")
    files = {path.name: path for path in sorted(app_folder().iterdir()) if path.is_file()}
    with hub_in_one_line(f"the model is at {address}, but cannot make the Space {model}"):
        url = api.create_repo(
            model, repo_type="space", space_sdk="gradio", private=private or None, exist_ok=True
        )
        api.add_space_variable(model, "MODEL", model)
        additions = [CommitOperationAdd(name, path) for name, path in files.items()]
        api.create_commit(model, additions, commit_message=f"Show {model}", repo_type="space")
    if private and announce:
        announce(f"to open the private model the Space needs the secret HF_TOKEN: {url}/settings")
    logger.info("the Space %s shows %s", url, model)
    return str(url)


def app_folder() -> Path:
    """Return the folder of the Space's own files: a wheel's, or a checkout's. Raises UserError."""
    package = Path(__file__).resolve().parents[1]
    for root in (package, package.parent):
        if (root / "spaces" / "demo" / "app.py").is_file():
            return root / "spaces" / "demo"
    raise UserError("spaces/demo is not installed; install hf-transfer-learning again")
