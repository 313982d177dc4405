"""What programs do, as the documentation says; and a program that looks for what is another's."""

import contextlib
import hashlib
import re
import tempfile
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from colours import colour
from drawn import picture

from hf_transfer.serving.predict import predict
from hf_transfer.space.limits import PREFIX

pytestmark = [pytest.mark.alone, pytest.mark.slow]

httpx = pytest.importorskip("httpx")
pytest.importorskip("gradio_client")


def snippet() -> str:
    """Return the snippet of the documentation."""
    page = Path(__file__).resolve().parents[2] / "docs" / "space.md"
    (code,) = re.findall(r"## From a program.*?```text\n(.*?)```", page.read_text(), re.S)
    return code


@pytest.fixture(scope="module")
def program(server, archive, tmp_path_factory):
    """The snippet of the documentation after it ran: its names, what it printed, and its image."""
    image = tmp_path_factory.mktemp("program") / "blue.png"
    image.write_bytes(colour("blue", 50))
    code = snippet()
    here = {
        "http://127.0.0.1:7860": server,
        "rose.jpg": str(image),
        "flowers.zip": str(archive),
        "timm/resnet18.a1_in1k": "model",
        "128": "32",
        "lp_ft": "exact_head",
    }
    assert all(written in code for written in here)
    # All at once: what is put in, such as a path, may hold what is still to be replaced.
    code = re.sub("|".join(map(re.escape, here)), lambda found: here[found.group()], code)
    said, found = [], {"client": None}
    found["print"] = said.append
    exec(code, found)
    yield SimpleNamespace(**found, said=said, image=image)
    found["client"].close()


def test_a_program_trains_and_asks_as_the_documentation_says(program, run, tmp_path):
    from gradio_client import handle_file

    (expected,) = predict(run, program.image)
    answered, *told = program.said
    assert answered["flowers-lp_ft"]["labels"][0]["label"] == expected.labels[0][0]
    states = [one["state"] for one in told]
    assert states[-1] == "done"
    assert set(states) <= {"waiting", "running", "done"}
    assert program.progress["progress"] == 1.0
    ((name, accuracy),) = program.progress["models"].items()
    assert accuracy > 0.5
    image = handle_file(str(program.image))
    answers = program.client.predict(image, "", api_name="/predict")
    with zipfile.ZipFile(program.model) as packed:
        packed.extractall(tmp_path / "mine")
    (expected,) = predict(tmp_path / "mine" / "model", program.image)
    (first, *_) = answers[name]["labels"]
    assert first["label"] == expected.labels[0][0]
    assert first["probability"] == pytest.approx(expected.labels[0][1], abs=1e-5)
    heat = program.client.predict(image, "red", name, api_name="/explain")
    assert heat["label"] == "red"
    assert heat["image"].startswith("data:image/jpeg;base64,")


def test_a_program_is_told_what_is_wrong_in_a_sentence(server, tmp_path):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    client = Client(server, verbose=False)
    bad = tmp_path / "bad.zip"
    bad.write_bytes(b"nothing")
    with pytest.raises(AppError, match="This is not a zip file"):
        client.predict(handle_file(str(bad)), "model", "exact_head", 32, api_name="/train")
    with pytest.raises(AppError, match="There is no model"):
        client.predict(handle_file(str(bad)), "another's", api_name="/predict")
    found = client.view_api(return_format="dict")
    assert set(found["named_endpoints"]) == {"/predict", "/explain", "/train"}
    assert found["unnamed_endpoints"] == {}  # what visitors click is not for programs
    client.close()


# --- isolation ---------------------------------------------------------------------------------


def folder_of(model: str) -> Path:
    """Return the folder of the server that trained this model."""
    for root in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if any(root.glob(f"*/*/{model}/report.json")):
            return root
    raise AssertionError("no server keeps this model")


def asked(server: str, fn: str, data: list, session: str) -> str:
    """Call an endpoint by hand and return all that the server says."""
    url = f"{server}gradio_api/call/{fn}"
    sent = httpx.post(url, json={"data": data, "session_hash": session}, timeout=60)
    if sent.status_code != 200:
        return sent.text
    return httpx.get(f"{url}/{sent.json()['event_id']}", timeout=60).text


