"""PNG: transparent colours, colours by numbers or a power of the light, and metadata that Pillow refuses."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from egic import pictures
from egic.errors import UserError
from egic.pictures import cicp
from tests.unit.egic.pictures.test_reading import RGB, linear_profile, saved


def png(x: np.ndarray, depth: int, kind: int, key: tuple[int, ...], **chunks: bytes) -> bytes:
    """A PNG with samples of any depth and a transparent colour (PNG specification, IHDR, tRNS)."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    bits = (x.reshape(len(x), -1, 1) >> np.arange(depth)[::-1] & 1).astype(np.uint8).reshape(len(x), -1)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in np.packbits(bits, axis=1)))
    header = struct.pack(">IIBBBBB", x.shape[1], len(x), depth, kind, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)), chunk(b"IDAT", rows)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_value_of_a_grey_png_becomes_white(depth):
    values = np.random.default_rng(depth).integers(0, 2**depth, (24, 40))
    values[0, 0] = key = 2 ** (depth - 1) - (depth == 1)
    x, notes = pictures.read(png(values, depth, 0, (key,)))
    wanted = np.where(values == key, 255, np.rint(values * 255 / (2**depth - 1)))
    assert np.array_equal(x, np.repeat(wanted[..., None], 3, 2)) and "white" in notes[0]


def test_a_png_that_pillow_opened_by_name_is_read_as_its_file(tmp_path):
    path = tmp_path / "x.png"
    values = np.random.default_rng(3).integers(0, 4, (24, 40))
    path.write_bytes(png(values, 2, 0, (1,)))
    with Image.open(path) as image:
        for _ in range(2):  # the image stays as it is
            assert np.array_equal(pictures.from_image(image)[0], pictures.read(path.read_bytes())[0])


@pytest.mark.parametrize("profile", [b"", b"nonsense"])
def test_colours_of_png_by_numbers(profile):
    """In the chunk cICP, which has precedence over a profile."""
    x = (64 + RGB // 3).astype(np.uint8)
    options = {"icc_profile": profile} if profile else {}

    def stated(primaries: int, transfer: int) -> bytes:
        data, content = saved(Image.fromarray(x), "PNG", **options), b"cICP" + bytes([primaries, transfer, 0, 1])
        return data[:33] + b"\0\0\0\4" + content + struct.pack(">I", zlib.crc32(content)) + data[33:]

    assert np.array_equal(pictures.read(stated(1, 13))[0], x)
    p3 = saved(Image.fromarray(x), "PNG", icc_profile=cicp.icc_profile(12, 13))
    assert np.array_equal(pictures.read(stated(12, 13))[0], pictures.read(p3)[0])
    assert not np.array_equal(pictures.read(p3)[0], x)
    with pytest.raises(UserError, match="HDR, PQ"):
        pictures.read(stated(9, 16))


def test_the_transparent_colour_of_an_rgb_png_becomes_white():
    values = RGB.astype(int)
    x, _ = pictures.read(png(values, 8, 2, tuple(values[3, 3])))
    wanted = RGB.copy()
    wanted[(values == values[3, 3]).all(-1)] = 255
    assert np.array_equal(x, wanted)
    with pytest.raises(UserError, match="16-bit RGB with a transparent colour"):  # Pillow keeps 8 of its bits
        pictures.read(png(values * 257, 16, 2, tuple(values[3, 3] * 257)))


def chunk(name: bytes, data: bytes, crc: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) if crc is None else crc)
    )


CHROMATICITY = 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000
PLAIN = saved(Image.fromarray(RGB), "PNG")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PROFILE = b"x\0\0" + zlib.compress(SRGB)
FULL = {
    b"pHYs": struct.pack(">IIB", 1, 1, 1),
    b"gAMA": struct.pack(">I", 45455),
    b"cHRM": struct.pack(">8I", *CHROMATICITY),
    b"sRGB": b"\0",
    b"tIME": bytes(7),
    b"eXIf": b"II*\0\x08\0\0\0\0\0",
    b"iCCP": PROFILE,
    b"tEXt": b"a\0b",
    b"zTXt": b"a\0\0" + zlib.compress(b"x"),
    b"iTXt": b"a\0\0\0\0\0x",
    b"acTL": struct.pack(">II", 1, 0),
    b"fcTL": bytes(26),
    b"cICP": b"\1\r\0\1",
    b"prVW": b"",
}


