"""Folders of pictures without labels, at any depth, split as `jobs.data.sources.splits` says."""

from __future__ import annotations

import logging
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from egic import pictures
from egic.training.crops import Sample
from jobs.data.sources.picture_files import list_files, read_picture, warn_of_unread
from jobs.data.sources.source import SourceSample, SourceSplit, digest
from jobs.data.sources.splits import choose, official, split_in

log = logging.getLogger(__name__)


def read_splits(folder: Path, splits: tuple[str, ...], *, val_share: float) -> list[SourceSplit]:
    """List the splits of a folder. Raises UserError if it has too few pictures."""
    files, bad = list_files(folder)
    found = {name: about for name, about in files.items() if name.lower().endswith(pictures.READ_SUFFIXES)}
    warn_of_unread(folder, files)
    if others := Counter(Path(name).suffix.lower() or name for name in files.keys() - found):
        kinds = sorted(others.items(), key=lambda kind: (-kind[1], kind[0]))
        shown = ", ".join(f"{num} {suffix}" for suffix, num in kinds[:5])
        log.info("%s: %d files of other kinds are left out (%s)", folder, others.total(), shown)
    own = official(found)
    return [
        SourceSplit(
            split=split,
            categories=(),
            samples=tuple(
                SourceSample(number=number, name=name, read=partial(read_unlabelled, folder / name))
                for number, name in enumerate(choose(found, split, val_share, folder))
            ),
            bad=tuple((name, reason) for name, reason in bad if split_in(own, name) == split),
            source=digest(["photographs", val_share, sorted(found.items())]),
        )
        for split in splits
    ]


def read_unlabelled(path: Path, *, keep_jpeg: bool = False) -> Sample:
    """A picture whose pixels are all void; see `read_picture`. Raises UserError with the reason if it is bad."""
    jpeg, shape = read_picture(path, keep_jpeg=keep_jpeg)
    void = np.zeros(1, np.uint8)
    return Sample(jpeg=jpeg, segments=np.zeros(shape, np.uint8), segment_class=void, segment_thing=void)
