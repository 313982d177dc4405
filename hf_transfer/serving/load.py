"""A finished model as one object: what one can do with it are its methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hf_transfer.base.signatures import checked
from hf_transfer.recipe.specs import DataSpec
from hf_transfer.serving.embed import Embeddings, embed
from hf_transfer.serving.evaluate import evaluate
from hf_transfer.serving.explain import BATCH, Explanation, explain
from hf_transfer.serving.export import export
from hf_transfer.serving.hub import push
from hf_transfer.serving.onnx_model import OnnxModel
from hf_transfer.serving.predict import Predictions, predict, ready


class Model:
    """A finished model, ready for images; `network` is the transformers model behind it.

    Answers are plain data: numbers, names, lists and numpy arrays.
    """

    def __init__(self, where: str | Path) -> None:
        self.network = ready(where)
        self._name = str(where)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, labels or targets, in the order of the outputs."""
        return self.network.backbone.labels

    @property
    def task(self) -> str:
        """What it answers: "classification", "multi_label" or "regression"."""
        return self.network.backbone.task

    def predict(
        self,
        images: Any,
        *,
        top: int | None = None,
        batch_size: int = 32,
        threads: int | None = None,
        workers: int = 0,
        unknown: bool = False,
        tta: bool | None = None,
    ) -> Predictions:
        """Return a prediction for each image, as `hf_transfer.predict` does.

        `images` are paths, folders, patterns, bytes, open files, PIL images, arrays, tensors, a
        column of `datasets`, or any iterable of these. The `top` likeliest labels are kept.
        `threads` decode, or `workers`, which are processes. With `unknown` each prediction says
        how unlike training its image is. `tta` averages answers with those for mirror images.
        """
        decoding: Any = {"batch_size": batch_size, "threads": threads, "workers": workers}
        return predict(self.network, images, top=top, unknown=unknown, tta=tta, **decoding)

    def evaluate(
        self,
        data: str | Path | DataSpec,
        *,
        compare: Model | PreTrainedModel | OnnxModel | str | Path | None = None,
        split: str | None = None,
        threshold: float | None = None,
        tta: bool | None = None,
        unknown: bool = False,
        group: str | None = None,
        out: str | Path | None = None,
        page_images: bool | None = None,
        batch_size: int = 32,
    ) -> dict[str, Any]:
        """Return metrics on labelled images, as `hf_transfer.evaluate` does."""
        return evaluate(
            self.network,
            data,
            compare=compare,
            split=split,
            threshold=threshold,
            tta=tta,
            unknown=unknown,
            group=group,
            out=out,
            page_images=page_images,
            batch_size=batch_size,
        )

    def embed(
        self,
        images: Any,
        *,
        group: str | None = None,
        batch_size: int = 32,
        keep: bool = True,
        out: str | Path | None = None,
    ) -> Embeddings:
        """Return the features of each image, as `hf_transfer.embed` does."""
        options: Any = {"group": group, "batch_size": batch_size, "keep": keep, "out": out}
        return embed(self.network, images, **options)

    def explain(
        self,
        images: Any,
        *,
        label: str | Sequence[str] | None = None,
        batch_size: int = BATCH,
        out: str | Path | None = None,
    ) -> list[Explanation]:
        """Return where in each image the model sees a label, as `hf_transfer.explain` does."""
        return explain(self.network, images, label=label, batch_size=batch_size, out=out)

    def export(
        self,
        out: str | Path,
        *,
        to: str = "onnx",
        half: bool = False,
        int8: bool = False,
        resize: bool = False,
        data: str | Path | DataSpec | None = None,
    ) -> dict[str, Any]:
        """Write one file for another runtime, as `hf_transfer.export` does."""
        options: Any = {"half": half, "int8": int8, "resize": resize, "data": data}
        return export(self.network, out, to=to, **options)

    def push(
        self,
        repo_id: str,
        *,
        private: bool = False,
        pr: bool = False,
        revision: str | None = None,
        license: str | None = None,
        language: str | Sequence[str] | None = None,
        token: str | None = None,
        message: str | None = None,
        check: bool = True,
        announce: Callable[[str], None] | None = None,
    ) -> str:
        """Upload the model and its card, as `hf_transfer.push` does; return the address."""
        return push(
            self._name,
            repo_id,
            private=private,
            pr=pr,
            revision=revision,
            license=license,
            language=language,
            token=token,
            message=message,
            check=check,
            announce=announce,
        )

    def __repr__(self) -> str:
        size = self.network.backbone.image.size
        return f"<{self._name}: {self.task}, {len(self.labels)} labels, {size} px>"


@checked
def load(where: str | Path) -> Model:
    """Return the finished model in a run folder, a model folder or a Hub repository.

    It is on the accelerator where there is one. Raises UserError where there is no model.
    """
    return Model(where)
