"""The README's picture: drawn scenes, decoded at three alphas from one file each, with JPEG at the size nearest to it.

python docs/picture.py MODEL OUT.webp --seeds 5 7
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import egic
from egic.cli import model_refs
from egic.errors import quiet, run_main
from egic.report import anchors
from jobs.config.flags import parse_config
from jobs.data.sources.scenes.scenes import SceneConfig, draw_scene

HEAD, GAP = 44, 8  # pixels; the page shows the picture at about a third of its size


@dataclass(frozen=True, kw_only=True)
class Options:
    """Decoded drawn scenes side by side, with JPEG."""

    model: str
    """Artifact folder, or an MLflow URI, of a model with ORP."""
    out: Path
    """Picture file to write."""
    seeds: tuple[int, ...] = (5, 7)
    """Scenes to draw, one per row; those of training come from other seeds."""
    quality: int = 80
    """Of the picture file, where its format has one."""


def row(model, seed: int) -> list[tuple[str, np.ndarray]]:
    """(caption, picture) of a scene, from the original to JPEG."""
    x = draw_scene(np.random.default_rng(seed), SceneConfig())[0]
    data = model.compress(x)
    found = [(f"alpha {alpha:g}: {len(data):,} bytes", model.decompress(data, alpha)) for alpha in (0.0, 0.5, 1.0)]
    jpeg = anchors.Matcher(anchors.find(["jpeg"])[0][0], x).nearest(len(data))
    found.append((f"JPEG: {jpeg.num_bytes:,} bytes", jpeg.picture))
    psnr = [10 * np.log10(255**2 / ((y - x.astype(float)) ** 2).mean()) for _, y in found]
    return [("original", x), *((f"{text}, {db:.1f} dB", y) for (text, y), db in zip(found, psnr, strict=True))]


def sheet(rows: list[list[tuple[str, np.ndarray]]]) -> Image.Image:
    """Rows of captioned pictures on white, cut at the right and below to the smallest picture's size."""
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
    sheet([row(model, seed) for seed in options.seeds]).save(options.out, quality=options.quality)
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    quiet()
    raise SystemExit(run_main(main))
