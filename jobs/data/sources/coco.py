"""The standard COCO panoptic tree, read with distrust: which samples there are, and one checked sample at a time.

    ROOT/train2017/*.jpg                        pictures
    ROOT/annotations/panoptic_train2017.json    images, annotations with segments_info, categories
    ROOT/annotations/panoptic_train2017/*.png   segment id = R + 256 G + 65536 B, 0 = void

Whatever a folder can get wrong becomes a (name, reason) of one bad sample, or a UserError when nothing works at all.
pycocotools does not help here: its reader knows instance and caption files, not panoptic ones.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from egic.errors import UserError
from egic.training.crops import decode_jpeg, decode_panoptic_png
from jobs.data.shards import Row
from jobs.data.sources.coco_classes import CATEGORIES

MAX_CLASSES = 254
"""Labels travel as uint8, with void below the K classes and fake above them."""
MAX_SEGMENTS = 65535


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One sample of the tree, not opened yet."""

    image_id: int
    picture: Path
    png: Path | None
    """None: a photograph without annotation, kept as void."""
    segments: tuple[dict, ...] = ()

    @property
    def name(self) -> str:
        return self.picture.name


@dataclass(frozen=True, kw_only=True)
class Tree:
    """One split of a folder of pictures: a COCO tree, or one of those of `jobs.data.sources.folders`."""

    split: str
    categories: tuple[dict, ...]
    """{id, name, isthing}, ascending ids; class c = 1..K is categories[c - 1]."""
    entries: tuple[Any, ...]
    """Samples, not opened yet, by ascending number; each has a `name`."""
    read: Callable[[Any], Row]
    """Opens, decodes and checks an entry. Raises UserError with the reason if it is bad."""
    bad: tuple[tuple[str, str], ...]
    """(name, reason) of what cannot become a sample."""
    source: str
    """Cheap sha256 of the input: names and sizes of all files, and what the labels' own file says."""


def read_tree(root: str | Path, split: str, *, allow_unlabelled: bool = False) -> Tree:
    """List one split ("train" or "val") and pair pictures with annotations. Raises UserError if there is nothing."""
    root = Path(root)
    pictures, pngs = root / f"{split}2017", root / "annotations" / f"panoptic_{split}2017"
    json_path = pngs.with_suffix(".json")
    if not pictures.is_dir():
        raise UserError(f"{pictures} does not exist; choose another --split, or fetch it with --download")
    picture_sizes = _file_sizes(pictures, (".jpg", ".jpeg"))
    if json_path.is_file():
        content, json_bytes = _read_json(json_path)
        png_sizes = _file_sizes(pngs, (".png",)) if pngs.is_dir() else {}
        entries, bad = _pair(content, pictures, picture_sizes, pngs, png_sizes)
    elif allow_unlabelled:
        content, json_bytes, png_sizes, entries, bad = {}, b"", {}, {}, []
    else:
        raise UserError(f"{json_path} does not exist; labels are needed (--allow-unlabelled does without)")
    known = {entry.picture.name for entry in entries.values()} | {name for name, _ in bad}
    for number, name in enumerate(sorted(set(picture_sizes) - known)):
        if allow_unlabelled:
            entries[-1 - number] = Entry(image_id=-1 - number, picture=pictures / name, png=None)
        else:
            bad.append((name, "picture without annotation"))
    categories = _categories(content, json_path)
    listing = json.dumps([sorted(picture_sizes.items()), sorted(png_sizes.items()), allow_unlabelled])
    return Tree(
        split=split,
        categories=categories,
        entries=tuple(entries[image_id] for image_id in sorted(entries)),
        read=partial(read_row, categories=categories),
        bad=tuple(bad),
        source=hashlib.sha256(hashlib.sha256(json_bytes).digest() + listing.encode()).hexdigest(),
    )


def read_row(entry: Entry, categories: tuple[dict, ...]) -> Row:
    """Open, decode and check one sample. Raises UserError with the reason if it is bad."""
    jpeg = entry.picture.read_bytes()
    height, width = decode_jpeg(jpeg).shape[:2]
    if entry.png is None:
        ids = np.zeros((height, width), np.uint32)
    else:
        ids = decode_panoptic_png(entry.png.read_bytes())
    if ids.shape != (height, width):
        raise UserError(f"panoptic PNG is {ids.shape[1]}x{ids.shape[0]}, the picture {width}x{height}")
    segments, segment_class, segment_thing = _index_segments(ids, entry.segments, categories)
    return Row(
        image_id=entry.image_id,
        file_name=entry.picture.name,
        jpeg=jpeg,
        segments=segments,
        segment_class=segment_class,
        segment_thing=segment_thing,
    )


