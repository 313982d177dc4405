"""The Hub: a run goes up as one commit, a model comes down as a folder."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from hf_transfer.base.boundary import redacted, untrusted
from hf_transfer.base.download import (
    ANSWER_SECONDS,
    LOGIN,
    PUBLISHED,
    HubError,
    hub_in_one_line,
    pull,
)
from hf_transfer.base.errors import UserError, unfinished
from hf_transfer.base.files import expanded
from hf_transfer.base.signatures import checked
from hf_transfer.results.card_pictures import card_pictures
from hf_transfer.results.places import published_report
from hf_transfer.results.report import RunReport
from hf_transfer.results.run_folder import RunFolder
from hf_transfer.serving.loaders import check_loaders
from hf_transfer.serving.published import published_file, published_recipe

logger = logging.getLogger(__name__)

TAG = "hf_transfer"  # in the metadata of our cards
# What tells of a run, or of its very weights: one of an earlier push would be taken for this one's.
OF_A_RUN = ("unknown.safetensors", "report.json", "recipe.yaml", "adapter/*")
TRAINERS = ("trainer_state.json", "*_results.json")  # save_state, save_metrics


class AccessError(HubError):
    """The repository is somebody else's."""


@checked
def push(
    run: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    pr: bool = False,
    revision: str | None = None,
    license: str | None = None,
    language: str | Sequence[str] | None = None,
    token: str | None = None,
    message: str | None = None,
    check: bool = True,
    announce: Callable[[str], None] | None = None,
) -> str:
    """Upload a run's model, card, report, recipe and adapters in one commit; return the address.

    `run` is a run folder or a model folder, `repo_id` is OWNER/NAME or NAME, created if need be. A
    `private` one is seen by its owner alone. `token` is by default that of `hf auth login` or
    HF_TOKEN, `message` the commit's. With `pr` the commit is a pull request, whose address is
    returned; `revision` is the branch, created if need be. `license` and `language` (codes such as
    "en") go into the card; sections that others wrote into the card there are kept. With `check` a
    fresh process loads the model first, in every way that the card shows, and must answer as
    `predict` does; `announce` is told so, since it takes a while. Of this machine's paths only the
    last part is published. Files of others there stay; what tells of an earlier run goes. An upload
    that is interrupted leaves no commit, and the next push sends only what is missing. Raises
    HubError, or UserError for a folder that holds no finished model or one that answers
    differently; nothing is uploaded then.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    files = gather(run)
    # First: what the Hub refuses need not be checked. Anybody may open a pull request.
    user = (check_access if pr else check_owner)(repo_id, token)["name"]
    api = HfApi(token=token, library_name="hf_transfer")
    if check:
        if announce:
            announce("checking that every loader that the card names answers as predict does")
        check_loaders(model_folder(run))
    with hub_in_one_line(f"cannot push to {repo_id}"):
        if "/" not in repo_id:
            repo_id = f"{user}/{repo_id}"
        url = str(api.create_repo(repo_id, private=private or None, exist_ok=True))
        if private and not api.model_info(repo_id).private:
            raise HubError(
                f"{repo_id} exists and is public; make it private in its settings ({url}/settings) "
                "or push to another name"
            )
        if revision and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        before = _previous_card(api, repo_id, revision)
        previous = ""
        if report := find_report(run):
            previous = before
            card = _card(report, repo_id, previous)
        else:
            card = _text(files.get("README.md"))
        if card:
            files["README.md"] = _with_facts(card, license, language, previous).encode()
        summary = message or f"Upload {report.name if report else Path(run).name}"
        additions = [CommitOperationAdd(path, content) for path, content in sorted(files.items())]
        there = api.list_repo_files(repo_id, revision=revision) if TAG in before else []
        gone = [
            CommitOperationDelete(name)
            for name in there
            if name not in files and any(fnmatch(name, pattern) for pattern in OF_A_RUN)
        ]
        done = api.create_commit(
            repo_id, [*additions, *gone], commit_message=summary, revision=revision, create_pr=pr
        )
    logger.info("pushed %d files to %s, commit %s", len(files), url, done.oid[:8])
    return str(done.pr_url or url)  # no pull request where nothing has changed


def check_access(repo_id: str, token: str | None = None) -> dict[str, Any]:
    """Return what the Hub knows of the token's owner. Raises HubError for a name that no repository
    can have, in offline mode, and without a token that the Hub accepts and that may write."""
    from huggingface_hub import HfApi, constants, get_session, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise HubError(
            f"{redacted(repr(repo_id))} is not a repository id; write OWNER/NAME or NAME, up to 96 "
            "letters, digits and single '-', '_' or '.'"
        ) from None
    if constants.HF_HUB_OFFLINE:
        raise HubError(f"cannot push to {repo_id}: HF_HUB_OFFLINE is set; unset it to upload")
    if not (known := token or get_token()):
        raise HubError(f"cannot push to {repo_id} without a token; {LOGIN}")
    if not (known.isascii() and known.isprintable()) or " " in known:
        raise HubError("the token holds characters that no token has; copy it again, in one line")
    with hub_in_one_line(f"cannot push to {repo_id}"):
        # A Hub that takes connections and says nothing: the client would wait without end.
        get_session().head(constants.ENDPOINT, timeout=ANSWER_SECONDS)
        told = dict(HfApi(token=token, library_name="hf_transfer").whoami())
    if (told.get("auth") or {}).get("accessToken", {}).get("role") == "read":
        raise HubError(
            f"cannot push to {repo_id}: this token only reads; make one that writes at "
            f"{constants.ENDPOINT}/settings/tokens"
        )
    return told


def check_owner(repo_id: str, token: str | None = None) -> dict[str, Any]:
    """Return what `check_access` does. Raises HubError also where the token's owner cannot write,
    themselves or in an organization: before a model is checked, or trained for hours."""
    told = check_access(repo_id, token)
    teams = (one["name"] for one in told.get("orgs") or () if one.get("roleInOrg") != "read")
    owner, _, name = repo_id.rpartition("/")
    if owner and owner.lower() not in map(str.lower, (told["name"], *teams)):
        raise AccessError(
            f"cannot push to {repo_id}: the token's owner, {told['name']}, may not write to "
            f"{owner}; write {told['name']}/{name}, use another token, or open a pull request "
            f"there: hf-transfer push RUN {repo_id} --pr"
        )
    return told


def push_finished(
    run: str | Path, repo_id: str, *, announce: Callable[[str], None] | None = None
) -> str:
    """Push a run that has just ended, as `push` does; an error says how to push it again."""
    try:
        return push(run, repo_id, announce=announce)
    except UserError as error:
        again = shlex.join(["hf-transfer", "push", str(run), repo_id])
        raise HubError(f"{error}; the run is finished, and `{again}` pushes it again") from error


def gather(run: str | Path) -> dict[str, Path | bytes]:
    """Return what `push` uploads of a run or model folder: name there -> file here, or its bytes.

    The card, made from the report, comes on top. Raises UserError if there is no finished model.
    """
    run = expanded(run)
    folder = _local_model(run)
    if folder is None and not run.exists():
        raise UserError(f"there is no folder {run} here; push sends a run folder or a model folder")
    if folder is None:
        raise UserError(_why_no_model(run))
    files = _files_of(folder, "")
    if not any(fnmatch(name, "model*.safetensors") for name in files):
        raise UserError(
            f"{folder} has no model.safetensors, and other weights are never uploaded; save the "
            "model again with save_model"
        )
    if report := find_report(run):
        beside = next(run for run in _runs_of(run) if run.is_finished)
        with untrusted(f"{beside.report}", "run the recipe again"):
            told = published_report(report)
            drawn = card_pictures(report).items()
            files |= {name: redacted(picture).encode() for name, (_, picture) in drawn}
            files["report.json"] = json.dumps(told.to_dict(), indent=1, ensure_ascii=False).encode()
        if beside.recipe.is_file():
            files["recipe.yaml"] = published_recipe(beside.recipe, report)
        if beside.adapter.is_dir():
            files |= _files_of(beside.adapter, "adapter/")
    return files


def _files_of(folder: Path, prefix: str) -> dict[str, Path | bytes]:
    """Return the files of a folder that are published: safetensors, JSON and text; no pickles, and
    nothing that a Trainer notes of its own."""
    return {
        f"{prefix}{path.name}": path if path.suffix == ".safetensors" else published_file(path)
        for path in sorted(folder.iterdir())
        if path.is_file()
        and any(fnmatch(path.name, pattern) for pattern in PUBLISHED)
        and not any(fnmatch(path.name, pattern) for pattern in TRAINERS)
    }


def _card(report: RunReport, repo_id: str, previous: str = "") -> str:
    from hf_transfer.results.card import model_card

    with untrusted("the run's report.json", "run the recipe again"):
        return redacted(model_card(published_report(report), repo_id, previous))


def _previous_card(api: Any, repo_id: str, revision: str | None) -> str:
    """Return the card that the repository has, "" where it has none."""
    from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

    try:
        place = api.hf_hub_download(repo_id, "README.md", revision=revision)
    except (EntryNotFoundError, RevisionNotFoundError):
        return ""
    return Path(place).read_text(encoding="utf-8", errors="replace")


def _text(content: Path | bytes | None) -> str:
    if isinstance(content, Path):
        content = content.read_bytes()
    return (content or b"").decode(errors="replace")


def _with_facts(
    card: str, license: str | None, language: str | Sequence[str] | None, previous: str = ""
) -> str:
    """Return a card whose metadata states this licence and language, where they are given, and
    keeps what somebody added to that of the `previous` one."""
    from huggingface_hub import ModelCard

    from hf_transfer.results.card_metadata import HUB_LICENSES, keep_metadata

    if license is None and language is None and not previous:
        return card
    told = ModelCard(card, ignore_metadata_errors=True)
    if previous:
        keep_metadata(told, previous)
    if license is not None:
        known = HUB_LICENSES.fullmatch(license.lower())
        told.data.license = license.lower() if known else "other"
        told.data.license_name = None if known else license
        told.data.license_link = None
    if language is not None:
        told.data.language = [language] if isinstance(language, str) else list(language)
    return str(told)


def model_folder(where: str | Path) -> Path:
    """Return the folder with the model of a run folder, a model folder or a Hub repository.

    A folder that exists goes before a repository of that name. Raises UserError.
    """
    path = expanded(where)
    if folder := _local_model(path):
        return folder
    is_repository = str(where).count("/") == 1 and not str(where).startswith((".", "/", "~"))
    if path.exists() or not is_repository:
        raise UserError(_why_no_model(path))
    return pull(str(where))


def find_report(where: str | Path) -> RunReport | None:
    """Return the report that belongs to a run or model folder, None where there is none.

    It lies in the folder or, for RUN/model, in the run. Raises UserError if it cannot be read.
    """
    for run in _runs_of(expanded(where)):
        if run.is_finished:
            return RunReport.load(run.path)
    return None


def _runs_of(where: Path) -> list[RunFolder]:
    """Return the folders that may be the run of a run folder or of RUN/model."""
    folders = [where, where.parent] if where.name == "model" else [where]
    return [RunFolder(folder) for folder in folders]


def _local_model(path: Path) -> Path | None:
    for folder in (RunFolder(path).model, path):
        if (folder / "config.json").is_file():
            return folder
    return None


def _why_no_model(path: Path) -> str:
    if not path.exists():
        return f"there is no run or model {path}; give a run folder, a model folder or OWNER/NAME"
    if not path.is_dir():
        return f"{path} is a file; give a run folder or a model folder"
    if RunFolder(path).recipe.is_file():
        return unfinished(path)
    return f"{path} is neither a run folder (model/config.json) nor a model folder (config.json)"
