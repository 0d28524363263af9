"""Colours that a file states by numbers (CICP, ITU-T H.273) instead of an ICC profile.

Pillow and pillow-heif decode the pixels without regard to them.
"""

import re
import struct

from egic.errors import UserError
from egic.pictures import png

_PRIMARIES = (1, 2, 5, 6, 7)
"""Colour primaries that are read as those of sRGB: BT.709, not specified, BT.601 and SMPTE 240."""
_TRANSFERS = (1, 2, 4, 6, 13, 14, 15)
"""Transfer functions that are read as that of sRGB: its own, not specified, and those of BT.709 and its relatives."""
_DISPLAY_P3 = 12
_P3_COLOURS = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))
"""XYZ of Display P3's red, green and blue, adapted to D50 (from the chromaticities of SMPTE EG 432-1)."""
_SRGB_COLOURS = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141))
"""The same of sRGB (IEC 61966-2-1)."""
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
"""The transfer function of sRGB, as ICC's parametric curve of kind 3."""


def of_avif(data: bytes) -> tuple[int, int] | None:
    """(primaries, transfer) of an AVIF file's main picture; None if the file does not state them.

    They are in the first box `colr` of kind `nclx` (ISO/IEC 23008-12): encoders write the main picture's first.
    """
    found = re.search(rb"colrnclx(..)(..)", data, re.DOTALL)
    return (int.from_bytes(found[1], "big"), int.from_bytes(found[2], "big")) if found else None


def of_png(data: bytes) -> tuple[int, int] | None:
    """(primaries, transfer) of a PNG file; None if it does not state them. They are in the chunk `cICP`."""
    for name, content, whole in png.chunks(data):
        if name == b"IDAT":
            break
        if name == b"cICP" and len(content) == 4 and png.is_sound(whole):
            return content[0], content[1]
    return None


def icc_profile(primaries: int, transfer: int) -> bytes | None:
    """The ICC profile of such colours; None for those that are read as sRGB.

    Raises UserError for other colours, HDR among them: their pixels would be wrong as sRGB.
    """
    if transfer in _TRANSFERS and primaries in _PRIMARIES:
        return None
    if transfer in _TRANSFERS and primaries == _DISPLAY_P3:
        return _matrix_profile("Display P3", _P3_COLOURS, 3, *_SRGB_CURVE)
    what = {16: "HDR, PQ", 18: "HDR, HLG"}.get(transfer, "CICP")
    raise UserError(
        f"its colours ({what}: primaries {primaries}, transfer {transfer}) are not read; supported are sRGB, BT.709, "
        "Display P3 and ICC profiles. Convert it to one of these first"
    )


def gamma_profile(gamma: float) -> bytes:
    """The ICC profile of colours with the primaries of sRGB, stored as the power `gamma` of the light."""
    return _matrix_profile(f"gamma {gamma:g}", _SRGB_COLOURS, 0, 1 / gamma)


def _matrix_profile(title: str, colours: tuple[tuple[float, ...], ...], kind: int, *curve: float) -> bytes:
    """A profile (ICC.1:2010, version 4): XYZ of red, green and blue, and one parametric curve, its kind and numbers."""

    def numbers(kind: bytes, *values: float) -> bytes:
        return kind + bytes(4) + struct.pack(f">{len(values)}i", *(round(v * 65536) for v in values))

    text = title.encode("utf-16-be")
    name = b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(text), 28) + text
    shape = b"para" + bytes(4) + struct.pack(">HH", kind, 0) + numbers(b"", *curve)[4:]
    white = numbers(b"XYZ ", 0.9642, 1.0, 0.8249)
    tags = {b"desc": name, b"cprt": name, b"wtpt": white}
    for letter, xyz in zip((b"r", b"g", b"b"), colours, strict=True):
        tags |= {letter + b"XYZ": numbers(b"XYZ ", *xyz), letter + b"TRC": shape}
    table, body, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for tag, data in tags.items():
        table += tag + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4xI12s12x4s28x12s48x", start + len(body), 0x04300000, b"mntrRGB XYZ ", b"acsp", white[8:])
    return head + table + body
