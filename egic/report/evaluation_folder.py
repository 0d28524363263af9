"""The evaluation folder: rows.parquet, sets.json, skipped.json and pictures/, as `jobs.evaluate` writes them."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from egic.errors import UserError
from egic.report.curves import METRICS, number


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
    """Read an evaluation folder. Raises UserError in one line for what is none, or is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in ("rows.parquet", "sets.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is no evaluation folder, it has no {name}; name one that jobs.evaluate made")
    try:
        rows = pq.read_table(folder / "rows.parquet").to_pylist()
    except pa.ArrowException as error:
        raise UserError(f"{folder / 'rows.parquet'} cannot be read ({error})") from error
    sets = _json(folder / "sets.json", ("label", "codec", "point"))
    skipped = _json(folder / "skipped.json", ("name", "reason")) if (folder / "skipped.json").is_file() else []
    lacking = sorted({"label", "codec", "point", "name", "bpp"} - set(rows[0])) if rows else []
    if lacking:
        raise UserError(f"{folder / 'rows.parquet'} lacks the columns {', '.join(lacking)}")
    for name in {row["name"] for row in rows}:  # the folder may have come from elsewhere
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


def replace(evaluation: Evaluation, rows: list[dict]) -> Evaluation:
    """Put rows and their means into the folder, in place of what it has under their labels; returns what it has now."""
    labels, folder = {row["label"] for row in rows}, evaluation.folder
    rows = [row for row in evaluation.rows if row["label"] not in labels] + rows
    sets = [entry for entry in evaluation.sets if entry["label"] not in labels]
    sets += means(row for row in rows if row["label"] in labels)
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


def means(rows: Iterable[dict]) -> list[dict]:
    """Entries of sets.json: means over the pictures of each label and point; null where a picture has no value.

    Distances between sets of pictures are null: they are no means.
    """
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["label"], row["codec"], row["point"], row.get("alpha")), []).append(row)
    found = []
    for (label, codec, point, alpha), group in groups.items():
        entry = {"label": label, "codec": codec, "point": point, "alpha": alpha, "num_pictures": len(group)}
        for name in ("bpp", *(m.name for m in METRICS.values() if not m.of_a_set)):
            entry[name] = mean(group, name)
        found.append(entry | {"fid256": None, "kid256": None, "num_patches": None, "reliable": None})
    return found


def mean(rows: list[dict], name: str) -> float | None:
    """Mean of a column, or None when any row lacks it: a mean over other pictures compares with nothing."""
    values = [value for row in rows if (value := number(row, name)) is not None]
    return sum(values) / len(values) if values and len(values) == len(rows) else None


def slug(text: str) -> str:
    """A label or point as part of a file's name."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def anchor_file(label: str, point: str) -> str:
    """Name of an anchor's decoded picture in pictures/<stem>/."""
    return f"{slug(label)}_{slug(point)}.png"


def shown(evaluation: Evaluation) -> dict[str, tuple[Path, list[Shown]]]:
    """Pictures that were kept, by stem: the original's file and the decoded ones, in the order of the rows.

    Files that no row tells of, and folders without an original, are left out.
    """
    found: dict[str, tuple[Path, list[Shown]]] = {}
    files: dict[str, dict] = {}
    for row in evaluation.rows:
        stem = str(Path(row["name"]).with_suffix(""))
        if stem not in files:
            folder = evaluation.folder / "pictures" / stem
            files[stem] = _files(folder)
            if (folder / "original.png").is_file():
                found[stem] = (folder / "original.png", [])
        if stem in found and (file := files[stem].get(_key(row))):
            found[stem][1].append(Shown(file=file, row=row))
    return found


def _key(row: Mapping) -> tuple[str, float | str]:
    alpha = number(row, "alpha")
    return _letters(row["label"]), _letters(row["point"]) if alpha is None else round(alpha, 6)


def _files(folder: Path) -> dict[tuple[str, float | str], Path]:
    """Decoded pictures by (label, alpha or point), compared by letters and digits alone, however they are joined."""
    found: dict[tuple[str, float | str], Path] = {}
    for file in folder.glob("*.png"):
        label, _, alpha = file.stem.rpartition("_alpha_")
        try:
            found[_letters(label), round(float(alpha), 6)] = file
        except ValueError:
            label, _, point = file.stem.partition("_")
            found[_letters(label), _letters(point)] = file
    return found


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
