"""Prepared data on disk: Parquet shards that any sample is read from at random, an index, and a manifest.

    manifest.json         counts, class histogram, skipped samples, categories, shards with sha256, one data digest
    index.parquet         one row per sample: sizes, segment table, and the offsets of its two blobs
    shard-00000.parquet   the same rows with `jpeg` (the file as it was) and `label` (segment map, raw, zstd)

Every sample must be readable alone, since the training order is a random permutation. Parquet reads whole row groups;
one row per group would cost 0.5 GB of parsed metadata per process on COCO. So blobs are stored as required, plain,
uncompressed columns with a single page per row group: each value is then contiguous in the file, the index has its
offset, and one `pread` reads it. For other programs the shards are ordinary Parquet files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from egic.errors import UserError
from egic.training.crops import Sample
from jobs.storage import files

FORMAT = 1
ROWS_PER_GROUP = 32
BLOBS = ("jpeg", "label")
MANIFEST, INDEX = "manifest.json", "index.parquet"
NUM_THREADS, NUM_THREADS_REMOTE = 4, 16
"""Concurrent reads, local and remote; a read from an object store takes tens of milliseconds."""
_ZSTD = pa.Codec("zstd")


def _field(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_BYTES = pa.list_(_field("element", pa.uint8()))
_COLUMNS = [
    _field("image_id", pa.int64()),
    _field("file_name", pa.string()),
    _field("height", pa.int32()),
    _field("width", pa.int32()),
    _field("segment_class", _BYTES),
    _field("segment_thing", _BYTES),
]
_SHARD = pa.schema(_COLUMNS + [_field(name, pa.binary()) for name in BLOBS])
_PLACES = [_field("shard", pa.int32()), *(_field(f"{n}_{k}", pa.int64()) for n in BLOBS for k in ("offset", "size"))]
_INDEX = pa.schema(_COLUMNS + _PLACES)


@dataclass(frozen=True, kw_only=True)
class StoredSample:
    """One row of a shard: a checked sample with its name and number."""

    image_id: int
    file_name: str
    sample: Sample

    def sha256(self) -> bytes:
        """Digest of the sample's content, independent of its compression and its place."""
        sample = self.sample
        height, width = sample.segments.shape
        parts = [f"{self.image_id} {self.file_name} {height} {width}".encode(), sample.jpeg]
        parts += [a.tobytes() for a in (sample.segments.astype("<u2"), sample.segment_class, sample.segment_thing)]
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()

    def columns(self) -> dict:
        height, width = self.sample.segments.shape
        return {
            "image_id": self.image_id,
            "file_name": self.file_name,
            "height": height,
            "width": width,
            "segment_class": self.sample.segment_class,
            "segment_thing": self.sample.segment_thing,
            "jpeg": self.sample.jpeg,
            "label": _ZSTD.compress(self.sample.segments.tobytes(), asbytes=True),
        }


def write_shard(folder: Path, number: int, rows: Sequence[StoredSample]) -> tuple[dict, pa.Table]:
    """Write one shard; returns its manifest entry and its part of the index."""
    path = folder / f"shard-{number:05d}.parquet"
    columns = [row.columns() for row in rows]
    with pq.ParquetWriter(
        path, _SHARD, compression="none", use_dictionary=False, write_statistics=False, data_page_size=1 << 30
    ) as writer:
        for first in range(0, len(columns), ROWS_PER_GROUP):
            writer.write_table(pa.Table.from_pylist(columns[first : first + ROWS_PER_GROUP], schema=_SHARD))
    for name in BLOBS:
        sizes = [len(column[name]) for column in columns]
        for column, size, offset in zip(columns, sizes, _blob_offsets(path, name, sizes), strict=True):
            column |= {f"{name}_offset": offset, f"{name}_size": size}
    for column in columns:
        column["shard"] = number
    entry = {
        "file": path.name,
        "num_samples": len(rows),
        "bytes": path.stat().st_size,
        "sha256": files.file_sha256(path),
    }
    return entry, pa.Table.from_pylist(columns, schema=_INDEX)


def _blob_offsets(path: Path, name: str, sizes: list[int]) -> list[int]:
    """Offset of each value of a plain binary column: after the page header, each value follows a 4-byte length."""
    metadata = pq.read_metadata(path)
    column = _SHARD.names.index(name)  # list columns have one leaf each, so leaves and fields count alike
    offsets: list[int] = []
    with path.open("rb") as file:
        for group in range(metadata.num_row_groups):
            chunk = metadata.row_group(group).column(column)
            assert chunk.path_in_schema == name and chunk.compression == "UNCOMPRESSED"
            values = sizes[len(offsets) : len(offsets) + chunk.num_values]
            end = chunk.data_page_offset + chunk.total_compressed_size
            at = end - sum(4 + size for size in values)
            for size in values:
                file.seek(at)
                assert int.from_bytes(file.read(4), "little") == size, f"{path}: unexpected Parquet layout"
                offsets.append(at + 4)
                at += 4 + size
    return offsets


