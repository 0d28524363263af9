"""Pictures with one label map each, as ADE20K and Cityscapes have them, and a class table (class_table.py).

    FOLDER/classes.yaml
    FOLDER/pictures/**/NAME.jpg, .png, ...    split as `jobs.data.sources.splits` says
    FOLDER/labels/**/NAME.png                 index values or colours of the classes, everything else is void

Small instances of things have weight 3 in the segmentation loss. Instances come from instance maps if the table names
some (pixels of a thing class with the same value are one instance; 0 is none). Without instance maps, every connected
region of a thing class counts as one instance: objects that touch count as one, which then tends to have weight 1, and
a partly hidden object counts as several. The alternative, weight 1 everywhere, would drop the weighting altogether.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable
from functools import partial
from pathlib import Path

import numpy as np
from scipy import ndimage

from egic import pictures
from egic.errors import UserError
from egic.training.crops import Sample, decode_label_png
from jobs.data.sources.class_table import ClassTable, Pattern
from jobs.data.sources.photographs import read_unlabelled
from jobs.data.sources.picture_files import list_files, read_bytes, read_picture, warn_of_unread
from jobs.data.sources.source import MAX_SEGMENTS, SourceSample, SourceSplit, digest, index_ids
from jobs.data.sources.splits import LISTS, choose, choose_listed, official, read_lists, split_in

log = logging.getLogger(__name__)
MAPS = (".png",)
Unusable = list[tuple[str, str, str]]
"""(name, file, reason) of files that are not usable; the name decides the split for which they count."""


def read_split(
    folder: Path, split: str, table: ClassTable, *, val_share: float, allow_unlabelled: bool = False
) -> SourceSplit:
    """List one split ("train" or "val") and pair pictures with maps. Raises UserError if it is empty."""
    files, unusable = _list(folder, table)
    labels = _by_name(files, table.labels, MAPS, unusable)
    instances = _by_name(files, table.instances, MAPS, unusable) if table.instances else {}
    used = {*labels.values(), *instances.values()}
    found = _by_name([f for f in files if f not in used], table.pictures, pictures.READ_SUFFIXES, unusable)
    unusable += [(name, labels[name], "label map without picture") for name in sorted(labels.keys() - found)]
    folders = official(found)
    bad = [(file, reason) for name, file, reason in unusable if split_in(folders, name) == split]
    if split == "train":  # once
        warn_of_unread(folder, files)
    lists = read_lists(folder, found, table.pictures)
    if lists:
        chosen = choose_listed(found, labels, lists, split)
        bad += [(name, f"{LISTS}/{split}.txt lists it, but it has no picture") for name in lists[split] - found.keys()]
    else:
        chosen = choose(found, split, val_share, folder, table.pictures.folder)
    samples: list[SourceSample] = []
    for name in chosen:
        unlisted = bool(lists) and name not in lists[split]  # Pascal VOC labels a part of its pictures
        if name not in labels and not allow_unlabelled and not unlisted:
            bad.append((found[name], _missing("label map", table.labels, name, files, found[name])))
        elif table.instances and name in labels and name not in instances:
            bad.append((found[name], _missing("instance map", table.instances, name, files, found[name])))
        else:
            own, separate = (folder / maps[name] if name in maps else None for maps in (labels, instances))
            read = partial(_read, folder / found[name], own, separate, table)
            samples.append(SourceSample(number=len(samples), name=found[name], read=read))
    if not table.instances and any(category["isthing"] for category in table.categories):
        log.info("%s: %s names no instance maps; connected regions of things count as instances", split, table.path)
    listed = {name: sorted(names) for name, names in lists.items()}
    return SourceSplit(
        split=split,
        categories=table.categories,
        samples=tuple(samples),
        bad=tuple(bad),
        source=digest(["label maps", table.sha256, val_share, allow_unlabelled, sorted(files.items()), listed]),
    )


def _list(folder: Path, table: ClassTable) -> tuple[dict[str, tuple[int, int]], Unusable]:
    """Files of the folders that the table names, and those that cannot be used."""
    patterns = {key: p for key in ("pictures", "labels", "instances") if (p := getattr(table, key))}
    files: dict[str, tuple[int, int]] = {}
    bad: dict[str, tuple[str, str, str]] = {}
    for key, pattern in patterns.items():
        place = folder / pattern.folder
        if not place.is_dir():
            raise UserError(f"{place} does not exist; put the {key} there, or name their folder in {table.path}, "
                             f"as in `{key}: FOLDER/*`")  # fmt: skip
        if not place.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{place} is a link to a place outside {folder}; put the {key} inside it")
        more, worse = list_files(folder, pattern.folder)
        files |= more
        bad |= {file: (file.removeprefix(pattern.folder), file, reason) for file, reason in worse}
    return files, list(bad.values())


def _by_name(files: Iterable[str], pattern: Pattern, endings: tuple[str, ...], bad: Unusable) -> dict[str, str]:
    """The files that match the pattern, by name; files that share a name are bad, since one label map fits one."""
    found: dict[str, list[str]] = {}
    for file in sorted(files):
        if (name := pattern.name_of(file, endings)) is not None:
            found.setdefault(name, []).append(file)
    for name, (first, *more) in found.items():
        bad += [(name, file, f"has the same name as {first}") for file in more]
        bad += [(name, first, f"has the same name as {file}") for file in more[:1]]
    return {name: alike[0] for name, alike in found.items() if len(alike) == 1}


def _missing(what: str, pattern: Pattern, name: str, files: Container[str], picture: str) -> str:
    """The reason why a picture has no map."""
    path = pattern.map_of(name)
    stem = path.removesuffix(".png")
    for ending in ("", *pictures.READ_SUFFIXES):
        for other in {stem + ending, stem + ending.upper()} - {path, picture}:
            if other in files:
                return f"its {what} {other} is not a PNG file; convert it, without loss"
    return f"no {what} {path}"


def _read(picture: Path, labels: Path | None, instances: Path | None, table: ClassTable) -> Sample:
    """Open, decode and check a picture with its maps. Raises UserError with the reason if one of them is bad."""
    if labels is None:
        return read_unlabelled(picture)
    values = _values(labels, table.coloured)
    jpeg, shape = read_picture(picture, values.shape)
    _check_size(labels, values, shape)
    classes = table.lookup[values]
    ids = classes.astype(np.uint32)
    isthing = np.array([0, *(category["isthing"] for category in table.categories)], bool)[classes]
    if instances is not None:
        numbers = _values(instances, None)
        _check_size(instances, numbers, shape)
        ids |= np.where(isthing, numbers << 8, 0)
    elif isthing.any():
        ids |= np.where(isthing, regions(np.where(isthing, classes, 0)) << 8, 0)
    segments, present = index_ids(ids)  # class in the low byte; above it the instance, 0 for none
    return Sample(
        jpeg=jpeg, segments=segments, segment_class=(present & 255).astype(np.uint8),
        segment_thing=(present > 255).astype(np.uint8),
    )  # fmt: skip


def _values(path: Path, colours: bool | None) -> np.ndarray:
    """Values of a map; see `decode_label_png`."""
    try:
        return decode_label_png(read_bytes(path), colours=colours)
    except UserError as error:
        raise UserError(f"{path.name}: {error}") from error


def _check_size(path: Path, values: np.ndarray, shape: tuple[int, int]) -> None:
    if values.shape != shape:
        size = "{1}x{0}".format
        raise UserError(f"{path.name} is {size(*values.shape)}, the picture {size(*shape)}")


def regions(classes: np.ndarray) -> np.ndarray:
    """Number the connected regions (8-neighbourhood) of equal values above 0 in a map (H, W): from 1, uint32.

    Raises UserError for more than MAX_SEGMENTS.
    """
    found, total = np.zeros(classes.shape, np.uint32), 0
    for value in np.unique(classes[classes > 0]):
        region, number = ndimage.label(classes == value, structure=np.ones((3, 3)))
        found += np.where(region, region + total, 0).astype(np.uint32)
        total += number
    if total > MAX_SEGMENTS:
        raise UserError(f"things have {total} connected regions; at most {MAX_SEGMENTS} are supported")
    return found