def _file_sizes(folder: Path, suffixes: tuple[str, ...]) -> dict[str, int]:
    with os.scandir(folder) as files:
        return {f.name: f.stat().st_size for f in files if f.name.lower().endswith(suffixes) and f.is_file()}


def _read_json(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); fetch it again") from error
    for key in ("images", "annotations", "categories"):
        items = content.get(key) if isinstance(content, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise UserError(f"{path} has no list `{key}` of objects; it must be a COCO panoptic file")
    return content, data


def _categories(content: dict, path: Path) -> tuple[dict, ...]:
    """Ascending by id; the official 133 where there is no annotation file."""
    given: Iterable[dict] = content.get("categories") or [category._asdict() for category in CATEGORIES]
    try:
        kept: list[dict] = [{"id": int(c["id"]), "name": str(c["name"]), "isthing": int(c["isthing"])} for c in given]
        found = sorted(kept, key=lambda category: category["id"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: a category lacks id, name or isthing ({error!r})") from error
    if len({category["id"] for category in found}) < len(found):
        raise UserError(f"{path}: two categories share one id")
    if len(found) > MAX_CLASSES:
        raise UserError(f"{path} has {len(found)} categories; at most {MAX_CLASSES} are supported")
    return tuple(found)


def _pair(
    content: dict, pictures: Path, picture_sizes: dict, pngs: Path, png_sizes: dict
) -> tuple[dict[int, Entry], list[tuple[str, str]]]:
    """Entries by image id, and what is bad about the others."""
    file_names = {str(image.get("id")): image.get("file_name") for image in content["images"]}
    entries: dict[int, Entry] = {}
    bad: list[tuple[str, str]] = []
    for annotation in content["annotations"]:
        image_id, png, segments = (annotation.get(key) for key in ("image_id", "file_name", "segments_info"))
        picture = file_names.get(str(image_id))
        name = str(picture or png or image_id)
        if not isinstance(image_id, int) or not isinstance(segments, list):
            bad.append((name, "annotation lacks image_id or segments_info"))
        elif picture is None:
            bad.append((name, f"annotation of image {image_id}, which the JSON does not list"))
        elif not is_plain(picture) or not is_plain(png):
            bad.append((name, f"file name {picture!r} or {png!r} is not a plain name inside its folder"))
        elif picture not in picture_sizes:
            bad.append((name, "annotation without picture"))
        elif png not in png_sizes:
            bad.append((name, f"panoptic PNG {png} is missing"))
        elif image_id in entries:
            bad.append((name, f"second annotation of image {image_id}"))
        else:
            entries[image_id] = Entry(
                image_id=image_id, picture=pictures / picture, png=pngs / png, segments=tuple(segments)
            )
    return entries, bad


def is_plain(name: object) -> bool:
    """Whether it names a file of a folder, and nothing outside of it."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def _index_segments(
    ids: np.ndarray, segments: tuple[dict, ...], categories: tuple[dict, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Segment ids -> index map (H, W) and per index its class (crowd: 0) and is-thing flag; empty segments drop out."""
    classes = {category["id"]: (c, category["isthing"]) for c, category in enumerate(categories, start=1)}
    try:
        table = {int(s["id"]): (*classes[s["category_id"]], int(s.get("iscrowd", 0))) for s in segments}
    except KeyError as error:
        raise UserError(f"unknown category, or segment without {error}") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise UserError(f"malformed segments_info ({error!r})") from error
    table[0] = (0, 0, 1)  # void, whatever the JSON says
    index, present = index_ids(ids)
    unlisted = [int(value) for value in present if int(value) not in table]
    if unlisted:
        raise UserError(f"panoptic PNG has segment id {unlisted[0]}, which the JSON lacks")
    rows = [table[int(value)] for value in present]
    segment_class = np.array([0 if crowd else c for c, _, crowd in rows], np.uint8)
    return index, segment_class, np.array([thing for _, thing, _ in rows], np.uint8)


def index_ids(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Segment ids (H, W) uint32 -> index map (H, W) uint8 or uint16, and the id of each index, 0 (void) first.

    Raises UserError for more than MAX_SEGMENTS.
    """
    flat = ids.ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))  # runs are few, pixels many
    present, run_index = np.unique(flat[starts], return_inverse=True)
    if present[0] != 0:  # index 0 is void even where nothing is void
        present, run_index = np.concatenate([[0], present]), run_index + 1
    if len(present) > MAX_SEGMENTS:
        raise UserError(f"{len(present)} segments; at most {MAX_SEGMENTS} are supported")
    dtype = np.uint8 if len(present) <= 256 else np.uint16
    return np.repeat(run_index.astype(dtype), np.diff(np.append(starts, flat.size))).reshape(ids.shape), present
