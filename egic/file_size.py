"""Sizes of files as people write them (20kB, 0.1MB, 48KiB), and bits per pixel."""

import re

from egic.errors import UserError

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1024, "mi": 1024**2, "gi": 1024**3}


def is_unit(word: str) -> bool:
    """Whether the word is a unit alone, such as kB: half of a size that was written with a space."""
    return word.lower().removesuffix("b") in _UNITS.keys() - {""}


def parse_size(text: str) -> int:
    """Bytes of `20kB`, `20k`, `0.1MB`, `48KiB` or `20000`, rounded down. Raises UserError for anything else, and for 0.

    k, M and G are 1000, 1000^2 and 1000^3 bytes, Ki, Mi and Gi powers of 1024; case and a B at the end do not matter.
    """
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+) ?((?:[kmg]i?)?)b?", text.strip().lower())
    if found is None and re.fullmatch(r"\d+,\d+ ?[a-z]*", text.strip().lower()):
        raise UserError(f"{text!r} has a decimal comma; write {text.replace(',', '.')!r}")
    if found is None:
        raise UserError(f"{text!r} is not a file size; give bytes, or a number with a unit: 20000, 20kB, 0.1MB")
    size = int(float(found[1]) * _UNITS[found[2]])
    if size < 1:
        raise UserError(f"{text!r} is less than one byte; give the largest size that a file may have, such as 20kB")
    return size


def bpp(num_bytes: int, height: int, width: int) -> float:
    """Bits per pixel of a file: 8 * bytes / (H * W) of the picture itself, never of a padded one."""
    return 8 * num_bytes / (height * width)
