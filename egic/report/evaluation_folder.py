"""The evaluation folder, which `jobs.evaluate` writes and reports read.

    rows.parquet             a row per codec, operating point and picture
    sets.json                means over the pictures of each codec and point, and distances between sets of pictures
    skipped.json             pictures that could not be evaluated, with the reason
    pictures/<picture>/      original.png and <codec>_<point>.png, of the pictures that reports show

A point is quality and alpha of an EGIC model, or for another codec the model's file whose size it matches.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from egic.errors import UserError
from egic.metrics import fid_kid
from egic.report.curves import METRICS, number

CODEC = "egic"
"""Value of the column `codec` for EGIC models."""
ONLY = "decoded"
"""The point of a model with one rate and no ORP."""
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The results of an evaluation: rows per picture, sets per label and point, and skipped pictures."""

    folder: Path
    rows: list[dict]
    sets: list[dict]
    skipped: list[dict]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A stored decoded picture: its file and its row."""

    file: Path
    row: dict


def read(folder: Path) -> Evaluation:
    """Read an evaluation folder. Raises UserError for a folder that is not one, or is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in ("rows.parquet", "sets.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not an evaluation folder: it has no {name}; name the output of egic evaluate")
    try:
        rows = pq.read_table(folder / "rows.parquet").to_pylist()
    except pa.ArrowException as error:
        raise UserError(f"{folder / 'rows.parquet'} cannot be read ({error})") from error
    sets = _json(folder / "sets.json", ("label", "codec", "point"))
    skipped = _json(folder / "skipped.json", ("name", "reason")) if (folder / "skipped.json").is_file() else []
    lacking = sorted({"label", "codec", "point", "name", "bpp"} - set(rows[0])) if rows else []
    if lacking:
        raise UserError(f"{folder / 'rows.parquet'} lacks the columns {', '.join(lacking)}")
    for name in {row["name"] for row in rows}:  # the folder may come from an untrusted source
        if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{folder / 'rows.parquet'} names a picture {name!r}, which is outside the folder")
    return Evaluation(folder=folder, rows=rows, sets=sets, skipped=skipped)


def _json(path: Path, keys: tuple[str, ...]) -> list[dict]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error})") from error
    if not isinstance(found, list) or not all(isinstance(e, dict) and set(keys) <= set(e) for e in found):
        raise UserError(f"{path} must be a list of objects with {', '.join(keys)}")
    return found


def replace(evaluation: Evaluation, rows: list[dict], sets: list[dict]) -> Evaluation:
    """Add rows and sets to the folder, in place of those with the same labels; returns the new content."""
    labels, folder = {row["label"] for row in rows}, evaluation.folder
    rows = [row for row in evaluation.rows if row["label"] not in labels] + rows
    sets = [entry for entry in evaluation.sets if entry["label"] not in labels] + sets
    write(folder, rows, sets)
    return Evaluation(folder=folder, rows=rows, sets=sets, skipped=evaluation.skipped)


