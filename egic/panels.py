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


def panel(rows: list[list[np.ndarray]], titles: list[str], gap: int = 4) -> Image.Image:
    """Rows of RGB uint8 pictures of one size, with a title over each column -> one picture on white."""
    h, w, _ = rows[0][0].shape
    head = 16
    sheet = Image.new("RGB", (len(titles) * (w + gap) + gap, head + len(rows) * (h + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((gap + column * (w + gap), 2), title, fill="black")
        for row, pictures in enumerate(rows):
            sheet.paste(Image.fromarray(pictures[column]), (gap + column * (w + gap), head + row * (h + gap)))
    return sheet


def png(image: Image.Image) -> bytes:
    """A picture's PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
