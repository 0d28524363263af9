"""Anchors at the model's own rates, picture by picture, put into an evaluation folder."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from egic import pictures
from egic.errors import UserError
from egic.metrics.quality import Quality
from egic.report import anchors, evaluation_folder, panels
from egic.report.curves import number
from egic.report.evaluation_folder import Evaluation

MULTIPLES = (1.0, 1.5, 2.0, 3.0)
"""Of a model's rate: 1 stands beside its pictures; the others, of the highest rate alone, make the curve longer."""

Measure = Callable[[np.ndarray, np.ndarray], Mapping[str, float | None]]


def add(
    folder: Path, read: Callable[[str], np.ndarray], names: Sequence[str], measure: Measure | None = None,
    multiples: Sequence[float] = MULTIPLES, told: Callable[[str], None] = lambda line: None,
) -> Evaluation:  # fmt: skip
    """Code the folder's pictures with the anchors of these names at every EGIC model's rate, and at some above.

    `read(name)` gives the picture that rows name so. `measure(x_hat, x)` of two uint8 (H, W, 3) pictures gives the
    columns of a row (None: PSNR and MS-SSIM). Earlier rows of these codecs are replaced. `told` hears which codecs are
    left out, and progress. Raises UserError for a folder without EGIC rows, and for a picture that is missing or is
    another one.
    """
    found, measure = evaluation_folder.read(folder), measure or Quality(("psnr_db", "ms_ssim"), {})
    codecs, missing = anchors.find(names)
    for name, reason in missing.items():
        told(f"{name} is left out: {reason}")
    wanted = rates(found)
    if not wanted:
        raise UserError(f"{folder} has no rows of an EGIC model whose rates the anchors could take")
    sizes = {row["name"]: (row.get("height"), row.get("width")) for row in found.rows}
    rows: list[dict] = []
    for count, (name, of_models) in enumerate(wanted.items(), 1):
        x = read(name)
        if None not in sizes[name] and x.shape[:2] != sizes[name]:
            height, width = sizes[name]
            raise UserError(f"{name} has {x.shape[1]} x {x.shape[0]} pixels, the evaluated one has {width} x {height}")
        for anchor in codecs:
            rows += coded(found, anchor, name, x, points(of_models, multiples), measure)
        told(f"[{count}/{len(wanted)}] {name}")
    return evaluation_folder.replace(found, rows) if rows else found


def rates(found: Evaluation) -> dict[str, dict[str, float]]:
    """bpp of every EGIC file, by picture's name and model, in the order of the models' mean rates.

    A model is a label, with its point where the label has files of several rates.
    """
    files: dict[str, dict[str, dict[str, float]]] = {}  # by label, point, name
    for row in found.rows:
        if row["codec"] == "egic" and (bpp := number(row, "bpp")):
            files.setdefault(row["label"], {}).setdefault(row["point"], {})[row["name"]] = bpp
    models: dict[str, dict[str, float]] = {}
    for label, of_points in files.items():
        distinct = {tuple(sorted(of_names.items())): point for point, of_names in reversed(of_points.items())}
        for point in distinct.values():
            models[label if len(distinct) == 1 else f"{label}, {point}"] = of_points[point]
    ordered = sorted(models, key=lambda model: sum(models[model].values()) / len(models[model]))
    names = dict.fromkeys(row["name"] for row in found.rows if row["codec"] == "egic")
    return {name: {model: models[model][name] for model in ordered if name in models[model]} for name in names}


def points(of_models: Mapping[str, float], multiples: Sequence[float]) -> dict[str, float]:
    """Names of an anchor's points and their bpp: every model's own rate, and the multiples of the last model's."""
    wanted = {f"rate of {model}": bpp for model, bpp in of_models.items()}
    model, bpp = list(of_models.items())[-1]
    return wanted | {f"{m:g} x rate of {model}": m * bpp for m in multiples if m != 1}


def coded(
    found: Evaluation, anchor: anchors.Anchor, name: str, x: np.ndarray, wanted: Mapping[str, float], measure: Measure
) -> Iterator[dict]:
    """Rows of one picture and codec; the decoded picture at a model's own rate is kept where pictures are."""
    matcher = anchors.Matcher(anchor, x)
    kept = found.folder / "pictures" / Path(name).with_suffix("")
    for point, bpp in wanted.items():
        result = matcher.nearest(bpp)
        if point.startswith("rate of ") and kept.is_dir():
            (kept / evaluation_folder.anchor_file(anchor.label, point)).write_bytes(panels.png(result.picture))
        yield anchors.row(anchor, name, x, result, point, measure)


def below(images: Path) -> Callable[[str], np.ndarray]:
    """`read` of `add` for pictures that lie below one folder."""

    def read(name: str) -> np.ndarray:
        if not (images / name).is_file():
            raise UserError(f"{images / name} is missing; --images must name the folder of the evaluated pictures")
        return pictures.read((images / name).read_bytes())[0]

    return read
