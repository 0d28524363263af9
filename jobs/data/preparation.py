"""Folders of pictures -> validated Parquet shards; the command is `python -m jobs.prepare`.

Every picture and label is decoded once and checked; bad ones are named in the log and skipped up to a limit. Samples
are stored in one seeded, global random order. A split appears under OUT/train or OUT/val only when it is complete, and
an unchanged input is not prepared again. OUT may be s3://bucket/folder or gs://bucket/folder. Several folders become
one set. `jobs.data.sources.folders` lists the supported kinds of folders.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import joblib
import numpy as np
from PIL import Image

from egic import pictures
from egic.errors import UserError, reason
from egic.training.crops import Sample, decode_jpeg
from jobs.data.shards import (
    FORMAT,
    INDEX,
    MANIFEST,
    StoredSample,
    load_manifest,
    read_index,
    write_index,
    write_shard,
)
from jobs.data.sources.coco_download import download_coco
from jobs.data.sources.folders import PHOTOGRAPHS, SPLITS, kind_of, read_splits
from jobs.data.sources.source import SourceSample, SourceSplit, index_ids
from jobs.storage import files, lease

log = logging.getLogger(__name__)
NUM_NAMED = 5
"""How many bad samples an error message names."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How folders of pictures become validated Parquet shards."""

    download: bool = False
    """First download the official COCO 2017 archives (21 GB) into the folder (the first of several)."""
    download_url: str = "http://images.cocodataset.org"
    """Server of the archives; they are checked by sha256, so plain http is safe."""
    classes: Path | None = None
    """Class table of label maps, for one folder; default: classes.yaml in the folder."""
    split: Literal["all", "train", "val"] = "all"
    """Which part to prepare."""
    val_share: float = 0.1
    """Share of the pictures used for validation, for data without train/ and val/ folders (not for COCO)."""
    max_bad: int | None = None
    """Largest number of bad samples in a split; more are an error. Default: 1 % of the samples, but at least 10."""
    allow_unlabelled: bool = False
    """Keep pictures without annotation, with all pixels void (enough for the MSE codec), instead of counting them as
    bad."""
    background: str = ""
    """Stuff class of the pixels that no annotation covers, for COCO instances and stuff; empty: void."""
    max_side: int = 0
    """Downscale pictures whose longer side has more pixels than this (JPEG of quality 95; labels: nearest neighbour);
    0: keep their size. Crops that training enlarges beyond that size lose detail."""
    seed: int = 0
    """Seed of the stored order."""
    samples_per_shard: int = 1024
    """Samples in one Parquet file (about 160 MB of COCO)."""
    num_threads: int = 0
    """Threads that decode and check; 0: one per core."""

    def __post_init__(self) -> None:
        if self.max_bad is not None and self.max_bad < 0:
            raise UserError(f"max_bad is {self.max_bad}; give 0 or more")
        if not 0 < self.val_share < 1:
            raise UserError(f"val_share is {self.val_share}; give a part between 0 and 1, such as 0.1")
        if self.max_side < 0:
            raise UserError(f"max_side is {self.max_side}; give a number of pixels such as 640, or 0 for no limit")
        if self.samples_per_shard < 1:
            raise UserError(f"samples_per_shard is {self.samples_per_shard}; give 1 or more")
        if self.num_threads < 0:
            raise UserError(f"num_threads is {self.num_threads}; give 0 (one per core) or more")


DEFAULT = PrepareConfig()


def prepare(folders: Sequence[Path], out: files.Place, config: PrepareConfig = DEFAULT) -> dict[str, str]:
    """Prepare the chosen splits of one or several folders as one set in `out` (train/ and val/).

    Returns {split: place of its manifest.json}. Raises UserError for unusable input.
    """
    files.check_spelling("OUT", out)
    files.check(out, writable=True)
    splits = SPLITS if config.split == "all" else (config.split,)
    if config.download:
        download_coco(folders[0], base_url=config.download_url, splits=splits)
    for folder in folders:
        inside = not files.is_remote(out) and Path(out).resolve().is_relative_to(folder.resolve())
        if inside and kind_of(folder, config.classes) == PHOTOGRAPHS:
            raise UserError(f"{out} is inside {folder}, so a run's own pictures would be read as photographs the next "
                             "time; choose OUT (of a pipeline, --output) outside")  # fmt: skip
    listed = read_splits(
        folders, splits, classes=config.classes, val_share=config.val_share,
        allow_unlabelled=config.allow_unlabelled, background=config.background,
    )  # fmt: skip
    found = {part.split: _finished(part, out, config) for part in listed}
    if all(found.values()):
        return {split: str(path) for split, path in found.items()}
    with lease.held(files.Folder(files.absolute(out)), "data"):  # a second run waits, then reuses the first one's work
        return {part.split: _finished(part, out, config) or _prepare_split(part, out, config) for part in listed}


