"""Splits pictures into training and validation: official splits are kept, other data is split by a hash of the names.

FOLDER/**/train/**  FOLDER/**/val/**       split by folder (also training, train2017, valid_HR, val_images, valset, ...)
ImageSets/Segmentation/train.txt, val.txt  split by these lists (Pascal VOC)
neither                                    a share of the names; see `choose`

Pictures in folders for testing are never used.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
from collections.abc import Container, Iterable
from pathlib import Path

from egic.errors import UserError
from egic.pictures import READ_SUFFIXES
from jobs.data.sources.class_table import Pattern

log = logging.getLogger(__name__)
_NAMES = {
    split: re.compile(f"({words})(set|data|images?|imgs?|pictures|photos)?", re.I)
    for split, words in (
        ("train", "train(ing)?|trn"), ("val", "val(id(ation)?)?|dev|eval(uation)?"), ("test", "test(ing)?|tst"),
    )
}  # fmt: skip
"""What a word in the name of a folder or list says about its split."""
LISTS = "ImageSets/Segmentation"


def split_of(name: str, *, words: bool = False, skip: int = 0) -> tuple[str, str] | None:
    """The split that a folder in the path `name` is named after (train, val or test), and that folder.

    The uppermost one if several are, after the first `skip` folders. words: also folders such as DIV2K_train_HR, of
    whose words one names the split; a folder that names training and another split, as train_val does, names none.
    """
    folders = name.split("/")[:-1]
    for depth, folder in enumerate(folders[skip:], start=skip + 1):
        found = [_split_of_word(word) for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", folder)]
        named = sorted({split for split in found if split})
        if named and (words or None not in found) and ("train" not in named or len(named) == 1):
            return named[0], "/".join(folders[:depth])
    return None


def _split_of_word(word: str) -> str | None:
    return next((split for split, pattern in _NAMES.items() if pattern.fullmatch(word)), None)


def split_of_file(path: Path, place: Path) -> str | None:
    """The split of an annotation file, from its folder below `place` or its name: train, val, test or None."""
    below = path.relative_to(place).as_posix() if path != place else f"{path.parent.name}/{path.name}"
    found = split_of(below) or split_of(f"{path.stem}/", words=True)
    return found[0] if found else None


def official(names: Iterable[str]) -> dict[str, str]:
    """The folders of official splits, folder -> train, val or test; empty unless train and val have pictures.

    Folders that are named after a split alone take precedence over those that have other words in their names. A folder
    that holds all pictures is ignored.
    """
    names = list(names)
    common = os.path.commonprefix([name.split("/")[:-1] for name in names])
    for words in (False, True):
        found = {split_of(name, words=words, skip=len(common)) for name in names}
        folders = {folder: split for split, folder in filter(None, found)}
        if {"train", "val"} <= set(folders.values()):
            return folders
    return {}


def split_in(folders: dict[str, str], name: str) -> str | None:
    """The split of a name by its folder; `folders` as `official` returns them. Without any, all names are train."""
    parts = name.split("/")
    inside = ("/".join(parts[:depth]) for depth in range(1, len(parts)))
    return next((folders[folder] for folder in inside if folder in folders), None) if folders else "train"


def choose(names: Iterable[str], split: str, val_share: float, folder: Path, pictures: str = "") -> list[str]:
    """The names of pictures in `folder`/`pictures` that belong to a split, sorted.

    If the names have folders for both training and validation, these are the splits. Otherwise val is the share of
    names with the smallest sha256: this does not depend on the folder's path, and few pictures change their split when
    others are added. Pictures in folders for testing are left out. Raises UserError if a split would be empty, if only
    one of the two folders exists, or if there are lists of splits, since validation pictures must not be trained on.
    """
    names, place = sorted(names), folder / pictures
    if folders := official(names):
        left = sum(split_in(folders, name) not in ("train", "val") for name in names)
        if split == "train" and left:
            log.warning("%s: %d pictures beside %s are left out", place, left, _shown(folders))
        return [name for name in names if split_in(folders, name) == split]
    own = {name: found for name in names if (found := split_of(name, words=True))}
    some = {s: sorted({f for kind, f in own.values() if kind == s}) for s in _NAMES}
    rest = [name for name in names if name not in own or own[name][0] != "test"]
    _refuse_part(place, some["train"], some["val"] or ([] if rest else some["test"]))
    _refuse_lists(folder, names)
    if split == "train":  # once
        if some["test"]:
            log.warning("%s: %d pictures in %s/ are left out", place, len(names) - len(rest), some["test"][0])
        if some["train"]:
            log.warning(
                "%s has pictures in %s/ and none in val/; all are split by --val-share", place, some["train"][0]
            )
    if len(rest) < 2:
        raise UserError(f"{place} has {len(rest)} pictures; training and validation need one each")
    num_val = min(max(1, round(val_share * len(rest))), len(rest) - 1)
    val = set(sorted(rest, key=lambda name: hashlib.sha256(name.encode()).digest())[:num_val])
    return [name for name in rest if (name in val) == (split == "val")]


def _shown(folders: dict[str, str]) -> str:
    """The first folders of both splits, for a message."""
    first = [folder for s in ("train", "val") for folder in sorted(f for f in folders if folders[f] == s)[:2]]
    return " and ".join(f"{folder}/" for folder in first)


def _refuse_part(place: Path, train: list[str], others: list[str]) -> None:
    """Raise UserError if folders for validation exist and none for training, or train/ alone."""
    alone = others or [folder for folder in train if "/" not in folder and split_of(f"{folder}/")]
    if alone:
        missing = "train" if others else "val"
        raise UserError(f"{place} has pictures in {alone[0]}/ and none in {missing}/; add some, rename the folder, or "
                        f"give {place / alone[0]} alone, which is then split")  # fmt: skip


def _refuse_lists(folder: Path, names: list[str]) -> None:
    """Raise UserError if several splits have a list, such as val.txt, at a place where lists are not read."""
    captions = {Path(name).stem for name in names}  # or other text beside a picture
    named = {}
    for place, kind in itertools.product((".", "*", "ImageSets/*"), ("txt", "lst", "csv")):
        for path in sorted(folder.glob(f"{place}/*.{kind}")):
            if path.stem not in captions and (found := split_of(f"{path.stem}/", words=True)):
                named[found[0]] = path.relative_to(folder).as_posix()
    if len(named) > 1:
        raise UserError(f"{folder} has lists of official splits that are not read there: {', '.join(named.values())}; "
                        f"for label maps write them as {LISTS}/train.txt and val.txt, else put the pictures into "
                        "folders train/ and val/; or remove the lists to split by --val-share")  # fmt: skip


def read_lists(folder: Path, names: Container[str], pictures: Pattern) -> dict[str, set[str]]:
    """Names of each split in Pascal VOC's lists, and of all other lists as "test"; empty if the folder has no lists.

    names: those that have a picture. A line is a name, or the picture's path, with its label map's path behind it in
    some lists. Raises UserError if one of the two lists is missing, or if a name is in both.
    """
    place = folder / LISTS
    if not place.is_dir():
        return {}
    lists: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for split in ("train", "val"):
        if not (path := place / f"{split}.txt").is_file():
            raise UserError(f"{path} does not exist; write the official split there, one name a line, or remove "
                            f"{place} to split by --val-share")  # fmt: skip
    for path in place.glob("*.txt"):
        if path.stem != "trainval":
            lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
            lists[path.stem if path.stem in lists else "test"] |= {
                _listed_name(line.strip(), names, pictures) for line in lines if line.strip()
            }
    if both := sorted(lists["train"] & lists["val"]):
        raise UserError(f"{place}: {len(both)} names, such as {both[0]}, are in both train.txt and val.txt; remove one")
    return lists


def _listed_name(line: str, names: Container[str], pictures: Pattern) -> str:
    """The name that a line of a list means."""
    texts = [text.removeprefix("/").removeprefix("./") for text in (line, line.split()[0])]
    paths = [path for text in texts for path in (text, f"{pictures.folder}{text}")]
    meant = [*texts, *(name for path in paths if (name := pictures.name_of(path, READ_SUFFIXES)))]
    return next((name for name in meant if name in names), texts[0])


def choose_listed(names: Iterable[str], labelled: Iterable[str], lists: dict[str, set[str]], split: str) -> list[str]:
    """The names that the lists have for a split, sorted; train also has the pictures that no list has, if without a
    label."""
    names, labelled = set(names), set(labelled)
    if split == "val":
        return sorted(names & lists["val"])
    others = names - lists["train"] - lists["val"]
    if tests := others & lists["test"]:
        log.warning("%d pictures that only other lists in %s have, such as test.txt, are left out", len(tests), LISTS)
    others -= tests
    if left := others & labelled:
        log.warning("%d labelled pictures that %s does not list are left out", len(left), LISTS)
    if others - labelled:
        log.info("%d pictures without label map are kept, with all pixels void", len(others - labelled))
    return sorted((names & lists["train"]) | (others - labelled))
