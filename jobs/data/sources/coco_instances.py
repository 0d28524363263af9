"""COCO instances and stuff annotations, which most labelling tools export, drawn to segment maps by pycocotools.

    annotations/instances_train2017.json, stuff_train2017.json    official names; either kind alone is enough
    train/_annotations.coco.json, valid/_annotations.coco.json    Roboflow
    annotations/instances_default.json, result.json, labels.json  CVAT, Label Studio, FiftyOne; or a JSON file itself

Instances are painted from large to small over stuff, so that small objects stay visible. Crowds are void, and so are
pixels without annotation, unless a background class is given. Accepted variants of the format: ids as numbers or text,
float or empty polygons, RLE as text or list, names with folders, in another case or with backslashes, no sizes or
`iscrowd`.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from egic.errors import UserError
from egic.pictures import READ_SUFFIXES
from jobs.data.sources.coco import checked_categories, file_sizes, id_of, missing, read_json
from jobs.data.sources.coco_masks import draw, index_of, outline_of
from jobs.data.sources.source import Bad, SourceSample, SourceSplit, ambiguous, digest, plain_path
from jobs.data.sources.splits import choose, official, split_in, split_of, split_of_file

log = logging.getLogger(__name__)
PATTERNS = (
    "annotations/instances_*.json", "annotations/stuff_*.json", "*/_annotations.coco.json", "_annotations.coco.json",
    "result.json", "labels.json", "instances*.json", "stuff*.json",
)  # fmt: skip
OTHER = (183, "other")
"""Class of all things in COCO's stuff files; it is ignored."""


@dataclass
class _Merged:
    """The annotation files of one split as one data set, in the format of pycocotools."""

    images: dict[str, dict] = field(default_factory=dict)
    """By file_name, which all files of one data set share."""
    annotations: list[dict] = field(default_factory=list)
    categories: list[dict[str, Any]] = field(default_factory=list)
    bad: Bad = field(default_factory=list)
    without_mask: Counter = field(default_factory=Counter)
    digests: list[str] = field(default_factory=list)
    background: str = ""
    """Name of the class of pixels without annotation; empty for void."""


def find_files(place: Path) -> list[Path]:
    """The annotation files of a folder, or the file itself; empty if the folder has none."""
    if place.is_file():
        return [place]
    found = {path for pattern in PATTERNS for path in place.glob(pattern)}
    return sorted(path for path in found if split_of_file(path, place) != "test")


def read_splits(place: Path, splits: tuple[str, ...], *, val_share: float, background: str = "") -> list[SourceSplit]:
    """List the splits of a folder or of one JSON file. Raises UserError if nothing is listed.

    The split is read from the names of files and folders; without such names, `choose` splits the pictures. A JSON file
    of one split leaves the other one empty.
    """
    paths = find_files(place)
    official = {path: split_of_file(path, place) for path in paths}
    folder = place if place.is_dir() else place.parent
    if place.is_file() and folder.name.lower() in ("annotations", "labels"):
        folder = folder.parent
    sizes = file_sizes(folder, READ_SUFFIXES)
    known = sorted({split for split in official.values() if split})
    if not known:
        merged = _merge(paths, folder, background)
        pictures, bad = _find_pictures(merged, folder, sizes, None)
        chosen = {split: choose(pictures, split, val_share, folder) for split in splits}
        return [_listed(merged, folder, sizes, s, pictures, chosen[s], bad if s == "train" else []) for s in splits]
    if place.is_dir() and (missing := sorted(set(splits) - set(known))):
        raise UserError(f"{place} has annotations for {known[0]} and none for {missing[0]}; add them, or rename the "
                        "JSON file so that it names no split and is split by --val-share")  # fmt: skip
    listed = []
    for split in splits:
        mine = [path for path in paths if official[path] == split]
        merged = _merge(mine or paths, folder, background)
        pictures, bad = _find_pictures(merged, folder, sizes, split) if mine else ({}, [])
        listed.append(_listed(merged, folder, sizes, split, pictures, sorted(pictures), bad))
    names = [{sample.name for sample in part.samples} for part in listed]
    if both := sorted(set.intersection(*names)) if len(names) > 1 else []:
        raise UserError(f"{place}: {len(both)} pictures, such as {both[0]}, are in the annotation files of both train "
                        "and val; remove them from one")  # fmt: skip
    return listed


def _merge(paths: Sequence[Path], folder: Path, background: str) -> _Merged:
    merged = _Merged(background=background)
    for path in paths:
        content, data = read_json(path)
        merged.digests.append(hashlib.sha256(data).hexdigest())
        _add(merged, content, path)
    if paths and not any(merged.annotations) and merged.without_mask:
        raise UserError(f"{paths[0]} has only boxes or empty outlines; export polygons or masks (segmentation)")
    if merged.without_mask:
        shown = ", ".join(f"{number} {what}" for what, number in merged.without_mask.most_common())
        log.warning("%s: annotations without a usable outline are left out (%s)", folder, shown)
    if background and not any(c["name"] == background for c in merged.categories):
        merged.categories.append({"id": 1 + max(c["id"] for c in merged.categories), "name": background, "isthing": 0})
    if any(c["name"] == background and c["isthing"] for c in merged.categories):
        raise UserError(f"--background {background} is a class of things; name a stuff class, or a new one")
    return merged


