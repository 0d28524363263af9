"""The report of an evaluation: one HTML file that needs nothing else, with tables, plots and pictures to compare."""

import base64
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from egic.errors import UserError
from egic.report import curves, evaluation_folder, picture_crops
from egic.report.curves import METRICS, Metric, is_reliable, number
from egic.report.evaluation_folder import Evaluation
from egic.report.plots import Plot, all_plots
from egic.report.published import POINTS

NAME = "report.html"
PICTURE_BYTES = 6_500_000
"""Of all embedded pictures together, before base64 adds a third: the file stays below 10 MB."""


def write_report(folder: Path) -> Path:
    """Write report.html and plots/*.png into an evaluation folder; returns the report's path.

    Missing metrics, pictures and curves leave gaps, never errors. Raises UserError for what is no evaluation folder.
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
        plots=[_embedded(plot) for plot in plots], columns=columns(found.sets), table=table(found), bd=bd_table(found),
        published=POINTS, comparisons=comparisons, stored=stored, skipped=found.skipped,
        unreliable=any(e.get("reliable") is False for e in found.sets),
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
    """A number with that many decimals, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def columns(sets: Sequence[Mapping]) -> list[Metric]:
    """The metrics of which there is any value."""
    return [m for m in METRICS.values() if any(number(e, m.name) is not None for e in sets)]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A value as text, and whether it is to be doubted."""

    text: str
    reliable: bool = True


def table(found: Evaluation) -> list[dict]:
    """One line per label and point: rate, metrics and mean seconds."""
    labels = list(dict.fromkeys(e["label"] for e in found.sets))
    sets = sorted(found.sets, key=lambda e: labels.index(e["label"]))
    lines: list[dict] = []
    for e in sets:
        first = not lines or lines[-1]["label"] != e["label"]
        of_point = [r for r in found.rows if (r["label"], r["point"]) == (e["label"], e["point"])]
        values = [Cell(text=text(number(e, m.name), m.digits), reliable=is_reliable(e, m)) for m in columns(found.sets)]
        line = {
            "label": e["label"], "point": e["point"],
            "first": first, "span": sum(other["label"] == e["label"] for other in sets),
            "num_pictures": text(number(e, "num_pictures"), 0), "bpp": text(number(e, "bpp"), 4), "values": values,
            "num_patches": text(number(e, "num_patches"), 0),
            "encode_s": text(evaluation_folder.mean(of_point, "encode_s"), 2),
            "decode_s": text(evaluation_folder.mean(of_point, "decode_s"), 2),
        }  # fmt: skip
        lines.append(line)
    return lines


def models(found: Evaluation) -> Iterator[dict]:
    """What each model reaches at its ends of alpha: one card per label and rate."""
    files: dict[tuple, list[Mapping]] = {}
    for e in found.sets:
        if e["codec"] == "egic":
            files.setdefault((e["label"], number(e, "bpp")), []).append(e)
    for (label, bpp), entries in files.items():
        ends = sorted(entries, key=lambda e: number(e, "alpha") or 0)
        ends = [ends[0], ends[-1]] if len(ends) > 1 else ends
        digests = {r["model_digest"] for r in found.rows if r["label"] == label and r.get("model_digest")}
        shown = [m for m in columns(entries) if m.name in ("psnr_db", "lpips_alex", "fid256")]
        yield {
            "label": label, "bpp": text(bpp, 4), "digests": sorted(d[:12] for d in digests),
            "points": [e["point"] for e in ends],
            "lines": [
                (m, [Cell(text=text(number(e, m.name), m.digits), reliable=is_reliable(e, m)) for e in ends])
                for m in shown
            ],
        }  # fmt: skip


def bd_table(found: Evaluation) -> dict | None:
    """BD-rate and BD-metric of every curve against one reference, per metric; None where no two can be compared.

    The reference is the curve with which most others can be compared, an anchor rather than a model. Curves without
    any value and metrics without any are left out; `reasons` tells why.
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
        return None
    reference = max(labels, key=lambda label: (score[label], kinds.get(label, "egic") != "egic"))
    lines: list[dict] = []
    reasons: dict[str, None] = {}
    for label in labels:
        if label == reference:
            continue
        cells = {metric: _bd(of_label, reference, label) for metric, of_label in of_metric.items()}
        reasons |= dict.fromkeys(reason for _, reason in cells.values() if reason)
        if any(cell for cell, _ in cells.values()):
            lines.append({"label": label, "cells": {metric: cell for metric, (cell, _) in cells.items()}})
    shown = [metric for metric in of_metric if any(line["cells"][metric] for line in lines)]
    for line in lines:
        line["cells"] = [line["cells"][metric] for metric in shown]
    return {"reference": reference, "metrics": shown, "lines": lines, "reasons": list(reasons)}


def _bd(of_label: Mapping[str, curves.Curve], reference: str, test: str) -> tuple[dict | None, str]:
    """BD-rate and BD-metric as text, or the reason why there is neither."""
    if reference not in of_label or test not in of_label:
        return None, ""
    a, b = of_label[reference], of_label[test]
    cell, reason = {"rate": "–", "metric": "–"}, ""
    try:
        cell["rate"] = f"{curves.bd_rate(a, b):+.1f} %".replace("-", "−")
    except UserError as error:
        reason = str(error)
    try:
        unit = f" {a.metric.unit}" if a.metric.unit else ""
        cell["metric"] = f"{curves.bd_metric(a, b):+.{a.metric.digits}f}{unit}".replace("-", "−")
    except UserError as error:
        reason = reason or str(error)
    return (None if set(cell.values()) == {"–"} else cell), reason
