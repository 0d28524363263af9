"""Anchors at the model's own rates, picture by picture, put into an evaluation folder."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from egic import anchors, evaluation, panels, pictures
from egic.curves import number
from egic.evaluation import Evaluation

MULTIPLES = (1.0, 1.5, 2.0, 3.0)
"""Of the model's rate: 1 stands beside its pictures, the others make curves and say what equal quality costs."""

Measure = Callable[[np.ndarray, np.ndarray], Mapping[str, float | None]]


def add(
    folder: Path, images: Path, names: Sequence[str], measure: Measure = anchors.measure,
    multiples: Sequence[float] = MULTIPLES, told: Callable[[str], None] = lambda line: None,
) -> Evaluation:  # fmt: skip
    """Code the folder's pictures with the anchors of these names at multiples of every EGIC model's rate.

    images: where the pictures lie that the rows name. `measure(x, x_hat)` of two uint8 (H, W, 3) pictures gives the
    columns of a row. Earlier rows of these codecs are replaced. `told` hears which codecs are left out, and progress.
    Raises ValueError for a folder without EGIC rows, and for a picture that is missing or is another one.
    """
    found = evaluation.read(folder)
    codecs, missing = anchors.find(names)
    for name, reason in missing.items():
        told(f"{name} is left out: {reason}")
    wanted = rates(found)
    if not wanted:
        raise ValueError(f"{folder} has no rows of an EGIC model whose rates the anchors could take")
    sizes = {row["name"]: (row.get("height"), row.get("width")) for row in found.rows}
    rows = []
    for count, (name, of_models) in enumerate(wanted.items(), 1):
        x = _picture(images, name, sizes[name])
        for anchor in codecs:
            rows += coded(found, anchor, name, x, of_models, measure, multiples)
        told(f"[{count}/{len(wanted)}] {name}")
    return evaluation.replace(found, rows) if rows else found


def rates(found: Evaluation) -> dict[str, dict[str, float]]:
    """bpp of every EGIC file, by picture's name and model: its label, with the rate's place where it has several."""
    wanted: dict[str, dict[str, list[float]]] = {}
    for row in found.rows:
        bpp = number(row, "bpp")
        if row["codec"] == "egic" and bpp:
            of_label = wanted.setdefault(row["name"], {}).setdefault(row["label"], [])
            if bpp not in of_label:
                of_label.append(bpp)
    return {
        name: {
            label if len(several) == 1 else f"{label} ({place})": bpp
            for label, several in of_labels.items()
            for place, bpp in enumerate(sorted(several), 1)
        }
        for name, of_labels in wanted.items()
    }


def coded(
    found: Evaluation, anchor: anchors.Anchor, name: str, x: np.ndarray, of_models: Mapping[str, float],
    measure: Measure, multiples: Sequence[float],
) -> Iterator[dict]:  # fmt: skip
    """Rows of one picture and codec; the decoded picture at a model's own rate is kept where pictures are."""
    matcher = anchors.Matcher(anchor, x)
    kept = found.folder / "pictures" / Path(name).stem
    for model, bpp in of_models.items():
        for multiple in multiples:
            point = f"rate of {model}" if multiple == 1 else f"{multiple:g} x rate of {model}"
            result = matcher.nearest(bpp * multiple)
            if multiple == 1 and kept.is_dir():
                (kept / evaluation.anchor_file(anchor.label, point)).write_bytes(panels.png(result.picture))
            yield anchors.row(anchor, name, x, result, point, measure)


def _picture(images: Path, name: str, size: tuple[int | None, int | None]) -> np.ndarray:
    path = images / name
    if not path.is_file():
        raise ValueError(f"{path} is missing; --images must name the folder of the pictures that were evaluated")
    x, _ = pictures.read(path.read_bytes())
    if None not in size and x.shape[:2] != size:
        raise ValueError(f"{path} has {x.shape[1]} x {x.shape[0]} pixels, the evaluated one has {size[1]} x {size[0]}")
    return x
