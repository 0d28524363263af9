"""The .egic file: magic, version, model, true size, checksums, one payload. Independent of networks.

| bytes   | what |
| 4       | "EGIC" |
| 1       | format version: 1, or 2 for models that code at any quality |
| 0 or 1  | quality, 0..100; in version 2 alone |
| 8       | model: `egic.coding.latent_coder.identity`, shared by every stage of a family |
| 1..5 x2 | height, width: LEB128 |
| 4       | CRC-32 of the decoded symbols: too different arithmetic raises an error instead of a wrong picture |
| n       | payload: one range-coded stream |
| 4       | CRC-32 of everything before it: damage is detected before decoding |
"""

import struct
import zlib
from dataclasses import dataclass

from egic.errors import UserError

MAGIC = b"EGIC"
MAX_QUALITY = 100
ID_BYTES = 8
BLOCK = 256  # side of a block in pixels: networks pad pictures to whole blocks, so time depends on their number
MAX_PIXELS = 2**28  # 16384 x 16384
BYTES_PER_BLOCK = 4  # minimal payload: a short file cannot demand hours of decoding
_CRC = struct.Struct("<I")


class BitstreamError(UserError):
    """The bytes are no .egic file, are damaged, or belong to another model."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """Header of a file."""

    model_id: bytes
    height: int
    width: int
    symbols_crc: int
    quality: int | None = None
    """0 (smallest file) to 100; None for models of one rate."""

    @property
    def version(self) -> int:
        """Format version of the file."""
        return 1 if self.quality is None else 2


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i, byte in enumerate(data[at : at + 5]):
        value |= (byte & 127) << 7 * i
        if byte < 128:
            if byte == 0 and i:
                raise BitstreamError("damaged .egic file: a size is not in its shortest form")
            return value, at + i + 1
    raise BitstreamError("damaged .egic file: it ends, or a size is absurd, in the header")


def blocks(height: int, width: int) -> int:
    """Number of 256 x 256 blocks that cover the picture."""
    return -(-height // BLOCK) * -(-width // BLOCK)


def least_payload(height: int, width: int) -> int:
    """Minimal length in bytes of the payload of such a picture; the encoder pads shorter ones with zeros."""
    return blocks(height, width) * BYTES_PER_BLOCK


def check_size(height: int, width: int, max_pixels: int = MAX_PIXELS) -> None:
    """Raise BitstreamError for pictures that are too large or empty for a file."""
    if not height or not width or blocks(height, width) * BLOCK**2 > max_pixels:
        raise BitstreamError(
            f"the picture is {width} x {height}; allowed are 1 to {max_pixels} pixels, sides rounded up to {BLOCK}"
        )


def pack(header: Header, payload: bytes) -> bytes:
    """The file's bytes."""
    if len(header.model_id) != ID_BYTES:
        raise ValueError(f"a model identity has {ID_BYTES} bytes, got {len(header.model_id)}")
    payload = payload.ljust(least_payload(header.height, header.width), b"\0")
    quality = b"" if header.quality is None else bytes([header.quality])
    start = MAGIC + bytes([header.version]) + quality + header.model_id + _varint(header.height) + _varint(header.width)
    body = start + _CRC.pack(header.symbols_crc) + payload
    return body + _CRC.pack(zlib.crc32(body))


def unpack(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[Header, bytes]:
    """Header and payload. Raises BitstreamError for anything that is not one undamaged file of a plausible size."""
    if len(data) < 5 or data[:4] != MAGIC:
        fix = "egic compress makes one of a picture"
        raise BitstreamError(f"not an .egic file; {fix}" if data else f"not an .egic file, but empty; {fix}")
    if data[4] not in (1, 2):
        raise BitstreamError(f"this is .egic format {data[4]}; this version reads formats 1 and 2")
    model_at = 4 + data[4]
    height, at = _read_varint(data, model_at + ID_BYTES)
    width, at = _read_varint(data, at)
    end = len(data) - _CRC.size
    if end < at + _CRC.size or zlib.crc32(memoryview(data)[:end]) != _CRC.unpack_from(data, end)[0]:
        raise BitstreamError("damaged or truncated .egic file: its checksum does not fit")
    quality = data[5] if data[4] == 2 else None
    if quality is not None and quality > MAX_QUALITY:
        raise BitstreamError(f"damaged .egic file: its quality is {quality}, and the highest is {MAX_QUALITY}")
    check_size(height, width, max_pixels)
    payload = bytes(data[at + _CRC.size : end])
    if len(payload) < least_payload(height, width):
        raise BitstreamError(f"{len(payload)} bytes cannot hold a picture of {width} x {height}")
    (symbols_crc,) = _CRC.unpack_from(data, at)
    header = Header(
        model_id=bytes(data[model_at : model_at + ID_BYTES]),
        height=height,
        width=width,
        symbols_crc=symbols_crc,
        quality=quality,
    )
    return header, payload
