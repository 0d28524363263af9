"""The common form of all kinds of data: splits with samples that are listed first, and opened one at a time."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

import numpy as np

from egic.errors import UserError
from egic.training.crops import Sample

MAX_CLASSES = 254
"""Limit for K, since labels are uint8: 0 is void, 1..K the classes, K + 1 fake."""
MAX_SEGMENTS = 65535

Bad = list[tuple[str, str]]
"""(name, reason) of files that are not usable as samples."""


@dataclass(frozen=True, kw_only=True)
class SourceSample:
    """One sample of a folder, listed but not opened."""

    number: int
    """Unique in its split of its folder; COCO's image id where that is a number."""
    name: str
    """The picture's path below the folder, with slashes."""
    read: Callable[[], Sample]
    """Opens, decodes and checks the sample. Raises UserError with the reason if it is bad."""


@dataclass(frozen=True, kw_only=True)
class SourceSplit:
    """One split of a folder, or of several that become one set."""

    split: str
    categories: tuple[dict, ...]
    """{id, name, isthing}, ascending ids; class c = 1..K is categories[c - 1]. Empty without labels."""
    samples: tuple[SourceSample, ...]
    bad: tuple[tuple[str, str], ...]
    """(name, reason) of files that are not usable as samples."""
    source: str
    """sha256 of the names and sizes of all input files, and of the content of the files that list the labels."""


def index_ids(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Segment ids (H, W) uint32 -> index map (H, W) uint8 or uint16, and the id of each index, 0 (void) first.

    Raises UserError for more than MAX_SEGMENTS.
    """
    flat = ids.ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))  # few runs, many pixels
    present, run_index = np.unique(flat[starts], return_inverse=True)
    if present[0] != 0:  # index 0 is void even where nothing is void
        present, run_index = np.concatenate([[0], present]), run_index + 1
    if len(present) > MAX_SEGMENTS:
        raise UserError(f"{len(present)} segments; at most {MAX_SEGMENTS} are supported")
    dtype = np.uint8 if len(present) <= 256 else np.uint16
    return np.repeat(run_index.astype(dtype), np.diff(np.append(starts, flat.size))).reshape(ids.shape), present


def is_plain(name: object) -> bool:
    """Whether `name` is a plain file name, without a folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def is_inside(name: object) -> bool:
    """Whether `name` is a relative path, with slashes, that stays inside its folder."""
    return isinstance(name, str) and all(map(is_plain, name.split("/")))


def plain_path(name: str) -> str:
    """A path as labelling tools write it, in its plain form: `./a/1.jpg`, `a//1.jpg` and `a\\1.jpg` are `a/1.jpg`."""
    return posixpath.normpath(name.replace("\\", "/"))


def ambiguous(items: Iterable[dict], key_of: Callable[[dict], Hashable | None]) -> set:
    """The keys that two different items share. Items whose key is None have none."""
    first: dict[Hashable, dict] = {}
    return {key for item in items if (key := key_of(item)) is not None and first.setdefault(key, item) != item}


def digest(content: object) -> str:
    """sha256 (hex) of a value that JSON can represent."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
