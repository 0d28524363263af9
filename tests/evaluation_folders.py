"""A small evaluation folder without a model: noise and blur stand in for decoded pictures."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from egic.metrics.quality import Quality
from egic.report import evaluation_folder, panels

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


def photograph(seed: int, height: int = 192, width: int = 256) -> np.ndarray:
    """uint8 (H, W, 3) with shading, edges and grain, so that rates rise with quality as for photographs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / rng.uniform(8, 60) + rng.uniform(0, 6)) * np.cos(y / rng.uniform(8, 60)) for _ in range(6)]
    shade = 128 + 30 * sum(waves)[..., None] * rng.uniform(0.3, 1, (1, 1, 3))
    edges = 40 * ((x - width / 2) ** 2 + (y - height / 2) ** 2 < (height / 3) ** 2)[..., None]
    return np.clip(shade + edges + rng.normal(0, 6, (height, width, 1)), 0, 255).astype(np.uint8)


def blurred(x: np.ndarray) -> np.ndarray:
    """Blur by a 5 x 5 mean, in place of a codec that was trained for least error."""
    padded = np.pad(x.astype(np.float64), ((2, 2), (2, 2), (0, 0)), mode="edge")
    return sum(padded[i : i + x.shape[0], j : j + x.shape[1]] for i in range(5) for j in range(5)) / 25


def make(
    folder: Path, pictures: dict[str, np.ndarray], labels: tuple[str, ...] = ("EGIC",), alphas: tuple = ALPHAS,
    bpp: float = 0.6, qualities: tuple = (None,),
) -> Path:  # fmt: skip
    """Rows, sets, skipped and pictures of models that blur (alpha 0) and add grain (alpha 1). PSNR is computed.

    qualities: 0..100, for models of several rates; each multiplies the rate and mixes in the original.
    """
    rng, rows, measure = np.random.default_rng(0), [], Quality(("psnr_db", "ms_ssim"), {})
    for name, x in pictures.items():
        kept = folder / "pictures" / evaluation_folder.picture_folder(name)
        kept.mkdir(parents=True)
        (kept / "original.png").write_bytes(panels.png(x))
        for place, label in enumerate(labels):
            grain = rng.normal(0, 8 + 3 * place, (*x.shape[:2], 1))
            for quality, alpha in product(qualities, alphas):
                share = (quality or 0) / 150
                x_hat = (1 - share) * (blurred(x) + alpha * grain) + share * x
                x_hat = np.clip(x_hat, 0, 255).round().astype(np.uint8)
                point = evaluation_folder.point(quality, alpha)
                (kept / evaluation_folder.decoded_file(label, point)).write_bytes(panels.png(x_hat))
                rate = bpp * (1 + 0.5 * place) * (1 if quality is None else 2 ** (quality / 25))
                num_bytes = round(rate * x[..., 0].size / 8)
                row = {"label": label, "codec": "egic", "point": point, "name": name, "alpha": alpha}
                row |= {"height": x.shape[0], "width": x.shape[1], "bytes": num_bytes}
                row |= {"quality": quality, "interpolated": None if quality is None else quality % 20 != 0}
                row |= {"bpp": 8 * num_bytes / x[..., 0].size, **measure(x_hat, x)}
                row |= dict.fromkeys(("lpips_alex", "lpips_vgg", "dists"))
                rows.append(row | {"encode_s": 0.5, "decode_s": 0.25, "model_digest": f"{place:064x}"})
    write(folder, rows)
    (folder / "skipped.json").write_text(json.dumps([{"name": "torn.png", "reason": "damaged picture <cut short>"}]))
    return folder


def write(folder: Path, rows: list[dict], **of_sets) -> None:
    """Write rows.parquet and sets.json for these rows. of_sets: further values of every set."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    (folder / "sets.json").write_text(json.dumps([entry | of_sets for entry in evaluation_folder.sets_of(rows)]))