@pytest.mark.parametrize("place", ["before the pixels", "after the pixels"])
@pytest.mark.parametrize("name", FULL)
def test_no_damage_to_a_chunk_of_metadata_stops_a_picture(name, place):
    full, at = FULL[name], 33 if place == "before the pixels" else len(PLAIN) - 12
    damaged = [chunk(name, full[:n]) for n in (0, 1, len(full) // 2, len(full) - 1)] + [
        chunk(name, full + b"zz"),
        chunk(name, full, crc=1),
        chunk(name, full) * 2,
    ]
    for each in damaged:
        x, _ = pictures.read(PLAIN[:at] + each + PLAIN[at:])
        assert np.array_equal(x, RGB)


ZEROS = zlib.compress(bytes(3 << 20))
LARGE = {
    "zTXt": chunk(b"zTXt", b"a\0\0" + ZEROS),
    "iTXt": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + ZEROS),
    "many texts": b"".join(chunk(b"tEXt", b"a%d\0" % i + bytes(1 << 20)) for i in range(65)),
    "an unknown method": chunk(b"zTXt", b"a\0\7xx"),
}


@pytest.mark.parametrize("metadata", LARGE.values(), ids=LARGE)
def test_metadata_that_pillow_refuses_to_unpack_is_ignored_with_a_note(metadata):
    x, notes = pictures.read(PLAIN[:33] + metadata + PLAIN[33:])
    assert np.array_equal(x, RGB) and notes == ["part of its metadata is damaged or too large, and is ignored"]


def test_a_profile_of_over_1_mb_is_applied():
    small, large = linear_profile(b"RGB ", "linear"), linear_profile(b"RGB ", "linear " + "x" * (2 << 20))
    data = PLAIN[:33] + chunk(b"iCCP", b"x\0\0" + zlib.compress(large)) + PLAIN[33:]
    x, notes = pictures.read(data)
    assert np.array_equal(x, pictures.read(saved(Image.fromarray(RGB), "PNG", icc_profile=small))[0])
    assert notes == ["part of its metadata is damaged or too large, and is ignored"]


def test_a_turned_picture_with_damaged_metadata_is_read_upright():
    exif = Image.Exif()
    exif[0x0112] = 3
    data = saved(Image.fromarray(RGB), "PNG", exif=exif)
    data = data[:33] + chunk(b"pHYs", b"") + data[33:]
    assert pictures.is_turned(data)
    assert np.array_equal(pictures.read(data)[0], RGB[::-1, ::-1])
    assert np.array_equal(pictures.read(data, upright=False)[0], RGB)


@pytest.mark.parametrize("damaged", [chunk(b"tRNS", b""), chunk(b"PLTE", bytes(6), crc=1), chunk(b"ab\xffd", b"x")])
def test_damage_that_concerns_the_pixels_is_an_error(damaged):
    with pytest.raises(UserError, match="damaged PNG"):
        pictures.read(PLAIN[:33] + damaged + PLAIN[33:])


@pytest.mark.parametrize("mode", ["RGB", "L", "LA"])
@pytest.mark.parametrize("gamma", [1.0, 1 / 1.8])
def test_values_that_are_a_power_of_the_light_become_srgb(gamma, mode):
    """The chunk gAMA, where no chunk of higher precedence states the colours (PNG, third edition, section 11.3.2)."""
    image = Image.fromarray(RGB).convert(mode)
    stated = chunk(b"gAMA", struct.pack(">I", round(gamma * 100000)))
    data = saved(image, "PNG")
    x, notes = pictures.read(data[:33] + stated + data[33:])
    light = (np.asarray(image.convert("RGB")) / 255) ** (1 / gamma)
    wanted = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(x - wanted).max() <= 2 and not notes
    plain = np.asarray(image.convert("RGB"))
    for above in (chunk(b"sRGB", b"\0"), chunk(b"cICP", FULL[b"cICP"]), chunk(b"iCCP", PROFILE)):
        assert np.array_equal(pictures.read(data[:33] + above + stated + data[33:])[0], plain)


def test_the_usual_power_is_read_as_srgb_and_other_primaries_are_noted():
    data = PLAIN[:33] + chunk(b"gAMA", FULL[b"gAMA"]) + chunk(b"cHRM", FULL[b"cHRM"]) + PLAIN[33:]
    x, notes = pictures.read(data)
    assert np.array_equal(x, RGB) and not notes
    wide = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
    x, notes = pictures.read(PLAIN[:33] + chunk(b"cHRM", wide) + PLAIN[33:])
    assert np.array_equal(x, RGB) and "primaries (cHRM)" in notes[0]
