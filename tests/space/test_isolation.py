"""Two visitors, one of whom looks for what is the other's."""

import io
import tempfile
import time
import zipfile
from pathlib import Path

import pytest
from tiny_model import picture

from hf_transfer.space.limits import PREFIX

pytestmark = [pytest.mark.alone, pytest.mark.slow]

httpx = pytest.importorskip("httpx")
pytest.importorskip("gradio_client")


def folder_of(server: str, secret: str) -> Path:
    """Return the folder of the server that holds a class of this name."""
    for root in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if any(root.glob(f"*/pictures/{secret}")):
            return root
    raise AssertionError("the server keeps no such class")


def archive(path: Path, secret: str) -> Path:
    with zipfile.ZipFile(path, "w") as found:
        for label in (secret, "other"):
            for seed in range(6):
                out = io.BytesIO()
                picture(seed + 100 * len(label), 40, 40).save(out, "PNG")
                found.writestr(f"{label}/{seed}.png", out.getvalue())
    return path


def asked(server: str, fn: str, data: list, session: str) -> str:
    """Call an endpoint by hand and return all that the server says."""
    url = f"{server}gradio_api/call/{fn}"
    sent = httpx.post(url, json={"data": data, "session_hash": session}, timeout=60)
    if sent.status_code != 200:
        return sent.text
    return httpx.get(f"{url}/{sent.json()['event_id']}", timeout=60).text


def test_nothing_of_a_visitor_reaches_another_and_all_of_it_goes(server, tmp_path):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    secret = "secret-class"
    client = Client(server, verbose=False)
    job = client.submit(
        handle_file(str(archive(tmp_path / "mine.zip", secret))),
        *("model", "exact_head", 32),
        api_name="/train",
    )
    job.result(timeout=120)
    ((name, _),) = job.outputs()[-1][0]["models"].items()
    image = tmp_path / "private.png"
    picture(77).save(image)
    client.predict(handle_file(str(image)), name, api_name="/predict")
    root = folder_of(server, secret)
    own = [file for file in root.rglob("*") if file.is_file()]
    private = [file for file in own if not file.is_relative_to(root / "uploads")]
    assert {"model.safetensors", "report.json", "job.json"} <= {file.name for file in private}

    for file in [*private, root, root / "uploads", *(root / "uploads").iterdir(), "/etc/passwd"]:
        for way in (f"file={file}", f"file={root}/uploads/../{Path(file).name}"):
            found = httpx.get(f"{server}gradio_api/{way}", timeout=30)
            assert found.status_code in (403, 404), (way, found.status_code)
    for file in ("/etc/passwd", next(f for f in private if f.suffix == ".png")):
        sent = {"path": str(file), "meta": {"_type": "gradio.FileData"}}
        for data in ([sent, ""], [{**sent, "url": f"file://{file}"}, ""]):
            answer = asked(server, "predict", data, "attacker")
            assert "labels" not in answer
            assert "error" in answer
    other = Client(server, verbose=False)
    mine = tmp_path / "another.png"
    picture(78).save(mine)
    with pytest.raises(AppError, match="There is no model"):
        other.predict(handle_file(str(mine)), name, api_name="/predict")
    assert name not in other.predict(handle_file(str(mine)), "", api_name="/predict")
    for place in ("config", "gradio_api/info", "gradio_api/queue/status"):
        text = httpx.get(f"{server}{place}", timeout=30).text
        assert secret not in text
        assert client.session_hash not in text

    client.close()
    until = time.monotonic() + 60
    while left := [file for file in own if file.exists() and is_personal(file, root)]:
        assert time.monotonic() < until, left
        time.sleep(0.5)
    other.close()


def is_personal(file: Path, root: Path) -> bool:
    """Return whether a file came with a visitor, and not with the server."""
    place = file.relative_to(root).parts[0]
    return place not in ("digits", "examples", "known", ".hf_transfer", "trainings.log")
