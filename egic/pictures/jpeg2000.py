"""JPEG 2000 files that Pillow decodes to wrong pixels."""

import struct

from egic.errors import UserError

STARTS = (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")
"""First bytes of a codestream, and of a file with boxes."""


def check(data: bytes, mode: str) -> None:
    """Raise UserError for a JPEG 2000 file with other depths than 8 bits, or 16 bits of grey. mode: Pillow's for it.

    Pillow shifts the values of other depths to 8 bits: 1 becomes 128 where it is white, and the largest values of 9 to
    16 bits become 0. It keeps all bits of grey in the mode I;16. Depths are in the marker SIZ at the beginning of the
    codestream (ISO/IEC 15444-1, A.5.1).
    """
    at = data.find(STARTS[0])
    if at < 0:
        return
    (num,) = struct.unpack_from(">H", data, at + 40)
    depths = {(each & 0x7F) + 1 for each in data[at + 42 : at + 42 + 3 * num : 3]}
    if depths != {8} and mode != "I;16":
        raise UserError(
            f"JPEG 2000 with samples of {' and '.join(map(str, sorted(depths)))} bits is not read; supported are 8 "
            "bits, and 10 to 16 bits of grey. Convert it to PNG first"
        )
