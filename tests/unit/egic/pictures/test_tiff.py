"""TIFF of every kind, compared with an independent reader (tifffile): the same pixels, or an error with the reason."""

import io
import itertools
import struct

import imagecodecs
import numpy as np
import pytest
import tifffile

from egic import pictures
from egic.errors import UserError

H, W = 32, 48
Y, X = np.mgrid[:H, :W]
RGB = np.stack([X * 255 // (W - 1), Y * 255 // (H - 1), (X + Y) * 255 // (H + W - 2)], -1) / 255
COLOURS = {"miniswhite": 1, "minisblack": 1, "rgb": 3, "separated": 4}
STORED = ((None, False), ("lzw", False), ("lzw", True), ("deflate", False), ("deflate", True), ("packbits", False))
"""Compression, and the predictor: whether differences between neighbours are stored."""
ALPHA = (None, "unassalpha", "assocalpha", "unspecified")


def wanted(values: np.ndarray, photometric: str, alpha: str | None) -> np.ndarray:
    """Values in [0, 1], (H, W, samples) -> RGB in 0..255 on white."""
    n = COLOURS[photometric]
    colour, mask = values[..., :n], values[..., n : n + 1]
    if photometric == "miniswhite":
        colour = 1 - colour
    if photometric == "separated":
        colour = (1 - colour[..., :3]) * (1 - colour[..., 3:])
    if alpha == "unassalpha":
        colour = colour * mask + 1 - mask
    if alpha == "assocalpha":
        colour = np.minimum(colour + 1 - mask, 1)
    return np.broadcast_to(colour * 255, (H, W, 3))


def written(photometric: str, dtype: str, alpha: str | None, **options) -> tuple[bytes, np.ndarray]:
    """(a TIFF file, its pixels as read by tifffile, (H, W, samples) in [0, 1])."""
    top = 1.0 if dtype.startswith("f") else float(np.iinfo(dtype).max)
    samples = np.concatenate([RGB, RGB[::-1]], -1)[..., : COLOURS[photometric] + (alpha is not None)]
    values = (samples * top).astype(dtype)
    if values.shape[2] == 1:
        values, options = values[..., 0], options | {"planarconfig": None}
    elif options["planarconfig"] == "separate":
        values = np.ascontiguousarray(np.moveaxis(values, 2, 0))
    out = io.BytesIO()
    tifffile.imwrite(out, values, photometric=photometric, extrasamples=[alpha] if alpha else None, **options)
    data = out.getvalue()
    out.seek(0)
    with tifffile.TiffFile(out) as file:
        found, planar = file.pages[0].asarray(), file.pages[0].planarconfig
    found = np.moveaxis(found, 0, -1) if found.ndim == 3 and planar == 2 else found.reshape(H, W, -1)
    return data, found / top


@pytest.mark.parametrize("photometric", COLOURS)
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i1", "i2", "f4"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_pixels_are_right_or_the_file_is_refused(photometric, dtype, planar):
    read = 0
    for (compression, predictor), alpha, order, tile in itertools.product(STORED, ALPHA, "<>", (None, (16, 16))):
        if compression != "lzw" and (order == ">" or tile):
            continue
        data, values = written(
            photometric, dtype, alpha, planarconfig=planar, compression=compression, predictor=predictor or None,
            byteorder=order, tile=tile, rowsperstrip=None if tile else 8,
        )  # fmt: skip
        try:
            x, _ = pictures.read(data)
        except UserError:
            continue
        read += 1
        error = np.abs(x - wanted(values, photometric, alpha)).max()
        assert error <= 1.5, (compression, predictor, alpha, order, tile, error)  # 16 bits truncated, alpha rounded
    usual = dtype in ("u1", "u2") and (planar == "contig" or photometric in ("rgb", "separated"))
    assert (read > 0) == (usual or (dtype in ("u1", "u2") and photometric in ("minisblack", "miniswhite")))


@pytest.mark.parametrize("alpha", [None, "unassalpha"])
def test_common_kinds_are_read(alpha):
    for dtype, order, tile in itertools.product(("u1", "u2"), "<>", (None, (16, 16))):
        data, values = written("rgb", dtype, alpha, planarconfig="contig", byteorder=order, tile=tile)
        assert np.abs(pictures.read(data)[0] - wanted(values, "rgb", alpha)).max() <= 1.5


def baseline(strip: bytes, tags: dict[int, tuple[int, tuple[int, ...]]]) -> bytes:
    """A little-endian TIFF of one strip (TIFF 6.0, section 2). tags: type and values by tag; types 1 to 4 and 7."""
    tags = {256: (4, (W,)), 257: (4, (H,)), 278: (4, (H,)), 279: (4, (len(strip),)), 273: (4, (0,))} | tags
    at, body = 8 + 2 + 12 * len(tags) + 4, b""
    tags[273], table = (4, (at,)), b""
    body += strip + bytes(len(strip) % 2)
    for tag, (kind, values) in sorted(tags.items()):
        value = struct.pack(f"<{len(values)}{' BBHI  B'[kind]}", *values)
        if len(value) > 4:
            body, value = body + value, struct.pack("<I", at + len(body))
        table += struct.pack("<HHI", tag, kind, len(values)) + value.ljust(4, b"\0")
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + table + bytes(4) + body


def of_kind(photometric: int | None, bits: tuple[int, ...], **others: int) -> dict[int, tuple[int, tuple[int, ...]]]:
    """Tags of a TIFF of this kind; others: tag_NUMBER=value."""
    tags = {258: (3, bits), 259: (3, (1,)), 277: (3, (len(bits),))}
    tags |= {} if photometric is None else {262: (3, (photometric,))}
    return tags | {int(name.removeprefix("tag_")): (3, (value,)) for name, value in others.items()}


def grey_tiff(values: np.ndarray, bits: int, photometric: int) -> bytes:
    """A TIFF of grey samples with any number of bits."""
    packed = (values[..., None] >> np.arange(bits)[::-1] & 1).astype(np.uint8).reshape(H, -1)
    return baseline(np.packbits(packed, axis=1).tobytes(), of_kind(photometric, (bits,)))


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
def test_grey_of_every_depth_is_right_or_refused(bits, photometric):
    values = np.rint(RGB[..., 2] * (2**bits - 1)).astype(int)
    data = grey_tiff(values, bits, photometric)
    grey = values * 255 / (2**bits - 1)
    try:
        x, _ = pictures.read(data)
    except UserError as error:
        assert (bits, photometric) == (12, 0)  # Pillow reads 12 bits only if 0 is black
        assert "WhiteIsZero, 12 bits, Uncompressed, little-endian" in str(error)
    else:
        assert np.abs(x[..., 0] - (grey if photometric else 255 - grey)).max() <= 0.51


BYTES = (RGB * 255).astype(np.uint8)
GREY = np.ascontiguousarray(BYTES[..., 2])


@pytest.mark.parametrize("top", [255, 65535])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_palettes_of_8_and_of_16_bits_are_read(bits, top):
    """Some old programs write 8-bit values; libtiff, by which imagecodecs decodes, detects that, too."""
    rng = np.random.default_rng(bits)
    palette, index = rng.integers(0, 256, (2**bits, 3)), rng.integers(0, 2**bits, (H, W))
    packed = (index[..., None] >> np.arange(bits)[::-1] & 1).astype(np.uint8).reshape(H, -1)
    colours = (3, tuple((palette.T * (top // 255)).ravel().tolist()))
    data = baseline(np.packbits(packed, axis=1).tobytes(), of_kind(3, (bits,)) | {320: colours})
    x, notes = pictures.read(data)
    assert np.array_equal(x, palette[index]) and not notes
    assert np.array_equal(x, imagecodecs.tiff_decode(data, asrgb=True)[..., :3])


@pytest.mark.parametrize(
    "samples, tags, reason",
    [
        (3, of_kind(8, (8,) * 3), "CIE Lab"),
        (3, of_kind(9, (8,) * 3), "CIE Lab"),
        (3, of_kind(6, (8,) * 3), "uncompressed YCbCr"),
        (3, of_kind(6, (8,) * 3, tag_284=2), "uncompressed YCbCr"),
        (4, of_kind(5, (8,) * 4, tag_332=2), "inks"),
        (1, of_kind(None, (8,)), "does not state its colours"),
        (2, of_kind(1, (8, 8), tag_284=2, tag_338=2), "transparency .* plane"),
        (2, of_kind(3, (8, 8), tag_284=2, tag_338=2) | {320: (3, tuple(range(768)))}, "transparency .* plane"),
        (4, of_kind(1, (16, 16), tag_338=2), "BlackIsZero, 2 samples of 16 bits, Uncompressed, little-endian"),
        (4, of_kind(2, (10,) * 3), "RGB, 3 samples of 10 bits"),
        (1, of_kind(32803, (8,)), "CFA, 8 bits"),
        (1, of_kind(0, (8,), tag_266=2), "WhiteIsZero, 8 bits, Uncompressed, bits in reverse order"),
        (1, of_kind(1, (8,)) | {259: (3, (12345,))}, "Compression 12345"),
    ],
)
def test_kinds_that_are_not_read_are_named(samples, tags, reason):
    """Pillow cannot decode them, or decodes them to wrong pixels."""
    with pytest.raises(UserError, match=f"this kind of TIFF is not read.*{reason}.*PNG"):
        pictures.read(baseline(GREY.tobytes() * samples, tags))


def pages(*writes: tuple[np.ndarray, dict], **options) -> bytes:
    """A file of tifffile with one page per (pixels, options of `write`)."""
    out = io.BytesIO()
    with tifffile.TiffWriter(out, **options) as file:
        for x, each in writes:
            file.write(x, **{"photometric": "rgb"} | each)
    return out.getvalue()


def test_a_kind_that_pillow_takes_for_another_is_named():
    with pytest.raises(UserError, match="big-endian BigTIFF"):
        pictures.read(pages((BYTES, {}), bigtiff=True, byteorder=">"))


BESIDE = {
    "a mask": (GREY > 128, {"photometric": 4, "subfiletype": 4}),
    "64-bit floats": (GREY.astype("f8"), {"photometric": 1}),
    "a colour filter array": (GREY, {"photometric": 32803}),
    "a thumbnail": (BYTES[::4, ::4], {"subfiletype": 1}),
}


@pytest.mark.parametrize("options", [{}, {"bigtiff": True}, {"byteorder": ">"}], ids=str)
@pytest.mark.parametrize("other", BESIDE.values(), ids=BESIDE)
def test_a_page_of_any_kind_after_the_picture_is_no_error(other, options):
    x, notes = pictures.read(pages((BYTES, {}), other, **options))
    assert np.array_equal(x, BYTES) and notes == ["it has 2 frames, only the first is used"]


@pytest.mark.parametrize("options", [{}, {"bigtiff": True}, {"byteorder": ">"}], ids=str)
@pytest.mark.parametrize("upright", [True, False])
def test_a_thumbnail_before_the_picture_is_not_the_picture(upright, options):
    turned = (BYTES, {"extratags": [(274, 3, 1, 3, True)]})
    x, notes = pictures.read(pages(BESIDE["a thumbnail"], turned, **options), upright=upright)
    assert np.array_equal(x, BYTES[::-1, ::-1] if upright else BYTES) and "number 2 is used" in notes[0]


def test_thumbnails_without_their_picture_are_noted_or_refused():
    data = pages(BESIDE["a thumbnail"])
    x, notes = pictures.read(data)
    assert x.shape == (H // 4, W // 4, 3) and "smaller copy" in notes[0]
    data = pages((BYTES[::4, ::4], {"subfiletype": 1, "subifds": 1}), (BYTES, {"subfiletype": 0}))
    with pytest.raises(UserError, match="only a thumbnail"):
        pictures.read(data)


@pytest.mark.parametrize("tag", [270, 282, 305, 700, 33723, 34377, 34665, 34853, 65000])
@pytest.mark.parametrize("kind", [1, 2, 3, 4, 7, 99])
def test_no_type_of_a_tag_of_metadata_stops_a_picture(tag, kind):
    data = baseline(BYTES.tobytes(), of_kind(2, (8,) * 3) | {tag: (min(kind, 7), (200, 3))})
    data = data.replace(struct.pack("<HH", tag, 7), struct.pack("<HH", tag, kind)) if kind == 99 else data
    x, notes = pictures.read(data)
    assert np.array_equal(x, BYTES) and not notes
