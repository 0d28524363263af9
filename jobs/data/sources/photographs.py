"""Folders of pictures without labels, at any depth: which there are, which are for validation, and one at a time.

    FOLDER/**/*.jpg, .png, ...                        split by their names: see `choose`
    FOLDER/train/**  FOLDER/val/**                    or as these folders say (training/, validation/)

Read with the distrust of coco.py: links that lead out of the folder, damaged and oversized files are named and left
out. Names that begin with a dot are no pictures of the user's.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from egic import pictures
from egic.errors import UserError
from egic.training.crops import MAX_PIXELS, decode_jpeg
from jobs.data.shards import Row
from jobs.data.sources.coco import Tree

log = logging.getLogger(__name__)
SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "validation")}
MAX_BYTES = 1 << 29
"""Larger files are not opened: MAX_PIXELS in 16-bit colour take less."""

Bad = list[tuple[str, str]]
"""(name, reason) of what cannot become a sample."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One picture, not opened yet."""

    number: int
    name: str
    """Path below the folder, with slashes."""
    picture: Path


def read_tree(folder: Path, split: str, *, val_share: float) -> Tree:
    """List one split ("train" or "val"). Raises UserError where there is nothing to split."""
    files, bad = list_files(folder)
    found = {name: about for name, about in files.items() if name.lower().endswith(pictures.READ_SUFFIXES)}
    chosen = choose(found, split, val_share, folder)
    others = Counter(Path(name).suffix.lower() or name for name in files.keys() - found)
    if others and split == "train":  # said once
        kinds = sorted(others.items(), key=lambda kind: (-kind[1], kind[0]))
        shown = ", ".join(f"{num} {suffix}" for suffix, num in kinds[:5])
        log.info("%s: %d files of other kinds are left out (%s)", folder, others.total(), shown)
    return Tree(
        split=split,
        categories=(),
        entries=tuple(Entry(number=i, name=name, picture=folder / name) for i, name in enumerate(chosen)),
        read=read_row,
        bad=tuple((name, reason) for name, reason in bad if counts_for(split, name)),
        source=digest(["photographs", val_share, sorted(found.items())]),
    )


def read_row(entry: Entry) -> Row:
    """The picture without any label. Raises UserError with the reason if it is bad."""
    jpeg, shape = read_picture(entry.picture)
    nothing = np.zeros(1, np.uint8)
    return Row(
        image_id=entry.number, file_name=entry.name, jpeg=jpeg, segments=np.zeros(shape, np.uint8),
        segment_class=nothing, segment_thing=nothing,
    )  # fmt: skip


def read_picture(path: Path) -> tuple[bytes, tuple[int, int]]:
    """A picture as the JPEG file that training decodes, and its height and width.

    A JPEG stays as it is where decoding it gives the upright sRGB picture; everything else (other formats, turned by
    EXIF, with another colour profile) is written anew, with quality 95 and full colour resolution.
    """
    data = read_bytes(path)
    x, notes = pictures.read(data, MAX_PIXELS)
    for note in notes:
        log.info("%s: %s", path, note)
    try:
        as_it_is = np.array_equal(decode_jpeg(data), x)
    except ValueError:  # another format
        as_it_is = False
    height, width, _ = x.shape
    return data if as_it_is else pictures.write(x, ".jpg"), (height, width)


def read_bytes(path: Path) -> bytes:
    """A file's content. Raises UserError for one that is too large, OSError."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise UserError(f"{size} bytes are over the limit of {MAX_BYTES}")
    return path.read_bytes()


def list_files(folder: Path, below: str = "") -> tuple[dict[str, tuple[int, int]], Bad]:
    """Files of a folder by their path in it (of those in the subfolder `below`): size and time of change in ns.

    What leads out of the folder, or cannot be followed, is bad. Raises OSError for a folder that cannot be listed.
    """
    root, files, bad = folder.resolve(), {}, []

    def fail(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(root / below, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        linked = [name for name in folders if (Path(place) / name).is_symlink()]
        bad += [(_shown(root, Path(place) / name), "a link to a folder, which is not followed") for name in linked]
        for path in (Path(place) / name for name in sorted(names) if not name.startswith(".")):
            name, reason = _shown(root, path), ""
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                reason = "a link that leads out of the folder"
            elif not path.is_file():
                reason = "no file"
            elif name != path.relative_to(root).as_posix():
                reason = "its name is not UTF-8"
            if reason:
                bad.append((name, reason))
            else:
                about = path.stat()
                files[name] = (about.st_size, about.st_mtime_ns)
    return files, bad


def _shown(root: Path, path: Path) -> str:
    """The path below the root as text that can be written anywhere."""
    return os.fsencode(path.relative_to(root).as_posix()).decode(errors="backslashreplace")


def choose(names: Iterable[str], split: str, val_share: float, folder: Path) -> list[str]:
    """The names that belong to a split, sorted.

    Folders train/ and val/ decide, where names begin with them. Without them the share of names with the smallest
    sha256 is val: independent of where the folder lies, and nearly all pictures stay where they are when others come.
    Raises UserError where one of the splits would be empty.
    """
    names = sorted(names)
    tops = {name.partition("/")[0] for name in names if "/" in name}
    own = {s: next((f for f in folders if f in tops), None) for s, folders in SPLIT_FOLDERS.items()}
    if all(own.values()):
        inside = [name for name in names if name.startswith(tuple(f"{f}/" for f in own.values()))]
        if split == "train" and len(inside) < len(names):
            log.warning("%s: %d pictures beside %s are left out", folder, len(names) - len(inside), _both(own))
        return [name for name in inside if name.startswith(f"{own[split]}/")]
    if any(own.values()):
        there, missing = next(f for f in own.values() if f), next(s for s, f in own.items() if not f)
        raise UserError(f"{folder} has pictures in {there}/ and none in {missing}/; add some, or give "
                         f"{folder / there} alone, which is then split")  # fmt: skip
    if len(names) < 2:
        raise UserError(f"{folder} has {len(names)} pictures; training and validation need one each")
    num_val = min(max(1, round(val_share * len(names))), len(names) - 1)
    val = set(sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:num_val])
    return [name for name in names if (name in val) == (split == "val")]


def _both(own: dict) -> str:
    return " and ".join(f"{name}/" for name in own.values())


def counts_for(split: str, name: str) -> bool:
    """Whether a bad file counts for this split: those in a folder of val for val, all others for train."""
    return name.startswith(tuple(f"{folder}/" for folder in SPLIT_FOLDERS["val"])) == (split == "val")


def digest(content: object) -> str:
    """sha256 (hex) of something that JSON can hold."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