def write_index(folder: Path, parts: Sequence[pa.Table]) -> None:
    pq.write_table(pa.concat_tables(parts), folder / INDEX, compression="zstd")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A prepared split, checked by `load_manifest`. Small, since it is sent to every data task."""

    folder: str
    split: str
    num_samples: int
    num_classes: int
    """K; class 0 is void, so labels run over 0..K."""
    class_names: tuple[str, ...]
    """Names of classes 1..K."""
    class_pixels: tuple[int, ...]
    """Pixels of classes 0..K over the whole split."""
    class_images: tuple[int, ...]
    """Pictures showing classes 0..K."""
    num_skipped: int
    digest: str
    """sha256 over the content (pictures, labels, order, categories), independent of path, time and compression."""
    index_sha256: str
    shards: tuple[str, ...]


def load_manifest(path: files.Place, *, check_shards: bool = False) -> Manifest:
    """Read a split's manifest.json, given its path or folder, and verify that index and shards belong to it.

    Shards are checked by size, with `check_shards` by sha256 (about 1 s per GB). Raises UserError naming the file.
    """
    path, again = files.absolute(path), "run `python -m jobs.prepare` again"
    folder, name = files.split(path)
    folder = folder if name == MANIFEST else path
    path = files.join(folder, MANIFEST)
    there = files.sizes(folder)
    if MANIFEST not in there:
        raise UserError(f"{path} does not exist; make it with `python -m jobs.prepare FOLDER OUT`")
    try:
        content = json.loads(files.read(path))
        if content["format"] != FORMAT:
            raise UserError(f"{path} has format {content['format']}, this program reads {FORMAT}; {again}")
        index = files.read(files.join(folder, INDEX)) if INDEX in there else b""
        if hashlib.sha256(index).hexdigest() != content["index_sha256"]:
            raise UserError(f"{files.join(folder, INDEX)} does not match its manifest; {again}")
        for shard in content["shards"]:
            file = files.join(folder, shard["file"])
            if there.get(shard["file"]) != shard["bytes"]:  # also true for a path outside the folder
                raise UserError(f"shard {file} is missing or has another size than its manifest says; {again}")
            if check_shards and hashlib.sha256(files.read(file)).hexdigest() != shard["sha256"]:
                raise UserError(f"shard {file} is damaged (sha256 differs from its manifest); {again}")
        return Manifest(
            folder=folder,
            split=content["split"],
            num_samples=content["num_samples"],
            num_classes=len(content["categories"]),
            class_names=tuple(category["name"] for category in content["categories"]),
            class_pixels=tuple(content["class_pixels"]),
            class_images=tuple(content["class_images"]),
            num_skipped=content["num_skipped"],
            digest=content["digest"],
            index_sha256=content["index_sha256"],
            shards=tuple(shard["file"] for shard in content["shards"]),
        )
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a manifest of jobs.prepare ({error!r}); {again}") from error


class Index:
    """The index of a split as numpy columns."""

    def __init__(self, manifest: Manifest) -> None:
        table = pq.read_table(pa.BufferReader(files.read(files.join(manifest.folder, INDEX)))).combine_chunks()
        numeric = ["image_id", "height", "width", "shard", *(f"{n}_{k}" for n in BLOBS for k in ("offset", "size"))]
        self.columns = {name: table[name].to_numpy() for name in numeric}
        self.file_name = table["file_name"]
        tables = [table[name].chunk(0) for name in ("segment_class", "segment_thing")]
        self._starts = tables[0].offsets.to_numpy()
        self._tables = [column.values.to_numpy() for column in tables]

    def segment_tables(self, sample: int) -> list[np.ndarray]:
        """Class and is-thing flag of each segment, row 0 void: two (1 + segments,) uint8 arrays."""
        return [values[self._starts[sample] : self._starts[sample + 1]] for values in self._tables]

    def name_and_shard(self, manifest: Manifest, sample: int) -> tuple[str, str]:
        """Picture name and shard path, for messages."""
        shard = manifest.shards[int(self.columns["shard"][sample])]
        return self.file_name[sample].as_py(), files.join(manifest.folder, shard)


@lru_cache(maxsize=4)
def read_index(manifest: Manifest) -> Index:
    """Index of a prepared split, read once per process (about 100 bytes per sample)."""
    return Index(manifest)


def read_samples(manifest: Manifest, indices: Sequence[int] | np.ndarray) -> Iterator[Sample]:
    """Read samples in the given order; several threads read ahead, for network disks.

    Raises UserError naming the shard if it is missing or damaged, OSError when remote storage does not answer.
    """
    index = read_index(manifest)
    with ThreadPoolExecutor(NUM_THREADS_REMOTE if files.is_remote(manifest.folder) else NUM_THREADS) as pool:
        yield from pool.map(lambda sample: _read_sample(manifest, index, int(sample)), indices)


def _read_sample(manifest: Manifest, index: Index, sample: int) -> Sample:
    place = {name: int(column[sample]) for name, column in index.columns.items()}
    path = files.join(manifest.folder, manifest.shards[place["shard"]])
    try:
        jpeg, label = files.read_ranges(path, [(place[f"{n}_offset"], place[f"{n}_size"]) for n in BLOBS])
        if (len(jpeg), len(label)) != (place["jpeg_size"], place["label_size"]):
            raise UserError("the file ends early")
        segment_class, segment_thing = index.segment_tables(sample)
        dtype = np.dtype("<u2" if len(segment_class) > 256 else "u1")
        shape = (place["height"], place["width"])
        raw = _ZSTD.decompress(label, decompressed_size=shape[0] * shape[1] * dtype.itemsize)
        segments = np.frombuffer(raw, dtype).reshape(shape)
    except (OSError, ValueError) as error:
        if files.is_remote(path) and isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise  # a network error: the worker is restarted
        raise UserError(f"shard {path} is damaged at sample {sample} ({error}); run jobs.prepare again") from error
    return Sample(jpeg=jpeg, segments=segments, segment_class=segment_class, segment_thing=segment_thing)
