"""TIFF of every kind, compared with an independent reader (tifffile): the same pixels, or an error with the reason."""

import io
import itertools
import struct

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


def grey_tiff(values: np.ndarray, bits: int, photometric: int) -> bytes:
    """A baseline TIFF of grey samples with any number of bits, in one strip (TIFF 6.0, section 4)."""
    packed = (values[..., None] >> np.arange(bits)[::-1] & 1).astype(np.uint8).reshape(H, -1)
    strip = np.packbits(packed, axis=1).tobytes()
    tags = {
        256: W,
        257: H,
        258: bits,
        259: 1,
        262: photometric,
        273: 8 + 2 + 12 * 9 + 4,
        277: 1,
        278: H,
        279: len(strip),
    }
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + table + bytes(4) + strip


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
def test_grey_of_every_depth_is_right_or_refused(bits, photometric):
    values = np.rint(RGB[..., 2] * (2**bits - 1)).astype(int)
    data = grey_tiff(values, bits, photometric)
    grey = values * 255 / (2**bits - 1)
    try:
        x, _ = pictures.read(data)
    except UserError as error:
        assert (bits, photometric) == (12, 0) and "this kind of TIFF" in str(
            error
        )  # Pillow reads 12 bits only if 0 is black
    else:
        assert np.abs(x[..., 0] - (grey if photometric else 255 - grey)).max() <= 0.51


@pytest.mark.parametrize("photometric", ["cielab", "icclab", "ycbcr"])
def test_colour_spaces_that_pillow_decodes_wrongly_are_refused(photometric):
    """Uncompressed YCbCr is wrong only if it is stored in planes."""
    values, planar, out = (RGB * 255).astype(np.uint8), "contig", io.BytesIO()
    if photometric == "ycbcr":
        values, planar = np.ascontiguousarray(np.moveaxis(values, 2, 0)), "separate"
    tifffile.imwrite(out, values, photometric=photometric, planarconfig=planar)
    with pytest.raises(UserError, match="kind of TIFF is not read.*PNG"):
        pictures.read(out.getvalue())
