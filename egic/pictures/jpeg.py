"""JPEG files: metadata that Pillow refuses."""

import struct

START = b"\xff\xd8\xff"
_SOS = 0xDA
_APP, _COM = range(0xE0, 0xF0), 0xFE
_NEEDED: dict[int, tuple[bytes | tuple[bytes, ...], int]] = {
    0xE0: (b"JFIF\0", 14),
    0xE1: ((b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"), 6),
    0xE2: (b"ICC_PROFILE\0", 14),
    0xEE: (b"Adobe", 12),
}
"""Segments that decide the pixels: by marker, how the content begins, and its least number of bytes."""


def without_metadata(data: bytes) -> bytes:
    """The JPEG without the segments that do not decide its pixels, and without those of them that are too short."""
    kept, at = [data[:2]], 2
    while 0 <= (at := data.find(b"\xff", at)) and at + 4 <= len(data):
        marker, size = struct.unpack_from(">xBH", data, at)
        if marker == _SOS:
            break
        if marker in (0, 0xFF):  # padding
            at += 1
            continue
        segment = data[at : at + 2 + size]
        if marker in _APP or marker == _COM:
            start, least = _NEEDED.get(marker, (b"", 1 << 16))
            segment = segment if segment[4:].startswith(start) and size - 2 >= least else b""
        kept.append(segment)
        at += 2 + size
    return b"".join(kept) + data[at if at >= 0 else len(data) :]
