"""Advice in words: the answer, why, what to expect, and the tables behind it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from hf_transfer.base.console import WIDE
from hf_transfer.data.findings import public_name
from hf_transfer.deciding.depth import ENOUGH, FEW, enough
from hf_transfer.deciding.evidence import ANEW, Change
from hf_transfer.planning.text_table import table, wrapped
from hf_transfer.recipe.load import dump_recipe
from hf_transfer.recipe.tasks import CLASSIFICATION, REGRESSION
from hf_transfer.results.words import (
    listed,
    metric_phrase,
    metric_with_article,
    show_rate,
    show_seconds,
)

if TYPE_CHECKING:
    from hf_transfer.deciding.advise import Advice
    from hf_transfer.deciding.looks import BackboneAdvice
    from hf_transfer.recipe.specs import Recipe

IMBALANCE = 3.0  # largest class to smallest, from which it is told
BASELINES = {  # what scores without looking: in a sentence, and in a picture
    "classification": ("The largest class alone is", "largest class"),
    "multi_label": ("Chance scores", "chance"),
    "regression": ("Always answering the mean scores", "always the mean"),
}
NEARNESS = {
    "near": "near to what the backbone was trained on",
    "shifted": "shifted from what the backbone was trained on",
    "far": "far from what the backbone was trained on",
}


def answer(advice: Advice) -> str:
    """Return in a sentence what to freeze and what to unfreeze."""
    depth = advice.best.choice.depth
    if not depth.stages:
        return "Keep the whole backbone frozen: solve for the head, and stop there."
    if depth.train == ("all",):
        return "Solve for the head first, then unfreeze everything at small rates."
    return (
        f"Solve for the head first, then unfreeze the {depth.top} (from {depth.first} on) at "
        "small rates; keep all layers before that frozen."
    )


def sentences(advice: Advice) -> list[tuple[str, str]]:
    """Return (heading, sentence) for all that is to be known, the most important first."""
    best = advice.best
    found = [("why", f"{_capital(best.choice.why)}. {_sure(advice)}")]
    found.append(("expect", expected(advice)))
    found.append(("rates", _rates(advice)))
    if advice.cost_seconds is not None:
        found.append(("cost", f"About {show_seconds(advice.cost_seconds)} of training here."))
    found.append(("images", _images(advice)))
    found.append(("distance", nearness(best)))
    found.append(("more images", more_images(advice)))
    found += [(change.what, _change(change, advice.show)) for change in best.evidence.changes]
    return [*found, *(("note", f"{_capital(note)}.") for note in advice.notes)]


def expected(advice: Advice) -> str:
    """Return what score to expect on new images."""
    best, show = advice.best, advice.show
    depth, head = best.choice.depth, best.evidence.depths[0]
    low, high = best.expected_interval
    kept = f" of {advice.groups:,} groups" if advice.groups is not None else ""
    text = (
        f"{_capital(metric_with_article(advice.task.headline))} of about {show(best.expected)} on "
        f"new images ({show(low)} to {show(high)}), by probes on {advice.images:,} images{kept} "
        f"that did not see what they judge. {BASELINES[advice.task.name][0]} "
        f"{show(advice.baseline)}"
    )
    if best.expected <= advice.baseline:
        return f"{text}: looking at the images has not helped yet."
    if not depth.stages:
        return f"{text}."
    gain, error = depth.gain
    return (
        f"{text}, the head alone {show(head.value)}; features of all that would train tell "
        f"{show(depth.value)} ({show(gain, 3, '+')}, standard error {show(error, 3)}), which "
        "training may not reach."
    )


def nearness(backbone: BackboneAdvice) -> str:
    """Return how far the images are from the backbone's own, and how that was measured."""
    evidence = backbone.evidence
    text = f"The images are {NEARNESS[evidence.nearness]}"
    if evidence.distance is None:
        return f"{text}, judged by probes alone: the backbone has no BatchNorm statistics."
    found = evidence.distance
    text += (
        f": its BatchNorm layers get values at a Hellinger distance of {found.all:.2f} from those "
        f"in training (0 to 1; first layers {found.first:.2f}, last {found.last:.2f})."
    )
    if evidence.early and backbone.choice.depth.stages:
        text += " Gradients are largest in the early layers: they should move, too."
    return text


def more_images(advice: Advice) -> str:
    """Return whether more images would help, by the learning curve of the head."""
    curve, show = advice.best.evidence.curve, advice.show
    if advice.smallest < FEW:
        least, better = enough(advice.task, FEW), enough(advice.task, ENOUGH)
        return f"Yes: have {least} at least, to choose by, and better {better}."
    if curve.twice is None:
        return "There are too few images to tell whether more would help."
    now = curve.values[-1]
    ahead, low, high = curve.twice
    helps = "Yes" if low > now else "Probably" if ahead - now > 0.01 else "Hardly"
    points = ", ".join(
        f"{show(value)} with {count:,}"
        for count, value in zip(curve.images, curve.values, strict=True)
    )
    return (
        f"{helps}: twice as many would bring the head to about {show(ahead)} ({show(low)} to "
        f"{show(high)}); so far {points}."
    )


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def _sure(advice: Advice) -> str:
    choice = advice.best.choice
    if advice.smallest < FEW:
        return "The depth was not chosen by these images."
    words = {
        "sure": "The images leave little doubt.",
        "fairly sure": "The images make this likely, not certain.",
        "open": "The images cannot tell; this is the careful choice.",
    }
    return words[choice.sure]


