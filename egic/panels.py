"""Pictures to look at: panels of a training run, and a strip over alpha. numpy and PIL."""

import io

import numpy as np
from PIL import Image, ImageDraw


def label_colours(label: np.ndarray) -> np.ndarray:
    """Class ids (H, W) -> RGB (H, W, 3) uint8, void black, every class its own fixed colour."""
    rng = np.random.default_rng(7)
    palette = rng.integers(40, 256, (256, 3), dtype=np.uint8)
    palette[0] = 0
    return palette[label]


def panel(rows: list[list[np.ndarray]], titles: list[str] | list[list[str]], gap: int = 4) -> Image.Image:
    """Rows of RGB uint8 pictures -> one picture on white.

    titles: one per column, or one per picture as a list of rows, larger on wide columns. Pictures of a row share its
    height; columns are as wide as their widest.
    """
    per_picture = titles if isinstance(titles[0], list) else [titles] + [[""] * len(titles)] * (len(rows) - 1)
    widths = [max(row[i].shape[1] for row in rows) for i in range(len(rows[0]))]
    size = max(10, min(widths) // 26)  # an evaluation's titles, 30 letters, take half the width
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
    return sheet


def png(image: Image.Image | np.ndarray) -> bytes:
    """The PNG file of a picture (PIL, or uint8 (H, W, 3))."""
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, "PNG")
    return buffer.getvalue()


def from_png(data: bytes) -> np.ndarray:
    """uint8 (H, W, 3) of a PNG file made by `png`."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