def _add(merged: _Merged, content: dict, path: Path) -> None:
    """Add a file's categories, images and annotations."""
    stuff = "stuff" in re.split(r"[^a-z]+", path.stem.lower())
    classes = _add_categories(merged, content["categories"], stuff, path)
    images: dict[int | str | None, dict] = {}
    shared_ids = ambiguous(content["images"], lambda image: id_of(image.get("id")))
    shared_names = ambiguous(content["images"], lambda image: str(image.get("file_name")))
    for image in content["images"]:
        name, key = image.get("file_name"), id_of(image.get("id"))
        if not isinstance(name, str) or not name or key is None:
            merged.bad.append((str(name or image.get("id")), f"{path.name} lists an image without id or file_name"))
            continue
        size = [id_of(image.get(side)) for side in ("height", "width")]
        images[key] = merged.images.setdefault(name, {"id": len(merged.images) + 1, "file_name": name, "key": key})
        if key in shared_ids or name in shared_names:
            what = f"the id {key}" if key in shared_ids else "this file_name"
            images[key].setdefault("bad", f"two images of {path.name} have {what}")
        images[key].setdefault("size", tuple(size) if all(isinstance(side, int) for side in size) else (0, 0))
    for annotation in content["annotations"]:
        image = images.get(id_of(annotation.get("image_id")))
        category = id_of(annotation.get("category_id"))
        if image is None or category not in classes:
            what = "of images that the file does not list" if image is None else "of unknown categories"
            merged.without_mask[what] += 1
        elif classes[category] is not None:
            outline, reason = outline_of(annotation.get("segmentation"))
            if outline is None:
                merged.without_mask[reason] += 1
                continue
            crowd = annotation.get("iscrowd") in (1, True, "1")
            merged.annotations.append(
                {
                    "id": len(merged.annotations) + 1,
                    "image_id": image["id"],
                    "category": classes[category],
                    "segmentation": outline,
                    "crowd": crowd,
                }  # fmt: skip
            )


def _add_categories(merged: _Merged, given: list[dict], stuff: bool, path: Path) -> dict:
    """Add a file's categories; returns them by their ids in that file, with None for ignored ones.

    Categories get new numbers if ids are text, or if files use one id for two categories.
    """
    found: dict[int | str | None, dict | None] = {}
    for category in given:
        key, name = id_of(category.get("id")), category.get("name")
        if key is None or not isinstance(name, str):
            raise UserError(f"{path}: a category lacks id or name ({category})")
        if key in found:
            raise UserError(f"{path}: two categories share the id {key}")
        if stuff and (key, name) == OTHER:
            found[key] = None
            continue
        isthing = int(id_of(category.get("isthing", 0 if stuff else 1)) == 1)
        same = [c for c in merged.categories if (c["name"], c["isthing"]) == (name, isthing)]
        if not same:
            same = [{"id": key, "name": name, "isthing": isthing}]
            merged.categories += same
        found[key] = same[0]
    ids = [c["id"] for c in merged.categories]
    if len(set(ids)) < len(ids) or not all(isinstance(i, int) for i in ids):
        for number, category in enumerate(merged.categories, start=1):
            category["id"] = number
    return found


def _find_pictures(
    merged: _Merged, folder: Path, sizes: dict[str, int], split: str | None
) -> tuple[dict[str, dict], Bad]:
    """The images by the path of their picture below the folder, and (name, reason) of images without one."""
    by_name: dict[str, list[str]] = {}
    folders = official(sizes)
    for path in sizes:
        if not split or not folders or split_in(folders, path) in (split, None):  # no picture of another split
            by_name.setdefault(path.rpartition("/")[2].lower(), []).append(path)
    claims: dict[str, list[dict]] = {}
    bad = list(merged.bad)
    for name, image in merged.images.items():
        wanted = plain_path(name).lower()
        alike = by_name.get(wanted.rpartition("/")[2], [])
        ways = (
            [path for path in alike if f"/{path.lower()}".endswith(f"/{wanted}")] or alike,
            [path for path in alike if split and (split_of(path, words=True) or ("",))[0] == split],
        )
        best = ways[0] if len(ways[0]) == 1 else [path for path in ways[1] if path in ways[0]] or ways[0]
        if not best:
            bad.append((name, missing(folder, name)))
        elif len(best) > 1:
            bad.append((name, f"{len(best)} pictures have this name: {', '.join(sorted(best)[:3])}"))
        else:
            claims.setdefault(best[0], []).append(image)
    found = {path: images[0] for path, images in claims.items() if len(images) == 1 and "bad" not in images[0]}
    for path in sorted(claims.keys() - found.keys()):
        names = " and ".join(image["file_name"] for image in claims[path][:2])
        bad.append((path, claims[path][0].get("bad", f"it is the picture of two images of the JSON, {names}")))
    if unlisted := len(sizes) - len(found):
        of_split = f" of {split}" if split else ""
        log.info("%s: %d pictures that the annotations%s do not list are left out of it", folder, unlisted, of_split)
    return found, bad


def _listed(
    merged: _Merged,
    folder: Path,
    sizes: dict[str, int],
    split: str,
    pictures: dict[str, dict],
    chosen: list[str],
    bad: Bad,
) -> SourceSplit:
    """The chosen pictures as samples; their segment maps are drawn when they are opened."""
    categories = checked_categories(merged.categories, folder)
    classes = {category["id"]: c for c, category in enumerate(categories, start=1)}
    background = next((classes[c["id"]] for c in categories if c["name"] == merged.background), 0)
    coco = index_of(merged.images.values(), merged.annotations, classes)
    numbered = all(isinstance(image["key"], int) for image in merged.images.values())
    samples = []
    for path in chosen:
        image = pictures[path]
        read = partial(draw, folder / path, coco, image["id"], background)
        samples.append(SourceSample(number=image["key"] if numbered else image["id"], name=path, read=read))
    return SourceSplit(
        split=split,
        categories=categories,
        samples=tuple(samples),
        bad=tuple(bad),
        source=digest(["instances", merged.digests, sorted(sizes.items()), chosen, categories, background]),
    )
