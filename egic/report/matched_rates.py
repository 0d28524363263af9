"""Other codecs at the sizes of the models' files, picture by picture, to compare them at equal rates."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from egic import pictures
from egic.errors import UserError
from egic.file_size import bpp
from egic.metrics.measures import Measures, find_measures
from egic.report import anchors, evaluation_folder, panels
from egic.report.curves import METRICS
from egic.report.evaluation_folder import CODEC, Evaluation
from egic.report.picture_names import named

log = logging.getLogger(__name__)

MIN_POINTS = 4
MULTIPLES = (1.5, 2.0, 3.0)
"""Multiples of the largest file's size: further points of an anchor's curve, if the models have few files."""


def file_name(row: Mapping) -> str:
    """The name of a model's file: label and quality. All alphas share the file."""
    quality = row.get("quality")
    return row["label"] if quality is None else f"{row['label']}, quality {quality}"


def matched(file: str) -> str:
    """The name of another codec's point that matches the size of this file."""
    return f"rate of {file}"


def targets(files: Mapping[str, int]) -> dict[str, int]:
    """Points of another codec with their target sizes in bytes. files: sizes of one picture's files by `file_name`."""
    more = MULTIPLES[: max(0, MIN_POINTS - len(files))]
    largest = max(files.values())
    return {matched(name): size for name, size in files.items()} | {
        f"{multiple:g} x the largest file": round(multiple * largest) for multiple in more
    }


def row(
    anchor: anchors.Anchor, point: str, name: str, size: tuple[int, int], num_bytes: int, encode_s: float,
    decode_s: float, measured: Mapping[str, float | None],
) -> dict:  # fmt: skip
    """A row of another codec for rows.parquet. size: height and width. Measures without a value are None."""
    height, width = size
    return {
        "label": anchor.label, "codec": anchor.codec, "point": point, "name": name, "height": height, "width": width,
        "quality": None, "interpolated": None, "alpha": None, "bytes": num_bytes,
        "bpp": bpp(num_bytes, height, width),
        **{metric.name: None for metric in METRICS.values() if not metric.patch}, **measured,
        "encode_s": encode_s, "decode_s": decode_s, "model_digest": None,
    }  # fmt: skip


def measured_by(found: Evaluation) -> tuple[str, ...]:
    """The measures for which the folder's models have values."""
    models = [entry for entry in found.sets if entry["codec"] == CODEC]
    return tuple(name for name in METRICS if any(entry.get(name) is not None for entry in models))


def add(
    folder: Path, read: Callable[[str], np.ndarray], names: Sequence[str], measures: Measures | None = None
) -> Evaluation:
    """Code the folder's pictures with the anchors of these names, in this process, and add the results to the folder.

    read: returns the picture of a name, uint8 (H, W, 3). measures: by default those of the evaluation. Earlier rows of
    these codecs are replaced. Codecs that are not installed, and measures whose weights are not available, are left out
    with a warning. Raises UserError for a folder without rows of an EGIC model, for a model that has the name of a
    codec, and for a picture that is missing or has another size.
    """
    found, codecs = evaluation_folder.read(folder), installed(names)
    models = {each["label"] for each in found.rows if each["codec"] == CODEC}
    if same := models & {codec.label for codec in codecs}:
        raise UserError(
            f"{folder} has a model that is called {min(same)}, as a codec is; evaluate it under another name, with "
            "egic evaluate --model NAME=REF"
        )
    measures = measures or find_measures(measured_by(found), strict=False)
    files: dict[str, dict[str, int]] = {}
    for each in found.rows:
        if each["codec"] == CODEC:
            files.setdefault(each["name"], {})[file_name(each)] = _bytes(each)
    if not files:
        raise UserError(f"{folder} has no rows of an EGIC model, whose file sizes the other codecs need")
    sizes = {each["name"]: (each.get("height"), each.get("width")) for each in found.rows}
    measure, features = measures.quality(), measures.features()
    rows: list[dict] = []
    original: list[dict[int, np.ndarray]] = []
    decoded: dict[tuple[str, str], list[dict[int, np.ndarray]]] = {}
    for count, (name, of_picture) in enumerate(files.items(), 1):
        x = read(name)
        if None not in sizes[name] and x.shape[:2] != sizes[name]:
            height, width = sizes[name]
            raise UserError(f"{name} has {x.shape[1]} x {x.shape[0]} pixels, the evaluated one has {width} x {height}")
        original.append(features(x))
        kept = found.folder / "pictures" / evaluation_folder.picture_folder(name)
        for anchor in codecs:
            matcher = anchors.Matcher(anchor, x)
            made: dict[int, tuple[Mapping, dict[int, np.ndarray]]] = {}  # by step, to measure each once
            for point, wanted in targets(of_picture).items():
                coded, step = matcher.nearest(wanted), matcher.step(wanted)
                if step not in made:
                    made[step] = measure(coded.picture, x), features(coded.picture)
                times = (coded.num_bytes, coded.encode_s, coded.decode_s)
                rows.append(row(anchor, point, name, (x.shape[0], x.shape[1]), *times, made[step][0]))
                decoded.setdefault((anchor.label, point), []).append(made[step][1])
                if kept.is_dir():
                    png = panels.png(coded.picture)
                    (kept / evaluation_folder.decoded_file(anchor.label, point)).write_bytes(png)
        log.info("[%d/%d] %s", count, len(files), name)
    sets = evaluation_folder.sets_of(rows)
    for entry in sets:
        group = [each for each in rows if (each["label"], each["point"]) == (entry["label"], entry["point"])]
        of_set = together(decoded[entry["label"], entry["point"]])
        entry |= evaluation_folder.distances(measures.of_sets, group, of_set, together(original))
    return evaluation_folder.replace(found, rows, sets) if rows else found


def installed(names: Sequence[str]) -> list[anchors.Anchor]:
    """The installed codecs of these names; logs a warning for others. Raises UserError for unknown names."""
    codecs, missing = anchors.find(names)
    for name, reason in missing.items():
        log.warning("%s is left out: %s", name, reason)
    return codecs


def together(features: Iterable[Mapping[int, np.ndarray]]) -> dict[int, np.ndarray]:
    """Concatenate the features of several pictures' patches, by side of the patches."""
    listed = list(features)
    return {patch: np.concatenate([each[patch] for each in listed]) for patch in listed[0]}


def _bytes(each: Mapping) -> int:
    """File size of a row in bytes."""
    return each.get("bytes") or round(each["bpp"] * each["height"] * each["width"] / 8)


def below(images: Sequence[Path]) -> Callable[[str], np.ndarray]:
    """The argument `read` of `add` for the pictures of an evaluation's `--images`: folders and files."""
    paths, _ = named(images)

    def read(name: str) -> np.ndarray:
        if name not in paths:
            raise UserError(f"{name} is not in {', '.join(map(str, images))}; name the --images of the evaluation")
        return pictures.read(paths[name].read_bytes())[0]

    return read
