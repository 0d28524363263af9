"""Files below the folders that a user names, and what is left out of them."""

import os
from collections.abc import Sequence
from pathlib import Path

from egic.errors import reason

Left = tuple[Path, str]
"""A path that is left out, and why."""
SHOWN = 3
"""Paths that a message names; it counts the others."""


def below(folder: Path) -> tuple[list[Path], list[Left]]:
    """Every file below a folder, sorted by path, and what is left out.

    Hidden files and folders are in neither list. Links to folders are left out, since they can form circles.
    """
    found: list[Path] = []
    left: list[Left] = []

    def closed(error: OSError) -> None:
        left.append((Path(error.filename), reason(error)))

    for place, folders, names in os.walk(folder, onerror=closed):
        folders[:] = [name for name in folders if not name.startswith(".")]
        left += [(path, no_file(path)) for path in (Path(place, name) for name in folders) if path.is_symlink()]
        for path in (Path(place, name) for name in names if not name.startswith(".")):
            if why := no_file(path):
                left.append((path, why))
            else:
                found.append(path)
    return sorted(found), sorted(left)


def no_file(path: Path) -> str:
    """Why a path is neither a file nor a folder; empty for one of them."""
    if os.path.isdir(path):
        return "a link to a folder, which is not followed: name that folder, too" if os.path.islink(path) else ""
    if os.path.isfile(path):
        return ""
    return "a broken link" if os.path.islink(path) else "no regular file"


def shown(left: Sequence[Left]) -> str:
    """What is left out as text: "in/a.png (a broken link) and 12 more"; empty for nothing."""
    text = ", ".join(f"{path} ({why})" for path, why in left[:SHOWN])
    return f"{text} and {len(left) - SHOWN} more" if len(left) > SHOWN else text
