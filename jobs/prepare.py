"""Folders of pictures -> validated Parquet shards: `python -m jobs.prepare FOLDER [FOLDER ...] OUT [--download]`.

FOLDER is a COCO tree or JSON file, pictures with label maps, or photographs alone (`jobs.data.sources.folders`).
Several folders become one set (`jobs.data.preparation`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from egic.errors import UserError, run_main
from jobs.config.flags import flag, metavar, parse_config
from jobs.data.preparation import DEFAULT, PrepareConfig, prepare
from jobs.data.shards import load_manifest


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Turn folders of pictures into validated Parquet shards."""

    places: Annotated[tuple[str, ...], metavar("FOLDER [FOLDER ...] OUT")]
    """FOLDER holds train2017/, val2017/ and annotations/ (COCO panoptic, instances or stuff), classes.yaml (pictures
    with label maps), or photographs at any depth, or it is a COCO JSON file. Several folders, of the same or of
    different kinds, become one set: photographs have no labels and train everything except the losses that need labels;
    folders with labels must have the same classes. OUT is the place for train/ and val/ with shards and manifest.json:
    a folder, s3://bucket/folder or gs://bucket/folder."""
    config: Annotated[PrepareConfig, flag("")] = DEFAULT
    """Options."""


def main() -> None:
    """Read the command line, prepare the data, and print the path of each split."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    asked = parse_config(Preparation, prog="python -m jobs.prepare")
    *folders, out = asked.places
    if not folders:
        raise UserError("give at least one FOLDER and OUT: python -m jobs.prepare FOLDER [FOLDER ...] OUT")
    for split, path in prepare([Path(folder) for folder in folders], out, asked.config).items():
        manifest = load_manifest(path)
        print(f"{split}: {manifest.num_samples} samples, {manifest.num_skipped} skipped, {path}")


if __name__ == "__main__":
    raise SystemExit(run_main(main))
