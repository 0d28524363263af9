"""Evaluation's results from its parts: one row per curve, picture and alpha, means over pictures, sets, and a sheet."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from egic import pictures
from egic.metrics import distortion, fid_kid, quality
from egic.report import panels
from jobs.evaluation.parts import ORIGINAL, Parts, Picture
from jobs.storage import files

CODEC = "egic"
SCHEMA = pa.schema(
    [("label", pa.string()), ("codec", pa.string()), ("point", pa.string()), ("name", pa.string())]
    + [("height", pa.int64()), ("width", pa.int64()), ("alpha", pa.float64()), ("bytes", pa.int64())]
    + [(name, pa.float64()) for name in ("bpp", *quality.NAMES, "encode_s", "decode_s")]
    + [("model_digest", pa.string())]
)
"""Columns of rows.parquet; measures that were not made, or not possible for a picture, are null."""


def slug(label: str) -> str:
    """A label as part of a file name: models:/egic-orp@best -> models_egic-orp_best."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", label).strip("_.") or "model"


def rows_table(parts: Parts, models: Mapping[str, str], listed: Sequence[Picture]) -> pa.Table:
    """Rows of `models` (digest by label) by label, name and alpha. Every picture must be finished."""
    rows = []
    for label, digest in sorted(models.items()):
        for picture in sorted(listed, key=lambda p: p.name):
            part = parts.read(digest, picture)
            assert part is not None  # finished, as promised
            size = {name: part[name] for name in ("height", "width", "bytes", "encode_s", "decode_s")}
            size["bpp"] = distortion.bpp(part["bytes"], part["height"], part["width"])
            for point in sorted(part["points"], key=lambda p: p["alpha"]):
                what = {"label": label, "codec": CODEC, "point": f"alpha {point['alpha']:g}", "name": picture.name}
                rows.append(dict.fromkeys(SCHEMA.names) | what | size | point | {"model_digest": digest})
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def set_rows(table: pa.Table, parts: Parts, listed: Sequence[Picture], names: Sequence[str]) -> list[dict]:
    """One entry per label and alpha: means over pictures, and the set measures that `names` asks for."""
    by_name, found = {p.name: p for p in listed}, []
    measured = any(name in names for name in fid_kid.NAMES)
    used = [by_name[name] for name in sorted(set(table["name"].to_pylist()))]
    original = np.concatenate([parts.features(ORIGINAL, p) for p in used]) if measured else None
    rows = table.to_pylist()
    for label, alpha in sorted({(row["label"], row["alpha"]) for row in rows}):
        of_set = [row for row in rows if (row["label"], row["alpha"]) == (label, alpha)]
        num_patches = sum(len(fid_kid.corners(row["height"], row["width"])) for row in of_set)
        entry = {"label": label, "codec": CODEC, "point": of_set[0]["point"], "alpha": alpha}
        entry |= {"num_pictures": len(of_set)}
        entry |= {name: mean([row[name] for row in of_set]) for name in ("bpp", *quality.NAMES)}
        entry |= dict.fromkeys(fid_kid.NAMES)
        if measured:
            digest = of_set[0]["model_digest"]
            decoded = np.concatenate([parts.features(digest, by_name[row["name"]], alpha) for row in of_set])
            entry |= {name: getattr(fid_kid, name)(decoded, original) for name in fid_kid.NAMES if name in names}
        found.append(entry | {"num_patches": num_patches, "reliable": num_patches >= fid_kid.RELIABLE_PATCHES})
    return found


def mean(values: Sequence[float | None]) -> float | None:
    """Over the values there are."""
    there = [v for v in values if v is not None]
    return float(np.mean(there)) if there else None


