"""Picture files of a folder: lists them, and converts each to the JPEG file that training decodes.

Links to places outside the folder, damaged and oversized files are named in the log and left out. Hidden files, whose
names begin with a dot, are ignored.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from egic import pictures
from egic.errors import UserError
from egic.training.crops import MAX_PIXELS, decode_jpeg
from jobs.data.sources.source import Bad

log = logging.getLogger(__name__)
MAX_BYTES = 1 << 29
"""Larger files are not opened. MAX_PIXELS in 16-bit colour need less."""


def read_picture(
    path: Path, label_shape: tuple[int, ...] | None = None, *, keep_jpeg: bool = False
) -> tuple[bytes, tuple[int, int]]:
    """A picture as the JPEG file that training decodes, and its height and width. Raises UserError if it is bad.

    label_shape: height and width of the picture's labels. Labels belong to the stored pixels, so the EXIF orientation
    is ignored, unless only the upright picture has the labels' size. A picture without labels is turned upright.

    A JPEG is kept unchanged if decoding it returns that picture in sRGB. Everything else (other formats, rotated,
    another colour profile) is encoded again, with quality 95 and full colour resolution. keep_jpeg: ignore the colour
    profiles of JPEGs, as is usual for COCO.
    """
    data = read_bytes(path)
    upright = label_shape is None
    if label_shape is not None and pictures.is_turned(data):
        stored = pictures.read(data, MAX_PIXELS, upright=False)[0].shape[:2]
        upright = stored != label_shape == stored[::-1]
        how = "is turned upright as EXIF says, since its labels have that size" if upright else (
            "keeps its pixels as stored, without EXIF's orientation, since its labels belong to them")  # fmt: skip
        log.info("%s %s", path, how)
    if keep_jpeg and data.startswith(b"\xff\xd8") and not (upright and pictures.is_turned(data)):
        with suppress(UserError):  # else it is encoded again, or `read` has the reason
            height, width, _ = decode_jpeg(data).shape
            return data, (height, width)
    x, notes = pictures.read(data, MAX_PIXELS, upright=upright)
    for note in notes:
        log.info("%s: %s", path, note)
    try:
        as_it_is = np.array_equal(decode_jpeg(data), x)
    except UserError:  # another format
        as_it_is = False
    height, width, _ = x.shape
    return data if as_it_is else pictures.write(x, ".jpg"), (height, width)


def warn_of_unread(folder: Path, names: Iterable[str]) -> None:
    """Log the number of pictures left out, by format, because they cannot be read."""
    if unread := pictures.left_out(names):
        log.warning(
            "%s: pictures of formats that are not read are left out (%s); convert them to JPEG or PNG", folder, unread
        )


def read_bytes(path: Path) -> bytes:
    """A file's content. Raises UserError if it is too large, OSError."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise UserError(f"{size} bytes are over the limit of {MAX_BYTES}")
    return path.read_bytes()


def list_files(folder: Path, below: str = "") -> tuple[dict[str, tuple[int, int]], Bad]:
    """Files of a folder, or of its subfolder `below`, by their path in the folder: size, and time of change in ns.

    Links to places outside the folder, and broken links, are bad. Raises OSError for a folder that cannot be listed.
    """
    root, files, bad = folder.resolve(), {}, []

    def fail(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(root / below, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        linked = [name for name in folders if (Path(place) / name).is_symlink()]
        bad += [(_shown(root, Path(place) / name), "a link to a folder, which is not followed") for name in linked]
        for path in (Path(place) / name for name in sorted(names) if not name.startswith(".")):
            name, reason = _shown(root, path), ""
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                reason = "a link to a place outside the folder"
            elif not path.is_file():
                reason = "no file"
            elif name != path.relative_to(root).as_posix():
                reason = "its name is not UTF-8"
            if reason:
                bad.append((name, reason))
            else:
                about = path.stat()
                files[name] = (about.st_size, about.st_mtime_ns)
    return files, bad


def _shown(root: Path, path: Path) -> str:
    """The path below the root as valid UTF-8 text."""
    return os.fsencode(path.relative_to(root).as_posix()).decode(errors="backslashreplace")
