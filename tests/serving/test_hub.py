"""The real client against a small Hub on this machine: what goes up, what comes down, what fails.

Each call runs in a process of its own, where the client has read the address of that Hub.
"""

import json
import os
import shutil
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from children import python
from hub_server import OWNER, TOKEN, Hub, Repository, serve
from safetensors.numpy import save_file
from sample_report import FLOWERS, sample_report

from hf_transfer.base.errors import UserError
from hf_transfer.serving import hub as hub_module
from hf_transfer.serving.hub import gather, model_folder

REPO = f"{OWNER}/flowers"
CALL = """
import json, sys
from hf_transfer.serving import hub
from hf_transfer.base.errors import UserError
try:
    options = json.loads(sys.argv[3])
    print(getattr(hub, sys.argv[1])(*json.loads(sys.argv[2]), **options))
except UserError as error:
    sys.exit(f"error: {error}")
"""


@pytest.fixture
def hub():
    with serve() as hub:
        yield hub


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with everything that a run leaves behind, weights of 400 bytes."""
    run = tmp_path / "run"
    model = run / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps({"model_type": "timm_wrapper"}))
    (model / "preprocessor_config.json").write_text("{}")
    (model / "README.md").write_text("an older card\n")
    save_file({"weight": np.arange(100, dtype=np.float32)}, model / "model.safetensors")
    (model / "training_args.bin").write_bytes(b"a pickle")
    (model / "optimizer.pt").write_bytes(b"a pickle")
    checkpoint = run / "phase-1-head" / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"not yet a model")
    report = sample_report()
    report.data["path"] = report.recipe["data"]["path"] = "/home/someone/private/flowers"
    report.save(run / "report.json")
    (run / "recipe.yaml").write_text("data: {path: /home/someone/private/flowers}\n")
    return run


def client(hub: Hub, cache: Path, *command: str, token: str = TOKEN, **more: str):
    """Run Python code in a process that knows the local Hub; return the finished process."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    env |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    if token:
        env["HF_TOKEN"] = token
    code, *words = command
    return python(code, *words, folder=cache.parent, env=env | more, strict=True)


