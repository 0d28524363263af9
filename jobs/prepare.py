"""COCO folders -> validated Parquet shards: `python -m jobs.prepare COCO_ROOT OUT [--download]`.

Every picture and label is decoded once and checked; bad ones are named in the log and skipped up to a limit. Samples
are stored in one seeded, global random order. A split appears under OUT/train or OUT/val only when it is complete, and
an unchanged input is not prepared again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from egic.config import parse_config
from egic.errors import run_main
from jobs.coco import Entry, Tree, is_plain, read_row, read_tree
from jobs.download import download_coco
from jobs.shards import FORMAT, Manifest, Row, file_sha256, load_manifest, write_index, write_shard

log = logging.getLogger(__name__)
SPLITS = ("train", "val")
NUM_NAMED = 5
"""How many bad samples an error message names."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Turn COCO panoptic folders into validated Parquet shards."""

    coco_root: Path
    """Folder that holds train2017/, val2017/ and annotations/."""
    out: Path
    """Where train/ and val/ with shards and manifest.json are written."""
    download: bool = False
    """Fetch the official COCO 2017 archives (21 GB) into COCO_ROOT first."""
    download_url: str = "http://images.cocodataset.org"
    """Server of the archives; they are checked by sha256, so plain http is safe."""
    split: Literal["all", "train", "val"] = "all"
    """Which part to prepare."""
    max_bad: int | None = None
    """Stop when more samples of a split are bad; default: 1 % of them, but at least 10."""
    allow_unlabelled: bool = False
    """Keep pictures without annotation as all void (enough for the MSE codec) instead of counting them as bad."""
    seed: int = 0
    """Seed of the stored order."""
    samples_per_shard: int = 1024
    """Samples in one Parquet file (about 160 MB of COCO)."""
    num_threads: int = 0
    """Threads that decode and check; 0: one per core."""

    def __post_init__(self) -> None:
        if self.max_bad is not None and self.max_bad < 0:
            raise ValueError(f"max_bad is {self.max_bad}; give 0 or more")
        if self.samples_per_shard < 1:
            raise ValueError(f"samples_per_shard is {self.samples_per_shard}; give 1 or more")
        if self.num_threads < 0:
            raise ValueError(f"num_threads is {self.num_threads}; give 0 (one per core) or more")


def prepare(config: PrepareConfig) -> dict[str, Path]:
    """Prepare the chosen splits; returns {split: path of its manifest.json}. Raises ValueError for unusable input."""
    splits = SPLITS if config.split == "all" else (config.split,)
    if config.download:
        download_coco(config.coco_root, base_url=config.download_url, splits=splits)
    trees = [read_tree(config.coco_root, split, allow_unlabelled=config.allow_unlabelled) for split in splits]
    if any(tree.categories != trees[0].categories for tree in trees):
        raise ValueError(f"{config.coco_root}: the annotation files of train and val list different categories")
    return {tree.split: _prepare_split(tree, config) for tree in trees}


def open_data(data: str, output: Path) -> dict[str, Manifest]:
    """Manifests of train and val: of a prepared folder, of a COCO tree (prepared below `output` first), or of drawn
    scenes when `data` is empty. Raises ValueError when `data` is none of these, or one of the two is a URL.
    """
    for name, path in (("data", data), ("output", str(output))):
        if re.match(r"\w[\w+.-]*:/", path):  # pathlib would make a folder `s3:` of it
            raise ValueError(f"{name} {path} is a URL; give a folder (mount the storage under one path on every node)")
    if not data:
        from jobs.scenes import write_scenes

        data = str(write_scenes(output / "scenes"))
    folder = Path(data)
    if all((folder / split / "manifest.json").is_file() for split in SPLITS):
        return {split: _inside(load_manifest(folder / split)) for split in SPLITS}
    if not folder.is_dir():
        raise ValueError(f"data folder {folder} does not exist; name a COCO tree or what jobs.prepare wrote")
    made = prepare(PrepareConfig(coco_root=folder, out=prepared_folder(folder, output)))
    return {split: load_manifest(path) for split, path in made.items()}


def prepared_folder(tree: Path, output: Path) -> Path:
    """Where `open_data` puts what it makes of a COCO tree."""
    return output / "data" / hashlib.sha256(str(tree.resolve()).encode()).hexdigest()[:16]


def find_data(data: str, output: Path) -> dict[str, Manifest]:
    """What `open_data` gave the last time, whether or not the tree has changed since; nothing when there is none."""
    folder = Path(data) if data else output / "scenes"
    for place in (folder, prepared_folder(folder, output)):
        if all((place / split / "manifest.json").is_file() for split in SPLITS):
            return {split: load_manifest(place / split) for split in SPLITS}
    return {}


def _inside(manifest: Manifest) -> Manifest:
    """The manifest, whose shards lie in its folder: it may have come from elsewhere, and would else read any file."""
    for name in manifest.shards:
        if not is_plain(name):
            raise ValueError(f"{manifest.folder}: shard {name!r} is not a plain file name; run jobs.prepare yourself")
    return manifest


