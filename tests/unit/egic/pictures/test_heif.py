"""HEIC and AVIF pictures are read upright and in sRGB; what a file holds besides its main picture is noted."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from egic import pictures
from egic.errors import UserError
from egic.pictures import cicp, reading
from tests.unit.egic.pictures.test_reading import RGB, TURNED, saved

ROOT = Path(__file__).resolve().parents[4]
SMOOTH = RGB[::4, ::4].repeat(4, 0).repeat(4, 1)
FORMS = {"HEIF": {"quality": -1, "chroma": 444}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}
"""Formats, with the options that keep colours exact to about one level."""


def written(form: str, x: np.ndarray = SMOOTH, **options) -> bytes:
    """A file of pillow-heif or of Pillow's AVIF; skips the test where the format is not available."""
    if form == "HEIF":
        pytest.importorskip(
            "pillow_heif", reason="pillow-heif (the extra heic) is not installed"
        ).register_heif_opener()
    elif not features.check("avif"):
        pytest.skip("this Pillow is built without AVIF")
    return saved(Image.fromarray(x), form, **FORMS[form], **options)


def with_colours(data: bytes, primaries: int, transfer: int) -> bytes:
    """The file with other CICP numbers in its box `colr`."""
    at = data.index(b"colrnclx") + 8
    return data[:at] + primaries.to_bytes(2, "big") + transfer.to_bytes(2, "big") + data[at + 4 :]


