"""Images to answers for the page: what each model says, why, and what it resembles."""

from __future__ import annotations

import csv
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from transformers import PreTrainedModel

from hf_transfer.base.errors import UserError
from hf_transfer.results.words import METRIC_TITLES
from hf_transfer.serving.familiar import familiar_of
from hf_transfer.serving.predict import Prediction, predict
from hf_transfer.space.drawn import answer_card, answer_table, figures, note, panel
from hf_transfer.space.limits import Refused
from hf_transfer.space.models import Shown
from hf_transfer.space.site import Site
from hf_transfer.space.uploads import data_address, refusal, thumbnail
from hf_transfer.space.visitors import Visitor

SIMILAR = 4
FIGURE_PX = 160


@dataclass(frozen=True)
class Asked:
    """One image that a visitor sent: its name and file."""

    name: str
    file: Path


def asked_of(files: Sequence[str | Path], site: Site) -> list[Asked]:
    """Return the images to answer. Raises Refused for too many, or for a single odd one."""
    if len(files) > site.limits.tried:
        raise Refused(
            f"The page answers {site.limits.tried} images at once, and these are {len(files):,}. "
            "`hf-transfer predict` answers any number."
        )
    found = [Asked(Path(file).name, Path(file)) for file in files]
    if len(found) == 1 and (why := refusal(found[0].file, site.limits)):
        raise Refused(why)
    return found


def answers(images: Sequence[Asked], models: Sequence[Shown], site: Site) -> list[list[Prediction]]:
    """Return for each image what each model says; what is no image has an error."""
    whys = [refusal(image.file, site.limits) for image in images]
    good = [image.file for image, why in zip(images, whys, strict=True) if not why]
    columns = []
    for model in models:
        found = iter(site.networks.ask(model, lambda network: _said(network, good)))
        columns.append(
            [
                Prediction(image.name, error=why) if why else _cleaned(next(found), image)
                for image, why in zip(images, whys, strict=True)
            ]
        )
    return [list(row) for row in zip(*columns, strict=True)]


def _said(network: PreTrainedModel, files: Sequence[Path]) -> list[Prediction]:
    return predict(network, files, unknown=_knows(network)) if files else []


def _knows(network: PreTrainedModel) -> bool:
    """Return whether a model can tell images that are unlike anything in training."""
    try:
        familiar_of(network)
    except UserError:
        return False
    return True


def _cleaned(row: Prediction, image: Asked) -> Prediction:
    """Return an answer without the server's paths in it."""
    if not row.error:
        return row
    why = row.error.removeprefix(f"{row.file}: ").replace(str(image.file), "the file")
    text = f"This image cannot be read: {why}. Try a JPEG, PNG or WebP file."
    return Prediction(image.name, error=text)


def one_view(image: Asked, models: Sequence[Shown], rows: Sequence[Prediction], site: Site) -> str:
    """Return what the models say of one image, side by side."""
    cards = []
    for model, row in zip(models, rows, strict=True):
        card = answer_card(model.title, _short_told(model), row)
        near = "" if row.error else _similar(image, model, site)
        cards.append(f"<div>{card}{near}</div>")
    return panel(f'<div class="hft-cards">{"".join(cards)}</div>')


def many_view(
    images: Sequence[Asked],
    models: Sequence[Shown],
    rows: Sequence[Sequence[Prediction]],
    site: Site,
) -> str:
    """Return a table of what the models say of many images."""
    table = []
    for image, row in zip(images, rows, strict=True):
        try:
            thumb = thumbnail(image.file, site.limits, 48)
        except (Refused, OSError):
            thumb = ""
        table.append((image.name, thumb, [_in_short(one) for one in row]))
    return answer_table([model.title for model in models], table)


def _in_short(row: Prediction) -> str:
    if row.error:
        return row.error
    if row.values is not None:
        return ", ".join(f"{name} {value:.4g}" for name, value in row.values)
    told = row.labels[:1] if row.threshold is None else row.there
    words = ", ".join(f"{name} {share:.0%}" for name, share in told) or "none"
    return f"unlike training ({words})" if row.unknown else words


def _short_told(model: Shown) -> str:
    if model.report is None or model.report.headline is None:
        return "accuracy not measured"
    split, values = model.report.measured
    leads, value = model.report.leading_metric, model.report.headline
    number = f"{value:.1%}" if leads.endswith("accuracy") else f"{value:.3f}"
    return f"{METRIC_TITLES[leads]} {number} on {values.get('n', 0):,} {split} images"


def _similar(image: Asked, model: Shown, site: Site) -> str:
    """Return the images of a model that it finds most similar, where they may be seen."""
    from hf_transfer.serving.embed import embed

    known = model.known
    if known is None:
        return ""
    found = site.networks.ask(model, lambda network: embed(network, [image.file], keep=False))
    cells = []
    for file, label, cosine in known.near(found.features[0], SIMILAR):
        try:
            cells.append((thumbnail(file, site.limits), label, f"{cosine:.0%} alike"))
        except (Refused, OSError):
            continue
    return f"<h4>{known.title}</h4>{figures(cells, 'hft-figures small')}" if cells else ""


def why_view(image: Asked, label: str | None, models: Sequence[Shown], site: Site) -> str:
    """Return where each model sees a label, as pictures. Raises UserError."""
    pairs = []
    for model in models:
        try:
            picture, told_label, words = explained(image, label, model, site)
        except UserError as error:
            pairs.append(("", model.title, str(error)))
            continue
        pairs.append((data_address(picture), model.title, f"{told_label} {words}"))
    shown = [pair for pair in pairs if pair[0]]
    missing = "".join(note(f"{title}: {why}") for address, title, why in pairs if not address)
    text = "Brighter places speak for the label; dark ones do not count, or speak against it."
    title = f"Where the models see {label or 'the likeliest label'}"
    return panel(f"{figures(shown)}{missing}{note(text)}", title)


def explained(
    image: Asked, label: str | None, model: Shown, site: Site
) -> tuple[Image.Image, str, str]:
    """Return the picture under its heat map, the label and its probability. Raises UserError."""
    from hf_transfer.serving.explain import explain

    (found,) = site.networks.ask(model, lambda net: explain(net, [image.file], label=label or None))
    if found.error:
        raise Refused(found.error.replace(str(image.file), "the image"))
    overlay = found.overlay().resize((FIGURE_PX * 2, FIGURE_PX * 2), Image.Resampling.BICUBIC)
    share = f"{found.probability:.1%}" if found.probability is not None else f"{found.value:.4g}"
    return overlay, found.label or "", share


def write_csv(
    visitor: Visitor,
    images: Sequence[Asked],
    models: Sequence[Shown],
    rows: Sequence[Sequence[Prediction]],
) -> Path:
    """Write the answers as a table with a row for each image and model; return the file."""
    place = visitor.served / secrets.token_urlsafe(16)
    place.mkdir(parents=True)
    path = place / "answers.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "model", "label", "probability", "error"])
        for image, row in zip(images, rows, strict=True):
            for model, one in zip(models, row, strict=True):
                pairs = one.values if one.values is not None else one.labels
                for name, number in pairs or (("", ""),):
                    shown = f"{number:.6g}" if isinstance(number, float) else ""
                    words = [_no_formula(cell) for cell in (image.name, model.title, name)]
                    table.writerow([*words, shown, _no_formula(one.error or "")])
    return path


def _no_formula(cell: str) -> str:
    """Return a cell that a spreadsheet does not take for a formula."""
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell
