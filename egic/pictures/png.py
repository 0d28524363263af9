"""PNG files: chunks that Pillow does not read, or refuses."""

import struct
import zlib
from collections.abc import Iterator

START = b"\x89PNG\r\n\x1a\n"
_NEEDED = (b"tRNS", b"eXIf", b"cICP", b"gAMA", b"cHRM", b"sRGB")
"""Ancillary chunks that decide the pixels; the profile is read by `profile`."""
_SIZES = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1}
_MAX_PROFILE = 1 << 26


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(name, content, the whole chunk with its checksum) of each chunk; the last one may be cut off."""
    at = len(START)
    while at + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        whole = data[at : at + 12 + size]
        yield name, whole[8 : 8 + size], whole
        at += len(whole)


def without_metadata(data: bytes) -> bytes:
    """The PNG without the chunks that do not decide its pixels, and without damaged ones of these."""
    return START + b"".join(whole for name, content, whole in chunks(data) if _is_kept(name, content, whole))


def _is_kept(name: bytes, content: bytes, whole: bytes) -> bool:
    if not (name.isalpha() and name[:1].islower()) or name == b"tRNS":  # damage to these is damage to the picture
        return True
    return name in _NEEDED and is_sound(whole) and len(content) == _SIZES.get(name, len(content))


def is_sound(whole: bytes) -> bool:
    """Whether a chunk has its checksum."""
    return struct.pack(">I", zlib.crc32(whole[4:-4])) == whole[-4:]


def profile(data: bytes) -> bytes | None:
    """The ICC profile of a PNG; None if it has none. Of any size up to 64 MB; Pillow refuses more than 1 MB.

    Raises ValueError for a damaged profile.
    """
    for name, content, _ in chunks(data):
        if name == b"IDAT":
            break
        if name == b"iCCP":
            _, _, packed = content.partition(b"\0")
            unpacker = zlib.decompressobj()
            try:
                found = unpacker.decompress(packed[1:], _MAX_PROFILE)
            except zlib.error as error:
                raise ValueError(str(error)) from error
            if packed[:1] != b"\0" or not unpacker.eof:
                raise ValueError("it is not complete")
            return found
    return None
