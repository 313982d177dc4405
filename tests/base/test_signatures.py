"""What a public function is given is compared with its signature before anything else happens."""

import inspect
from pathlib import Path

import numpy as np
import pytest

import hf_transfer
from hf_transfer.base.errors import UserError
from hf_transfer.base.signatures import checked

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


def test_what_fits_an_annotation_passes_and_what_does_not_is_told_in_words():
    @checked
    def one(
        where: "str | Path" = ".",
        seed: "int" = 0,
        share: "float | None" = None,
        quick: "bool" = False,
        names: "Sequence[str]" = (),  # noqa: F821
        window: "tuple[float, float] | None" = None,
        model: "PreTrainedModel | None" = None,  # noqa: F821
    ) -> None: ...

    for fits in (
        {"where": Path("x"), "seed": np.int64(3), "share": 1, "quick": np.bool_(True)},
        {"names": ["a"], "window": [1, 2.5], "share": np.float32(0.5)},
        {"names": np.array(["a", "b"]), "window": None, "share": None},
    ):
        one(**fits)
    refused = {
        "where": [(None, "is None; it takes str or Path"), (" ", "is empty")],
        "seed": [("3", "is of type str; it takes int"), (True, "is of type bool; it takes int")],
        "quick": [("False", "is of type str; it takes bool"), (None, "is None; it takes bool")],
        "names": [("a", "is of type str; it takes Sequence"), ({"b", "a"}, "is a set of str")],
        "window": [((1,), "is a tuple of int; it takes tuple"), (3, "is of type int")],
        "share": [(float("nan"), "is nan, which is not a number")],
        "model": [(3, "is of type int; it takes PreTrainedModel or None")],
    }
    for name, cases in refused.items():
        for value, words in cases:
            with pytest.raises(UserError, match=f"^one: {name} {words}"):
                one(**{name: value})
    bare = type("Bare", (), {"state_dict": None})
    loaded = type("PreTrainedModel", (bare,), {"backbone": None})
    one(model=loaded())
    with pytest.raises(UserError, match="model is a PreTrainedModel that neither load_backbone"):
        one(model=type("PreTrainedModel", (bare,), {})())
    with pytest.raises(UserError, match="where holds a NUL character"):
        one("a\0b")
    with pytest.raises(TypeError, match="unexpected keyword"):  # as Python says it
        one(other=1)


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
