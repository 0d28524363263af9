"""The README's picture: photographs, decoded at two alphas from one file each, beside JPEG and AVIF of equal bytes.

python docs/picture.py MODEL OUT.webp egic/demo/photographs/*.jpg --bpp 0.15
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import egic
from egic import pictures
from egic.cli import model_refs
from egic.errors import UserError, quiet, run_main
from egic.file_size import bpp
from egic.model import Model
from egic.report import anchors
from jobs.config.flags import parse_config

HEAD, GAP = 44, 8  # pixels; the page shows the picture at about a third of its size


@dataclass(frozen=True, kw_only=True)
class Options:
    """Decoded photographs side by side, with other codecs at the size of the model's file."""

    model: str
    """Model with ORP: a folder, or a name that `egic compress -m` takes."""
    out: Path
    """Picture file to write."""
    images: tuple[Path, ...]
    """Photographs, one per row."""
    bpp: float = 0.15
    """Highest rate of the model's files, for a model that codes at any rate."""
    anchors: tuple[str, ...] = ("jpeg", "avif")
    """Other codecs."""
    quality: int = 80
    """Quality of the picture file."""


def row(model: Model, path: Path, options: Options) -> list[tuple[str, np.ndarray]]:
    """(caption, picture) of a photograph, from the original to the other codecs."""
    x, _ = pictures.read(path.read_bytes())
    data = model.compress(x, bpp=options.bpp) if model.has_quality else model.compress(x)
    rate = bpp(len(data), *x.shape[:2])
    found = [("original", x)]
    for alpha in (0.0, 1.0):
        found.append((f"alpha {alpha:g}: {len(data):,} bytes, {rate:.3f} bpp", model.decompress(data, alpha)))
    codecs, missing = anchors.find(options.anchors)
    if missing:
        raise UserError(f"not installed: {missing}; leave them out of --anchors")
    for codec in codecs:
        coded = anchors.Matcher(codec, x).nearest(len(data))
        found.append((f"{codec.label}: {coded.num_bytes:,} bytes, {coded.bpp:.3f} bpp", coded.picture))
    return found


def sheet(rows: list[list[tuple[str, np.ndarray]]]) -> Image.Image:
    """Rows of captioned pictures on white, cropped at the right and below to the smallest picture's size."""
    height, width = (min(y.shape[i] for r in rows for _, y in r) for i in (0, 1))
    size = (len(rows[0]) * (width + GAP) - GAP, len(rows) * (height + HEAD + GAP) - GAP)
    whole, font = Image.new("RGB", size, "white"), ImageFont.load_default(size=27)
    for i, r in enumerate(rows):
        for j, (text, y) in enumerate(r):
            left, top = j * (width + GAP), i * (height + HEAD + GAP)
            ImageDraw.Draw(whole).text((left, top + 4), text, "black", font)
            whole.paste(Image.fromarray(y[:height, :width]), (left, top + HEAD))
    return whole


def main() -> None:
    options = parse_config(Options, prog="docs/picture.py")
    model = egic.load(model_refs.folder_of(options.model))
    sheet([row(model, path, options) for path in options.images]).save(options.out, quality=options.quality)
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    quiet()
    raise SystemExit(run_main(main))