def write(folder: Path, rows: Sequence[Mapping], sets: Sequence[Mapping]) -> None:
    """Write rows.parquet and sets.json, each completely or not at all; missing values become null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = list(dict.fromkeys(column for row in rows for column in row))
    aside = folder / f".rows.{os.getpid()}"
    pq.write_table(pa.table({column: [row.get(column) for row in rows] for column in columns}), aside)
    aside.replace(folder / "rows.parquet")
    aside.write_text(json.dumps(sets, indent=2) + "\n")
    aside.replace(folder / "sets.json")


def sets_of(rows: Iterable[Mapping]) -> list[dict]:
    """Entries of sets.json without distances between sets: one per label and point, in the order of the rows.

    Each has the mean of every metric over the pictures that have a value, and `intervals`: by metric, the 95 %
    bootstrap interval of that mean.
    """
    groups: dict[tuple, list[Mapping]] = {}
    for row in rows:
        groups.setdefault((row["label"], row["codec"], row["point"]), []).append(row)
    found = []
    for (label, codec, point), group in groups.items():
        first = {name: group[0].get(name) for name in ("quality", "interpolated", "alpha")}
        entry = {"label": label, "codec": codec, "point": point, **first, "num_pictures": len(group)}
        columns = ["bpp", *(m.name for m in METRICS.values() if not m.patch)]
        values = {name: [number(row, name) for row in group] for name in columns}
        entry |= {name: mean(of_name) for name, of_name in values.items()}
        entry["intervals"] = {name: interval(of_name) for name, of_name in values.items() if interval(of_name)}
        found.append(entry | dict.fromkeys(fid_kid.NAMES))
    return found


def distances(
    names: Sequence[str], group: Sequence[Mapping], decoded: Mapping[int, np.ndarray],
    original: Mapping[int, np.ndarray],
) -> dict[str, float | int | bool | None]:  # fmt: skip
    """Distances (FID, KID) of a set, the rows of one label and point, for its entry in sets.json.

    names: of metrics, such as fid256. decoded, original: features of all patches, by side of the patches. The returned
    `num_patches` and `reliable` are for patches of 256 pixels, `num_patches64` and `reliable64` for 64 pixels.
    """
    found: dict[str, float | int | bool | None] = {}
    for patch in sorted({fid_kid.PATCH_OF[name] for name in names}, reverse=True):
        count = sum(len(fid_kid.corners(row["height"], row["width"], patch)) for row in group)
        suffix = "" if patch == 256 else str(patch)
        found |= {f"num_patches{suffix}": count, f"reliable{suffix}": count >= fid_kid.RELIABLE_PATCHES}
    for name in names:
        patch = fid_kid.PATCH_OF[name]
        found[name] = fid_kid.distance(name, decoded[patch], original[patch])
    return found


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None without any.

    Whether a picture has a value depends only on its size, so that all means of a folder are over the same pictures.
    """
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def interval(values: Iterable[float | None]) -> list[float] | None:
    """The 95 % bootstrap interval [low, high] of the mean, of 2000 resamples with a fixed seed; None below 2 values."""
    known = np.array([value for value in values if value is not None])
    if len(known) < 2:
        return None
    drawn = np.random.default_rng(0).integers(0, len(known), (RESAMPLES, len(known)))
    return [float(v) for v in np.percentile(known[drawn].mean(1), (2.5, 97.5))]


def point(quality: int | None, alpha: float | None) -> str:
    """The name of an EGIC model's point, such as "quality 50, alpha 0.5"; a value of None is omitted."""
    parts = [] if quality is None else [f"quality {quality}"]
    parts += [] if alpha is None else [f"alpha {alpha:g}"]
    return ", ".join(parts) or ONLY


def slug(text: str) -> str:
    """A label or a point as part of a file name: models:/egic-orp@best -> models_egic-orp_best."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_.") or "model"


def decoded_file(label: str, point: str) -> str:
    """File name of a decoded picture in the folder of its original."""
    return f"{slug(label)}_{slug(point)}.png"


def picture_folder(name: str) -> str:
    """The folder of a picture below pictures/: its name with suffix, so that a.jpg and a.png differ.

    Characters that object stores or URLs treat specially are replaced by a short hash.
    """
    plain = "/".join(slug(part) for part in name.split("/"))
    return name if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def shown(evaluation: Evaluation) -> dict[str, tuple[Path, list[Shown]]]:
    """Stored pictures by name: the file of the original and the decoded pictures, in the order of the rows."""
    found: dict[str, tuple[Path, list[Shown]]] = {}
    for row in evaluation.rows:
        folder = evaluation.folder / "pictures" / picture_folder(row["name"])
        if not (folder / "original.png").is_file():
            continue
        files = found.setdefault(row["name"], (folder / "original.png", []))[1]
        if (file := folder / decoded_file(row["label"], row["point"])).is_file():
            files.append(Shown(file=file, row=row))
    return found
