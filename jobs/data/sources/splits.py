"""Splits pictures into training and validation: official splits are kept, other data is split by a hash of the names.

FOLDER/**/train/**  FOLDER/**/val/**       split by folder (also training, train2017, validation, valid, val2017, ...)
ImageSets/Segmentation/train.txt, val.txt  split by these lists (Pascal VOC)
neither                                    a share of the names; see `choose`
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable
from pathlib import Path

from egic.errors import UserError

log = logging.getLogger(__name__)
_NAMES = {"train": re.compile(r"train(ing)?[-_]?\d*", re.I), "val": re.compile(r"val(id(ation)?)?[-_]?\d*", re.I)}
LISTS = "ImageSets/Segmentation"


def split_of(name: str) -> tuple[str, str] | None:
    """The split that a folder in the path `name` is named after, and that folder; the uppermost one if several are."""
    folders = name.split("/")[:-1]
    for depth, folder in enumerate(folders, start=1):
        for split, pattern in _NAMES.items():
            if pattern.fullmatch(folder):
                return split, "/".join(folders[:depth])
    return None


def split_of_file(path: Path, place: Path) -> str | None:
    """The split of an annotation file, from its name or its folder below `place`: train, val, test or None."""
    below = path.relative_to(place).as_posix() if path != place else f"{path.parent.name}/{path.name}"
    if found := split_of(below):
        return found[0]
    words = re.findall(r"[a-z]+", path.stem.lower()) + below.lower().split("/")[:-1]
    named = [s for word in words for s, pattern in _NAMES.items() if pattern.fullmatch(word)]
    return named[0] if named else "test" if {"test", "testing"} & set(words) else None


def choose(names: Iterable[str], split: str, val_share: float, folder: Path) -> list[str]:
    """The names that belong to a split, sorted.

    If the names have folders for both training and validation, these are the splits. Otherwise val is the share of
    names with the smallest sha256: this does not depend on the folder's path, and few pictures change their split when
    others are added. Raises UserError if a split would be empty, or if only one of the two folders exists, since the
    pictures of a validation folder must not be trained on.
    """
    names = sorted(names)
    own = {name: found for name in names if (found := split_of(name))}
    folders = {s: sorted({f for kind, f in own.values() if kind == s}) for s in _NAMES}
    if all(folders.values()):
        if split == "train" and len(own) < len(names):
            both = " and ".join(f"{f}/" for found in folders.values() for f in found[:2])
            log.warning("%s: %d pictures beside %s are left out", folder, len(names) - len(own), both)
        return [name for name in own if own[name][0] == split]
    alone = folders["val"] or [f for f in folders["train"] if "/" not in f]
    if alone:
        missing = "train" if folders["val"] else "val"
        raise UserError(f"{folder} has pictures in {alone[0]}/ and none in {missing}/; add some, rename the folder, or "
                        f"give {folder / alone[0]} alone, which is then split")  # fmt: skip
    if len(names) < 2:
        raise UserError(f"{folder} has {len(names)} pictures; training and validation need one each")
    num_val = min(max(1, round(val_share * len(names))), len(names) - 1)
    val = set(sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:num_val])
    return [name for name in names if (name in val) == (split == "val")]


def counts_for(split: str, name: str) -> bool:
    """Whether a bad file counts for this split: files in a validation folder for val, all others for train."""
    found = split_of(name)
    return (found is not None and found[0] == "val") == (split == "val")


def read_lists(folder: Path) -> dict[str, set[str]]:
    """Names of each split in Pascal VOC's lists; empty if the folder has no lists.

    Raises UserError if one of the two lists is missing, or if a name is in both.
    """
    place = folder / LISTS
    if not place.is_dir():
        return {}
    lists: dict[str, set[str]] = {}
    for split in _NAMES:
        path = place / f"{split}.txt"
        if not path.is_file():
            raise UserError(f"{path} does not exist; write the official split there, one name a line, or remove "
                            f"{place} to split by --val-share")  # fmt: skip
        lists[split] = {line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()} - {""}
    if both := sorted(lists["train"] & lists["val"]):
        raise UserError(f"{place}: {len(both)} names, such as {both[0]}, are in both train.txt and val.txt; remove one")
    return lists


def choose_listed(names: Iterable[str], labelled: Iterable[str], lists: dict[str, set[str]], split: str) -> list[str]:
    """The names that the lists have for a split, sorted; train also has all unlisted pictures without a label."""
    names, labelled = set(names), set(labelled)
    others = names - lists["train"] - lists["val"]
    if split == "val":
        return sorted(names & lists["val"])
    if left := others & labelled:
        log.warning("%d labelled pictures that %s does not list are left out", len(left), LISTS)
    if others - labelled:
        log.info("%d pictures without label map are kept, with all pixels void", len(others - labelled))
    return sorted((names & lists["train"]) | (others - labelled))
