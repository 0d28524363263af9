"""Validation of a codec that codes at any quality: every measure as a mean over a fixed grid, and a curve."""

import io
import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from egic.networks.codec import Codec


def anchors(codec: Codec) -> list[float | None]:
    """The fixed grid of qualities: the codec's anchors 0, 1, ..., rates - 1; None for a codec of one rate."""
    return [float(k) for k in range(codec.config.rates)] or [None]


def quality_of(q: float | None, x: Tensor) -> Tensor | None:
    """q for each picture of the batch x (B, ...): (B,) float32, or None."""
    return None if q is None else torch.full((len(x),), q, device=x.device)


def over_anchors(codec: Codec, x: Tensor, measure: Callable[[Tensor | None], dict[str, Tensor]]) -> dict[str, Tensor]:
    """measure(q) -> sums over the pictures x; returns their means over the anchors.

    For a codec with rates, `psnr_db` and `bpp` of each anchor k are added as psnr_db_q<k> and bpp_q<k>.
    """
    found: dict[str, Tensor] = {}
    grid = anchors(codec)
    for q in grid:
        for name, value in measure(quality_of(q, x)).items():
            found[name] = found.get(name, 0) + value / len(grid)
            if q is not None and name in ("psnr_db", "bpp"):
                found[f"{name}_q{q:g}"] = value
    return found


def curve(values: Mapping[str, float]) -> list[tuple[float, float]]:
    """(bpp, PSNR in dB) of each anchor from the val/ metrics; empty for a codec of one rate."""
    anchors = sorted(int(found[1]) for name in values if (found := re.fullmatch(r"val/bpp_q(\d+)", name)))
    return [(values[f"val/bpp_q{k}"], values[f"val/psnr_db_q{k}"]) for k in anchors if f"val/psnr_db_q{k}" in values]


def curve_png(values: Mapping[str, float]) -> bytes | None:
    """The rate-distortion curve of a validation as a PNG file, or None where there is no curve."""
    points = curve(values)
    if not points:
        return None
    from matplotlib.figure import Figure  # takes a second, and only this picture needs it

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*points, strict=True), "o-")
    axes.set(xlabel="bits per pixel (estimated)", ylabel="PSNR (dB)", title="validation crops, one point per anchor")
    axes.grid(alpha=0.3)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    return content.getvalue()
