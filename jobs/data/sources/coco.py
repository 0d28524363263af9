"""The standard COCO panoptic tree: lists its samples, and reads and checks one at a time.

    ROOT/train2017/**/*.jpg                     pictures, of any format, in folders as the JSON names them
    ROOT/annotations/panoptic_train2017.json    images, annotations with segments_info, categories
    ROOT/annotations/panoptic_train2017/*.png   segment id = R + 256 G + 65536 B, 0 = void unless the JSON lists it

An error in the data becomes a (name, reason) of one bad sample, or a UserError when no sample can be read. Ids may be
numbers or text, as other tools write them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from egic.errors import UserError
from egic.pictures import READ_SUFFIXES, left_out
from egic.training.crops import Sample, decode_panoptic_png
from jobs.data.sources.coco_classes import CATEGORIES
from jobs.data.sources.photographs import read_unlabelled
from jobs.data.sources.picture_files import read_picture
from jobs.data.sources.source import (
    MAX_CLASSES,
    Bad,
    SourceSample,
    SourceSplit,
    ambiguous,
    index_ids,
    is_inside,
    plain_path,
)


def read_split(root: Path, split: str, *, allow_unlabelled: bool = False) -> SourceSplit:
    """List one split ("train" or "val") and pair pictures with annotations. Raises UserError if it is empty."""
    pictures, pngs = root / f"{split}2017", root / "annotations" / f"panoptic_{split}2017"
    json_path = pngs.with_suffix(".json")
    if not pictures.is_dir():
        raise UserError(f"{pictures} does not exist; choose another --split, or get it with --download")
    picture_sizes = file_sizes(pictures, READ_SUFFIXES)
    content: dict = {}
    json_bytes, png_sizes = b"", {}
    samples: list[SourceSample] = []
    bad: Bad = []
    if json_path.is_file():
        content, json_bytes = read_json(json_path)
        png_sizes = file_sizes(pngs, (".png",)) if pngs.is_dir() else {}
        if content["annotations"] and not png_sizes:
            raise UserError(f"{pngs} holds no label PNGs; unpack {pngs.name}.zip into {pngs.parent}")
        _check_pngs(content, pngs, png_sizes, json_path)
    elif not allow_unlabelled:
        raise UserError(f"{json_path} does not exist; labels are needed (unless --allow-unlabelled is given)")
    categories = _categories(content, json_path)
    if content:
        samples, bad = _pair(content, pictures, picture_sizes, pngs, png_sizes, categories)
    known = {sample.name for sample in samples} | {name for name, _ in bad}
    for number, name in enumerate(sorted(set(picture_sizes) - known)):
        if allow_unlabelled:
            samples.append(
                SourceSample(
                    number=-1 - number, name=name, read=partial(read_unlabelled, pictures / name, keep_jpeg=True)
                )
            )
        else:
            bad.append((name, "picture without annotation"))
    listing = json.dumps([sorted(picture_sizes.items()), sorted(png_sizes.items()), allow_unlabelled])
    return SourceSplit(
        split=split,
        categories=categories,
        samples=tuple(sorted(samples, key=lambda sample: sample.number)),
        bad=tuple(bad),
        source=hashlib.sha256(hashlib.sha256(json_bytes).digest() + listing.encode()).hexdigest(),
    )


def file_sizes(folder: Path, suffixes: tuple[str, ...]) -> dict[str, int]:
    """Size in bytes of the files below a folder that have one of the suffixes, by their path in it."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for place, _, names in os.walk(folder)
        for path in (Path(place, name) for name in names if name.lower().endswith(suffixes))
        if path.is_file()
    }


