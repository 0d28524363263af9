"""Pictures and panoptic labels to training crops: decode, augment, crop, class ids, weights. numpy and PIL, no torch.

A crop is made in two steps: a `Plan` (geometry and colour, drawn at random from the sizes alone), and `apply_plan`,
which decodes at the lowest sufficient resolution and resizes only the pixels of the crop (resizing whole pictures takes
as long as decoding them). Recipe: EGIC section 4, as listed with OASIS-C's: longer side to 640, scale 0.5..1.5, crop,
flip.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image

from egic.errors import UserError

MAX_PIXELS = 64_000_000
"""Pictures with more pixels are refused before decoding: a file of kilobytes can decode to gigabytes."""
PAD_VALUE = 128
"""The recipe pads with 127.5; in uint8 that rounds to 128."""
SMALL_INSTANCE_WEIGHT = 3
LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """How a picture becomes a square training crop."""

    size: int = 256
    """Side of the crop in pixels. Default: EGIC's (section 4)."""
    longer_side: int = 640
    """The longer side of every picture is brought to this many pixels before the random scale. Default: EGIC's, the
    size of COCO's pictures."""
    min_scale: float = 0.5
    """Smallest random scale. Default: EGIC's."""
    max_scale: float = 1.5
    """Largest random scale; scales lie on a grid from the smallest to the largest, both included. Default: EGIC's."""
    scale_step: float = 0.1
    """Distance between two scales of that grid. Default: EGIC's."""
    colour: float = 0.1
    """Light colour augmentation: factors of brightness, contrast and saturation are drawn from 1 -/+ colour. Default:
    the paper says `light`, and no number; a small round one."""
    flip: bool = True
    """Mirror half of the crops left to right. Default: EGIC's."""
    small_instance_pixels: int = 4096
    """Thing instances covering fewer pixels of the crop weigh 3 in the segmentation loss (4096 belongs to 256x256).
    Default: the reference's, 1/16 of the crop."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"crop.size is {self.size}; give a positive number of pixels")
        if self.longer_side < 1:
            raise UserError(f"crop.longer_side is {self.longer_side}; give a positive number of pixels")
        if not 0 < self.min_scale <= self.max_scale:
            raise UserError(f"crop.min_scale is {self.min_scale}; it must be above 0 and at most max_scale")
        if self.scale_step <= 0:
            raise UserError(f"crop.scale_step is {self.scale_step}; give a positive step")
        steps = (self.max_scale - self.min_scale) / self.scale_step
        if abs(steps - round(steps)) > 1e-6:
            raise UserError(f"crop.scale_step is {self.scale_step}; from min_scale to max_scale must be whole steps")
        if not 0 <= self.colour < 1:
            raise UserError(f"crop.colour is {self.colour}; give a value from 0 (off) to below 1")
        if self.small_instance_pixels < 0:
            raise UserError(f"crop.small_instance_pixels is {self.small_instance_pixels}; give 0 (off) or more")

    @property
    def num_scales(self) -> int:
        return 1 + round((self.max_scale - self.min_scale) / self.scale_step)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One stored picture: its JPEG file, and a panoptic label as an index map with a table of segments."""

    jpeg: bytes
    segments: np.ndarray
    """(H, W) uint8 or uint16: 0 void, i = row i of the tables."""
    segment_class: np.ndarray
    """(1 + segments,) uint8: class 1..K, 0 for void and crowd; row 0 is void."""
    segment_thing: np.ndarray
    """(1 + segments,) uint8: 1 for instances of things."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All random choices of one crop; they do not depend on pixels."""

    height: int
    width: int
    """Size of the whole picture after resizing, of which only the crop is computed."""
    top: int
    left: int
    """Corner of the crop in the resized picture; negative if the crop begins with padding."""
    flip: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0


def plan_training_crop(height: int, width: int, crop: CropConfig, rng: np.random.Generator) -> Plan:
    """Draw scale, position, flip and colour for a picture of the given size. Always consumes seven numbers of `rng`."""
    scale, top, left, flip, *colour = rng.random(7)
    factor = min(crop.min_scale + crop.scale_step * int(scale * crop.num_scales), crop.max_scale)
    height, width = _resized(height, width, crop.longer_side * factor)
    brightness, contrast, saturation = (1 + crop.colour * (2 * value - 1) for value in colour)
    return Plan(
        height=height,
        width=width,
        top=_offset(height, crop.size, top),
        left=_offset(width, crop.size, left),
        flip=crop.flip and flip < 0.5,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
    )


