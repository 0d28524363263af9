"""JPEG with metadata that Pillow refuses."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from egic import pictures
from tests.unit.egic.pictures.test_reading import RGB, TURNED, UPRIGHT_LEFT, linear_profile, saved, tiff_block

PLAIN = saved(Image.fromarray(RGB), "JPEG", quality=95)
FIRST = 4 + struct.unpack(">H", PLAIN[4:6])[0]
"""Place after the first segment, which is JFIF."""


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


SHORT = {
    "JFIF": segment(0xE0, b"JFIF\0"),
    "Adobe": segment(0xEE, b"Adobe"),
    "8BIM": segment(0xED, b"Photoshop 3.0\0008BIM\x03\xed\xff"),
    "MPF": segment(0xE2, b"MPF\0" + tiff_block((0xB001, 4, 1, struct.pack("<I", 2)))),
    "Exif": segment(0xE1, b"Exif\0\0zz"),
    "profile": segment(0xE2, b"ICC_PROFILE\0"),
}


@pytest.mark.parametrize("at", [2, FIRST])
@pytest.mark.parametrize("broken", SHORT.values(), ids=SHORT)
def test_no_broken_segment_of_metadata_stops_a_picture(broken, at):
    x, _ = pictures.read(PLAIN[:at] + broken + PLAIN[at:])
    assert np.array_equal(x, pictures.read(PLAIN)[0])


def test_no_damage_to_the_index_of_pictures_stops_the_first():
    out = io.BytesIO()
    Image.fromarray(RGB).save(out, "MPO", save_all=True, append_images=[Image.fromarray(255 - RGB)], quality=95)
    data, rng = out.getvalue(), np.random.default_rng(0)
    at = data.index(b"MPF\0")
    size = struct.unpack(">H", data[at - 2 : at])[0]
    for _ in range(200):
        damaged = bytearray(data)
        for place in rng.integers(at, at + size - 2, 4):
            damaged[place] = rng.integers(256)
        assert np.array_equal(pictures.read(bytes(damaged))[0], pictures.read(data)[0])


def test_orientation_and_profile_are_kept_where_other_metadata_is_damaged():
    profile = linear_profile(b"RGB ", "linear")
    exif = b"Exif\0\0" + tiff_block(UPRIGHT_LEFT)
    data = saved(Image.fromarray(RGB // 2), "JPEG", quality=95, exif=exif, icc_profile=profile)
    stored, _ = pictures.read(saved(Image.fromarray(RGB // 2), "JPEG", quality=95, icc_profile=profile))
    data = data[:2] + SHORT["JFIF"] + data[2:]
    x, notes = pictures.read(data)
    assert pictures.is_turned(data) and np.array_equal(x, TURNED[6](stored))
    assert notes == ["part of its metadata is damaged or too large, and is ignored"]
    assert np.array_equal(pictures.read(data, upright=False)[0], stored)