def p3_to_srgb(x: np.ndarray) -> np.ndarray:
    """Display P3 -> sRGB, uint8, by the formulas of both (IEC 61966-2-1; matrix from their chromaticities)."""
    matrix = [[1.22494, -0.22494, 0], [-0.04206, 1.04206, 0], [-0.01964, -0.07864, 1.09828]]
    v = x / 255
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4) @ np.transpose(matrix)
    linear = linear.clip(0, 1)
    return np.rint(255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("orientation", [1, 2, 5, 6, 8])
def test_pictures_are_read_upright(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = written(form, exif=exif.tobytes())  # both writers store a rotation of the format's own
    x, notes = pictures.read(data)
    assert np.abs(x.astype(int) - TURNED[orientation](SMOOTH)).max() <= 3 and not notes


@pytest.mark.parametrize("form", FORMS)
def test_no_damage_to_exif_stops_a_picture(form):
    """libavif refuses a file whose EXIF has no TIFF header where it should be; the rotation is no part of EXIF."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Camera"
    data = written(form, exif=exif.tobytes())
    plain, _ = pictures.read(data)
    at, rng = data.index(b"Camera"), np.random.default_rng(0)
    start = data.rindex(b"II*\0" if b"II*\0" in data[:at] else b"MM\0*", 0, at)
    for _ in range(20):
        damaged = data[:start] + rng.bytes(8) + data[start + 8 :]
        assert np.array_equal(pictures.read(damaged)[0], plain)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", ["icc", "numbers"])
def test_display_p3_becomes_srgb(form, how):
    x = (64 + SMOOTH // 3).astype(np.uint8)  # colours that sRGB has
    if how == "icc":
        data = written(form, x, icc_profile=cicp.icc_profile(12, 13))
    else:
        data = with_colours(written(form, x), 12, 13)
    found, notes = pictures.read(data)
    wanted = p3_to_srgb(x)
    assert np.abs(found - wanted).max() <= 4 < np.abs(wanted - x).max() and not notes


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("primaries, transfer", [(9, 16), (9, 18), (12, 16), (9, 1), (1, 8)])
def test_colours_that_would_be_wrong_are_refused(form, primaries, transfer):
    with pytest.raises(UserError, match="colours .*are not read"):
        pictures.read(with_colours(written(form), primaries, transfer))


def test_an_avif_that_pillow_opened_by_name_is_in_the_same_colours(tmp_path):
    path = tmp_path / "x.avif"
    path.write_bytes(with_colours(written("AVIF"), 12, 13))
    with Image.open(path) as image:
        assert np.array_equal(pictures.from_image(image)[0], pictures.read(path.read_bytes())[0])
    path.write_bytes(with_colours(written("AVIF"), 9, 16))
    with Image.open(path) as image, pytest.raises(UserError, match="colours .*are not read"):
        pictures.from_image(image)


@pytest.mark.parametrize("form", FORMS)
def test_colours_of_video_are_read_as_srgb(form):
    data = written(form)
    plain, _ = pictures.read(data)
    for primaries, transfer in ((1, 1), (2, 2), (6, 6)):
        assert np.array_equal(pictures.read(with_colours(data, primaries, transfer))[0], plain)


def test_pictures_besides_the_main_one_are_noted():
    second = Image.fromarray(255 - SMOOTH)
    x, notes = pictures.read(written("HEIF", save_all=True, append_images=[second], primary_index=1))
    assert np.abs(x.astype(int) - (255 - SMOOTH)).max() <= 3
    assert notes == ["it has 2 pictures, only the main one is used"]


@pytest.mark.parametrize("form", FORMS)
def test_gain_maps_are_noted(form):
    """A file with one lists the brand `tmap` (ISO 21496-1); libavif refuses the brand without a gain map."""
    data, notes = written(form), []
    assert pictures.read(data)[1] == []
    with pictures.open_file(data) as image:
        reading._note_other_pictures(image, data.replace(b"miaf", b"tmap", 1), notes)
    assert notes == ["left out: gain map"]


def test_gain_maps_of_jpegs_are_noted():
    """Ultra HDR, whose XMP names the gain map's version."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description hdrgm:Version="1.0"/></x:xmpmeta>'
    _, notes = pictures.read(saved(Image.fromarray(SMOOTH), "JPEG", xmp=xmp))
    assert notes == ["left out: gain map"]


def test_depth_maps_and_apples_gain_maps_are_noted():
    """As pillow-heif lists them, which cannot write them."""
    image, notes = Image.fromarray(SMOOTH), []
    image.info |= {"depth_images": ["a depth map"], "aux": {"urn:com:apple:photo:2020:aux:hdrgainmap": [3]}}
    reading._note_other_pictures(image, b"", notes)
    image.info["aux"] |= {"urn:com:apple:photo:2018:aux:portraiteffectsmatte": [4]}
    reading._note_other_pictures(image, b"", notes)
    assert notes == ["left out: depth map, gain map", "left out: depth map, gain map, auxiliary pictures"]


@pytest.mark.parametrize("brands", [(b"heic", b"mif1"), (b"mif1", b"avif")])
def test_a_file_with_the_common_brand_is_read_by_the_right_decoder(brands):
    """Both formats may have the major brand mif1."""
    data = written("AVIF" if b"avif" in brands else "HEIF")
    x, _ = pictures.read(data[:8] + b"mif1" + data[12:])
    assert np.abs(x.astype(int) - SMOOTH).max() <= 3


def test_damaged_files_are_errors():
    data = written("HEIF")
    for n in (12, 40, 300, len(data) // 2, len(data) - 20):
        with pytest.raises(UserError):
            pictures.read(data[:n])


def test_without_pillow_heif_the_message_says_what_to_install(tmp_path):
    """In a process of its own, in which pillow-heif cannot be imported."""
    script = """
import sys
sys.modules["pillow_heif"] = None
from egic import pictures
assert ".heic" not in pictures.READ_SUFFIXES
print(pictures.left_out(["a.heic", "b.HEIC", "c.dng"]))
print(pictures.left_out(["c.dng"]))
try:
    pictures.read(bytes.fromhex("00000018667479706865696300000000") + b"mif1heic")
except ValueError as error:
    print(error)
"""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [
        "2 .heic, 1 .dng; for HEIC: pip install 'egic[heic]'",
        "1 .dng",
        "HEIC pictures need the package pillow-heif: pip install 'egic[heic]'",
    ], done.stderr


def test_a_pillow_image_is_saved_in_srgb():
    x = (64 + SMOOTH // 3).astype(np.uint8)
    with Image.open(io.BytesIO(written("HEIF", x, icc_profile=cicp.icc_profile(12, 13)))) as image:
        found, notes = pictures.from_image(image)
    assert np.abs(found - p3_to_srgb(x)).max() <= 4 and not notes
