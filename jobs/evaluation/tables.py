"""Evaluation's results from its parts: rows per picture, sets of pictures, summaries for MLflow, and a sheet."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from tabulate import tabulate

from egic import pictures
from egic.file_size import bpp
from egic.metrics import fid_kid, measures, quality
from egic.report import evaluation_folder, matched_rates, panels
from egic.report.anchors import Anchor
from egic.report.curves import METRICS, is_reliable
from egic.report.evaluation_folder import CODEC, slug
from egic.report.matched_rates import together
from jobs.evaluation import parts as parts_
from jobs.evaluation.listing import Picture
from jobs.evaluation.parts import Parts, Task, alpha_mark
from jobs.storage import files

SCHEMA = pa.schema(
    [("label", pa.string()), ("codec", pa.string()), ("point", pa.string()), ("name", pa.string())]
    + [("height", pa.int64()), ("width", pa.int64()), ("quality", pa.int64()), ("interpolated", pa.bool_())]
    + [("alpha", pa.float64()), ("bytes", pa.int64())]
    + [(name, pa.float64()) for name in ("bpp", *quality.NAMES, "encode_s", "decode_s")]
    + [("model_digest", pa.string())]
)
"""Columns of rows.parquet; measures that were not computed, or not possible for a picture, are null."""


def is_interpolated(quality: int | None, rates: int) -> bool | None:
    """Whether a quality is between two of the `rates` that the model's gains were trained for; None for a model of one
    rate."""
    return None if quality is None else (quality * (rates - 1)) % 100 != 0


def rows(parts: Parts, task: Task, rates: Mapping[str, int], anchors: Sequence[Anchor], listed: Sequence[Picture]) -> \
        list[tuple[dict, str]]:  # fmt: skip
    """Rows of rows.parquet with the paths of their parts: models by label, quality, alpha and name, then other codecs.

    rates: of each model, by digest. Every picture must be finished.
    """
    ordered = sorted(listed, key=lambda p: p.name)
    found: list[tuple[dict, str]] = []
    for label, digest in sorted(task.labels.items()):
        for q in task.qualities[digest]:
            of_quality: list[tuple[dict, str]] = []
            for picture in ordered:
                path = parts.model(digest, picture, q)
                part = _finished(path)
                size = {name: part[name] for name in ("height", "width", "bytes", "encode_s", "decode_s")}
                size["bpp"] = bpp(part["bytes"], part["height"], part["width"])
                size |= {"quality": q, "interpolated": is_interpolated(q, rates[digest]), "model_digest": digest}
                for at in part["points"]:
                    what = {"label": label, "codec": CODEC, "name": picture.name}
                    what["point"] = evaluation_folder.point(q, at["alpha"])
                    row = dict.fromkeys(SCHEMA.names) | what | size | at
                    of_quality.append((row, files.suffixed(path, alpha_mark(at["alpha"]))))
            found += sorted(of_quality, key=lambda each: each[0]["alpha"] or 0)
    for anchor in anchors:
        for picture in ordered:
            for point, wanted in (parts.targets(task, picture) or {}).items():
                path = parts.anchor(anchor.codec, picture, wanted)
                part = _finished(path)
                values = {name: value for name, value in part["points"][0].items() if name != "alpha"}
                sides, times = (part["height"], part["width"]), (part["bytes"], part["encode_s"], part["decode_s"])
                found.append((matched_rates.row(anchor, point, picture.name, sides, *times, values), path))
    return found


def _finished(path: str) -> dict:
    part = parts_.read(path)
    assert part is not None  # required of the caller
    return part


def sets(
    found: Sequence[tuple[dict, str]], parts: Parts, listed: Sequence[Picture], names: Sequence[str]
) -> list[dict]:
    """Entries of sets.json for the result of `rows`, with the set measures in `names`."""
    entries = evaluation_folder.sets_of(row for row, _ in found)
    names = [name for name in fid_kid.NAMES if name in names]
    if not names:
        return entries
    patches = sorted({fid_kid.PATCH_OF[name] for name in names})
    by_name = {p.name: p for p in listed}
    used = [by_name[name] for name in sorted({row["name"] for row, _ in found})]
    original = together(parts_.read_features(parts.original(p), patches) for p in used)
    for entry in entries:
        group = [each for each in found if (each[0]["label"], each[0]["point"]) == (entry["label"], entry["point"])]
        decoded = together(parts_.read_features(path, patches) for _, path in group)
        entry |= evaluation_folder.distances(names, [row for row, _ in group], decoded, original)
    return entries


def summarise(sets: Sequence[Mapping], rows: Sequence[Mapping]) -> dict[str, float]:
    """num_pictures, bpp, seconds, and every measure at every point of the models, as metrics of an MLflow run.

    The name of a measure ends with its point, as in psnr_db_alpha_0.5; with several models it begins with the model's.
    """
    summary: dict[str, float] = {"num_pictures": sets[0]["num_pictures"]}
    for prefix, of_label in _models(sets):
        of_rows = [row for row in rows if row["label"] == of_label[0]["label"]]
        for name in ("bpp", "encode_s", "decode_s"):
            if (value := evaluation_folder.mean(row[name] for row in of_rows)) is not None:
                summary[prefix + name] = value
        for entry in of_label:
            suffix = "" if entry["point"] == evaluation_folder.ONLY else f"_{slug(entry['point'])}"
            summary |= {f"{prefix}{n}{suffix}": entry[n] for n in measures.NAMES if entry.get(n) is not None}
    return summary


def curve_rows(sets: Sequence[Mapping]) -> list[dict[str, float]]:
    """The models' curves as metrics `rd/...` over steps, so that MLflow can plot the curves of several runs together.

    The step is 100 alpha for a model of one rate (100 without ORP), and the quality for a model with rates, which has a
    curve per alpha: rd/alpha_0/psnr_db. With several models each name begins with the model's. Other codecs have no
    curves.
    """
    found = []
    for prefix, of_label in _models(sets):
        for entry in of_label:
            alpha, step = entry["alpha"], entry.get("quality")
            curve = "" if step is None or alpha is None else f"alpha_{alpha:g}/"
            if step is None:
                step = 100 if alpha is None else round(100 * alpha)
            values = {n: entry[n] for n in ("bpp", *measures.NAMES) if entry.get(n) is not None}
            found.append({"step": step} | {f"rd/{prefix}{curve}{name}": value for name, value in values.items()})
    return sorted(found, key=lambda row: row["step"])


def _models(sets: Sequence[Mapping]) -> Iterator[tuple[str, list[Mapping]]]:
    """Entries of each EGIC model, with the prefix of its names: none for a single model."""
    labels = sorted({entry["label"] for entry in sets if entry["codec"] == CODEC})
    for label in labels:
        yield f"{slug(label)}/" if len(labels) > 1 else "", [entry for entry in sets if entry["label"] == label]


def write_shown(folder: Path, found: Sequence[tuple[dict, str]], shown: Sequence[Picture], originals: list) -> None:
    """Originals and decoded pictures below `folder`/pictures, and sheet.png: a line per picture, codec and quality."""
    lines, titles = [], []
    for picture, x in zip(shown, originals, strict=True):
        place = folder / "pictures" / evaluation_folder.picture_folder(picture.name)
        files.write(place / "original.png", pictures.write(x))
        of_picture: dict[tuple, list[tuple[str, np.ndarray]]] = {}
        for row, path in (each for each in found if each[0]["name"] == picture.name):
            content = files.read(files.suffixed(path, ".png"))
            files.write(place / evaluation_folder.decoded_file(row["label"], row["point"]), content)
            head = f"{row['point']}  {row['psnr_db']:.2f} dB  {row['bpp']:.3f} bpp"
            of_picture.setdefault((row["label"], row["quality"]), []).append((head, panels.from_png(content)))
        for line in of_picture.values():
            lines.append([x, *(decoded for _, decoded in line)])
            titles.append(["original", *(head for head, _ in line)])
    if not lines:
        return
    wide = max(map(len, lines))
    blank = np.full((1, 1, 3), 255, np.uint8)
    lines = [line + [blank] * (wide - len(line)) for line in lines]  # a model without ORP has one picture
    titles = [heads + [""] * (wide - len(heads)) for heads in titles]
    files.write(folder / "sheet.png", panels.png(panels.panel(lines, titles)))


def text(sets: Sequence[Mapping]) -> str:
    """The sets as an aligned table of the computed measures, with a note on unreliable values."""
    columns = [metric for metric in METRICS.values() if any(entry.get(metric.name) is not None for entry in sets)]
    lines = [["codec", "point", "pictures", "bpp", *(metric.name for metric in columns)]]
    doubtful: set[str] = set()
    for entry in sets:
        cells = [entry["label"], entry["point"], str(entry["num_pictures"]), f"{entry['bpp']:.4f}"]
        for metric in columns:
            value = entry.get(metric.name)
            cell = "-" if value is None else f"{value:.{5 if metric.name.startswith('kid') else metric.digits}f}"
            if value is not None and not is_reliable(entry, metric):
                cell += "*"
                count = entry["num_patches" if metric.patch == 256 else f"num_patches{metric.patch}"]
                doubtful.add(f"{count} patches of {metric.patch} pixels")
            cells.append(cell)
        lines.append(cells)
    found = tabulate(lines, tablefmt="plain", disable_numparse=True)
    if doubtful:
        found += f"\n* unreliable: of {' and '.join(sorted(doubtful))}; FID and KID need {fid_kid.RELIABLE_PATCHES}"
    return found
