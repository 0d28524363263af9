"""Outlines of COCO annotations to a segment map, by pycocotools."""

from __future__ import annotations

import ast
import contextlib
import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from egic.errors import UserError
from egic.training.crops import Sample
from jobs.data.sources.picture_files import read_picture
from jobs.data.sources.source import index_ids


def outline_of(given: Any) -> tuple[list | dict | None, str]:
    """A segmentation in the format of pycocotools (polygons or RLE); or None, and the reason."""
    if isinstance(given, dict):
        counts, size = given.get("counts"), given.get("size")
        if isinstance(counts, str) and re.fullmatch(r"b(['\"]).*\1", counts, re.DOTALL):  # bytes that str() wrote
            counts = ast.literal_eval(counts)
        if not counts or not isinstance(counts, (str, bytes, list)) or not isinstance(size, list) or len(size) != 2:
            return None, "broken RLE"
        return {"counts": counts, "size": [int(side) for side in size]}, ""
    if not isinstance(given, list) or not given:
        return None, "boxes alone" if given in (None, []) else "broken polygons"
    polygons = given if isinstance(given[0], list) else [given]
    try:
        numbers = [[float(value) for value in polygon] for polygon in polygons]
    except (TypeError, ValueError):
        return None, "broken polygons"
    kept = [p for p in numbers if len(p) >= 6 and len(p) % 2 == 0 and np.isfinite(p).all()]  # three corners or more
    return (kept, "") if kept else (None, "polygons with fewer than three corners")


def index_of(images: Iterable[dict], annotations: list[dict], classes: Mapping[int, int]) -> COCO:
    """pycocotools' index of images and annotations. classes: class c of each category id."""
    coco = COCO()
    coco.dataset = {
        "images": list(images),
        "annotations": [a | {"category_id": classes[a["category"]["id"]]} for a in annotations],
        "categories": [{"id": c} for c in classes.values()],
    }
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        coco.createIndex()
    return coco


def draw(picture: Path, coco: COCO, image_id: int, background: int) -> Sample:
    """A picture and its segment map: stuff, then crowds (void), then things, each from large to small.

    background: class of pixels without annotation, 0 for void. Raises UserError with the reason if the data is bad.
    """
    image = coco.imgs[image_id]
    jpeg, shape = read_picture(picture, image["size"], keep_jpeg=True)
    if image["size"] not in (shape, (0, 0)):
        size = "{1}x{0}".format
        raise UserError(f"the annotation file says {size(*image['size'])}, the picture is {size(*shape)}")
    masks = []
    for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[image_id])):
        mask = _mask(coco, annotation, shape)
        isthing = annotation["category"]["isthing"] and not annotation["crowd"]
        order = isthing, annotation["crowd"], -int(mask.sum()), annotation["id"]
        masks.append((order, annotation["crowd"], isthing, mask, annotation["category_id"]))
    ids = np.full(shape, background, np.uint32)  # class in the low byte; above it the instance, 0 for none
    for number, (_, crowd, isthing, mask, c) in enumerate(sorted(masks, key=lambda m: m[0]), start=1):
        ids[mask] = 0 if crowd else c | (number << 8 if isthing else 0)
    segments, present = index_ids(ids)
    return Sample(
        jpeg=jpeg, segments=segments, segment_class=(present & 255).astype(np.uint8),
        segment_thing=(present > 255).astype(np.uint8),
    )  # fmt: skip


def _mask(coco: COCO, annotation: dict, shape: tuple[int, int]) -> np.ndarray:
    """Pixels of an annotation, (H, W) bool."""
    height, width = shape
    outline = annotation["segmentation"]
    if isinstance(outline, dict):
        counts = outline["counts"]
        if outline["size"] != [height, width] or (isinstance(counts, list) and sum(counts) != height * width):
            size = f"{outline['size'][1]}x{outline['size'][0]}"
            raise UserError(f"an RLE says {size} or has other counts, the picture is {width}x{height}")
    coco.imgs[annotation["image_id"]].update(height=height, width=width)
    try:
        return coco.annToMask(annotation).astype(bool)
    except Exception as error:  # invalid outlines raise errors of many types in its C code and numpy
        raise UserError(f"annotation {annotation['id']} cannot be drawn ({error})") from error