def _prepare_split(tree: Tree, config: PrepareConfig) -> Path:
    folder = config.out / tree.split
    limit = config.max_bad
    if limit is None:
        limit = max(10, (len(tree.entries) + len(tree.bad)) // 100)
    options = [FORMAT, tree.source, config.seed, config.samples_per_shard]
    source = hashlib.sha256(json.dumps(options).encode()).hexdigest()
    config.out.mkdir(parents=True, exist_ok=True)
    with (config.out / f".{tree.split}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second run waits here, then finds the first one's work
        finished = _finished(folder, source, limit)
        if finished:
            log.info("%s: unchanged, reused", finished)
            return finished
        aside = config.out / f".{tree.split}.writing"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        try:
            _write_split(aside, tree, config, source, limit)
            _publish(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return folder / "manifest.json"


def _finished(folder: Path, source: str, limit: int) -> Path | None:
    """The manifest of an earlier run over the same input, if it is there and intact."""
    path = folder / "manifest.json"
    if not path.is_file():
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} holds something else than prepared data; choose another OUT")
        return None
    try:
        content = json.loads(path.read_text())
        load_manifest(path)
    except ValueError as error:
        log.warning("%s; preparing it again", error)
        return None
    if content.get("source") != source:
        return None
    _check_limit(content.get("skipped", []), limit, folder.name)
    return path


def _publish(aside: Path, folder: Path) -> None:
    """Make the finished folder visible under its name; what stood there goes away last."""
    old = aside.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _write_split(aside: Path, tree: Tree, config: PrepareConfig, source: str, limit: int) -> None:
    skipped = [{"name": name, "reason": reason} for name, reason in tree.bad]
    for bad in skipped:
        log.warning("%s: skipped %s: %s", tree.split, bad["name"], bad["reason"])
    _check_limit(skipped, limit, tree.split)
    shards, index, counts = [], [], _Counts(tree)
    for rows in _chunks(_good_rows(tree, config, skipped, limit), config.samples_per_shard):
        for row in rows:
            counts.add(row)
        entry, part = write_shard(aside, len(shards), rows)
        shards.append(entry)
        index.append(part)
        log.info("%s: %d of %d samples written", tree.split, counts.num_samples, len(tree.entries))
    if not shards:
        raise ValueError(f"{tree.split}: no usable picture{_named(skipped)}")
    write_index(aside, index)
    manifest = {
        "format": FORMAT,
        "split": tree.split,
        "source": source,
        "digest": counts.digest.hexdigest(),
        "num_samples": counts.num_samples,
        "num_skipped": len(skipped),
        "num_all_void": counts.num_all_void,
        "class_pixels": counts.pixels.tolist(),
        "class_images": counts.images.tolist(),
        "categories": tree.categories,
        "index_sha256": file_sha256(aside / "index.parquet"),
        "shards": shards,
        "skipped": skipped,
    }
    (aside / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def _good_rows(tree: Tree, config: PrepareConfig, skipped: list[dict], limit: int) -> Iterator[Row]:
    """Checked rows in the stored order; bad ones are logged and appended to `skipped`."""

    def read(entry: Entry) -> Row | str:
        try:
            return read_row(entry, tree.categories)
        except ValueError as error:
            return str(error)

    order = np.random.default_rng(config.seed).permutation(len(tree.entries)).tolist()
    num_threads = config.num_threads or os.cpu_count() or 1
    with ThreadPoolExecutor(num_threads) as pool:
        for part in _chunks(order, 32 * num_threads):  # bounds what waits in memory
            for number, row in zip(part, pool.map(lambda n: read(tree.entries[n]), part), strict=True):
                if isinstance(row, Row):
                    yield row
                    continue
                name = tree.entries[number].picture.name
                log.warning("%s: skipped %s: %s", tree.split, name, row)
                skipped.append({"name": name, "reason": row})
                _check_limit(skipped, limit, tree.split)


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
        raise ValueError(f"{split}: more than {limit} bad samples{_named(skipped)}; mend them or raise --max-bad")


def _named(skipped: Sequence[dict]) -> str:
    """The first few bad samples, for a message."""
    if not skipped:
        return ""
    first = "; ".join(f"{bad['name']}: {bad['reason']}" for bad in skipped[:NUM_NAMED])
    return f" ({first}{'; ...' if len(skipped) > NUM_NAMED else ''})"


class _Counts:
    """Running totals of a split for its manifest."""

    def __init__(self, tree: Tree) -> None:
        self.num_samples = self.num_all_void = 0
        self.pixels, self.images = np.zeros((2, len(tree.categories) + 1), np.int64)
        self.digest = hashlib.sha256(json.dumps([FORMAT, tree.categories]).encode())

    def add(self, row: Row) -> None:
        per_segment = np.bincount(row.segments.ravel(), minlength=len(row.segment_class))
        pixels = np.bincount(row.segment_class, weights=per_segment, minlength=len(self.pixels)).astype(np.int64)
        self.num_samples += 1
        self.num_all_void += not pixels[1:].any()
        self.pixels += pixels
        self.images += pixels > 0
        self.digest.update(row.sha256())


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for split, path in prepare(parse_config(PrepareConfig, prog="python -m jobs.prepare")).items():
        manifest = load_manifest(path)
        print(f"{split}: {manifest.num_samples} samples, {manifest.num_skipped} skipped, {path}")


if __name__ == "__main__":
    raise SystemExit(run_main(main))
