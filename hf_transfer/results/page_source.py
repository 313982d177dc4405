"""The page's account of what the backbone learned first: from which images, and how it went."""

from __future__ import annotations

from markupsafe import Markup

from hf_transfer.results.charts import Band, Line, line_chart
from hf_transfer.results.learned_first import learned_first
from hf_transfer.results.report import RunReport
from hf_transfer.results.words import JsonDict, is_number, metric_title, show_metric


def source(report: RunReport) -> JsonDict | None:
    """Return what the backbone was trained on first, and what of images without labels it learned
    from later; None where there was neither."""
    facts, text = report.source, learned_first(report)
    if not text:
        return None
    before, after = facts.get("before") or {}, facts.get("metrics") or {}
    return {
        "title": "Learned first" if facts else "Learned without labels",
        "text": text,
        "rows": [
            (metric_title(name), show_metric(name, before[name]), show_metric(name, after[name]))
            for name in before
            if is_number(before[name]) and is_number(after.get(name))
        ],
        "chart": _chart(facts),
    }


def _chart(facts: JsonDict) -> Markup | None:
    """Return the probe's values over the epochs, from before the first one."""
    name, curve = facts.get("probe"), facts.get("curve") or []
    if not name or not curve:
        return None
    first = (facts.get("before") or {}).get(name)
    points = [(0.0, first)] if is_number(first) else []
    points += [(row[0], row[1]) for row in curve]
    bands = [Band(str((facts.get("phases") or ["source"])[0]), 0.0, points[-1][0], "")]
    line = Line("probe", "valid", tuple(points), (), marked=len(points) <= 80)
    return Markup(line_chart(metric_title(name), [line], bands, "{:.3g}".format))  # noqa: S704