def _rates(advice: Advice) -> str:
    phases = advice.recipe.phases
    if len(phases) < 2:
        return "None: the head is solved for exactly."
    phase = phases[-1]
    decay = getattr(phase, "layer_decay", None)
    text = f"{show_rate(phase.lr if isinstance(phase.lr, float) else None)} for the head"
    text += f", times {decay:g} for each group below it" if decay else ""
    still = "; normalisation statistics stay as they are" if phase.still_norms else ""
    return f"{text}; rising at first{still}."


def _images(advice: Advice) -> str:
    counts = advice.counts
    if advice.task is REGRESSION:
        return f"{advice.of:,} images with numbers: {listed(advice.labels, 5)}."
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    total = f"{advice.of:,} labelled images of {len(counts):,} {advice.task.nouns}"
    if counts[most] == counts[least]:
        return f"{total}, {counts[least]:,} of each."
    text = f"{total}, from {counts[least]:,} ({least}) to {counts[most]:,} ({most})"
    if advice.task is CLASSIFICATION and counts[most] >= IMBALANCE * counts[least]:
        text += "; classes are uneven: `loss: balanced` weighs them alike"
    return f"{text}."


def _change(change: Change, show: Callable[..., str]) -> str:
    verb = "would change" if change.what == ANEW else "changes"
    text = (
        f"{_capital(change.what)} {verb} the score of the head by {show(change.gain, 3, '+')} "
        f"on {change.images:,} images (standard error {show(change.error, 3)})"
    )
    if change.gain > 2 * change.error:
        return f"{text}: the recipe uses {'them' if change.what == ANEW else 'it'}."
    return f"{text}: not clearly better, so the recipe does not."


# --- print -----------------------------------------------------------------------------------


def format_advice(advice: Advice, width: int = WIDE) -> str:
    """Return the advice as text, folded to `width` columns."""
    parts = [wrapped(answer(advice), width)]
    side = max(len(heading) for heading, _ in sentences(advice)) + 2
    lines = []
    for heading, sentence in sentences(advice):
        lines += wrapped(f"{heading:{side}}{sentence}", width, side)
    parts.append(lines)
    if len(advice.backbones) > 1:
        parts.append(table(backbone_rows(advice), width))
    parts.append(table(depth_rows(advice), width))
    parts.append(table(probe_rows(advice), width))
    findings = [f"{one.kind}: {one.count:,}; {one.done}" for one in advice.findings]
    parts.append([line for one in findings for line in wrapped(one, width, 2)])
    passes = advice.best.evidence.passes
    end = (
        f"{passes:.1f} passes over {advice.images:,} images, {show_seconds(advice.seconds)} in all"
    )
    parts.append([f"{end}; nothing was trained."])
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def backbone_rows(advice: Advice) -> list[list[str]]:
    """Return the backbones as a table, best first; the first row is the headings."""
    show = advice.show
    rows = [
        ["backbone", ">expect", ">head alone", "behind the best's", "train", ">px", ">parameters"]
    ]
    for one in advice.backbones:
        behind = ""
        if one.behind is not None:
            behind = f"{show(one.behind[0], 3)} ± {show(1.96 * one.behind[1], 3)}"
        rows.append(
            [
                shown(one.id),
                show(one.expected, 3),
                show(one.evidence.depths[0].value, 3),
                behind,
                one.choice.depth.words,
                str(one.image_px),
                f"{one.parameters:,}",
            ]
        )
    return rows


def depth_rows(advice: Advice) -> list[list[str]]:
    """Return the depths that were compared as a table."""
    backbone, show = advice.best, advice.show
    rows = [["unfreeze", "from", ">probe", "95% interval", ">gain", ">standard error"]]
    for depth in backbone.evidence.depths:
        low, high = depth.interval
        gain, error = depth.gain
        chosen = " ←" if depth == backbone.choice.depth else ""
        rows.append(
            [
                f"{depth.words}{chosen}",
                depth.first,
                show(depth.value, 3),
                f"{show(low)} to {show(high)}",
                show(gain, 3, "+") if depth.stages else "",
                show(error, 3) if depth.stages else "",
            ]
        )
    return rows


def probe_rows(advice: Advice) -> list[list[str]]:
    """Return what each depth's features tell by themselves as a table."""
    backbone, show = advice.best, advice.show
    rows = [["features at", ">probe", "95% interval", ">nearest", ">LogME", ">gradient"]]
    gradients = backbone.evidence.gradients
    for one in backbone.evidence.probes:
        low, high = one.interval
        gradient = gradients.get(one.group)
        rows.append(
            [
                one.group,
                show(one.value, 3),
                f"{show(low)} to {show(high)}",
                show(one.neighbours, 3),
                f"{one.evidence:.2f}",
                "" if gradient is None else f"{gradient:.3g}",
            ]
        )
    return rows


def shown(backbone: str) -> str:
    """Return a backbone's name; of a folder on this machine without the folders above it."""
    return public_name(backbone) if os.path.isabs(backbone) else backbone


def recipe_text(advice: Advice, recipe: Recipe | None = None) -> str:
    """Return the recipe as a file, with what it is for in its first lines."""
    low, high = advice.best.expected_interval
    expect = f"{advice.best.expected:.2f} ({low:.2f} to {high:.2f})"
    lines = [
        "# recipe.yaml: written by hf-transfer advise",
        f"# for: {listed(advice.labels, 5)}; {advice.images:,} images looked at",
        "# run: hf-transfer train recipe.yaml",
        f"# expect: {metric_phrase(advice.task.headline)} {expect}, by probes out of fold",
    ]
    return (
        "\n".join(" ".join(line.split()) for line in lines)
        + f"\n{dump_recipe(recipe or advice.recipe)}"
    )
