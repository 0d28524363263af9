"""Drawn scenes as a COCO panoptic tree: training data for trying things without a download.

The statistics resemble those of photographs where it matters to a codec: surfaces of 1/f noise (natural pictures have
power spectra near 1/f^2), perspective, shading, cast shadows, occlusion, sensor noise, JPEG. The labels have the
difficulties of COCO: void along edges and on unlisted objects, crowds as one segment, tiny instances. Every class has
its own colours and texture, so a segmenter can learn them.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from egic.errors import UserError
from jobs.data.sources.coco_classes import CATEGORIES
from jobs.data.sources.scenes.canvas import Canvas
from jobs.data.sources.scenes.places import draw_background
from jobs.data.sources.scenes.things import THINGS

VERSION = 1
"""Stored in scenes.json of a finished tree; change it when the drawing changes."""


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """How many scenes to draw, and from which seed."""

    num_train: int = 72
    """Pictures in train2017."""
    num_val: int = 16
    """Pictures in val2017."""
    seed: int = 0
    """Same seed, same bytes (on one machine: FFTs may round differently elsewhere)."""
    min_side: int = 320
    """Shorter side of the pictures."""
    max_side: int = 480
    """Longer side of the pictures."""

    def __post_init__(self) -> None:
        if self.num_train < 1 or self.num_val < 1:
            raise UserError(f"num_train is {self.num_train}, num_val {self.num_val}; give 1 or more of both")
        if not 64 <= self.min_side <= self.max_side:
            raise UserError(f"min_side is {self.min_side}; give 64 up to max_side ({self.max_side})")


def write_scenes(root: str | Path, config: SceneConfig | None = None) -> Path:
    """Draw the scenes and write ROOT/{train2017,val2017,annotations}; a finished tree of the same config is kept."""
    root, config = Path(root), config or SceneConfig()
    mark = root / "scenes.json"
    wanted = json.dumps({"version": VERSION, **vars(config)})
    if mark.exists() and mark.read_text() == wanted:
        return root
    if root.exists() and any(root.iterdir()) and not mark.exists():
        raise UserError(f"{root} is not empty and holds no drawn scenes; choose another folder")
    root.mkdir(parents=True, exist_ok=True)
    mark.write_text("")  # created by us but unfinished: after a kill, the next run draws it again
    for number, (split, num) in enumerate((("train", config.num_train), ("val", config.num_val))):
        _write_split(root, split, num, [config.seed, number], config)
    mark.write_text(wanted)
    return root


def _write_split(root: Path, split: str, num: int, seed: list[int], config: SceneConfig) -> None:
    pictures, pngs = root / f"{split}2017", root / "annotations" / f"panoptic_{split}2017"
    for folder in (pictures, pngs):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()

    def draw(number: int) -> tuple[dict, dict]:
        rng = np.random.default_rng([*seed, number])
        rgb, ids, segments = draw_scene(rng, config)
        image_id = 1000 * seed[1] + number + 1
        name = f"{image_id:012d}"
        Image.fromarray(rgb).save(pictures / f"{name}.jpg", quality=int(rng.integers(88, 96)))
        png = (ids[..., None] >> np.array([0, 8, 16], np.uint32)).astype(np.uint8)
        Image.fromarray(png).save(pngs / f"{name}.png", compress_level=3)
        image = {"id": image_id, "file_name": f"{name}.jpg", "height": rgb.shape[0], "width": rgb.shape[1]}
        return image, {"image_id": image_id, "file_name": f"{name}.png", "segments_info": segments}

    with ThreadPoolExecutor() as pool:
        images, annotations = zip(*pool.map(draw, range(num)), strict=True)
    content = {
        "info": {"description": "drawn scenes, EGIC on Ray"},
        "images": images,
        "annotations": annotations,
        "categories": [category._asdict() for category in CATEGORIES],
    }
    pngs.with_suffix(".json").write_text(json.dumps(content))


def draw_scene(rng: np.random.Generator, config: SceneConfig) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """One scene: rgb (H, W, 3) uint8, segment ids (H, W) uint32, and the segments_info of COCO."""
    sides = [int(rng.integers(config.min_side, config.max_side + 1)), config.max_side]
    height, width = sides if rng.random() < 0.8 else sides[::-1]
    canvas = Canvas(rng, height, width)
    ground = draw_background(canvas)
    for row in np.sort(rng.uniform(0.08, 1.0, rng.integers(3, 8))):  # far to near, so that near ones occlude
        name = ground.things[rng.integers(len(ground.things))]
        THINGS[name](canvas, ground, float(row))
    return canvas.photograph(), *canvas.annotation()