def plan_center_crop(height: int, width: int, crop: CropConfig) -> Plan:
    """Validation: longer side to `longer_side`, centre crop, nothing random."""
    height, width = _resized(height, width, crop.longer_side)
    return Plan(height=height, width=width, top=(height - crop.size) // 2, left=(width - crop.size) // 2)


def apply_plan(sample: Sample, plan: Plan, crop: CropConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make the planned crop: x (S, S, 3) uint8 RGB, label (S, S) uint8 class or 0 void, weight (S, S) uint8 1 or 3."""
    rows = slice(max(0, plan.top), min(plan.height, plan.top + crop.size))
    cols = slice(max(0, plan.left), min(plan.width, plan.left + crop.size))
    first = plan.left + crop.size - cols.stop if plan.flip else cols.start - plan.left
    inside = np.s_[rows.start - plan.top : rows.stop - plan.top, first : first + cols.stop - cols.start]
    x = np.full((crop.size, crop.size, 3), PAD_VALUE, np.uint8)
    x[inside] = _resized_window(sample.jpeg, plan, rows, cols)
    index = np.zeros((crop.size, crop.size), sample.segments.dtype)
    index[inside] = _nearest_window(sample.segments, plan, rows, cols)
    return x, sample.segment_class.take(index), _weights(index, sample, crop).take(index)


def decode_jpeg(jpeg: bytes) -> np.ndarray:
    """Decode a whole JPEG file to (H, W, 3) uint8 RGB; greyscale and CMYK become RGB.

    EXIF orientation is ignored, as COCO's annotations do. Raises UserError for anything that is not a whole JPEG.
    """
    with _open(jpeg, "JPEG") as image:
        return np.asarray(_load(image).convert("RGB"))


def decode_panoptic_png(png: bytes) -> np.ndarray:
    """Decode a panoptic PNG to segment ids (H, W) uint32: R + 256 G + 65536 B, 0 = void (COCO panoptic format)."""
    with _open(png, "PNG") as image:
        if image.mode not in ("RGB", "RGBA"):
            raise UserError(f"panoptic PNG has mode {image.mode}; segment ids need RGB")
        rgb = np.asarray(_load(image).convert("RGB")).astype(np.uint32)
    return rgb[..., 0] | rgb[..., 1] << 8 | rgb[..., 2] << 16


def decode_label_png(png: bytes, *, colours: bool | None = None) -> np.ndarray:
    """Decode a label map to the value of each pixel, (H, W) uint32.

    colours: True for colours, 65536 R + 256 G + B each (RGB, with alpha left out, or through a palette); False for
    index values, 8 or 16 bit (grey, or indices of a palette); None for the kind that the file has. Raises UserError for
    others.
    """
    with _open(png, "PNG") as image:
        has_colours = image.mode in ("RGB", "RGBA") or (colours is True and image.mode == "P")
        if image.mode not in ("1", "L", "P", "I;16", "RGB", "RGBA") or colours not in (None, has_colours):
            wanted = "colours need RGB" if colours else "index values need grey or a palette"
            raise UserError(f"label map has mode {image.mode}; {wanted}")
        values = np.asarray(_load(image).convert("RGB") if has_colours else _load(image)).astype(np.uint32)
    if has_colours:
        return values[..., 0] << 16 | values[..., 1] << 8 | values[..., 2]
    depth, kind = png[24], png[25]  # bytes of the header: bits per sample; colour type, 0 for grey
    return values // (255 // (2**depth - 1)) if kind == 0 and 1 < depth < 8 else values  # Pillow scales 2 and 4 bits


def _open(data: bytes, kind: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own, lower limit follows
            image = Image.open(io.BytesIO(data), formats=[kind])
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever their parts do
        raise UserError(f"not a readable {kind} file ({error})") from error
    if image.width * image.height > MAX_PIXELS:
        raise UserError(f"{image.width}x{image.height} pixels are over the limit of {MAX_PIXELS}")
    return image


def _load(image: Image.Image) -> Image.Image:
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:
        raise UserError(f"truncated or damaged {image.format} file ({error})") from error
    return image


def _resized(height: int, width: int, longer_side: float) -> tuple[int, int]:
    factor = longer_side / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def _offset(length: int, size: int, uniform: float) -> int:
    """Position of the crop along one side: uniform if the picture is longer than the crop, else centred padding."""
    return int(uniform * (length - size + 1)) if length >= size else (length - size) // 2


def _resized_window(jpeg: bytes, plan: Plan, rows: slice, cols: slice) -> np.ndarray:
    """Pixels [rows, cols] of the picture resized to the plan's size, (h, w, 3) uint8, bilinear with antialiasing.

    Flipped and coloured as planned.
    """
    with _open(jpeg, "JPEG") as image:
        image.draft(image.mode, (plan.width, plan.height))  # the decoder halves it while it stays large enough
        _load(image)
        dx, dy = image.width / plan.width, image.height / plan.height
        box = (cols.start * dx, rows.start * dy, min(cols.stop * dx, image.width), min(rows.stop * dy, image.height))
        size = (cols.stop - cols.start, rows.stop - rows.start)
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        window = rgb.resize(size, Image.Resampling.BILINEAR, box=box)
    if (plan.brightness, plan.contrast, plan.saturation) != (1, 1, 1):
        window = window.convert("RGB", _colour_matrix(plan))
    if plan.flip:
        window = window.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(window)


def _colour_matrix(plan: Plan) -> tuple[float, ...]:
    """Brightness, contrast about mid-grey and saturation as one 3x4 matrix, applied in one pass over the pixels."""
    mix = plan.saturation * np.eye(3) + (1 - plan.saturation) * LUMA
    offset = 127.5 * (1 - plan.contrast)
    return tuple(value for row in plan.brightness * plan.contrast * mix for value in (*row.tolist(), offset))


def _nearest_window(index: np.ndarray, plan: Plan, rows: slice, cols: slice) -> np.ndarray:
    """The same window of the label map, nearest neighbour at pixel centres."""
    y = ((np.arange(rows.start, rows.stop) + 0.5) * (index.shape[0] / plan.height)).astype(np.intp)
    x = ((np.arange(cols.start, cols.stop) + 0.5) * (index.shape[1] / plan.width)).astype(np.intp)
    return index.take(y, axis=0).take(x[::-1] if plan.flip else x, axis=1)


def _weights(index: np.ndarray, sample: Sample, crop: CropConfig) -> np.ndarray:
    """Weight of each segment in this crop, (1 + segments,) uint8."""
    pixels = np.bincount(index.ravel(), minlength=len(sample.segment_class))
    small = (sample.segment_thing == 1) & (sample.segment_class > 0) & (pixels < crop.small_instance_pixels)
    return np.where(small, SMALL_INSTANCE_WEIGHT, 1).astype(np.uint8)
