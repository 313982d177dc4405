"""What a function is given is compared with its signature before anything else happens."""

from pathlib import Path

import numpy as np
import pytest

from hf_transfer.base.errors import UserError
from hf_transfer.base.signatures import checked


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
