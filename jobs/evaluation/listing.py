"""The pictures of an evaluation: files in folders, or samples of prepared data."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from egic import pictures
from egic.errors import UserError, reason
from egic.report.picture_names import named
from egic.training.crops import decode_jpeg
from jobs.data.shards import Manifest, read_index, read_samples
from jobs.storage.files import is_remote


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture to code: a file, or a sample of prepared data."""

    name: str
    """Its path below the folder of pictures, with suffix; unique in the evaluation."""
    digest: str
    """Identifies the content, in hexadecimal."""
    path: str = ""
    sample: int = -1

    def read(self, manifest: Manifest | None = None, notes: list[str] | None = None) -> np.ndarray:
        """uint8 RGB (H, W, 3). notes: receives what a file has that is not used. Raises UserError or OSError."""
        if self.path:
            x, found = pictures.read(Path(self.path).read_bytes())
            if notes is not None:
                notes += found
            return x
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


def of_folders(places: Sequence[str], output: str = "") -> tuple[list[Picture], list[dict]]:
    """Picture files by name, as `egic.report.picture_names` lists them; and what cannot be read, with the reason.

    output: local or remote folder of the results, which are no pictures to evaluate. Raises UserError.
    """
    files, left = named(places, "" if is_remote(output) else output)
    listed, skipped = [], [{"name": name, "reason": why} for name, why in left.items()]
    for name, path in files.items():
        try:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            listed.append(Picture(name=name, digest=digest, path=str(path.resolve())))
        except OSError as error:
            skipped.append({"name": name, "reason": reason(error)})
    return listed, sorted(skipped, key=lambda each: each["name"])


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
