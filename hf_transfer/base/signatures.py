"""What a public function is given, compared with its signature before anything else happens."""

from __future__ import annotations

import ast
import functools
import inspect
import math
import os
from collections.abc import Callable, Collection, Mapping, Set
from numbers import Integral, Real
from types import UnionType
from typing import Any, ParamSpec, TypeVar, get_origin

from hf_transfer.base.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")
Names = Mapping[str, Any]  # of the module of a function


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function, which raises UserError, a line with the name of the argument, where one
    has another type than its annotation says. Annotations are text, and import nothing."""
    parameters = inspect.signature(function).parameters
    kinds = {
        name: ast.parse(str(each.annotation), mode="eval").body for name, each in parameters.items()
    }
    places = [name for name, each in parameters.items() if each.kind is not each.KEYWORD_ONLY]
    several = next((n for n, each in parameters.items() if each.kind is each.VAR_POSITIONAL), "")

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        # What Python itself refuses, too many arguments or unknown ones, is left to Python.
        pairs = zip([several] * len(args) if several else places, args, strict=False)
        for name, value in (*pairs, *kwargs.items()):
            if name in kinds and (wrong := _wrong(value, kinds[name], function.__globals__)):
                raise UserError(f"{function.__name__}: {name} {wrong}")
        return function(*args, **kwargs)

    return call


def _wrong(value: Any, kind: ast.expr, names: Names) -> str | None:
    """Return what is wrong with a value in words that show nothing of it, None where it fits."""
    if isinstance(value, float) and math.isnan(value):
        return "is nan, which is not a number"
    if not _fits(value, kind, names):
        return f"{_is(value)}; it takes {_words(kind, names)}"
    bare = hasattr(value, "state_dict") and not hasattr(value, "backbone")
    if bare and "PreTrainedModel" in ast.unparse(kind):
        return (
            f"is a {type(value).__name__} that neither load_backbone nor load_model made; save it "
            "and its image processor with save_pretrained, and give that folder"
        )
    if isinstance(value, (str, os.PathLike)) and "Path" in ast.unparse(kind):
        if "\0" in str(value):
            return "holds a NUL character, which no path does"
        if not str(value).strip():  # as of a variable that is not set: a path would be this folder
            return "is empty"
    return None


def _fits(value: Any, kind: ast.expr, names: Names) -> bool:
    """Whether a value is of the type that an annotation says; unknown annotations fit all."""
    if isinstance(kind, ast.BinOp):
        return _fits(value, kind.left, names) or _fits(value, kind.right, names)
    if isinstance(kind, ast.Constant):
        return value is None
    if isinstance(kind, ast.Subscript):
        return _holds(value, kind, names)
    name = kind.attr if isinstance(kind, ast.Attribute) else getattr(kind, "id", "Any")
    if name == "Any":
        return True
    if name in PLAIN:
        return PLAIN[name](value)
    known = names.get(name)
    if isinstance(known, type):
        return isinstance(value, known)
    if get_origin(known) is Callable:
        return callable(value)
    if known is not None:  # an alias
        return isinstance(value, known) if isinstance(known, UnionType) else True
    return any(base.__name__ == name for base in type(value).__mro__)


def _holds(value: Any, kind: ast.Subscript, names: Names) -> bool:
    """Whether a value is a collection of what an annotation such as Sequence[str] says."""
    outer = ast.unparse(kind.value)
    if outer == "Callable":
        return callable(value)
    if outer not in ("Sequence", "tuple") or isinstance(value, (str, bytes, Mapping, Set)):
        return False
    if not isinstance(value, Collection):
        return False
    if isinstance(kind.slice, ast.Tuple):  # tuple[float, float]
        inner = kind.slice.elts
        return len(value) == len(inner) and all(
            _fits(each, one, names) for each, one in zip(value, inner, strict=True)
        )
    return all(_fits(each, kind.slice, names) for each in value)


PLAIN: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "Path": lambda value: isinstance(value, os.PathLike) and isinstance(os.fspath(value), str),
    "bool": lambda value: type(value).__name__ in ("bool", "bool_"),  # numpy's, too
    "int": lambda value: isinstance(value, Integral) and not isinstance(value, bool),
    "float": lambda value: (
        isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)
    ),
}


def _is(value: Any) -> str:
    """Return what a value of another type is, in words that show nothing of it."""
    if value is None:
        return "is None"
    if isinstance(value, (list, tuple, Set, Mapping)) and len(value):
        inside = ", ".join(sorted({type(each).__name__ for each in value})[:3])
        return f"is a {type(value).__name__} of {inside}"
    return f"is of type {type(value).__name__}"


def _words(kind: ast.expr, names: Names) -> str:
    """Return an annotation as words: "str, Path or None"."""
    if isinstance(kind, ast.Name) and isinstance(alias := names.get(kind.id), UnionType):
        parts = [each.__name__ for each in alias.__args__]
    else:
        parts = []
        while isinstance(kind, ast.BinOp):
            parts.insert(0, ast.unparse(kind.right))
            kind = kind.left
        parts.insert(0, ast.unparse(kind))
    return f"{', '.join(parts[:-1])} or {parts[-1]}" if len(parts) > 1 else parts[0]
