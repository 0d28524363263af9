"""The pictures of an evaluation: files in folders, or samples of prepared data."""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from egic import pictures
from egic.errors import UserError, reason
from egic.training.crops import decode_jpeg
from jobs.data.shards import Manifest, read_index, read_samples

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture to code: a file, or a sample of prepared data."""

    name: str
    """Its path below the folder of pictures, with suffix; unique in the evaluation."""
    digest: str
    """Identifies the content, in hexadecimal."""
    path: str = ""
    sample: int = -1

    def read(self, manifest: Manifest | None = None) -> np.ndarray:
        """uint8 RGB (H, W, 3). Raises UserError or OSError."""
        if self.path:
            return pictures.read(Path(self.path).read_bytes())[0]
        assert manifest is not None  # which a sample comes from
        return decode_jpeg(next(iter(read_samples(manifest, [self.sample]))).jpeg)


def of_data(manifest: Manifest, limit: int) -> list[Picture]:
    """The first samples of prepared data."""
    index = read_index(manifest)
    return [
        Picture(
            name=index.name_and_shard(manifest, i)[0],
            digest=hashlib.sha256(f"{manifest.digest} {i}".encode()).hexdigest(),
            sample=i,
        )
        for i in range(min(limit, manifest.num_samples))
    ]


def of_folders(places: Sequence[str]) -> tuple[list[Picture], list[dict]]:
    """Picture files in folders (and below) and single files, by name; and those that cannot be opened, with the reason.

    A name is the path below the folder, with the folder's own name in front where two would be equal.
    Raises UserError for a place that does not exist, for one without pictures, and for names that stay equal.
    """
    found: list[tuple[Path, Path]] = []
    for place in map(Path, places):
        if not place.exists():
            raise UserError(f"--images {place} does not exist; name folders with pictures")
        if place.is_file():
            found.append((place.parent, place))
            continue
        below = [p for p in sorted(place.rglob("*")) if not p.name.startswith(".") and p.is_file()]
        if kinds := pictures.left_out(p.name for p in below):
            log.warning("--images %s: left out %s, which cannot be read", place, kinds)
        files = [p for p in below if p.suffix.lower() in pictures.READ_SUFFIXES]
        found += [(place, p) for p in files]
        if not files:
            raise UserError(f"--images {place} has no {', '.join(pictures.READ_SUFFIXES)} files")
    paths = [pictures.printable(p.relative_to(root).as_posix()) for root, p in found]
    names = [
        f"{pictures.printable(root.resolve().name)}/{name}" if paths.count(name) > 1 else name
        for (root, _), name in zip(found, paths, strict=True)
    ]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--images has {twice[0]} twice; every picture needs a name of its own")
    listed, skipped = [], []
    for name, (_, path) in sorted(zip(names, found, strict=True)):
        try:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            listed.append(Picture(name=name, digest=digest, path=str(path.resolve())))
        except OSError as error:
            skipped.append({"name": name, "reason": reason(error)})
    return listed, skipped


def first_readable(listed: Iterable[Picture], num: int, manifest: Manifest | None) -> list[Picture]:
    """The first `num` pictures that can be read."""
    found: list[Picture] = []
    for picture in listed:
        if len(found) == num:
            break
        try:
            picture.read(manifest)
            found.append(picture)
        except (UserError, OSError):
            continue
    return found
