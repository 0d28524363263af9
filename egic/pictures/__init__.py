"""Picture files <-> uint8 RGB arrays: formats, bit depths, orientation, transparency and colour profiles.

Does not import torch, so that commands can check pictures before they load a model.
"""

from egic.pictures.reading import (
    READ_SUFFIXES,
    READS,
    check_suffix,
    from_image,
    is_turned,
    left_out,
    open_file,
    printable,
    read,
    write,
)

__all__ = [
    "READS",
    "READ_SUFFIXES",
    "check_suffix",
    "from_image",
    "is_turned",
    "left_out",
    "open_file",
    "printable",
    "read",
    "write",
]
