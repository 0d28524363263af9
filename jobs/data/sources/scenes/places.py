"""Places of drawn scenes: meadow, beach, room. Each paints its surfaces and lists the things that may stand on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jobs.data.sources.scenes.canvas import Canvas, mix, noise


@dataclass(frozen=True)
class Ground:
    """The plane that things stand on."""

    horizon: float
    """Row where the plane ends."""
    things: tuple[str, ...]
    """Names of things that may stand on it."""

    def foot(self, canvas: Canvas, depth: float) -> tuple[float, float, float]:
        """Place something at depth 0 (horizon) .. 1 (nearest): x, y of its foot, and its height scale in pixels."""
        y = self.horizon + depth * (canvas.height - self.horizon) * 0.97
        return float(canvas.rng.uniform(0.05, 0.95) * canvas.width), float(y), 10 + 0.42 * depth * canvas.height


def _plane(canvas: Canvas, texture: np.ndarray, horizon: float) -> tuple[np.ndarray, np.ndarray]:
    """A texture seen in perspective, fading towards the horizon, and the depth (0 far .. 1 near) of each pixel."""
    depth = np.clip((canvas.y - horizon) / (canvas.height - horizon), 0.012, 1)
    rows = (0.35 * canvas.height / depth).astype(np.intp) % texture.shape[0]
    cols = ((canvas.x - canvas.width / 2) / depth).astype(np.intp) % texture.shape[1]
    return texture[rows, cols] * np.sqrt(depth), depth


def draw_background(canvas: Canvas) -> Ground:
    """One of three places: a meadow, a beach, a room."""
    return (_meadow, _meadow, _beach, _room)[canvas.rng.integers(4)](canvas)


def _sky(canvas: Canvas, horizon: float) -> None:
    clouds = noise(canvas.rng, canvas.height, canvas.width, 1.5, (1, 2.2))
    height = canvas.y / max(horizon, 1)
    blue = mix((0.13, 0.32, 0.72), (0.55, 0.72, 0.9), height)
    cover = np.clip(0.55 * clouds + canvas.rng.uniform(-0.5, 0.4), 0, 1)[..., None]
    canvas.paint(canvas.new_segment("sky-other-merged"), np.ones_like(canvas.y), blue + cover * (0.92 - blue) * 0.85)


def _skyline(canvas: Canvas, base: float, rise: float, beta: float) -> np.ndarray:
    """Alpha of everything below a jagged line."""
    line = noise(canvas.rng, 2, canvas.width, beta)[0]
    return canvas.y - (base - rise * (0.6 + 0.4 * line / max(np.abs(line).max(), 1e-6)))[None] + 0.5


def _meadow(canvas: Canvas) -> Ground:
    rng, height, width = canvas.rng, canvas.height, canvas.width
    horizon = float(height * rng.uniform(0.35, 0.6))
    _sky(canvas, horizon)
    rough = noise(rng, height, width, 1.1)
    if rng.random() < 0.6:
        ridge = mix((0.20, 0.22, 0.27), (0.44, 0.42, 0.42), 0.5 + 0.3 * rough)
        canvas.paint(canvas.new_segment("mountain-merged"), _skyline(canvas, horizon, 0.22 * height, 1.3), ridge)
    if rng.random() < 0.7:
        leaves = noise(rng, height, width, 0.7)
        trees = mix((0.015, 0.05, 0.015), (0.10, 0.20, 0.05), 0.42 + 0.25 * leaves + 0.1 * rough)
        canvas.paint(canvas.new_segment("tree-merged"), _skyline(canvas, horizon + 2, 0.12 * height, 0.7), trees)
    blades, depth = _plane(canvas, noise(rng, height, width, 0.6, (2.5, 1)), horizon)
    patches, _ = _plane(canvas, rough, horizon)
    green = mix((0.07, 0.16, 0.02), (0.33, 0.46, 0.10), 0.45 + 0.28 * blades + 0.2 * patches)
    canvas.paint(canvas.new_segment("grass-merged"), canvas.y - horizon + 0.5, green)
    if rng.random() < 0.55:
        _road(canvas, horizon, depth)
    return Ground(horizon, ("sheep", "zebra", "person", "sports ball", "person", "crowd", "kite", "rock", "sheep"))


def _road(canvas: Canvas, horizon: float, depth: np.ndarray) -> None:
    rng = canvas.rng
    across = (canvas.x - canvas.width * rng.uniform(0.3, 0.7) - rng.uniform(-0.4, 0.4) * (canvas.y - horizon)) / depth
    half = canvas.width * rng.uniform(0.16, 0.28)
    grit, _ = _plane(canvas, noise(rng, canvas.height, canvas.width, 0.35), horizon)
    asphalt = mix((0.09, 0.09, 0.10), (0.27, 0.27, 0.28), 0.5 + 0.22 * grit)
    dashes = (np.abs(across) < 0.035 * half) & ((6 / depth).astype(int) % 2 == 0)
    edges = np.abs(np.abs(across) - 0.92 * half) < 0.025 * half
    asphalt[dashes | edges] = (0.8, 0.79, 0.74)
    alpha = np.where(canvas.y > horizon, (half - np.abs(across)) * depth + 0.5, 0)
    canvas.paint(canvas.new_segment("road"), alpha, asphalt)


def _beach(canvas: Canvas) -> Ground:
    rng, height, width = canvas.rng, canvas.height, canvas.width
    horizon = float(height * rng.uniform(0.3, 0.5))
    shore = horizon + (height - horizon) * rng.uniform(0.2, 0.4)
    _sky(canvas, horizon)
    waves, depth = _plane(canvas, noise(rng, height, width, 0.9, (1, 6)), horizon)
    sea = mix((0.02, 0.13, 0.20), (0.12, 0.38, 0.42), 0.35 + 0.3 * waves + 0.4 * depth)
    sea += np.clip(waves - 1.4, 0, 1)[..., None] * 0.5  # foam
    canvas.paint(canvas.new_segment("sea"), canvas.y - horizon + 0.5, sea)
    ripples, _ = _plane(canvas, noise(rng, height, width, 0.8, (1, 2)), horizon)
    line = shore + 6 * noise(rng, 2, width, 1.2)[0][None]
    wet = np.clip((canvas.y - line) / 30, 0, 1)[..., None]
    sand = mix((0.42, 0.33, 0.20), (0.80, 0.68, 0.48), 0.5 + 0.22 * ripples) * (0.6 + 0.4 * wet)
    canvas.paint(canvas.new_segment("sand"), canvas.y - line + 0.5, sand)
    return Ground(shore + 12, ("person", "sports ball", "kite", "crowd", "rock", "suitcase", "sports ball"))


def _room(canvas: Canvas) -> Ground:
    rng, height, width = canvas.rng, canvas.height, canvas.width
    horizon = float(height * rng.uniform(0.4, 0.62))
    size = rng.uniform(14, 26)
    course = np.floor(canvas.y / size)
    along = canvas.x + course % 2 * size
    mortar = (canvas.y % size < 0.12 * size) | (along % (2 * size) < 0.12 * size)
    tone = np.sin(course * 12.9898 + np.floor(along / (2 * size)) * 78.233) * 43758.5 % 1  # each brick its own
    clay = mix((0.26, 0.07, 0.04), (0.52, 0.20, 0.12), tone * 0.7 + 0.15 * noise(rng, height, width, 0.6))
    clay[mortar] = (0.55, 0.52, 0.47)
    falloff = 1.1 - 0.6 * np.hypot((canvas.x / width - rng.uniform(0.2, 0.8)), canvas.y / height)
    canvas.paint(canvas.new_segment("wall-brick"), np.ones_like(canvas.y), clay * falloff[..., None])
    grain, depth = _plane(canvas, noise(rng, height, width, 1.0, (9, 1)), horizon)
    plank = np.floor((canvas.x - width / 2) / depth / (0.11 * width))
    tone = np.sin(plank * 12.9898) * 43758.5 % 1
    wood = mix((0.28, 0.14, 0.05), (0.66, 0.42, 0.20), 0.2 + 0.5 * tone + 0.2 * grain)
    gap = ((canvas.x - width / 2) / depth / (0.11 * width)) % 1 < 0.03
    wood[gap] *= 0.4
    canvas.paint(canvas.new_segment("floor-wood"), canvas.y - horizon + 0.5, wood * falloff[..., None])
    canvas.shadow(width / 2, horizon, width, 5)
    return Ground(horizon + 8, ("suitcase", "apple", "sports ball", "apple", "person", "suitcase", "rock"))
