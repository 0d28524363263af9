"""The evaluation folder: what `jobs.evaluate` writes, and every report reads.

    rows.parquet             a row per codec, operating point and picture
    sets.json                means over the pictures of each codec and point, and distances between sets of pictures
    skipped.json             pictures that were left out, with the reason
    pictures/<picture>/      original.png and <codec>_<point>.png, of pictures that are shown

A point is what a user can choose: quality and alpha of an EGIC model, or the file whose size another codec matches.
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
"""`codec` of the rows of EGIC models."""
ONLY = "decoded"
"""The point of a model without a choice: one rate, no ORP."""
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured: rows per picture, sets per label and point, and the pictures that were left out."""

    folder: Path
    rows: list[dict]
    sets: list[dict]
    skipped: list[dict]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One decoded picture that was kept: its file, and its row."""

    file: Path
    row: dict


def read(folder: Path) -> Evaluation:
    """Read an evaluation folder. Raises UserError for a folder that is not one, or is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in ("rows.parquet", "sets.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not an evaluation folder: it has no {name}; name one of egic evaluate")
    try:
        rows = pq.read_table(folder / "rows.parquet").to_pylist()
    except pa.ArrowException as error:
        raise UserError(f"{folder / 'rows.parquet'} cannot be read ({error})") from error
    sets = _json(folder / "sets.json", ("label", "codec", "point"))
    skipped = _json(folder / "skipped.json", ("name", "reason")) if (folder / "skipped.json").is_file() else []
    lacking = sorted({"label", "codec", "point", "name", "bpp"} - set(rows[0])) if rows else []
    if lacking:
        raise UserError(f"{folder / 'rows.parquet'} lacks the columns {', '.join(lacking)}")
    for name in {row["name"] for row in rows}:  # the folder may come from elsewhere
        if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{folder / 'rows.parquet'} names a picture {name!r}, which leads out of the folder")
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
    """Put rows and sets into the folder, in place of what it has under their labels; returns what it has now."""
    labels, folder = {row["label"] for row in rows}, evaluation.folder
    rows = [row for row in evaluation.rows if row["label"] not in labels] + rows
    sets = [entry for entry in evaluation.sets if entry["label"] not in labels] + sets
    write(folder, rows, sets)
    return Evaluation(folder=folder, rows=rows, sets=sets, skipped=evaluation.skipped)


def write(folder: Path, rows: Sequence[Mapping], sets: Sequence[Mapping]) -> None:
    """Write rows.parquet and sets.json, each whole or not at all; a column that a row lacks is null there."""
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

    Each has the mean of every metric over the pictures that have it, and `intervals`: by metric, the 95 % bootstrap
    interval of that mean.
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
    """Distances of a set (the rows of one label and point) for its entry in sets.json.

    names: such as fid256. decoded, original: features of all patches by their side. `num_patches` and `reliable` are of
    patches of 256 pixels, `num_patches64` and `reliable64` of 64.
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
    """The mean of the values that are not None; None when there is none.

    Whether a picture has a value depends on its size alone, so that means of one folder are over the same pictures.
    """
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def interval(values: Iterable[float | None]) -> list[float] | None:
    """The 95 % bootstrap interval [low, high] of the mean: 2000 resamples from a fixed seed; None below 2 values."""
    known = np.array([value for value in values if value is not None])
    if len(known) < 2:
        return None
    drawn = np.random.default_rng(0).integers(0, len(known), (RESAMPLES, len(known)))
    return [float(v) for v in np.percentile(known[drawn].mean(1), (2.5, 97.5))]


def point(quality: int | None, alpha: float | None) -> str:
    """The name of an EGIC model's point: "quality 50, alpha 0.5", without the part that is None."""
    parts = [] if quality is None else [f"quality {quality}"]
    parts += [] if alpha is None else [f"alpha {alpha:g}"]
    return ", ".join(parts) or ONLY


def slug(text: str) -> str:
    """A label or a point as part of a file's name: models:/egic-orp@best -> models_egic-orp_best."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_.") or "model"


def decoded_file(label: str, point: str) -> str:
    """Name of a decoded picture's file in its picture's folder."""
    return f"{slug(label)}_{slug(point)}.png"


def picture_folder(name: str) -> str:
    """Where the files of a picture lie below pictures/: under its whole name, so that a.jpg and a.png differ.

    Names with characters that object stores or URLs treat specially get a short hash instead of these.
    """
    plain = "/".join(slug(part) for part in name.split("/"))
    return name if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def shown(evaluation: Evaluation) -> dict[str, tuple[Path, list[Shown]]]:
    """Pictures that were kept, by name: the original's file and the decoded ones, in the order of the rows."""
    found: dict[str, tuple[Path, list[Shown]]] = {}
    for row in evaluation.rows:
        folder = evaluation.folder / "pictures" / picture_folder(row["name"])
        if not (folder / "original.png").is_file():
            continue
        files = found.setdefault(row["name"], (folder / "original.png", []))[1]
        if (file := folder / decoded_file(row["label"], row["point"])).is_file():
            files.append(Shown(file=file, row=row))
    return found