def summarise(table: pa.Table, found: Sequence[Mapping]) -> dict[str, float]:
    """num_pictures, bpp, seconds, and every measure at every alpha; with several curves each name begins with one's."""
    labels = sorted({entry["label"] for entry in found})
    summary: dict[str, float] = {"num_pictures": found[0]["num_pictures"]}
    rows = table.to_pylist()
    for label in labels:
        of_label, prefix = [r for r in rows if r["label"] == label], f"{slug(label)}/" if len(labels) > 1 else ""
        for name in ("bpp", "encode_s", "decode_s"):
            if (value := mean([r[name] for r in of_label])) is not None:
                summary[prefix + name] = value
        for entry in (e for e in found if e["label"] == label):
            for name in (*quality.NAMES, *fid_kid.NAMES):
                if entry[name] is not None:
                    summary[f"{prefix}{name}_alpha_{entry['alpha']:g}"] = entry[name]
    return summary


def curve_rows(found: Sequence[Mapping]) -> list[dict[str, float]]:
    """Rate and every measure as `rd/...` at step 100 alpha, so that MLflow draws curves of all runs over each other.

    With several curves each name begins with one's, as in `summarise`.
    """
    several = len({entry["label"] for entry in found}) > 1
    rows = []
    for entry in sorted(found, key=lambda e: e["alpha"]):
        prefix = f"rd/{slug(entry['label'])}/" if several else "rd/"
        measured = {n: entry[n] for n in ("bpp", *quality.NAMES, *fid_kid.NAMES) if entry[n] is not None}
        rows.append({"step": round(100 * entry["alpha"])} | {prefix + name: v for name, v in measured.items()})
    return rows


def write_shown(folder: Path, table: pa.Table, parts: Parts, shown: Sequence[Picture], originals: list) -> None:
    """Originals and decoded pictures below `folder`/pictures, and sheet.png: a line per picture and curve."""
    lines, titles = [], []
    for picture, x in zip(shown, originals, strict=True):
        place = folder / "pictures" / Path(picture.name).with_suffix("")
        files.write(place / "original.png", pictures.write(x))
        rows = [row for row in table.to_pylist() if row["name"] == picture.name]
        for label in sorted({row["label"] for row in rows}):
            line, heads = [x], ["original"]
            for row in (r for r in rows if r["label"] == label):
                content = files.read(parts.path(row["model_digest"], picture, ".png", row["alpha"]))
                files.write(place / f"{slug(label)}_alpha_{row['alpha']:g}.png", content)
                line.append(panels.from_png(content))
                heads.append(f"{row['point']}  {row['psnr_db']:.2f} dB  {row['bpp']:.3f} bpp")
            lines.append(line)
            titles.append(heads)
    if not lines:
        return
    wide = max(map(len, lines))
    blank = np.full((1, 1, 3), 255, np.uint8)
    lines = [line + [blank] * (wide - len(line)) for line in lines]  # a model without ORP has one picture
    titles = [heads + [""] * (wide - len(heads)) for heads in titles]
    files.write(folder / "sheet.png", panels.png(panels.panel(lines, titles)))


COLUMNS = {"bpp": ".4f", "psnr_db": ".2f", "ms_ssim": ".4f", "lpips_alex": ".4f", "lpips_vgg": ".4f", "dists": ".4f"}
COLUMNS |= {"fid256": ".2f", "kid256": ".5f"}


def text(found: Sequence[Mapping]) -> str:
    """The sets as an aligned table of what was measured, with a line about figures that are unreliable."""
    names = [name for name in COLUMNS if any(entry[name] is not None for entry in found)]
    lines = [("model", "point", "pictures", *names)]
    doubtful = {e["num_patches"] for e in found if not e["reliable"] and any(e[n] is not None for n in fid_kid.NAMES)}
    for entry in found:
        cells = []
        for name in names:
            cell = "-" if entry[name] is None else format(entry[name], COLUMNS[name])
            doubt = name in fid_kid.NAMES and entry[name] is not None and not entry["reliable"]
            cells.append(cell + "*" * doubt)
        lines.append((entry["label"], entry["point"], str(entry["num_pictures"]), *cells))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    table = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    if doubtful:
        count = " or ".join(map(str, sorted(doubtful)))
        table.append(f"* unreliable: of {count} patches; FID and KID need {fid_kid.RELIABLE_PATCHES}")
    return "\n".join(table)
