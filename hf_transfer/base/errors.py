"""The errors of a user's mistake: one line that says what, where and what to do."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(ValueError):
    """A mistake that the user can mend: one line that says what, where and what to do."""


class RecipeError(UserError):
    """Everything that is wrong with a recipe: `problems`, each "recipe.yaml:14: what; remedy"."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class DataError(UserError):
    """A data set that cannot be used as it is."""
