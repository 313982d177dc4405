"""What public functions do not take is refused in a line, before anything else happens."""

import inspect
from pathlib import Path

import pytest

import hf_transfer
from hf_transfer.base.errors import UserError
from hf_transfer.base.outputs import file_to_write

FUNCTIONS = [name for name in hf_transfer.__all__ if inspect.isfunction(getattr(hf_transfer, name))]
ODD = (3.5, b"x", object(), [None], {"a": 1}, lambda: 1, float("nan"))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_argument_of_another_type_is_refused_in_a_line_that_names_it(name):
    """By every public function, before it does anything: no other argument need be right."""
    function = getattr(hf_transfer, name)
    refused = 0
    for parameter in inspect.signature(function).parameters.values():
        takes = str(parameter.annotation)
        for value in ODD if takes != "Any" else ():
            if (callable(value) and "Callable" in takes) or takes == "Say | None":
                continue
            if isinstance(value, float) and "float" in takes and value == value:
                continue
            if isinstance(value, bytes) and takes == "Source":
                continue
            own = {} if parameter.kind is parameter.VAR_POSITIONAL else {parameter.name: value}
            given = () if own else (value,)
            with pytest.raises(UserError, match=rf"^{name}: {parameter.name} is ") as error:
                function(*given, **own)
            assert "\n" not in str(error.value)
            refused += 1
    assert refused


def test_odd_values_of_the_right_type_are_refused_in_a_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("weights.pth").touch()
    Path("exported.pt2").touch()
    data = hf_transfer.DataSpec(path=str(tmp_path))
    for call, words in (
        (lambda: hf_transfer.load("."), r"\. holds no model; give a run folder"),
        (lambda: hf_transfer.load("weights.pth"), "no model is loaded from; give a run folder"),
        (lambda: hf_transfer.load("exported.pt2"), "no model is loaded from; give .* .onnx"),
        (lambda: hf_transfer.scan(data, task="x"), "there is no task 'x'; there are class"),
        (lambda: hf_transfer.plan("lp_ft", processes=0), "processes must be at least 1"),
        (lambda: hf_transfer.demo(port=-1), "port is -1; choose one from 1"),
        (lambda: hf_transfer.add_images(".", data), "holds no model"),
        (
            lambda: hf_transfer.load_backbone("timm/test_resnet", ["a"], window=[]),
            "window is .* not 0",
        ),
    ):
        with pytest.raises(UserError, match=words) as error:
            call()
        assert "\n" not in str(error.value)


@pytest.fixture
def taken(tmp_path: Path) -> Path:
    """A file."""
    (tmp_path / "taken").write_text("mine")
    return tmp_path / "taken"


@pytest.mark.parametrize(
    "work",
    [
        lambda out: hf_transfer.advise("images", backbone="timm/test_resnet", out=out),
        lambda out: hf_transfer.compare(["full"], data="images", out=out),
        lambda out: hf_transfer.evaluate("model", "images", out=out),
        lambda out: hf_transfer.explain("model", "images", out=out),
        lambda out: hf_transfer.embed("model", "images", out=out),
        lambda out: hf_transfer.embed("model", "images", out=out / "features.npy"),
        lambda out: hf_transfer.export("model", out / "model.onnx"),
        lambda out: hf_transfer.add_images("model", "images", out=out),
    ],
)
def test_results_that_could_not_be_written_are_refused_before_the_work(taken, work):
    """Neither the model nor the images are there: they are not looked for first."""
    with pytest.raises(UserError, match="--out .*(is a file|is below)"):
        work(taken)


@pytest.mark.parametrize(
    ("name", "beside", "work"),
    [
        ("x.npy", "x.txt", lambda out: hf_transfer.embed("model", "images", out=out)),
        ("x.xml", "x.bin", lambda out: hf_transfer.export("model", out, to="openvino")),
        ("x.pte", "x.json", lambda out: hf_transfer.export("model", out, to="executorch")),
    ],
)
def test_a_file_of_yours_is_not_replaced_by_what_is_written_beside_another(
    tmp_path, name, beside, work
):
    (tmp_path / beside).write_text("mine")
    with pytest.raises(UserError, match=f"{beside} is written beside it, and is there already"):
        work(tmp_path / name)
    (tmp_path / name).write_text("of an export before, as is what lies beside it")
    assert file_to_write(tmp_path / name, (Path(beside).suffix,)) == tmp_path / name
