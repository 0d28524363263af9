"""The report of an evaluation: one self-contained HTML file with tables, plots and pictures to compare."""

import base64
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from egic.errors import UserError
from egic.report import curves, evaluation_folder, picture_crops
from egic.report.curves import METRICS, Metric, is_reliable, number
from egic.report.evaluation_folder import CODEC, Evaluation
from egic.report.paired import differences
from egic.report.plots import Plot, all_plots
from egic.report.published import POINTS, SAVINGS

NAME = "report.html"
PICTURE_BYTES = 6_500_000
"""Limit in bytes for all embedded pictures, before base64 adds a third, so that the file stays below 10 MB."""


def write_report(folder: Path) -> Path:
    """Write report.html and plots/*.png into an evaluation folder; returns the report's path.

    Missing metrics, pictures and curves are omitted. Raises UserError for a folder that is not an evaluation folder.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = evaluation_folder.read(folder)
    plots = all_plots(found.sets)
    (folder / "plots").mkdir(exist_ok=True)
    for plot in plots:
        for theme, png in plot.png.items():
            (folder / "plots" / f"{plot.name}{'' if theme == 'light' else f'_{theme}'}.png").write_bytes(png)
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    comparisons, stored = picture_crops.comparisons(evaluation_folder.shown(found), PICTURE_BYTES)
    html = templates.get_template("page.html.j2").render(
        name=folder.absolute().name, num_pictures=len({row["name"] for row in found.rows}), models=list(models(found)),
        plots=[_embedded(plot) for plot in plots], columns=columns(found.sets), table=table(found), bd=bd_tables(found),
        paired=paired_table(found),
        published=POINTS, savings=SAVINGS, comparisons=comparisons, stored=stored, skipped=found.skipped,
        unreliable=any(not cell.reliable for line in table(found) for cell in line["values"]),
    )  # fmt: skip
    path = folder / NAME
    aside = folder / f".{NAME}.{os.getpid()}"
    aside.write_text(html)
    aside.replace(path)
    return path


def _embedded(plot: Plot) -> dict:
    uris = {theme: "data:image/png;base64," + base64.b64encode(png).decode() for theme, png in plot.png.items()}
    return {"name": plot.name, "title": plot.title, "text": plot.text, "uris": uris}


def text(value: float | None, digits: int) -> str:
    """A number with so many decimals, or a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def columns(sets: Sequence[Mapping]) -> list[Metric]:
    """The metrics with at least one value."""
    return [m for m in METRICS.values() if any(number(e, m.name) is not None for e in sets)]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A table cell: value as text, whether it is reliable, and the interval of a mean."""

    text: str
    reliable: bool = True
    interval: str = ""


def cell(entry: Mapping, metric: Metric) -> Cell:
    """The table cell of a metric of an entry of sets.json."""
    value = number(entry, metric.name)
    if value is None:
        return Cell(text=text(None, 0))
    ends = (entry.get("intervals") or {}).get(metric.name)
    interval = f"{text(ends[0], metric.digits)} to {text(ends[1], metric.digits)}" if ends else ""
    return Cell(text=text(value, metric.digits), reliable=is_reliable(entry, metric), interval=interval)


def table(found: Evaluation) -> list[dict]:
    """One line per label and point: rate, metrics with their intervals, and mean seconds."""
    labels = list(dict.fromkeys(e["label"] for e in found.sets))
    sets = sorted(found.sets, key=lambda e: labels.index(e["label"]))
    lines: list[dict] = []
    for e in sets:
        first = not lines or lines[-1]["label"] != e["label"]
        of_point = [r for r in found.rows if (r["label"], r["point"]) == (e["label"], e["point"])]
        values = [cell(e, metric) for metric in columns(found.sets)]
        counts = [count for name in ("num_patches", "num_patches64") if (count := number(e, name)) is not None]
        line = {
            "label": e["label"], "point": e["point"],
            "first": first, "span": sum(other["label"] == e["label"] for other in sets),
            "num_pictures": text(number(e, "num_pictures"), 0), "bpp": text(number(e, "bpp"), 4), "values": values,
            "num_patches": " / ".join(text(n, 0) for n in counts) or "–",
            "encode_s": text(evaluation_folder.mean(number(r, "encode_s") for r in of_point), 2),
            "decode_s": text(evaluation_folder.mean(number(r, "decode_s") for r in of_point), 2),
        }  # fmt: skip
        lines.append(line)
    return lines


def models(found: Evaluation) -> Iterator[dict]:
    """One card per model and rate: its metrics at the lowest and the highest alpha."""
    files: dict[tuple, list[Mapping]] = {}
    for e in found.sets:
        if e["codec"] == CODEC:
            files.setdefault((e["label"], number(e, "bpp")), []).append(e)
    for (label, bpp), entries in files.items():
        ends = sorted(entries, key=lambda e: number(e, "alpha") or 0)
        ends = [ends[0], ends[-1]] if len(ends) > 1 else ends
        digests = {r["model_digest"] for r in found.rows if r["label"] == label and r.get("model_digest")}
        shown = [m for m in columns(entries) if m.name in ("psnr_db", "lpips_vgg", "dists", "fid256", "fid64")]
        yield {
            "label": label, "bpp": text(bpp, 4), "digests": sorted(d[:12] for d in digests),
            "points": [short_point(e) for e in ends],
            "quality": ends[0].get("quality"),
            "lines": [
                (m, [cell(e, m) for e in ends]) for m in shown
            ],
        }  # fmt: skip


def short_point(entry: Mapping) -> str:
    """A point's name without the quality, for tables that show the quality elsewhere."""
    alpha = number(entry, "alpha")
    return entry["point"] if alpha is None else f"alpha {alpha:g}"


