"""The kinds of folders that data comes in, told apart by what lies in them.

train/manifest.json, val/manifest.json    prepared data, written by `jobs.prepare`
classes.yaml                              label maps: `jobs.data.sources.label_maps`
train2017/, annotations/panoptic_*        a COCO panoptic tree: `jobs.data.sources.coco`
pictures, nothing of the above            photographs without labels: `jobs.data.sources.photographs`
"""

from __future__ import annotations

import os
from itertools import chain
from pathlib import Path

from egic.errors import UserError
from egic.pictures import READ_SUFFIXES
from jobs.data.shards import MANIFEST
from jobs.data.sources import class_table, coco, label_maps, photographs
from jobs.data.sources.coco import Tree

SPLITS = ("train", "val")
PREPARED, LABEL_MAPS, COCO, PHOTOGRAPHS = "prepared data", "label maps", "a COCO tree", "photographs"
LABEL_FOLDERS = ("labels", "annotations", "masks", "gtFine", "SegmentationClass")
"""What data sets call the folder of their label maps: maps must not be taken for photographs."""
WANTED = "a COCO tree, pictures with label maps and classes.yaml, photographs, or what jobs.prepare wrote"


def kind_of(folder: Path, classes: Path | None = None) -> str:
    """One of the four kinds. classes: the class table, where it lies elsewhere. Raises UserError for other folders."""
    if not folder.is_dir():
        raise UserError(f"data folder {folder} does not exist; name {WANTED} (--download fetches COCO)")
    if all((folder / split / MANIFEST).is_file() for split in SPLITS):
        return PREPARED
    if classes or (folder / class_table.NAME).is_file():
        return LABEL_MAPS
    trees = (*(folder / f"{split}2017" for split in SPLITS), *(folder / "annotations").glob("panoptic_*"))
    if any(path.exists() for path in trees):
        return COCO
    if labels := [name for name in LABEL_FOLDERS if (folder / name).is_dir()]:
        raise UserError(f"{folder} has {labels[0]}/, but no class table {class_table.NAME}; write one "
                         f"({class_table.FIX}), or rename the folder if it holds photographs")  # fmt: skip
    files = chain.from_iterable(names for _, _, names in os.walk(folder))
    if not any(name.lower().endswith(READ_SUFFIXES) and not name.startswith(".") for name in files):
        raise UserError(f"{folder} holds no pictures; name {WANTED}")
    return PHOTOGRAPHS


def read_trees(
    folder: Path,
    splits: tuple[str, ...],
    *,
    classes: Path | None = None,
    val_share: float = 0.1,
    allow_unlabelled: bool = False,
) -> list[Tree]:
    """The splits of a folder, listed but not opened. Raises UserError for one that cannot be used."""
    kind = kind_of(folder, classes)
    if kind == PREPARED:
        raise UserError(f"{folder} holds prepared data already; use it as it is: --data {folder}")
    if kind == LABEL_MAPS:
        table = class_table.read_table(classes or folder / class_table.NAME)
        return [
            label_maps.read_tree(folder, split, table, val_share=val_share, allow_unlabelled=allow_unlabelled)
            for split in splits
        ]
    if kind == PHOTOGRAPHS:
        return [photographs.read_tree(folder, split, val_share=val_share) for split in splits]
    trees = [coco.read_tree(folder, split, allow_unlabelled=allow_unlabelled) for split in splits]
    if any(tree.categories != trees[0].categories for tree in trees):
        raise UserError(f"{folder}: the annotation files of train and val list different categories")
    return trees
