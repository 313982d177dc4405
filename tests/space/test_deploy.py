"""A Space with one command: what goes up, and what it shows."""

import huggingface_hub
import pytest

from hf_transfer.base.download import HubError
from hf_transfer.space import deploy


class Api:
    """Notes what the Hub is asked for."""

    asked: list[tuple] = []  # noqa: RUF012

    def __init__(self, **_: object) -> None:
        self.asked.clear()

    def create_repo(self, name: str, **options: object) -> str:
        self.asked.append(("create", name, options["repo_type"], options["space_sdk"]))
        return f"https://huggingface.co/spaces/{name}"

    def add_space_variable(self, name: str, key: str, value: str) -> None:
        self.asked.append(("variable", name, key, value))

    def create_commit(self, name: str, additions: list, **options: object) -> None:
        files = sorted(one.path_in_repo for one in additions)
        self.asked.append(("commit", name, options["repo_type"], files))


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(
        deploy, "push", lambda run, name, **_: f"https://huggingface.co/alice/{name.split('/')[-1]}"
    )
    return Api


def test_one_command_makes_a_space_that_shows_the_model(hub, tmp_path):
    address = deploy.push_space(tmp_path, "flowers")
    assert address == "https://huggingface.co/spaces/alice/flowers"
    assert hub.asked == [
        ("create", "alice/flowers", "space", "gradio"),
        ("variable", "alice/flowers", "MODEL", "alice/flowers"),
        ("commit", "alice/flowers", "space", ["README.md", "app.py", "requirements.txt"]),
    ]


def test_a_private_space_says_what_it_needs_to_open_its_model(hub, tmp_path):
    told: list[str] = []
    deploy.push_space(tmp_path, "flowers", announce=told.append)
    assert told == []
    deploy.push_space(tmp_path, "flowers", private=True, announce=told.append)
    (line,) = told
    assert "the Space needs the secret HF_TOKEN" in line
    assert line.endswith("spaces/alice/flowers/settings")


def test_a_refusal_of_the_hub_is_one_line(hub, monkeypatch, tmp_path):
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no way there")

    monkeypatch.setattr(Api, "create_repo", refuse)
    with pytest.raises(HubError, match="cannot make the Space alice/flowers: no con") as caught:
        deploy.push_space(tmp_path, "alice/flowers")
    assert str(caught.value).startswith("the model is at https://huggingface.co/alice/flowers, but")
