import zlib

import pytest

from egic.coding import bitstream
from egic.coding.bitstream import BitstreamError, Header

HEADER = Header(model_id=b"12345678", height=333, width=17, symbols_crc=0xDEADBEEF)
PAYLOAD = bytes(range(200))


def fixed(data: bytes) -> bytes:
    """The same bytes with a valid checksum, as an attacker would make them."""
    return data[:-4] + zlib.crc32(data[:-4]).to_bytes(4, "little")


def test_round_trip_and_overhead():
    data = bitstream.pack(HEADER, PAYLOAD)
    assert bitstream.unpack(data) == (HEADER, PAYLOAD)
    assert len(data) - len(PAYLOAD) == 24


@pytest.mark.parametrize("height, width", [(1, 1), (127, 128), (8192, 8192), (1, 2**20)])
def test_height_and_width_are_stored(height, width):
    data = bitstream.pack(Header(model_id=bytes(8), height=height, width=width, symbols_crc=0), b"x")
    header, payload = bitstream.unpack(data)
    assert (header.height, header.width) == (height, width)
    assert payload[:1] == b"x" and not any(payload[1:])


def test_every_truncation_and_every_flipped_bit_is_an_error():
    data = bitstream.pack(HEADER, PAYLOAD)
    damaged = [data[:n] for n in range(len(data))] + [data + b"\0", data + data]
    damaged += [data[: i // 8] + bytes([data[i // 8] ^ 1 << i % 8]) + data[i // 8 + 1 :] for i in range(8 * len(data))]
    for d in damaged:
        with pytest.raises(BitstreamError):
            bitstream.unpack(d)


def test_invalid_sizes_are_refused_even_with_a_valid_checksum():
    start = b"EGIC\x01" + bytes(8)
    for sizes, word in (
        (b"\x00\x05", "allowed"),
        (b"\xff\xff\xff\xff\x0f\xff\xff\xff\xff\x0f", "allowed"),
        (b"\x01\xff\xff\xff\xff\x0f", "allowed"),
        (b"\xff\xff\xff\xff\xff\x0f\x01", "size"),
        (b"\x80\x00\x01", "shortest"),
        (b"\x80\x80\x01\x80\x80\x01", "cannot hold"),
    ):
        with pytest.raises(BitstreamError, match=word):
            bitstream.unpack(fixed(start + sizes + bytes(12)))


def test_errors_name_the_kind_of_other_files():
    for data, word in ((b"", "empty"), (b"\x89PNG....", "not an .egic"), (b"EGIC\x07" + bytes(30), "format 7")):
        with pytest.raises(BitstreamError, match=word):
            bitstream.unpack(data)
