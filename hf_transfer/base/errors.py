"""The errors of a user's mistake: one line that says what, where and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """A mistake that the user can mend: one line that says what, where and what to do."""


class RecipeError(UserError):
    """Everything that is wrong with a recipe: `problems`, each "recipe.yaml:14: what; remedy"."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class DataError(UserError):
    """A data set that cannot be used as it is."""


@contextmanager
def data_of(recipe: str) -> Iterator[None]:
    """Put the name of a recipe before what is wrong with its data, where a run has two."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{recipe}: {error}") from error


def unfinished(run: Path) -> str:
    """Return the line about a run whose folder holds a recipe and no model yet."""
    return (
        f"the run {run} is not finished: it has no model yet; resume it with "
        f"`hf-transfer train {run / 'recipe.yaml'} --out {run} --resume`"
    )
