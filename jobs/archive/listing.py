"""The pictures of an archive and the names of their files, listed folder by folder."""

import json
import logging
import os
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from egic import listing, pictures
from egic.cli.files import targets
from egic.errors import UserError
from jobs.storage import files

log = logging.getLogger(__name__)

CHUNK_PICTURES, CHUNK_BYTES = 4, 16_000_000
"""Limits of a chunk: small, so that workers end at the same time; not one picture, so that a million fit in memory."""


class Picture(NamedTuple):
    """One input of an archive."""

    folder: str
    """The place that its names are relative to."""
    source: str
    """Relative name; it identifies the picture."""
    target: str
    """Relative name of the output."""
    size: int
    """Bytes of the input."""


def listed(
    inputs: Sequence[str], takes: tuple[str, ...], suffix: str, ignored: Counter[str], *, without: str = ""
) -> Iterator[Picture]:
    """Every file with a suffix in `takes`, in folders and below, sorted by folder and name, but no hidden ones.

    without: a folder to leave out, such as that of the outputs.

    Outputs are named as `egic compress FOLDER` names them: `suffix` in place of the file's own, or after it where two
    files of a folder differ only in their suffixes. Only the names of one folder are in memory. Suffixes of other files
    are counted in `ignored`, and a warning names links and devices.
    Raises FileNotFoundError for an input that does not exist, and UserError for two pictures of one name.
    """
    folders = [place for place in inputs if files.is_folder(place)]
    single = {place: files.size(place) for place in inputs if place not in folders}
    rest = [PurePosixPath()]
    while rest:
        below = rest.pop()
        found, deeper = dict[str, tuple[str, int]](), set[str]()
        for folder in folders:
            place = files.join(folder, *below.parts)
            if place == without:
                continue
            sizes, names = files.list_folder(place)
            deeper |= set(names)
            if os.path.isdir(place):
                _warn_of_others(place, {*sizes, *names})
            _add(found, folder, sizes, below)
        if below == PurePosixPath():
            for place, size in single.items():
                folder, name = files.split(place)
                _add(found, folder, {name: size}, below)
        rest += [below / name for name in sorted(deeper, reverse=True) if name[0] != "."]
        ignored.update(PurePosixPath(name).suffix for name in found)
        names = [name for name in sorted(found) if PurePosixPath(name).suffix.lower() in takes and name[0] != "."]
        made = targets([Path(name) for name in names], suffix)
        for name, target in zip(names, made, strict=True):
            yield Picture(found[name][0], (below / name).as_posix(), (below / str(target)).as_posix(), found[name][1])


def _add(found: dict[str, tuple[str, int]], folder: str, sizes: dict[str, int], below: PurePosixPath) -> None:
    """Add a folder's files to `found`, by name."""
    for name, size in sizes.items():
        if name in found:
            raise UserError(
                f"{found[name][0]} and {folder} both have {below / name}, and every picture needs a name of its own: "
                "name a folder that holds both, or use two outputs"
            )
        found[name] = folder, size


def _warn_of_others(place: str, known: Collection[str]) -> None:
    """Log a warning about what a local folder has besides these files and folders: links and devices."""
    names = sorted(name for name in os.listdir(place) if name not in known and name[0] != ".")
    paths = [Path(place, name) for name in names]
    if left := listing.shown([(path, listing.no_file(path)) for path in paths]):
        log.warning("left out: %s", left)


def chunks(pictures_: Iterable[Picture], num: int = CHUNK_PICTURES) -> Iterator[bytes]:
    """The pictures in chunks of at most `num` and of limited size, each packed into about 30 bytes per picture."""
    chunk: list[Picture] = []
    for picture in pictures_:
        if chunk and (len(chunk) == num or sum(p.size for p in chunk) + picture.size > CHUNK_BYTES):
            yield _packed(chunk)
            chunk = []
        chunk.append(picture)
    if chunk:
        yield _packed(chunk)


def _packed(chunk: list[Picture]) -> bytes:
    return zlib.compress(json.dumps(chunk).encode())  # JSON escapes what is not valid Unicode in names


def unpacked(chunk: bytes) -> list[Picture]:
    """The pictures of a chunk."""
    return [Picture(*each) for each in json.loads(zlib.decompress(chunk))]


def identity(picture: Picture) -> str:
    """The picture's name in the index: `source` as valid Unicode."""
    return pictures.printable(picture.source)
