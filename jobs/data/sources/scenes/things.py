"""Things of drawn scenes: each draws one object (or crowd) at a depth of the ground, shaded, with its shadow."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jobs.data.sources.scenes.canvas import Canvas, Colour, mix, noise
from jobs.data.sources.scenes.places import Ground


def _speckle(canvas: Canvas, first: Colour, second: Colour, beta: float, contrast: float) -> Callable:
    """A skin of noise between two colours."""

    def skin(u: np.ndarray, v: np.ndarray, _) -> np.ndarray:
        return mix(first, second, 0.5 + contrast * noise(canvas.rng, u.shape[0], u.shape[1], beta))

    return skin


def _flat(colour: Colour | np.ndarray) -> Callable:
    return lambda u, v, _: np.broadcast_to(np.asarray(colour, np.float32), (*u.shape, 3))


def _sheep(canvas: Canvas, ground: Ground, depth: float) -> None:
    x, y, size = ground.foot(canvas, depth)
    wool = _speckle(canvas, (0.55, 0.52, 0.44), (0.98, 0.96, 0.88), 0.5, 0.25)
    _animal(canvas, "sheep", (x, y, 0.55 * size), wool, (0.05, 0.045, 0.04), wobble=0.12)


def _zebra(canvas: Canvas, ground: Ground, depth: float) -> None:
    x, y, size = ground.foot(canvas, depth)
    tilt, count = canvas.rng.uniform(-0.5, 0.5), canvas.rng.uniform(14, 20)

    def stripes(u: np.ndarray, v: np.ndarray, _) -> np.ndarray:
        return mix((0.03, 0.03, 0.03), (0.93, 0.92, 0.88), 0.5 + 2 * np.sin(count * (u + tilt * v) + 1.5 * v * v))

    _animal(canvas, "zebra", (x, y, 0.75 * size), stripes, (0.25, 0.24, 0.22), wobble=0.05)


def _animal(canvas: Canvas, name: str, place: tuple, skin: Callable, dark: Colour, wobble: float) -> None:
    """Legs, body and head of an animal seen from the side, as one segment."""
    x, y, size = place
    segment, side = canvas.new_segment(name), 1 if canvas.rng.random() < 0.5 else -1
    canvas.shadow(x, y, 0.9 * size, 0.14 * size)
    for leg in (-0.5, -0.36, 0.34, 0.48):
        canvas.slab(segment, (x + leg * size, y - 0.22 * size, 0.05 * size, 0.24 * size), dark, corner=0.04 * size)
    canvas.ellipsoid(segment, (x, y - 0.62 * size, 0.72 * size, 0.36 * size), skin, wobble)
    head = (x + side * 0.78 * size, y - 0.86 * size, 0.17 * size, 0.21 * size)
    canvas.ellipsoid(segment, head, skin if name == "zebra" else _flat(dark))


def _person(canvas: Canvas, ground: Ground, depth: float) -> None:
    x, y, size = ground.foot(canvas, depth)
    _figure(canvas, canvas.new_segment("person"), x, y, 0.95 * size)


def _figure(canvas: Canvas, segment: int, x: float, y: float, size: float) -> None:
    rng = canvas.rng
    shirt = ((0.62, 0.05, 0.07), (0.75, 0.10, 0.30), (0.55, 0.04, 0.35))[rng.integers(3)]
    skin = np.array((0.78, 0.52, 0.38), np.float32) * rng.uniform(0.45, 1.05)
    canvas.shadow(x, y, 0.3 * size, 0.07 * size)
    for leg in (-0.09, 0.09):
        canvas.slab(
            segment, (x + leg * size, y - 0.22 * size, 0.07 * size, 0.24 * size), (0.04, 0.05, 0.13), 0.03 * size
        )
    cloth = _speckle(canvas, (0.7 * shirt[0], 0.7 * shirt[1], 0.7 * shirt[2]), shirt, 1.2, 0.3)
    for arm in (-0.22, 0.22):
        canvas.ellipsoid(segment, (x + arm * size, y - 0.62 * size, 0.06 * size, 0.22 * size), cloth)
    canvas.ellipsoid(segment, (x, y - 0.64 * size, 0.19 * size, 0.29 * size), cloth)
    canvas.ellipsoid(segment, (x, y - 1.02 * size, 0.11 * size, 0.14 * size), _flat(skin))


def _crowd(canvas: Canvas, ground: Ground, depth: float) -> None:
    """Many people far away: one segment with iscrowd = 1."""
    x, y, _ = ground.foot(canvas, 0.12 * depth)
    segment = canvas.new_segment("person", crowd=1)
    for _ in range(int(canvas.rng.integers(7, 14))):
        spot = x + canvas.rng.uniform(-0.14, 0.14) * canvas.width
        _figure(canvas, segment, spot, y + canvas.rng.uniform(-3, 5), 0.085 * canvas.height)


def _ball(canvas: Canvas, ground: Ground, depth: float) -> None:
    x, y, size = ground.foot(canvas, depth)
    radius, axes = 0.2 * size + 2, canvas.rng.standard_normal((3, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)

    def panels(u: np.ndarray, v: np.ndarray, nz: np.ndarray) -> np.ndarray:
        seams = np.min([np.abs(a * u + b * v + c * nz) for a, b, c in axes], axis=0)
        return mix((0.10, 0.05, 0.02), (0.90, 0.36, 0.06), (seams - 0.03) * radius)

    canvas.shadow(x, y, 1.1 * radius, 0.35 * radius)
    canvas.ellipsoid(canvas.new_segment("sports ball"), (x, y - radius, radius, radius), panels, gloss=0.25)


def _apple(canvas: Canvas, ground: Ground, depth: float) -> None:
    x, y, size = ground.foot(canvas, depth)
    radius, segment = 0.16 * size + 2, canvas.new_segment("apple")

    def peel(u: np.ndarray, v: np.ndarray, _) -> np.ndarray:
        spots = noise(canvas.rng, u.shape[0], u.shape[1], 1.0)
        return mix((0.55, 0.02, 0.02), (0.72, 0.55, 0.08), 0.25 - 0.5 * v + 0.15 * spots)

    canvas.shadow(x, y, 1.1 * radius, 0.35 * radius)
    canvas.slab(segment, (x, y - 2.05 * radius, 0.06 * radius, 0.25 * radius), (0.12, 0.07, 0.03))
    canvas.ellipsoid(segment, (x, y - radius, radius, 0.95 * radius), peel, wobble=0.05, gloss=0.5)


def _suitcase(canvas: Canvas, ground: Ground, depth: float) -> None:
    x, y, size = ground.foot(canvas, depth)
    rx, ry = size * canvas.rng.uniform(0.28, 0.45), size * canvas.rng.uniform(0.25, 0.4)
    segment = canvas.new_segment("suitcase")
    canvas.shadow(x, y, 1.2 * rx, 0.2 * ry)
    canvas.slab(segment, (x, y - 2.1 * ry, 0.25 * rx, 0.14 * ry), (0.06, 0.05, 0.05), 0.05 * ry)
    at = canvas.window(x, y - ry, rx, ry)
    if at is None:
        return
    height, width = canvas.x[at].shape
    leather = mix((0.02, 0.13, 0.15), (0.05, 0.26, 0.29), 0.5 + 0.25 * noise(canvas.rng, height, width, 0.8))
    straps = np.abs(np.abs(canvas.x[at] - x) - 0.5 * rx) < 0.08 * rx
    leather[straps] = (0.30, 0.20, 0.08)
    canvas.slab(segment, (x, y - ry, rx, ry), leather, 0.15 * ry)


def _kite(canvas: Canvas, ground: Ground, depth: float) -> None:
    rng = canvas.rng
    x, y = rng.uniform(0.1, 0.9) * canvas.width, rng.uniform(0.08, 0.6) * ground.horizon
    size, angle = rng.uniform(0.05, 0.12) * canvas.height, rng.uniform(-0.6, 0.6)
    at = canvas.window(x, y, 2 * size, 2 * size)
    if at is None:
        return
    u = ((canvas.x[at] - x) * np.cos(angle) + (canvas.y[at] - y) * np.sin(angle)) / size
    v = ((canvas.y[at] - y) * np.cos(angle) - (canvas.x[at] - x) * np.sin(angle)) / size
    inside = 1 - np.abs(u) / 0.7 - np.abs(v) / np.where(v > 0, 1.4, 0.8)
    yellow, purple = np.array(((0.85, 0.75, 0.05), (0.55, 0.05, 0.60)), np.float32)
    rgb = np.where(((u > 0) ^ (v > 0))[..., None], yellow, purple)
    canvas.paint(canvas.new_segment("kite"), inside * size * 0.7 + 0.5, rgb * (0.9 + 0.2 * u)[..., None], at)


def _rock(canvas: Canvas, ground: Ground, depth: float) -> None:
    """An unlabelled object: COCO does not label everything, and such pixels are void."""
    x, y, size = ground.foot(canvas, depth)
    stone = _speckle(canvas, (0.16, 0.15, 0.14), (0.52, 0.50, 0.47), 1.0, 0.25)
    canvas.shadow(x, y, 0.4 * size, 0.1 * size)
    canvas.ellipsoid(0, (x, y - 0.14 * size, 0.34 * size, 0.2 * size), stone, wobble=0.3)


THINGS: dict[str, Callable[[Canvas, Ground, float], None]] = {
    "sheep": _sheep,
    "zebra": _zebra,
    "person": _person,
    "crowd": _crowd,
    "sports ball": _ball,
    "apple": _apple,
    "suitcase": _suitcase,
    "kite": _kite,
    "rock": _rock,
}