def test_nothing_of_a_visitor_reaches_another_and_all_of_it_goes(program, server, tmp_path):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    ((name, _),) = program.progress["models"].items()
    root = folder_of(name)
    own = [file for file in root.rglob("*") if file.is_file()]
    private = [file for file in own if not file.is_relative_to(root / "uploads")]
    assert {"model.safetensors", "report.json", "job.json"} <= {file.name for file in private}

    folders = [root, root / "uploads", *(root / "uploads").iterdir()]
    with httpx.Client(timeout=30) as http:
        for file in [*private, *folders, "/etc/passwd"]:
            for way in (f"file={file}", f"file={root}/uploads/../{Path(file).name}"):
                found = http.get(f"{server}gradio_api/{way}")
                assert found.status_code in (403, 404), (way, found.status_code)
        for place in ("config", "gradio_api/info", "gradio_api/queue/status"):
            text = http.get(f"{server}{place}").text
            assert root.name not in text
            assert program.client.session_hash not in text
    for file in ("/etc/passwd", next(file for file in private if file.suffix == ".png")):
        sent = {"path": str(file), "meta": {"_type": "gradio.FileData"}}
        for data in ([sent, ""], [{**sent, "url": f"file://{file}"}, ""]):
            answer = asked(server, "predict", data, "attacker")
            assert "labels" not in answer
            assert "error" in answer
    other, mine = Client(server, verbose=False), tmp_path / "another.png"
    picture(78).save(mine)
    with pytest.raises(AppError, match="There is no model"):
        other.predict(handle_file(str(mine)), name, api_name="/predict")
    assert name not in other.predict(handle_file(str(mine)), "", api_name="/predict")
    other.close()

    program.client.close()
    until = time.monotonic() + 60
    while left := [file for file in own if file.exists() and is_personal(file, root)]:
        assert time.monotonic() < until, left
        time.sleep(0.3)


def test_the_same_image_of_two_visitors_lies_in_two_places_that_nobody_can_guess(server, tmp_path):
    picture(78).save(tmp_path / "same.png")
    data = (tmp_path / "same.png").read_bytes()
    with httpx.Client(timeout=60) as http:

        def sent(name: str) -> Path:
            files = {"files": (name, data)}
            return Path(http.post(f"{server}gradio_api/upload", files=files).json()[0])

        mine, other = sent("same.png"), sent("same.png")
        assert mine.parent != other.parent
        # neither from the content, nor from where the same content lies of one's own
        for folder in (mine.parent, mine.parent.parent, hashlib.sha256(data).hexdigest()):
            place = mine.parent.parent / folder / "other.png"
            assert http.get(f"{server}gradio_api/file={place}").status_code in (403, 404)
        assert http.get(f"{server}gradio_api/file={mine}").status_code == 200


def test_who_knows_no_session_reads_stops_and_ends_nothing(server, archive):
    """The addresses at which gradio answers without asking who one is."""
    from gradio_client import Client, handle_file

    client = Client(server, verbose=False)
    asked_for = (handle_file(str(archive)), "model", "exact_head", 32)
    job = client.submit(*asked_for, api_name="/train")
    with httpx.Client(base_url=server, timeout=30) as http:
        for session in ("", "x", "*", "null", "undefined"):
            params, told = {"session_hash": session}, []
            with (
                contextlib.suppress(httpx.RemoteProtocolError),  # gradio breaks off
                http.stream("GET", "gradio_api/queue/data", params=params) as data,
            ):
                told.extend(data.iter_lines())
            assert not any("progress" in line or "labels" in line for line in told)
            for fn in range(40):
                body = {"session_hash": session, "fn_index": fn, "event_id": "x"}
                http.post("gradio_api/cancel", json=body)
            link = http.get("gradio_api/deep_link", params={"session_hash": session})
            assert link.text in ('""', "")
        for place in ("monitoring", "monitoring/summary", "monitoring/x", "gradio_api/runs"):
            assert http.get(place).status_code in (403, 404), place
    *_, (progress, _) = job
    assert progress["state"] == "done"  # nobody stopped it
    client.close()


def is_personal(file: Path, root: Path) -> bool:
    """Return whether a file came with a visitor, and not with the server; what an upload that broke
    off has left is nobody's, and goes after an hour (test_visitors.py)."""
    place = file.relative_to(root).parts[0]
    if file.parent == root / "uploads":
        return False
    letters = "letters", "learning-letters"  # of the built-in network
    return place not in ("digits", "examples", "known", ".hf_transfer", "trainings.log", *letters)
