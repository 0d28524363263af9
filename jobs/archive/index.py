"""The index of an archive: `index/*.parquet` in its folder, with a row for every picture.

The driver of a run is the only one that writes it, in parts of some seconds each. A killed run loses the rows of its
last seconds, but not the files that they describe: the next run describes the files again.
"""

import io
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.storage.files import Folder, join

SCHEMA = pa.schema(
    [
        ("source", pa.string()),  # relative name of the input, which identifies the picture
        ("file", pa.string()),  # relative name of the output
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("size", pa.int64()),  # bytes of the input
        ("bytes", pa.int64()),  # of the output
        ("bpp", pa.float64()),  # bits of the .egic file per pixel
        ("quality", pa.int32()),  # null for a model of one rate
        ("seconds", pa.float64()),  # to make the output; null if an earlier, killed run made it
        ("model", pa.string()),  # as `egic info` prints it
        ("sha256", pa.string()),  # of the output, in hexadecimal
        ("notes", pa.string()),  # warnings, such as: its transparency is replaced by white
        ("error", pa.string()),  # why there is no output; null if there is one
    ]
)
FLUSH_S = 5.0
"""The longest time between two parts."""


@dataclass(kw_only=True)
class Totals:
    """Sums over rows."""

    pictures: int = 0
    failed: int = 0
    size: int = 0
    """Bytes of the inputs; like the following, without those that failed."""
    bytes: int = 0
    """Bytes of the outputs."""

    def add(self, rows: pa.Table) -> None:
        good = rows.filter(pc.is_null(rows["error"]))
        self.pictures += len(good)
        self.failed += len(rows) - len(good)
        self.size += pc.sum(good["size"]).as_py() or 0
        self.bytes += pc.sum(good["bytes"]).as_py() or 0


class Names:
    """A set of names that takes eight bytes for each: their hashes, sorted. Two of a million names have the same hash
    with a probability of 3e-8."""

    def __init__(self, hashes: np.ndarray):
        self.hashes = np.sort(hashes)

    def __contains__(self, name: str) -> bool:
        (wanted,) = hashes_of([name])
        at = np.searchsorted(self.hashes, wanted)
        return bool(at < len(self.hashes) and self.hashes[at] == wanted)


def hashes_of(names: list[str]) -> np.ndarray:
    """64-bit hash of each name."""
    return np.frombuffer(b"".join(blake2b(name.encode(), digest_size=8).digest() for name in names), np.uint64)


def parts(place: Folder) -> Iterator[tuple[str, pa.Table]]:
    """Name and rows of each part of an index."""
    for name in place.names():
        if name.endswith(".parquet") and not name.startswith("."):
            yield name, pq.read_table(io.BytesIO(place.read(name) or b""))


@dataclass(frozen=True, kw_only=True)
class Index:
    """What an index has."""

    sources: Names
    files: Names
    totals: Totals


def read(place: Folder) -> Index:
    """The names of inputs and outputs in the index, and its totals."""
    sources, made, totals = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)], Totals()
    for _, rows in parts(place):
        sources.append(hashes_of(rows["source"].to_pylist()))
        made.append(hashes_of(rows["file"].drop_null().to_pylist()))
        totals.add(rows)
    return Index(sources=Names(np.concatenate(sources)), files=Names(np.concatenate(made)), totals=totals)


def forget_failed(place: Folder) -> None:
    """Remove the rows of pictures that failed, so that they are tried again."""
    for name, rows in parts(place):
        good = rows.filter(pc.is_null(rows["error"]))
        if not len(good):
            place.remove(name)
        elif len(good) < len(rows):
            place.write(name, _parquet(good))


class Writer:
    """Context manager that collects rows and writes them as parts, the last one at its end."""

    def __init__(self, place: Folder):
        self.place, self.rows, self.written = place, list[pa.Table](), time.monotonic()

    def add(self, rows: pa.Table) -> None:
        self.rows.append(rows)
        if time.monotonic() - self.written > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            name = f"{int(time.time())}-{uuid.uuid4().hex[:8]}.parquet"
            self.place.write(name, _parquet(pa.concat_tables(self.rows)))
        self.rows, self.written = [], time.monotonic()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_) -> None:
        self.flush()


def _parquet(rows: pa.Table) -> bytes:
    pq.write_table(rows, file := io.BytesIO())
    return file.getvalue()


def place_of(output: str) -> Folder:
    """The index of the archive in a folder."""
    return Folder(join(output, "index"))