def bd_tables(found: Evaluation) -> list[dict]:
    """Tables of BD-rate and BD-metric of every curve against a reference, per metric.

    The first reference is the curve that most others can be compared with, preferably of another codec. The second is
    the first model at its lowest alpha, as reference for its other alphas. Curves and metrics without any value are
    omitted; `reasons` lists why.
    """
    kinds = {e["label"]: e["codec"] for e in found.sets}
    of_metric = {m: {c.label: c for c in curves.curves(found.sets, m.name)} for m in columns(found.sets)}
    labels = list(dict.fromkeys(label for of_label in of_metric.values() for label in of_label))
    score = dict.fromkeys(labels, 0)
    for a, b in combinations(labels, 2):
        good = any(_bd(of_label, a, b)[0] for of_label in of_metric.values())
        score[a] += good
        score[b] += good
    if not any(score.values()):
        return []
    first = max(labels, key=lambda label: (score[label], kinds.get(label, CODEC) != CODEC))
    alphas = [e for e in found.sets if e["codec"] == CODEC and number(e, "alpha") is not None]
    lowest = min(alphas, key=lambda e: e["alpha"], default=None)
    references = dict.fromkeys([first, *([curves.curve_label(lowest)] if lowest else [])])
    tables = [bd_table(of_metric, labels, reference) for reference in references]
    return [table for table in tables if table["lines"]]


def bd_table(of_metric: Mapping[Metric, Mapping[str, curves.Curve]], labels: Sequence[str], reference: str) -> dict:
    """Every curve against one reference; see `bd_tables`."""
    lines: list[dict] = []
    reasons: dict[str, None] = {}
    for label in (label for label in labels if label != reference):
        cells = {metric: _bd(of_label, reference, label) for metric, of_label in of_metric.items()}
        reasons |= dict.fromkeys(reason for _, reason in cells.values() if reason)
        if any(found for found, _ in cells.values()):
            lines.append({"label": label, "cells": {metric: found for metric, (found, _) in cells.items()}})
    shown = [metric for metric in of_metric if any(line["cells"][metric] for line in lines)]
    for line in lines:
        line["cells"] = [line["cells"][metric] for metric in shown]
    return {"reference": reference, "metrics": shown, "lines": lines, "reasons": list(reasons)}


def paired_table(found: Evaluation) -> dict | None:
    """Table of mean differences between each point of a model and the others (`paired`), with interval and wins."""
    listed = differences(found.rows)
    metrics = [m for m in METRICS.values() if any(d.metric == m for d in listed)]
    lines: dict[tuple[str, str, str], dict[Metric, dict]] = {}
    for d in listed:
        low, high = (signed(end, d.metric.digits) for end in d.interval)
        settled = d.interval[0] > 0 or d.interval[1] < 0
        better = settled and (d.mean < 0) == d.metric.lower_is_better
        lines.setdefault((d.label, d.point, d.other), {})[d.metric] = {
            "mean": signed(d.mean, d.metric.digits), "interval": f"{low} to {high}", "better": better,
            "worse": settled and not better, "wins": f"{d.wins} of {d.num_pictures}",
        }  # fmt: skip
    if not lines:
        return None
    return {
        "metrics": metrics,
        "lines": [
            {"label": label, "point": point, "other": other, "cells": [cells.get(m) for m in metrics]}
            for (label, point, other), cells in lines.items()
        ],
    }


def signed(value: float, digits: int) -> str:
    """A difference with its sign."""
    return f"{value:+.{digits}f}".replace("-", "−")


def _bd(of_label: Mapping[str, curves.Curve], reference: str, test: str) -> tuple[dict | None, str]:
    """BD-rate and BD-metric as text, or None and the reason."""
    if reference not in of_label or test not in of_label:
        return None, ""
    a, b = of_label[reference], of_label[test]
    found, reason = {"rate": "–", "metric": "–"}, ""
    try:
        found["rate"] = signed(curves.bd_rate(a, b), 1) + " %"
    except UserError as error:
        reason = str(error)
    try:
        unit = f" {a.metric.unit}" if a.metric.unit else ""
        found["metric"] = signed(curves.bd_metric(a, b), a.metric.digits) + unit
    except UserError as error:
        reason = reason or str(error)
    return (None if set(found.values()) == {"–"} else found), reason
