"""The supported kinds of data folders, and how each is recognised.

train/manifest.json, val/manifest.json    prepared data, written by `jobs.prepare`
classes.yaml                              label maps: `jobs.data.sources.label_maps`
train2017/, annotations/panoptic_*        a COCO panoptic tree: `jobs.data.sources.coco`
annotations/instances_*.json, a JSON ...  COCO instances and stuff: `jobs.data.sources.coco_instances`
pictures only                             photographs without labels: `jobs.data.sources.photographs`
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from egic.errors import UserError
from egic.pictures import READ_SUFFIXES, left_out
from jobs.data.shards import MANIFEST
from jobs.data.sources import class_table, coco, coco_instances, label_maps, photographs
from jobs.data.sources.source import SourceSplit, digest
from jobs.data.sources.splits import split_of

SPLITS = ("train", "val")
PREPARED, LABEL_MAPS, COCO, PHOTOGRAPHS = "prepared data", "label maps", "a COCO tree", "photographs"
INSTANCES = "COCO instances"
LABEL_FOLDERS = ("labels", "annotations", "masks", "gtFine", "SegmentationClass")
"""Usual names of folders with label maps, which must not be read as photographs."""
WANTED = "a COCO tree or JSON file, pictures with label maps and classes.yaml, photographs, or what jobs.prepare wrote"


def kind_of(folder: Path, classes: Path | None = None) -> str:
    """One of the five kinds. classes: path of the class table, if outside. Raises UserError for other folders."""
    if folder.is_file() and folder.suffix.lower() == ".json":
        return INSTANCES
    if not folder.is_dir():
        raise UserError(f"data folder {folder} does not exist; name {WANTED} (--download fetches COCO)")
    if all((folder / split / MANIFEST).is_file() for split in SPLITS):
        return PREPARED
    if classes or (folder / class_table.NAME).is_file():
        return LABEL_MAPS
    if not list((folder / "annotations").glob("panoptic_*")) and coco_instances.find_files(folder):
        return INSTANCES
    trees = (*(folder / f"{split}2017" for split in SPLITS), *(folder / "annotations").glob("panoptic_*"))
    if any(path.exists() for path in trees):
        return COCO
    if labels := [name for name in LABEL_FOLDERS if (folder / name).is_dir()]:
        raise UserError(f"{folder} has {labels[0]}/, but no class table {class_table.NAME}; write one "
                         f"({class_table.FIX}), or rename the folder if it holds photographs")  # fmt: skip
    files = [name for _, _, names in os.walk(folder) for name in names if not name.startswith(".")]
    if not any(name.lower().endswith(READ_SUFFIXES) for name in files):
        unread = left_out(files)
        raise UserError(f"{folder} holds no pictures{f' that can be read ({unread})' if unread else ''}; name {WANTED}")
    return PHOTOGRAPHS


def folders_of(data: str) -> tuple[Path, ...]:
    """The local folders that `--data` names: one, or several separated by commas."""
    parts = [data] if Path(data).exists() else [part.strip() for part in data.split(",")]
    return tuple(Path(part) for part in parts if part)


def read_splits(
    folders: Sequence[Path],
    splits: tuple[str, ...],
    *,
    classes: Path | None = None,
    val_share: float = 0.1,
    allow_unlabelled: bool = False,
    background: str = "",
) -> list[SourceSplit]:
    """The splits of one or several folders of any kind, listed but not opened; several become one set.

    Each folder is split by the rule of its kind, and photographs have no labels (all void). Raises UserError for a
    folder that cannot be used, and for folders whose classes differ.
    """
    if not folders:
        raise UserError(f"no data folder was given; name {WANTED}")
    names = _names(folders)
    if classes and len(folders) > 1:
        raise UserError(f"--classes takes one folder; put {class_table.NAME} into each folder of label maps")
    _refuse_parts(folders)
    if background and not any(kind_of(folder) == INSTANCES for folder in folders):
        raise UserError(f"--background {background} is for COCO instances and stuff; leave it out for other labels")
    each = [_read_folder(folder, splits, classes, val_share, allow_unlabelled, background) for folder in folders]
    for several in zip(*each, strict=True):
        if not any(part.samples or part.bad for part in several):
            raise UserError(f"{folders[0]} holds nothing for {several[0].split}; give the file for it, too, or rename "
                            "the JSON file so that it names no split and is split by --val-share")  # fmt: skip
    if len(each) == 1:
        return each[0]
    labelled = [
        (folder, parts[0].categories) for folder, parts in zip(folders, each, strict=True) if parts[0].categories
    ]
    categories = labelled[0][1] if labelled else ()
    for folder, others in labelled[1:]:
        if others != categories:
            raise UserError(f"{labelled[0][0]} has {len(categories)} classes and {folder} has "
                             f"{_difference(categories, others)}; one set needs one class table")  # fmt: skip
    return [_joined(names, parts, categories) for parts in zip(*each, strict=True)]


def _names(folders: Sequence[Path]) -> list[str]:
    """Prefixes for the names of each folder's pictures: the folder's name, with parents where two names are equal."""
    places = [folder.resolve() for folder in folders]
    for one, place in enumerate(places):
        for other in places[:one] + places[one + 1 :]:
            if place.is_relative_to(other):
                what = "is given twice" if place == other else f"is inside {other}"
                raise UserError(f"{folders[one]} {what}, so its pictures would be used twice; give each folder once")
    if len({place.name for place in places}) == len(places):
        return [place.name for place in places]
    return [place.relative_to(os.path.commonpath(places)).as_posix() for place in places]


def _refuse_parts(folders: Sequence[Path]) -> None:
    """Raise UserError for two folders that are the parts of an official split, since each would be split again."""
    for kind in (PHOTOGRAPHS, LABEL_MAPS):
        named = {}
        for folder in folders if len(folders) > 1 else ():
            if (found := split_of(f"{folder.resolve().name}/", words=True)) and kind_of(folder) == kind:
                named[found[0]] = folder
        if len(named) > 1:
            one, two = list(named.values())[:2]
            raise UserError(f"{one} and {two} are named after two splits, and each would be split again; give the one "
                            f"for training alone, or a folder with train/ and val/ (such as {one.parent})")  # fmt: skip


def _difference(a: tuple[dict, ...], b: tuple[dict, ...]) -> str:
    if len(a) != len(b):
        return f"{len(b)}"
    one, two = next((x, y) for x, y in zip(a, b, strict=True) if x != y)
    return f"others ({one['name']}, id {one['id']}, is {two['name']}, id {two['id']}, in the second)"


def _joined(names: Sequence[str], parts: Sequence[SourceSplit], categories: tuple[dict, ...]) -> SourceSplit:
    """One split of several folders, one after the other."""
    several = list(zip(names, parts, strict=True))
    return SourceSplit(
        split=parts[0].split,
        categories=categories,
        samples=tuple(replace(each, name=f"{name}/{each.name}") for name, part in several for each in part.samples),
        bad=tuple((f"{name}/{bad}", reason) for name, part in several for bad, reason in part.bad),
        source=digest([[name, part.source] for name, part in several]),
    )


def _read_folder(
    folder: Path,
    splits: tuple[str, ...],
    classes: Path | None,
    val_share: float,
    allow_unlabelled: bool,
    background: str,
) -> list[SourceSplit]:
    kind = kind_of(folder, classes)
    if kind == PREPARED:
        raise UserError(f"{folder} holds prepared data already; use it as it is: --data {folder}")
    if kind == LABEL_MAPS:
        table = class_table.read_table(classes or folder / class_table.NAME)
        return [
            label_maps.read_split(folder, split, table, val_share=val_share, allow_unlabelled=allow_unlabelled)
            for split in splits
        ]
    if kind == PHOTOGRAPHS:
        return photographs.read_splits(folder, splits, val_share=val_share)
    if kind == INSTANCES:
        found = coco_instances.read_splits(folder, splits, val_share=val_share, background=background)
    else:
        found = [coco.read_split(folder, split, allow_unlabelled=allow_unlabelled) for split in splits]
    if any(part.categories != found[0].categories for part in found):
        raise UserError(f"{folder}: the annotation files of train and val list different categories")
    return found
