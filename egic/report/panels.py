"""Sheets of pictures with titles: samples of a training run or of an evaluation."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from egic.metrics.distortion import to_uint8


def as_image(x: Tensor) -> np.ndarray:
    """Float picture (3, H, W) in 0..255 -> uint8 (H, W, 3)."""
    return to_uint8(x).permute(1, 2, 0).cpu().numpy()


def label_colours(label: np.ndarray) -> np.ndarray:
    """Class ids (H, W) -> RGB (H, W, 3) uint8: void is black, each class has a fixed colour."""
    rng = np.random.default_rng(7)
    palette = rng.integers(40, 256, (256, 3), dtype=np.uint8)
    palette[0] = 0
    return palette[label]


def key_of(label: np.ndarray, names: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Colours by name of the classes in a label map of any shape, sorted by their area, largest first.

    Values: 0 void, 1..K the classes of these names, K + 1 fake.
    """
    ids, areas = np.unique(label, return_counts=True)
    known = ("void", *names, "fake")
    return {known[c]: tuple(label_colours(c).tolist()) for c in ids[np.argsort(-areas, kind="stable")]}


def panel(
    rows: list[list[np.ndarray]], titles: list[str] | list[list[str]], gap: int = 4,
    key: Mapping[str, tuple[int, int, int]] | None = None,
) -> Image.Image:  # fmt: skip
    """Rows of RGB uint8 pictures -> one picture on white.

    titles: one per column, or one per picture as a list of rows. Wide columns have larger letters. Rows are as high,
    columns as wide as their largest picture. key: colours by name, shown below the pictures.
    """
    per_picture = titles if isinstance(titles[0], list) else [titles] + [[""] * len(titles)] * (len(rows) - 1)
    widths = [max(row[i].shape[1] for row in rows) for i in range(len(rows[0]))]
    size = max(10, min(widths) // 26)  # so that 30 letters, a title of an evaluation, take half the width
    heads = [size + 6 if any(line) else 0 for line in per_picture]
    height = sum(row[0].shape[0] + head + gap for row, head in zip(rows, heads, strict=True)) + gap
    sheet = Image.new("RGB", (sum(widths) + gap * (len(widths) + 1), height), "white")
    draw, top = ImageDraw.Draw(sheet), gap
    for row, line, head in zip(rows, per_picture, heads, strict=True):
        left = gap
        for picture, title, width in zip(row, line, widths, strict=True):
            draw.text((left, top), title, fill="black", font_size=size)
            sheet.paste(Image.fromarray(picture), (left, top + head))
            left += width + gap
        top += row[0].shape[0] + head + gap
    return with_key(sheet, key, size, gap) if key else sheet


def with_key(sheet: Image.Image, key: Mapping[str, tuple[int, int, int]], size: int, gap: int) -> Image.Image:
    """Add a key below the sheet: a square of each colour with its name, in as many lines as needed."""
    width_of, (left, top), places = ImageDraw.Draw(sheet).textlength, (gap, sheet.height), {}
    for name in key:
        width = round(2 * size + gap + width_of(name, font_size=size))
        if left > gap and left + width > sheet.width:
            left, top = gap, top + size + gap
        places[name], left = (left, top), left + width + gap
    longer = Image.new("RGB", (sheet.width, top + size + 2 * gap), "white")
    longer.paste(sheet)
    draw = ImageDraw.Draw(longer)
    for name, (x, y) in places.items():
        draw.rectangle((x, y, x + size, y + size), fill=key[name])
        draw.text((x + size + gap, y), name, fill="black", font_size=size)
    return longer


def png(image: Image.Image | np.ndarray) -> bytes:
    """The PNG file of a picture (PIL, or uint8 (H, W, 3))."""
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, "PNG")
    return buffer.getvalue()


def from_png(data: bytes) -> np.ndarray:
    """uint8 (H, W, 3) of a PNG file made by `png`."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
