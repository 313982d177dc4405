"""One server: its limits, visitors, trainings and models, and what all tabs need of them."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hf_transfer.base.boundary import untrusted
from hf_transfer.base.errors import UserError
from hf_transfer.data.digits import DIGITS
from hf_transfer.space import examples
from hf_transfer.space.jobs import Job, Jobs
from hf_transfer.space.limits import Limits, Refused, without_paths
from hf_transfer.space.models import Networks, Shown, shown_model
from hf_transfer.space.networks import LETTERS, chosen, networks_here
from hf_transfer.space.similar import carried, learn
from hf_transfer.space.visitors import Visitor, Visitors

Made = TypeVar("Made")
EXAMPLES = 6  # images to click on, where none are given


class Site:
    """What one server knows; `models` are those that every visitor sees, by title.

    `shown` are images to click on, and `alone` says that no other machine reaches the page.
    """

    def __init__(
        self,
        models: Sequence[str | Path] = (),
        backbones: Sequence[str] = (),
        limits: Limits | None = None,
        shown: Sequence[str | Path] = (),
        alone: bool = True,
    ) -> None:
        self.limits = limits or Limits()
        self.networks = Networks()
        self.models: dict[str, Shown] = {}
        for one in models:
            model = shown_model(one, alone=alone)
            model.title = free_title(model.title, self.models)
            self.networks.ask(model, lambda _: None)  # a model that cannot be loaded is told now
            self.models[model.title] = model
        self.visitors = Visitors(self.limits)
        self.here = {LETTERS: LETTERS, **networks_here(backbones)}
        self.jobs = Jobs(self.limits, self.visitors.root / "trainings.log")
        self.jobs.every = self._sweep
        self.letters = self.visitors.root / "letters"
        self._learning: Job | None = None
        self.digits = examples.unseen_digits(self.visitors.root / "digits")
        self.examples = list(map(Path, shown)) or self._examples()
        self._closed = threading.Event()
        self._learner = threading.Thread(target=self._learn_images, daemon=True)
        self._learner.start()

    @property
    def offline(self) -> bool:
        """Whether nothing is fetched from the Hub."""
        from huggingface_hub import constants

        return bool(constants.HF_HUB_OFFLINE)

    def learn_letters(self) -> None:
        """Begin to train the built-in network, once; trainings that need it come after it."""
        if self._learning is None or self._learning.state in ("failed", "stopped"):
            asked = {"letters": str(self.letters), "images": examples.LETTERS}
            folder = self.visitors.root / "learning-letters"
            self._learning = self.jobs.submit(Job(asked, folder, leased=False))

    def backbone(self, text: str) -> str:
        """Return the backbone id of a visitor's choice. Raises Refused."""
        found = chosen(text, self.here, self.offline)
        if found != LETTERS:
            return found
        self.learn_letters()
        if self._learning is None or self._learning.state != "done":
            raise Refused(
                "The built-in network is learning its letters, which takes about a minute. Try "
                "again then, or run the example, which waits for it."
            )
        return str(self.letters)

    def models_of(self, visitor: Visitor) -> dict[str, Shown]:
        """Return the models that a visitor sees: the server's, and their own."""
        return {**self.models, **visitor.models}

    def examples_of(self, visitor: Visitor | None = None) -> list[Path]:
        """Return the images to click on: the server's and, with the example's models, digits."""
        own = visitor.models.values() if visitor else ()
        read = any(model.report and model.report.labels == DIGITS for model in own)
        more = self.digits if read and self.examples != self.digits else []
        return [*self.examples, *more]

    def _examples(self) -> list[Path]:
        """Return an image of each class that the models' reports carry; without models, digits."""
        if not self.models:
            return self.digits
        found: dict[str, Path] = {}
        for number, model in enumerate(self.models.values()):
            if model.report is not None and model.may_show:
                with contextlib.suppress(UserError), untrusted("the report's images"):
                    folder = self.visitors.root / "examples" / str(number)
                    for file, label in zip(*carried(model.report, folder), strict=True):
                        found.setdefault(label, file)
        return list(found.values())[:EXAMPLES]

    def _learn_images(self) -> None:
        folder = self.visitors.root / "known"
        learn(tuple(self.models.values()), self.networks, folder, self._closed.is_set)

    def close(self) -> None:
        """End all trainings and remove everything."""
        self._closed.set()
        self._learner.join(10)
        self.jobs.close()
        self.networks.close()
        self.visitors.close()

    def _sweep(self) -> None:
        self.visitors.sweep()
        self.networks.forget_missing()


def free_title(title: str, taken: dict[str, Any]) -> str:
    """Return a title that is not taken: "Fine-tuned", "Fine-tuned 2", ..."""
    found, count = title, 1
    while found in taken:
        count += 1
        found = f"{title} {count}"
    return found


def told(call: Callable[..., Made]) -> Callable[..., Made]:
    """Show what a visitor can mend as a message on the page, without this machine's paths."""
    import gradio as gr

    @functools.wraps(call)
    def shown(*args: Any, **kwargs: Any) -> Made:
        try:
            with untrusted("what was sent"):
                return call(*args, **kwargs)
        except gr.Error:
            raise
        except UserError as error:
            raise gr.Error(without_paths(str(error)), duration=20, print_exception=False) from error

    return shown