def read_json(path: Path) -> tuple[dict, bytes]:
    """Content of an annotation file, and its bytes. Raises UserError if it is not a valid one."""
    data = path.read_bytes()
    try:
        content = json.loads(data.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); download it again") from error
    for key in ("images", "annotations", "categories"):
        items = content.get(key) if isinstance(content, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise UserError(f"{path} has no list `{key}` of objects; it must be a COCO annotation file")
    return content, data


def missing(folder: Path, name: str) -> str:
    """The reason why an annotation has no picture."""
    if left_out([name]) and (folder / name).is_file():
        return f"pictures of the format {Path(name).suffix} are not read; convert it to JPEG or PNG"
    return f"annotation without picture: {folder.name} has no file {name}"


def id_of(value: object) -> int | str | None:
    """An id of an image, category or segment: 7, 7.0 and "7" are equal; other text stays; None if it is not an id."""
    if isinstance(value, str):
        value = value.strip()
        return int(value) if value.isdecimal() else value or None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _categories(content: dict, path: Path) -> tuple[dict, ...]:
    """Categories by ascending id; the official 133 without an annotation file."""
    given: Iterable[dict] = content.get("categories") or [category._asdict() for category in CATEGORIES]
    try:
        found = [{"id": id_of(c["id"]), "name": str(c["name"]), "isthing": int(c["isthing"])} for c in given]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: a category lacks id, name or isthing ({error!r})") from error
    return checked_categories(found, path)


def checked_categories(found: list[dict[str, Any]], path: Path) -> tuple[dict, ...]:
    """Categories by ascending id. Raises UserError for ids that are no numbers or not unique, and for too many."""
    if any(not isinstance(category["id"], int) for category in found):
        raise UserError(f"{path}: the id of a category must be a number")
    if len({category["id"] for category in found}) < len(found):
        raise UserError(f"{path}: two categories share one id")
    if not 1 <= len(found) <= MAX_CLASSES:
        raise UserError(f"{path} has {len(found)} categories; 1 to {MAX_CLASSES} are supported")
    return tuple(sorted(found, key=lambda category: category["id"]))


def _check_pngs(content: dict, pngs: Path, png_sizes: dict, json_path: Path) -> None:
    """Raise UserError if the folder has none of the label PNGs that the JSON names: they are at another place."""
    find = Finder(png_sizes)
    named = [name for annotation in content["annotations"] if isinstance(name := annotation.get("file_name"), str)]
    if named and not any(find(name, pngs.name) for name in named):
        raise UserError(f"{pngs} has none of the label PNGs that {json_path.name} names, such as {named[0]}; it has "
                        f"{next(iter(png_sizes))}: move them to where the JSON says")  # fmt: skip


def _pair(
    content: dict, pictures: Path, picture_sizes: dict, pngs: Path, png_sizes: dict, categories: tuple[dict, ...]
) -> tuple[list[SourceSample], Bad]:
    """Samples by ascending image id, and (name, reason) of the others. What several items name is nobody's."""
    images = {id_of(image.get("id")): (number, image) for number, image in enumerate(content["images"])}
    numbered = all(isinstance(key, int) and 0 <= key < 1 << 63 for key in images)  # else by order
    find_picture, find_png = Finder(picture_sizes), Finder(png_sizes)
    shared_ids = ambiguous(content["images"], lambda image: id_of(image.get("id")))
    shared_pictures = ambiguous(content["images"], lambda image: find_picture(image.get("file_name"), pictures.name))
    shared_annotations = ambiguous(content["annotations"], lambda annotation: id_of(annotation.get("image_id")))
    shared_pngs = ambiguous(content["annotations"], lambda each: find_png(each.get("file_name"), pngs.name))
    samples: list[SourceSample] = []
    bad: dict[str, str] = {}
    for image in content["images"]:
        key, name = id_of(image.get("id")), image.get("file_name")
        if key is None or key in shared_ids:
            reason = f"two images of the JSON have the id {key}"
            if key is None:
                reason = f"the JSON gives it the id {image.get('id')!r}, which is not a number or text"
            bad[find_picture(name, pictures.name) or str(name)] = reason
    seen: set[int | str | None] = set()
    for annotation in content["annotations"]:
        segments = annotation.get("segments_info")
        key = id_of(annotation.get("image_id"))
        if key in shared_ids:
            continue
        number, image = images.get(key, (0, {}))
        given, given_png = image.get("file_name"), annotation.get("file_name")
        name = str(given or given_png or key)
        picture, png = find_picture(given, pictures.name), find_png(given_png, pngs.name)
        if key is None:
            reason = f"its annotation has the image_id {annotation.get('image_id')!r}, which is not a number or text"
        elif not image:
            reason = f"annotation of image {key}, which the JSON does not list"
        elif key in shared_annotations:
            reason = f"image {key} has two different annotations"
        elif not isinstance(segments, list):
            reason = "its annotation has no list `segments_info`, as panoptic annotations have"
        elif wrong := _wrong_name(image, f"image {key}") or _wrong_name(annotation, "its annotation"):
            reason = wrong
        elif picture is None:
            reason = missing(pictures, given)
        elif png is None:
            reason = f"panoptic PNG {given_png} is missing"
        elif picture in shared_pictures:
            reason = "two images of the JSON have this picture"
        elif png in shared_pngs:
            reason = f"two annotations have the panoptic PNG {png}"
        elif key in seen:
            reason = f"second annotation of image {key}"
        else:
            seen.add(key)
            read = partial(_read, pictures / picture, pngs / png, segments, categories)
            samples.append(SourceSample(number=int(key) if numbered else number, name=picture, read=read))
            continue
        bad[picture or name] = reason
    return samples, list(bad.items())


def _wrong_name(item: dict, what: str) -> str:
    """What is wrong with the file_name of an image or annotation; empty if nothing is."""
    name = item.get("file_name")
    if not isinstance(name, str):
        return f"{what} has no file_name" if name is None else f"{what} has the file_name {name!r}, which is not text"
    return "" if is_inside(plain_path(name)) else f"file name {name!r} is not a path inside its folder"


class Finder:
    """Finds the file that a JSON names in a folder: by its exact path, by a path that begins with the folder's name, or
    ignoring case (.JPG)."""

    def __init__(self, files: Iterable[str]) -> None:
        self.files = set(files)
        self.by_lower: dict[str, list[str]] = {}
        for file in self.files:
            self.by_lower.setdefault(file.lower(), []).append(file)

    def __call__(self, name: object, folder: str) -> str | None:
        """The file's path below the folder; None if it is missing, or if several files differ in case only."""
        if not isinstance(name, str):
            return None
        name = plain_path(name)
        for path in (name, name.removeprefix(f"{folder}/")):
            found = [path] if path in self.files else self.by_lower.get(path.lower(), [])
            if len(found) == 1:
                return found[0]
        return None


def _read(picture: Path, png: Path, segments: list, categories: tuple[dict, ...]) -> Sample:
    """Open, decode and check one sample. Raises UserError with the reason if it is bad."""
    try:
        ids = decode_panoptic_png(png.read_bytes())
    except UserError as error:
        raise UserError(f"{png.name}: {error}") from error
    jpeg, (height, width) = read_picture(picture, ids.shape, keep_jpeg=True)
    if ids.shape != (height, width):
        raise UserError(f"panoptic PNG is {ids.shape[1]}x{ids.shape[0]}, the picture {width}x{height}")
    index, segment_class, segment_thing = _index_segments(ids, segments, categories)
    return Sample(jpeg=jpeg, segments=index, segment_class=segment_class, segment_thing=segment_thing)


def _index_segments(
    ids: np.ndarray, segments: list, categories: tuple[dict, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Segment ids -> index map (H, W), and class (crowd: 0) and is-thing flag of each index; without empty segments."""
    classes = {category["id"]: (c, category["isthing"]) for c, category in enumerate(categories, start=1)}
    table: dict[int, tuple[int, int, int]] = {}
    for segment in segments:
        if not isinstance(segment, dict):
            raise UserError(f"segments_info has {segment!r}, which is not an object")
        number, category = id_of(segment.get("id")), id_of(segment.get("category_id"))
        if not isinstance(number, int):
            raise UserError(f"a segment has the id {segment.get('id')!r}, which is not a number")
        if category not in classes:
            raise UserError(f"segment {number} has the unknown category {segment.get('category_id')!r}")
        row = (*classes[category], 1 if segment.get("iscrowd") in (1, "1", True) else 0)
        if table.setdefault(number + 1, row) != row:
            raise UserError(f"segments_info lists segment {number} twice, with different categories or iscrowd")
    table[0] = (0, 0, 1)
    shifted = ids + 1
    if 1 not in table:  # 0 is void, unless the JSON lists it as a segment
        shifted[ids == 0] = 0
    index, present = index_ids(shifted)
    unlisted = [int(value) for value in present if int(value) not in table]
    if unlisted:
        raise UserError(f"panoptic PNG has segment id {unlisted[0] - 1}, which the JSON does not list")
    rows = [table[int(value)] for value in present]
    segment_class = np.array([0 if crowd else c for c, _, crowd in rows], np.uint8)
    return index, segment_class, np.array([thing for _, thing, _ in rows], np.uint8)
