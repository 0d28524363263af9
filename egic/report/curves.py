"""Rate-metric curves, and Bjontegaard's average differences between two of them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from egic.errors import UserError

MIN_POINTS = 3
"""Piecewise cubic interpolation needs three points (Bjontegaard's original fit, VCEG-M33, four)."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric's name, unit, and which direction is better."""

    name: str
    title: str
    unit: str = ""
    lower_is_better: bool = False
    digits: int = 4
    patch: int = 0
    """Side of the patches whose distribution is measured; 0 for a metric of a picture."""


METRICS = {
    metric.name: metric
    for metric in (
        Metric(name="psnr_db", title="PSNR", unit="dB", digits=2),
        Metric(name="ms_ssim", title="MS-SSIM"),
        Metric(name="lpips_alex", title="LPIPS (AlexNet)", lower_is_better=True),
        Metric(name="lpips_vgg", title="LPIPS (VGG)", lower_is_better=True),
        Metric(name="dists", title="DISTS", lower_is_better=True),
        Metric(name="fid256", title="FID/256", lower_is_better=True, digits=2, patch=256),
        Metric(name="kid256", title="KID/256", lower_is_better=True, patch=256),
        Metric(name="fid64", title="FID/64", lower_is_better=True, digits=2, patch=64),
        Metric(name="kid64", title="KID/64", lower_is_better=True, patch=64),
    )
}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Values of a metric at rising rates, one per rate."""

    label: str
    metric: Metric
    bpp: tuple[float, ...]
    values: tuple[float, ...]


def number(entry: Mapping, name: str) -> float | None:
    """The value `name` of a row or set; None if it is missing, null, NaN or infinite."""
    value = entry.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def is_reliable(entry: Mapping, metric: Metric) -> bool:
    """False for a distance (FID, KID) between sets of too few patches."""
    return not (metric.patch and entry.get("reliable" if metric.patch == 256 else f"reliable{metric.patch}") is False)


def curve_label(entry: Mapping) -> str:
    """The label of the curve that an entry of sets.json belongs to."""
    alpha = number(entry, "alpha")
    return entry["label"] if alpha is None else f"{entry['label']}, alpha {alpha:g}"


def curves(sets: Iterable[Mapping], metric: str) -> list[Curve]:
    """One curve per label and alpha, in the order of `sets`, without unreliable and missing values.

    sets: entries of an evaluation's sets.json. Raises UserError for an unknown metric.
    """
    if metric not in METRICS:
        raise UserError(f"unknown metric {metric!r}; the metrics are {', '.join(METRICS)}")
    points: dict[str, dict[float, float]] = {}
    for entry in sets:
        bpp, value = number(entry, "bpp"), number(entry, metric)
        if bpp and value is not None and is_reliable(entry, METRICS[metric]):
            points.setdefault(curve_label(entry), {})[bpp] = value
    return [
        Curve(label=label, metric=METRICS[metric], bpp=tuple(sorted(p)), values=tuple(p[b] for b in sorted(p)))
        for label, p in points.items()
    ]


def bd_rate(reference: Curve, test: Curve) -> float:
    """Mean difference in rate at equal quality, in percent of the reference's rate: -20 means 20 % fewer bits.

    Bjontegaard's average (VCEG-M33) over log rates with piecewise cubic interpolation (pchip, as JVET uses it).
    Raises UserError for curves of different metrics, with fewer than MIN_POINTS points, with a value that does not
    improve when the rate rises, or whose values do not overlap.
    """
    import bjontegaard

    _check(reference, test)
    quality = []
    for curve in (reference, test):
        quality.append(np.array(curve.values) * (-1 if curve.metric.lower_is_better else 1))
        if (np.diff(quality[-1]) <= 0).any():
            raise UserError(f"{curve.label}: {curve.metric.title} does not improve at every higher rate")
    _check_overlap(reference, test, quality[0], quality[1], reference.metric.title)
    return float(
        bjontegaard.bd_rate(
            reference.bpp, quality[0], test.bpp, quality[1],
            method="pchip", require_matching_points=False, min_overlap=0,
        )
    )  # fmt: skip


def bd_metric(reference: Curve, test: Curve) -> float:
    """Mean difference test - reference at equal rate, in the metric's unit.

    Raises UserError for curves of different metrics, with fewer than MIN_POINTS points, or whose rates do not overlap.
    """
    import bjontegaard

    _check(reference, test)
    _check_overlap(reference, test, np.array(reference.bpp), np.array(test.bpp), "bpp")
    return float(
        bjontegaard.bd_psnr(
            reference.bpp, reference.values, test.bpp, test.values,
            method="pchip", require_matching_points=False, min_overlap=0,
        )
    )  # fmt: skip


def _check(reference: Curve, test: Curve) -> None:
    if reference.metric != test.metric:
        raise UserError(f"{reference.metric.title} and {test.metric.title} cannot be compared")
    for curve in (reference, test):
        if len(curve.bpp) < MIN_POINTS:
            points = "1 point" if len(curve.bpp) == 1 else f"{len(curve.bpp)} points"
            raise UserError(f"{curve.label} has {points} of {curve.metric.title}; {MIN_POINTS} rates are needed")


def _check_overlap(reference: Curve, test: Curve, a: np.ndarray, b: np.ndarray, what: str) -> None:
    if min(a.max(), b.max()) <= max(a.min(), b.min()):
        raise UserError(f"{reference.label} and {test.label} have no {what} in common")
