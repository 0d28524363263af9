"""Picture files <-> uint8 RGB arrays: formats, bit depths, orientation, transparency and colour profiles.

Does not import torch, so that commands can check pictures before they load a model.
"""

from egic.pictures.formats import READ_SUFFIXES, READS, left_out, open_file, printable
from egic.pictures.reading import from_image, is_turned, read
from egic.pictures.writing import check_suffix, write

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
