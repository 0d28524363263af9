"""The names of an evaluation's pictures, from the folders of `--images`."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from egic import listing, pictures
from egic.errors import UserError

log = logging.getLogger(__name__)


def named(images: Sequence[Path | str], output: Path | str = "") -> tuple[dict[str, Path], dict[str, str]]:
    """Picture files in folders (and below) and single files, by name; and why other paths are left out, by name.

    A name is the path below the folder, with the folder's own name in front where two would be equal. Files in the
    folder `output` are left out with a warning, unless it holds all of `images`.
    Raises UserError for a place that does not exist, for one without pictures, for names that stay equal, and when
    `output` is a folder of `images`.
    """
    found: list[tuple[Path, Path]] = []
    left: dict[str, str] = {}
    for place in map(Path, images):
        if not place.exists():
            raise UserError(f"--images {place} does not exist; name folders with pictures")
        if place.is_file():
            found.append((place.parent, place))
            continue
        files, others = listing.below(place)
        if output:
            files = _without(files, place, Path(output))
        if kinds := pictures.left_out(path.name for path in files):
            log.warning("--images %s: left out %s, which cannot be read", place, kinds)
        read = [path for path in files if path.suffix.lower() in pictures.READ_SUFFIXES]
        if not read:
            also = f"; left out: {listing.shown(others)}" if others else ""
            raise UserError(f"--images {place} has no {', '.join(pictures.READ_SUFFIXES)} files{also}")
        found += [(place, path) for path in read]
        left |= {_shown(path, place): why for path, why in others}
    counts = Counter(_shown(path, root) for root, path in found)
    names: dict[str, Path] = {}
    for root, path in found:
        name = _shown(path, root)
        name = f"{pictures.printable(root.resolve().name)}/{name}" if counts[name] > 1 else name
        if name in names:
            raise UserError(f"--images has {name} twice; every picture needs a name of its own")
        names[name] = path
    return dict(sorted(names.items())), left


def _shown(path: Path, root: Path) -> str:
    return pictures.printable(path.relative_to(root).as_posix())


def _without(files: list[Path], place: Path, output: Path) -> list[Path]:
    """The files of a folder that are not in the folder of the results."""
    root, results = place.resolve(), output.resolve()
    if results == root:
        raise UserError(
            f"--output {output} is a folder of --images, so the results would be measured as pictures the next time; "
            "name another --output"
        )
    if not results.is_relative_to(root):
        return files
    inside = place / results.relative_to(root)
    kept = [path for path in files if not path.is_relative_to(inside)]
    if num := len(files) - len(kept):
        log.warning("--images %s: left out %d file%s in the folder of --output %s", place, num, "s"[: num > 1], output)
    return kept