def call(hub: Hub, cache: Path, name: str, *args: str, token: str = TOKEN, **kwargs):
    """Run one function of hub.py against the local Hub; return the finished process.

    `given` is a token as an argument, `token` one in the environment.
    """
    if "given" in kwargs:
        kwargs["token"] = kwargs.pop("given")
    if name == "push":  # the small folders of these tests hold no model that answers
        kwargs.setdefault("check", False)
    return client(hub, cache, CALL, name, json.dumps(args), json.dumps(kwargs), token=token)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a refused call leaves on stderr."""
    assert done.returncode == 1, done.stdout
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_a_run_goes_up_in_one_commit_with_its_card_report_and_recipe(hub, run, tmp_path):
    done = call(hub, tmp_path / "cache", "push", str(run), REPO)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == f"{hub.url}/{REPO}"
    ((_, message, files),) = hub.repositories[REPO].commits
    assert message == "Upload lp_ft"
    pictures = {name for name in files if name.endswith(".svg")}
    assert {"confusion.svg", "calibration.svg", "curve-1.svg", "curve-2.svg"} == pictures
    assert all(f"]({name})" in files["README.md"].decode() for name in pictures)
    assert sorted(files.keys() - pictures) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "recipe.yaml",
        "report.json",
    ]
    assert files["model.safetensors"] == (run / "model" / "model.safetensors").read_bytes()
    front = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert front["base_model"]
    assert REPO in files["README.md"].decode()
    assert json.loads(files["report.json"])["data"]["labels"] == list(FLOWERS)


def test_paths_of_this_machine_stay_here(hub, run, tmp_path):
    assert call(hub, tmp_path / "cache", "push", str(run), REPO).returncode == 0
    files = hub.repositories[REPO].files
    assert not [name for name, data in files.items() if b"/home/someone" in data]
    assert yaml.safe_load(files["recipe.yaml"]) == {"data": {"path": "flowers"}}
    assert json.loads(files["report.json"])["data"]["path"] == "flowers"


@pytest.mark.parametrize(
    "place",
    [
        '/home/someone/my "best" photos/flowers',
        "/home/someone/odd\\\\name/flowers",
        "../someone/private/flowers",
        "~someone/private/flowers",
        "someone/private/flowers/",
        "C:\\\\Users\\\\someone\\\\flowers",
        "/home/someone/été\\n/flowers",
    ],
)
def test_no_path_of_this_machine_is_published_however_it_is_written(place, tmp_path, run):
    place = place.encode().decode("unicode_escape").encode("latin-1").decode()
    report = sample_report()
    report.data["path"] = report.recipe["data"]["path"] = place
    report.backbone["id"] = report.recipe["backbone"] = f"{place.rstrip('/')}/weights/net"
    report = replace(
        report,
        warnings=(f"features are live: {place} is not writable", "no room in /home/someone/cache."),
        phases=tuple(replace(p, features=f"live, since {place} is full") for p in report.phases),
    )
    report.save(run / "report.json")
    recipe = {"backbone": report.recipe["backbone"], "data": {"path": place}, "phases": []}
    comment = place.replace("\n", " ")
    (run / "recipe.yaml").write_text(f"# from {comment}\n{yaml.safe_dump(recipe)}")
    files = gather(run)
    files["README.md"] = hub_module._card(report, REPO).encode()
    told = {name: data for name, data in files.items() if isinstance(data, bytes)}
    texts = [name for name in told if not name.endswith(".svg")]
    assert sorted(texts) == ["README.md", "recipe.yaml", "report.json"]
    assert not [name for name, data in told.items() if b"someone" in data]
    assert yaml.safe_load(told["recipe.yaml"]) == {
        "backbone": "net",
        "data": {"path": "flowers"},
        "phases": [],
    }
    published = json.loads(told["report.json"])
    assert published["warnings"] == [
        "features are live: flowers is not writable",
        "no room in cache.",
    ]
    assert published["metrics"] == report.to_dict()["metrics"]


def test_names_of_libraries_repositories_and_labels_are_published_as_they_are(run):
    report = sample_report(labels=("/m/01b", "/m/02c", "and/or", "~/x"))
    report.data["path"] = report.recipe["data"]["path"] = "alice/flowers"
    report.save(run / "report.json")
    told = json.loads(gather(run)["report.json"])
    assert told["data"] == report.data
    assert told["backbone"]["id"] == "timm/resnet10t.c3_in1k"
    assert told["metrics"] == report.to_dict()["metrics"]


def test_a_configuration_does_not_say_from_which_folder_it_was_loaded(run):
    config = {
        "model_type": "vit",
        "_name_or_path": "/home/someone/vit",
        "note": "hf_abcdefghij1234",
    }
    (run / "model" / "config.json").write_text(json.dumps(config))
    told = json.loads(gather(run)["config.json"])
    assert told == {"model_type": "vit", "_name_or_path": "vit", "note": "[hidden]"}


def test_adapters_that_were_kept_go_up_beside_the_model(run):
    (run / "adapter").mkdir()
    base = {"base_model_name_or_path": "/home/someone/net", "r": 4}
    (run / "adapter" / "adapter_config.json").write_text(json.dumps(base))
    save_file({"a": np.zeros(1, np.float32)}, run / "adapter" / "adapter_model.safetensors")
    (run / "adapter" / "state.pt").write_bytes(b"a pickle")
    files = gather(run)
    assert sorted(name for name in files if name.startswith("adapter/")) == [
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    ]
    assert json.loads(files["adapter/adapter_config.json"])["base_model_name_or_path"] == "net"


@pytest.mark.parametrize(
    ("key", "value"), [("metrics", "x"), ("recipe", {"task": "x"}), ("data", 3), ("phases", [1])]
)
def test_odd_values_in_a_report_are_one_line(run, key, value):
    values = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps({**values, key: value}))
    with pytest.raises(UserError) as caught:
        hub_module._card(hub_module.find_report(run), REPO)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("token", ["hf_local\ntest_token", "secret phrase", "hf_ünïcode1234"])
def test_a_broken_token_is_refused_before_anything_is_sent_and_not_shown(token, hub, run, tmp_path):
    done = call(hub, tmp_path / "cache", "push", str(run), REPO, given=token, token="")
    line = refusal(done)
    assert "the token holds" in line
    assert not [part for part in token.split() if part in line]
    assert hub.paths == []


def test_an_interrupted_upload_is_resumed_with_what_is_missing(hub, run, tmp_path):
    hub.faults[f"/api/models/{REPO}/commit"] = 403
    assert call(hub, tmp_path / "cache", "push", str(run), REPO).returncode == 1
    assert len([path for path in hub.paths if path.startswith("PUT")]) == 1
    assert hub.repositories[REPO].files == {}
    hub.faults.clear()
    assert call(hub, tmp_path / "cache", "push", str(run), REPO).returncode == 0
    assert len([path for path in hub.paths if path.startswith("PUT")]) == 1
    assert {"config.json", "model.safetensors"} <= set(hub.repositories[REPO].files)


def test_what_went_up_comes_down_byte_for_byte(hub, run, tmp_path):
    assert call(hub, tmp_path / "cache", "push", str(run), REPO).returncode == 0
    repository = hub.repositories[REPO]
    repository.commit("someone's pickle", {**repository.files, "pytorch_model.bin": b"code"})
    done = call(hub, tmp_path / "other", "pull", REPO, token="")
    assert (done.returncode, done.stderr) == (0, "")
    folder = Path(done.stdout.strip())
    here = {path.name: path.read_bytes() for path in folder.iterdir()}
    there = {n: b for n, b in repository.files.items() if not n.endswith((".bin", ".svg"))}
    assert here == there  # the card's pictures are for its readers
    again = call(hub, tmp_path / "other", "model_folder", REPO)
    assert again.stdout == done.stdout
    downloads = [path for path in hub.paths if path.startswith("GET") and "/resolve/" in path]
    assert len(downloads) == len(there)


def test_a_changed_run_makes_a_second_commit_and_an_unchanged_one_none(hub, run, tmp_path):
    for _ in range(2):
        assert call(hub, tmp_path / "cache", "push", str(run), REPO).returncode == 0
    assert len(hub.repositories[REPO].commits) == 1
    weights = {"weight": np.zeros(100, dtype=np.float32)}
    save_file(weights, run / "model" / "model.safetensors")
    done = call(hub, tmp_path / "cache", "push", str(run), REPO, message="Train longer")
    assert done.returncode == 0
    first, second = hub.repositories[REPO].commits
    assert second[1] == "Train longer"
    assert [name for name in second[2] if first[2][name] != second[2][name]] == [
        "model.safetensors"
    ]


def test_what_tells_of_an_earlier_run_goes_and_files_of_others_stay(hub, run, tmp_path):
    old = run / "model" / "unknown.safetensors"
    save_file({"means": np.zeros(1, np.float32)}, old)
    assert call(hub, tmp_path / "cache", "push", str(run), REPO).returncode == 0
    repository = hub.repositories[REPO]
    repository.commit("by hand", {**repository.files, "notes.json": b"{}", "a/b.txt": b"x"})
    assert "unknown.safetensors" in repository.files
    old.unlink()
    (run / "recipe.yaml").unlink()
    assert call(hub, tmp_path / "cache", "push", str(run), REPO).returncode == 0
    assert {"unknown.safetensors", "recipe.yaml"}.isdisjoint(repository.files)
    assert {"notes.json", "a/b.txt", "report.json", "model.safetensors"} <= set(repository.files)
    theirs = {"README.md": b"# A card of others", "unknown.safetensors": b"x"}
    hub.repositories["alice/theirs"] = Repository()
    hub.repositories["alice/theirs"].commit("theirs", theirs)
    assert call(hub, tmp_path / "cache", "push", str(run), "alice/theirs").returncode == 0
    assert "unknown.safetensors" in hub.repositories["alice/theirs"].files


def test_what_a_push_after_training_would_be_refused_is_refused_before_it(hub, run, tmp_path):
    assert call(hub, tmp_path / "cache", "check_owner", "small").returncode == 0
    assert call(hub, tmp_path / "cache", "check_owner", "alice/small").returncode == 0
    assert call(hub, tmp_path / "cache", "check_owner", "team/small").returncode == 0
    for place in ("bob/small", "readers/small"):
        told = refusal(call(hub, tmp_path / "cache", "check_owner", place))
        assert f"alice, may not write to {place.partition('/')[0]}; write alice/small, use" in told
    told = refusal(call(hub, tmp_path / "cache", "check_owner", REPO, token="hf_expired"))
    assert "does not accept this token" in told
    assert hub.repositories == {}


def test_what_others_own_is_refused_at_once_and_may_be_proposed_to(hub, run, tmp_path):
    hub.repositories["bob/theirs"] = Repository()
    hub.repositories["bob/theirs"].commit("theirs", {"README.md": b"# Theirs"})
    hub.paths.clear()
    told = refusal(call(hub, tmp_path / "cache", "push", str(run), "bob/theirs", check=True))
    assert told.endswith("or open a pull request there: hf-transfer push RUN bob/theirs --pr")
    assert hub.paths == ["HEAD /", "GET /api/whoami-v2"]
    done = call(hub, tmp_path / "cache", "push", str(run), "bob/theirs", pr=True)
    assert done.stdout.strip() == f"{hub.url}/bob/theirs/discussions/1"
    assert set(hub.repositories["bob/theirs"].files) == {"README.md"}
    hub.roles[TOKEN] = "read"
    for place in (REPO, "bob/theirs"):
        told = refusal(call(hub, tmp_path / "cache", "push", str(run), place, pr=True))
        assert told.endswith(
            f"this token only reads; make one that writes at {hub.url}/settings/tokens"
        )


def test_a_push_that_fails_after_training_says_how_to_push_again(hub, run, tmp_path):
    told = refusal(call(hub, tmp_path / "cache", "push_finished", str(run), REPO, token=""))
    assert told.endswith(
        f"the run is finished, and `hf-transfer push {run} {REPO}` pushes it again"
    )


def test_own_sections_and_metadata_of_the_card_there_are_kept(hub, run, tmp_path):
    call(hub, tmp_path / "cache", "push", str(run), REPO, license="cc-by-4.0", language="de")
    repository = hub.repositories[REPO]
    card = repository.files["README.md"] + b"\n## How we took the photos\n\nOn a Tuesday.\n"
    card = card.replace(b"\ntags:\n", b"\nthumbnail: a.png\ndatasets: [a/b]\ntags:\n- garden\n")
    repository.commit("edit", {**repository.files, "README.md": card})
    done = call(hub, tmp_path / "cache", "push", str(run), REPO)
    assert done.returncode == 0, done.stderr
    assert b"## How we took the photos\n\nOn a Tuesday." in repository.files["README.md"]
    front = yaml.safe_load(repository.files["README.md"].split(b"---\n")[1])
    assert (front["license"], front["language"]) == ("cc-by-4.0", ["de"])
    assert (front["thumbnail"], front["tags"][-1]) == ("a.png", "garden")
    assert front["datasets"][-1] == "a/b"
    commits = len(repository.commits)
    done = call(hub, tmp_path / "cache", "push", str(run), REPO, pr=True)
    assert done.stdout.strip().endswith(f"{hub.url}/{REPO}")  # there is nothing to pull
    assert len(repository.commits) == commits


def test_licence_and_language_go_into_the_card_also_of_a_model_folder(hub, run, tmp_path):
    for folder, name in ((run, "alice/run"), (tmp_path / "alone", "alice/alone")):
        if folder is not run:
            shutil.copytree(run / "model", folder)
        options = {"license": "My-Own-1.0", "language": ["en", "de"]}
        done = call(hub, tmp_path / "cache", "push", str(folder), name, **options)
        assert done.returncode == 0, done.stderr
        front = yaml.safe_load(hub.repositories[name].files["README.md"].split(b"---\n")[1])
        assert (front["license"], front["license_name"]) == ("other", "My-Own-1.0")
        assert front["language"] == ["en", "de"]
    done = call(hub, tmp_path / "cache", "push", str(run), "alice/run", license="MIT")
    front = yaml.safe_load(hub.repositories["alice/run"].files["README.md"].split(b"---\n")[1])
    assert front["license"] == "mit"
    assert "license_name" not in front


def test_a_push_can_go_to_a_branch_or_be_a_pull_request(hub, run, tmp_path):
    done = call(hub, tmp_path / "cache", "push", str(run), REPO, revision="next")
    assert done.returncode == 0, done.stderr
    repository = hub.repositories[REPO]
    assert not repository.commits
    assert "model.safetensors" in repository.branches["next"][-1][2]
    done = call(hub, tmp_path / "cache", "push", str(run), REPO, pr=True)
    assert done.stdout.strip() == f"{hub.url}/{REPO}/discussions/2", done.stderr
    assert not repository.commits
    assert "model.safetensors" in repository.branches["refs/pr/2"][-1][2]


def test_a_model_that_does_not_load_elsewhere_is_not_pushed(hub, run, tmp_path):
    done = call(hub, tmp_path / "cache", "push", str(run), REPO, check=True)
    assert "config" in refusal(done)
    assert REPO not in hub.repositories


def test_a_model_folder_goes_up_as_it_is(hub, run, tmp_path):
    model = run.rename(tmp_path / "elsewhere") / "model"
    plain = model.rename(tmp_path / "plain")
    assert call(hub, tmp_path / "cache", "push", str(plain), "plain").returncode == 0
    files = hub.repositories[f"{OWNER}/plain"].files
    assert files["README.md"] == b"an older card\n"
    assert "report.json" not in files


def test_a_private_push_is_private_and_never_lands_in_a_public_repository(hub, run, tmp_path):
    assert call(hub, tmp_path / "a", "push", str(run), REPO, private=True).returncode == 0
    assert hub.repositories[REPO].private
    assert call(hub, tmp_path / "a", "pull", REPO).returncode == 0
    stranger = call(hub, tmp_path / "b", "pull", REPO, token="")
    assert "there is no such model, or you may not read it" in refusal(stranger)
    assert call(hub, tmp_path / "a", "push", str(run), f"{OWNER}/open").returncode == 0
    hub.repositories[f"{OWNER}/open"].commits.clear()
    done = call(hub, tmp_path / "a", "push", str(run), f"{OWNER}/open", private=True)
    assert "exists and is public" in refusal(done)
    assert hub.repositories[f"{OWNER}/open"].commits == []


def test_a_push_without_a_token_says_how_to_log_in(hub, run, tmp_path):
    done = call(hub, tmp_path / "cache", "push", str(run), REPO, token="")
    assert "without a token; log in with `hf auth login`" in refusal(done)
    assert hub.paths == []


def test_a_wrong_token_is_refused_in_one_line(hub, run, tmp_path):
    done = call(hub, tmp_path / "cache", "push", str(run), REPO, token="hf_expired")
    assert "does not accept this token (401); log in with" in refusal(done)
    assert hub.repositories == {}


def test_a_hub_in_trouble_is_named_with_its_answer(hub, run, tmp_path):
    done = call(hub, tmp_path / "cache", "push", str(run), "bob/missing", pr=True)
    assert "cannot push to bob/missing: this token gives no right to (403)" in refusal(done)
    hub.faults["/api/repos/create"] = 500
    done = call(hub, tmp_path / "cache", "push", str(run), REPO)
    assert "the Hub answered 500 (a fault of the test); try again later" in refusal(done)


def test_a_refused_upload_is_one_line(hub, run, tmp_path):
    hub.faults["/objects/"] = 403
    done = call(hub, tmp_path / "cache", "push", str(run), REPO)
    assert "this token gives no right to (403)" in refusal(done)
    assert hub.repositories[REPO].commits == []


def test_a_failed_commit_leaves_nothing_half_written(hub, run, tmp_path):
    hub.faults[f"/api/models/{REPO}/commit"] = 403
    done = call(hub, tmp_path / "cache", "push", str(run), REPO)
    assert "403" in refusal(done)
    assert hub.repositories[REPO].commits == []
    hub.faults.clear()
    assert call(hub, tmp_path / "cache", "push", str(run), REPO).returncode == 0
    assert len(hub.repositories[REPO].commits) == 1


def test_a_push_that_cannot_arrive_is_refused_before_the_model_is_opened(hub, run, tmp_path):
    """The model of these tests is none that opens: its check would be refused with other words."""
    words = (CALL, "push", json.dumps([str(run), REPO]), "{}")
    told = refusal(client(hub, tmp_path / "cache", *words, HF_HUB_OFFLINE="1"))
    assert "HF_HUB_OFFLINE is set; unset it to upload" in told
    nowhere = Hub(url="http://127.0.0.1:9")
    told = refusal(call(nowhere, tmp_path / "cache", "push", str(run), REPO, check=True))
    assert "no connection" in told
    told = refusal(call(hub, tmp_path / "cache", "push", str(run), REPO, check=True, given="hf_no"))
    assert "does not accept this token" in told


@pytest.mark.parametrize("function", ["push", "pull"])
def test_no_network_is_one_line(function, run, tmp_path):
    nowhere = Hub(url="http://127.0.0.1:9")
    args = [str(run), REPO] if function == "push" else [REPO]
    assert "no connection" in refusal(call(nowhere, tmp_path / "cache", function, *args))


def test_a_hub_that_takes_connections_and_says_nothing_is_not_waited_for(hub, run, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub.url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        code = f"from hf_transfer.serving import hub as own\nown.ANSWER_SECONDS = 0.2\n{CALL}"
        words = ("push", json.dumps([str(run), REPO]), "{}")
        line = refusal(client(hub, tmp_path / "cache", code, *words))
    assert f"cannot push to {REPO}: no connection (" in line
    assert "check the network" in line


def test_a_model_that_is_nowhere_is_one_line(hub, tmp_path):
    line = refusal(call(hub, tmp_path / "cache", "model_folder", "alice/absent"))
    assert "cannot load alice/absent (no folder here) from the Hub: there is no such model" in line


@pytest.mark.parametrize("repo_id", ["https://huggingface.co/alice/x", "a/b/c", "-x", "a b", ""])
def test_a_bad_repository_id_is_refused_before_anything_is_sent(hub, run, tmp_path, repo_id):
    line = refusal(call(hub, tmp_path / "cache", "push", str(run), repo_id))
    assert "is not a repository id; write OWNER/NAME or NAME" in line
    assert hub.paths == []


def test_a_run_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no folder .*absent here; push sends a run"):
        gather(tmp_path / "absent")


def test_an_unfinished_run_says_how_to_go_on(run):
    (run / "model").rename(run / "other")
    with pytest.raises(UserError, match=r"not finished.*hf-transfer train .*recipe.yaml.*--resume"):
        gather(run)


def test_a_model_without_safetensors_is_refused(run):
    (run / "model" / "model.safetensors").rename(run / "model" / "pytorch_model.bin")
    with pytest.raises(UserError, match="has no model.safetensors"):
        gather(run)


def test_a_report_that_cannot_be_read_stops_the_push(run):
    (run / "report.json").write_text("{")
    with pytest.raises(UserError, match="cannot read .*report.json"):
        gather(run)


def test_a_model_is_found_in_a_run_and_in_its_own_folder(run):
    assert model_folder(run) == model_folder(run / "model") == run / "model"


@pytest.mark.parametrize("where", ["absent", "./absent", "/absent/model", "a/b/c"])
def test_a_path_that_is_no_repository_is_not_asked_for_on_the_hub(where):
    with pytest.raises(UserError, match="there is no run or model"):
        model_folder(where)
