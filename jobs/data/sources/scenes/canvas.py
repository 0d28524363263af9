"""The canvas of drawn scenes: picture and labels in register, 1/f noise, shaded bodies, and the camera."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jobs.data.sources.coco_classes import CATEGORIES

_ID = {category.name: category.id for category in CATEGORIES}
Colour = tuple[float, float, float]


def noise(
    rng: np.random.Generator, height: int, width: int, beta: float = 1.0, stretch: tuple[float, float] = (1, 1)
) -> np.ndarray:
    """1/f^beta amplitude noise, (height, width) float32 of mean 0 and variance 1; `stretch` > 1 elongates y or x."""
    fy = np.fft.fftfreq(height)[:, None] * stretch[0]
    fx = np.fft.rfftfreq(width)[None] * stretch[1]
    amplitude = np.maximum(np.hypot(fy, fx), 1 / max(height, width)) ** -beta
    amplitude[0, 0] = 0
    phase = rng.random(amplitude.shape, np.float32) * np.float32(2 * np.pi)
    values = np.fft.irfft2(amplitude * np.exp(1j * phase), s=(height, width))
    return (values / values.std()).astype(np.float32)


def mix(first: Colour, second: Colour, t: np.ndarray) -> np.ndarray:
    """Blend two colours by a map t (clipped to 0..1): (h, w, 3)."""
    t = np.clip(t, 0, 1)[..., None].astype(np.float32)
    return (1 - t) * np.array(first, np.float32) + t * np.array(second, np.float32)


class Canvas:
    """A picture in linear 0..1, and for each pixel the index of its visible segment (0 = void)."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng, self.height, self.width = rng, height, width
        self.rgb = np.zeros((height, width, 3), np.float32)
        self.index = np.zeros((height, width), np.uint8)
        self.y, self.x = np.mgrid[:height, :width].astype(np.float32)
        angle = rng.uniform(-2.4, -0.7)  # light from above, left or right
        self.light = np.array([np.cos(angle), np.sin(angle), 0.8], np.float32) / np.float32(1.28)
        self._segments: list[dict] = []

    def new_segment(self, name: str, crowd: int = 0) -> int:
        """Register a segment; returns its index."""
        number = len(self._segments) + 1
        segment_id = number + 256 * int(self.rng.integers(256**2))  # unique, and spread over the three channels
        self._segments.append({"id": segment_id, "category_id": _ID[name], "iscrowd": crowd})
        return number

    def paint(self, segment: int, alpha: np.ndarray, rgb: np.ndarray, at: tuple[slice, slice] = np.s_[:, :]) -> None:
        """Lay colour over the picture where alpha (0..1, antialiased) covers it; half-covered edges become void."""
        alpha = np.clip(alpha, 0, 1)
        self.rgb[at] += alpha[..., None] * (rgb - self.rgb[at])
        index = self.index[at]
        index[(alpha > 0.15) & (index != segment)] = 0
        index[alpha > 0.6] = segment

    def window(self, cx: float, cy: float, rx: float, ry: float) -> tuple[slice, slice] | None:
        """The part of the picture around a box, or None if the box is outside the picture."""
        top, bottom = max(0, int(cy - ry) - 2), min(self.height, int(cy + ry) + 3)
        left, right = max(0, int(cx - rx) - 2), min(self.width, int(cx + rx) + 3)
        return (slice(top, bottom), slice(left, right)) if top < bottom and left < right else None

    def shadow(self, cx: float, cy: float, rx: float, ry: float) -> None:
        """A soft shadow on the ground, which changes colours but no labels."""
        at = self.window(cx, cy, 2.2 * rx, 2.2 * ry)
        if at:
            distance = ((self.x[at] - cx) / rx) ** 2 + ((self.y[at] - cy) / ry) ** 2
            self.rgb[at] *= 1 - 0.55 * np.exp(-distance)[..., None]

    def ellipsoid(self, segment: int, box: tuple, skin: Callable, wobble: float = 0.0, gloss: float = 0.0) -> None:
        """A shaded round body: box (cx, cy, rx, ry); skin(nx, ny, nz) returns (h, w, 3) colours from unit normals."""
        cx, cy, rx, ry = box
        at = self.window(cx, cy, rx * (1 + wobble), ry * (1 + wobble))
        if at is None:
            return
        u, v = (self.x[at] - cx) / rx, (self.y[at] - cy) / ry
        radius = np.hypot(u, v)
        if wobble:
            theta, phases = np.arctan2(v, u), self.rng.uniform(0, 6.28, 3)
            radius = radius / (
                1 + wobble / 3 * sum(np.cos(k * theta + p) for k, p in zip((2, 3, 7), phases, strict=True))
            )
        nz = np.sqrt(np.clip(1 - radius**2, 0, 1))
        shade = np.clip(u * self.light[0] + v * self.light[1] + nz * self.light[2], 0, 1)
        rgb = skin(u, v, nz) * (0.32 + 0.75 * shade)[..., None]
        if gloss:
            rgb = rgb + gloss * (shade**24)[..., None]
        self.paint(segment, (1 - radius) * min(rx, ry) + 0.5, rgb, at)

    def slab(self, segment: int, box: tuple, rgb: np.ndarray | Colour, corner: float = 1.0) -> None:
        """A flat upright box (cx, cy, rx, ry) with rounded corners, lit from its upper edge."""
        cx, cy, rx, ry = box
        at = self.window(cx, cy, rx, ry)
        if at is None:
            return
        dx, dy = np.abs(self.x[at] - cx) - rx + corner, np.abs(self.y[at] - cy) - ry + corner
        outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - corner
        shade = 0.95 - 0.3 * (self.y[at] - cy) / (2 * ry) + 0.15 * self.light[0] * (self.x[at] - cx) / rx
        self.paint(segment, 0.5 - outside, np.asarray(rgb, np.float32) * shade[..., None], at)

    def photograph(self) -> np.ndarray:
        """The picture as a camera records it: exposure, vignette, gamma, sensor noise; (H, W, 3) uint8."""
        far = np.hypot(self.x / self.width - 0.5, self.y / self.height - 0.5)[..., None]
        linear = np.clip(self.rgb, 0, None) * self.rng.uniform(0.8, 1.1) * (1 - 0.35 * far**2)
        grain = self.rng.standard_normal(linear.shape, np.float32) * (0.004 + 0.012 * np.sqrt(np.clip(linear, 0, 1)))
        return (np.clip(linear + grain, 0, 1) ** (1 / 1.8) * 255 + 0.5).astype(np.uint8)

    def annotation(self) -> tuple[np.ndarray, list[dict]]:
        """Segment ids (H, W) uint32 and COCO's segments_info of every visible segment."""
        table = np.array([0, *(segment["id"] for segment in self._segments)], np.uint32)
        areas = np.bincount(self.index.ravel(), minlength=len(table)).tolist()
        visible = [(number, segment) for number, segment in enumerate(self._segments, start=1) if areas[number]]
        info = [segment | {"area": areas[n], "bbox": _bbox(self.index == n)} for n, segment in visible]
        return table[self.index], info


def _bbox(mask: np.ndarray) -> list[int]:
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(cols[0]), int(rows[0]), int(cols[-1] - cols[0] + 1), int(rows[-1] - rows[0] + 1)]