def _prepare_split(part: SourceSplit, out: files.Place, config: PrepareConfig) -> str:
    """Write a split's folder in `out`, in place of an earlier one; returns the place of its manifest."""
    folder = files.join(out, part.split)
    aside = _working_folder(out) / f".{part.split}.writing"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        if files.is_remote(folder):
            _write_remotely(aside, folder, part, config)
        else:
            _write_split(aside, part, config)
            _publish(aside, Path(folder))
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return files.join(folder, MANIFEST)


def _source(part: SourceSplit, config: PrepareConfig) -> str:
    """sha256 of everything that determines a split's shards: if it is unchanged, they are not written again."""
    options = [FORMAT, part.source, config.seed, config.samples_per_shard, config.max_side]
    return hashlib.sha256(json.dumps(options).encode()).hexdigest()


def _limit(part: SourceSplit, config: PrepareConfig) -> int:
    """How many samples of the split may be bad."""
    return max(10, (len(part.samples) + len(part.bad)) // 100) if config.max_bad is None else config.max_bad


def _working_folder(out: files.Place) -> Path:
    """Local folder for unfinished shards: OUT itself, where renaming is atomic, or a cache folder for a remote OUT."""
    if not files.is_remote(out):
        return Path(out)
    return files.working_folder(out) / "preparing" / hashlib.sha256(os.fspath(out).encode()).hexdigest()[:16]


def _finished(part: SourceSplit, out: files.Place, config: PrepareConfig) -> str | None:
    """The manifest of an earlier run with the same input; None if it does not exist or its shards are damaged."""
    folder = files.join(out, part.split)
    present, path = files.sizes(folder), files.join(folder, MANIFEST)
    if MANIFEST not in present:
        if any(name != INDEX and not name.startswith("shard-") for name in present):  # shards: an upload
            raise UserError(f"{folder} holds files that are not prepared data; choose another OUT")
        return None
    try:
        content = json.loads(files.read(path))
        stored = {
            *read_index(load_manifest(path)).file_name.to_pylist(),
            *(bad["name"] for bad in content.get("skipped", [])),
        }
    except ValueError as error:
        log.warning("%s; preparing it again", error)
        return None
    listed = {*(sample.name for sample in part.samples), *(name for name, _ in part.bad)}
    if content.get("source") != _source(part, config) or stored != listed:  # the rules of what is listed may change
        return None
    _check_limit(content.get("skipped", []), _limit(part, config), part.split)
    log.info("%s: unchanged, reused", path)
    return path


def _publish(aside: Path, folder: Path) -> None:
    """Rename the finished folder to its final name; an older one is removed afterwards."""
    old = aside.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _write_remotely(aside: Path, folder: str, part: SourceSplit, config: PrepareConfig) -> None:
    """Write a split to an object store, which cannot rename: the old manifest is removed first and the new one written
    last, so that a reader sees a complete split or none. Each local shard is removed after its upload."""
    files.remove(files.join(folder, MANIFEST))
    old = files.sizes(folder)

    def send(file: Path) -> None:
        files.write(files.join(folder, file.name), file.read_bytes())
        file.unlink()
        old.pop(file.name, None)

    _write_split(aside, part, config, send)
    for name in old:  # shards of an earlier, larger data set
        files.remove(files.join(folder, name))


def _write_split(
    aside: Path,
    part: SourceSplit,
    config: PrepareConfig,
    send: Callable[[Path], None] = lambda _: None,
) -> None:
    """Write shards, index and manifest, in this order; `send` is called with each file when it is complete."""
    limit = _limit(part, config)
    skipped = [{"name": name, "reason": reason} for name, reason in part.bad]
    _check_limit(skipped, limit, part.split)
    for bad in skipped:
        log.warning("%s: skipped %s: %s", part.split, bad["name"], bad["reason"])
    shards: list[dict] = []
    index, counts = [], _Counts(part)
    for rows in _chunks(_good_samples(part, config, skipped, limit), config.samples_per_shard):
        for row in rows:
            counts.add(row)
        shard, places = write_shard(aside, len(shards), rows)
        send(aside / shard["file"])
        shards.append(shard)
        index.append(places)
        log.info("%s: %d of %d samples written", part.split, counts.num_samples, len(part.samples))
    if not shards:
        raise UserError(f"{part.split}: no usable picture{_named(skipped)}")
    _check_classes(part, counts, config.allow_unlabelled)
    write_index(aside, index)
    manifest = {
        "format": FORMAT,
        "split": part.split,
        "source": _source(part, config),
        "digest": counts.digest.hexdigest(),
        "num_samples": counts.num_samples,
        "num_skipped": len(skipped),
        "num_all_void": counts.num_all_void,
        "class_pixels": counts.pixels.tolist(),
        "class_images": counts.images.tolist(),
        "categories": part.categories,
        "index_sha256": files.file_sha256(aside / INDEX),
        "shards": shards,
        "skipped": skipped,
    }
    (aside / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    send(aside / INDEX)
    send(aside / MANIFEST)


def _good_samples(part: SourceSplit, config: PrepareConfig, skipped: list[dict], limit: int) -> Iterator[StoredSample]:
    """Checked samples in the stored order; bad ones are logged and appended to `skipped`."""

    def read(listed: SourceSample) -> Sample | str:
        try:
            return shrunk(listed.read(), config.max_side)
        except (UserError, OSError) as error:
            return reason(error)

    order = np.random.default_rng(config.seed).permutation(len(part.samples)).tolist()
    num_threads = config.num_threads or joblib.cpu_count()
    with ThreadPoolExecutor(num_threads) as pool:
        for some in _chunks((part.samples[n] for n in order), 32 * num_threads):  # bounds the memory
            for listed, found in zip(some, pool.map(read, some), strict=True):
                if isinstance(found, Sample):
                    yield StoredSample(image_id=listed.number, file_name=listed.name, sample=found)
                    continue
                log.warning("%s: skipped %s: %s", part.split, listed.name, found)
                skipped.append({"name": listed.name, "reason": found})
                _check_limit(skipped, limit, part.split)


def shrunk(sample: Sample, max_side: int) -> Sample:
    """The sample with its longer side at most `max_side` pixels (0: no limit); segments left without pixels are
    removed."""
    height, width = sample.segments.shape
    factor = max_side / max(height, width)
    if not 0 < factor < 1:
        return sample
    height, width = (max(1, round(side * factor)) for side in (height, width))
    picture = Image.fromarray(decode_jpeg(sample.jpeg)).resize((width, height), Image.Resampling.LANCZOS)
    y, x = (
        ((np.arange(n) + 0.5) * (old / n)).astype(int)
        for n, old in zip((height, width), sample.segments.shape, strict=True)
    )
    segments, present = index_ids(sample.segments[np.ix_(y, x)].astype(np.uint32))
    return Sample(
        jpeg=pictures.write(np.asarray(picture), ".jpg"), segments=segments,
        segment_class=sample.segment_class[present], segment_thing=sample.segment_thing[present],
    )  # fmt: skip


def _chunks(items: Iterable, size: int) -> Iterator[list]:
    chunk: list = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _check_limit(skipped: Sequence[dict], limit: int, split: str) -> None:
    if len(skipped) > limit:
        raise UserError(f"{split}: more than {limit} bad samples{_named(skipped)}; correct them or raise --max-bad")


def _check_classes(part: SourceSplit, counts: _Counts, allow_unlabelled: bool) -> None:
    """Log the classes without any pixel, which a mistake in a class table causes. Raises UserError when all are."""
    absent = [c["name"] for c, pixels in zip(part.categories, counts.pixels[1:], strict=True) if not pixels]
    if not absent or allow_unlabelled:
        return
    if len(absent) == len(part.categories):
        raise UserError(f"{part.split}: no pixel has one of the {len(absent)} classes; check that the labels use them")
    shown = f"{', '.join(absent[:NUM_NAMED])}{', ...' if len(absent) > NUM_NAMED else ''}"
    there, known = len(part.categories) - len(absent), len(part.categories)
    log.info("%s: %d of %d classes have pixels; without any: %s", part.split, there, known, shown)


def _named(skipped: Sequence[dict]) -> str:
    """The first few bad samples, for a message."""
    if not skipped:
        return ""
    first = "; ".join(f"{bad['name']}: {bad['reason']}" for bad in skipped[:NUM_NAMED])
    return f" ({first}{'; ...' if len(skipped) > NUM_NAMED else ''})"


class _Counts:
    """Running totals of a split for its manifest."""

    def __init__(self, part: SourceSplit) -> None:
        self.num_samples = self.num_all_void = 0
        self.pixels, self.images = np.zeros((2, len(part.categories) + 1), np.int64)
        self.digest = hashlib.sha256(json.dumps([FORMAT, part.categories]).encode())

    def add(self, stored: StoredSample) -> None:
        sample = stored.sample
        per_segment = np.bincount(sample.segments.ravel(), minlength=len(sample.segment_class))
        pixels = np.bincount(sample.segment_class, weights=per_segment, minlength=len(self.pixels)).astype(np.int64)
        self.num_samples += 1
        self.num_all_void += not pixels[1:].any()
        self.pixels += pixels
        self.images += pixels > 0
        self.digest.update(stored.sha256())
