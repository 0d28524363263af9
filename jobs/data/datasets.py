"""The data of `--data`: opened if it is prepared, else prepared first."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from egic.errors import UserError
from jobs.data.preparation import prepare
from jobs.data.shards import MANIFEST, Manifest, load_manifest
from jobs.data.sources.folders import SPLITS, folders_of
from jobs.data.sources.scenes.scenes import write_scenes
from jobs.storage import files, lease


def open_data(data: str, output: files.Place) -> dict[str, Manifest]:
    """Manifests of train and val.

    data: a prepared folder; one or several other folders (see `jobs.data.sources.folders`), which are prepared below
    `output`; or empty for drawn scenes. Raises UserError for anything else.
    """
    data = data or _draw_scenes(output)
    files.check(data, writable=False)
    if _is_prepared(data):
        return _manifests(data)
    if files.is_remote(data):
        raise UserError(f"{data} holds no prepared data; create it with `python -m jobs.prepare FOLDER {data}`")
    folders = folders_of(data)
    made = prepare(folders, prepared_folder(folders, output))
    return {split: load_manifest(path) for split, path in made.items()}


def _draw_scenes(output: files.Place) -> str:
    work = files.working_folder(output)
    with lease.held(files.Folder(files.absolute(work / "data")), "drawn scenes"):  # two pipelines may start at once
        return str(write_scenes(work / "scenes"))


def prepared_folder(folders: Sequence[Path], output: files.Place) -> str:
    """The folder to which `open_data` prepares other folders."""
    name = ",".join(str(folder.resolve()) for folder in folders)
    return files.join(output, "data", hashlib.sha256(name.encode()).hexdigest()[:16])


def find_data(data: str, output: str) -> dict[str, Manifest]:
    """The last result of `open_data`, without a check for changed folders; empty if never prepared."""
    place = find_prepared(data, output)
    return _manifests(place) if place else {}


def find_prepared(data: str, output: str) -> str:
    """The prepared folder that `open_data` used the last time; empty if never prepared."""
    folder = data or files.join(output, "scenes")
    places = [folder] if files.is_remote(folder) else [folder, prepared_folder(folders_of(folder), output)]
    return next(filter(_is_prepared, places), "")


def _is_prepared(folder: str) -> bool:
    return all(files.exists(files.join(folder, split, MANIFEST)) for split in SPLITS)


def _manifests(folder: str) -> dict[str, Manifest]:
    return {split: load_manifest(files.join(folder, split)) for split in SPLITS}
