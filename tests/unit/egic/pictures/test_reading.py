"""Picture files of every supported kind are read as upright 8-bit sRGB."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from egic import pictures
from egic.errors import UserError

RGB = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
GREY = RGB[..., 0]


def saved(image: Image.Image, form: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".TIFF", ".bmp", ".ppm"])
def test_what_is_written_is_read_back(suffix):
    x, notes = pictures.read(pictures.write(RGB, suffix))
    assert np.array_equal(x, RGB) and not notes


def test_jpeg_is_read_back_with_small_errors():
    smooth = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[:, None, None], (64, 64, 3)).copy()
    x, _ = pictures.read(pictures.write(smooth, ".jpg"))
    assert np.abs(x.astype(int) - smooth).max() < 6


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_is_rounded_to_8(form):
    values = np.array([[0, 128, 129, 257, 65407, 65535]], np.uint16)
    x, _ = pictures.read(saved(Image.fromarray(values), form))
    assert x[0, :, 0].tolist() == [0, 0, 1, 1, 255, 255] and x.shape == (1, 6, 3)


def png_16_bit_colour(x: np.ndarray) -> bytes:
    """A 16-bit RGB PNG, which Pillow cannot write (PNG specification, chunks IHDR, IDAT, IEND)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in x)
    header = struct.pack(">IIBBBBB", x.shape[1], x.shape[0], 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_16_bit_colour_is_read_as_8_bits():
    x, _ = pictures.read(png_16_bit_colour(RGB.astype(np.uint16) * 257))
    assert np.array_equal(x, RGB)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK"])
def test_other_modes_are_converted_to_rgb(mode):
    image = Image.fromarray(RGB).convert(mode)
    form = "TIFF" if mode == "CMYK" else "PNG"
    x, _ = pictures.read(saved(image, form))
    assert np.abs(x.astype(int) - np.asarray(image.convert("RGB"))).max() <= 2


def test_transparency_becomes_white_with_a_note():
    alpha = np.full(GREY.shape, 255, np.uint8)
    opaque = Image.fromarray(np.dstack([RGB, alpha]), "RGBA")
    x, notes = pictures.read(saved(opaque, "PNG"))
    assert np.array_equal(x, RGB) and not notes
    alpha[:5] = 0
    x, notes = pictures.read(saved(Image.fromarray(np.dstack([RGB, alpha]), "RGBA"), "PNG"))
    assert (x[:5] == 255).all() and np.array_equal(x[5:], RGB[5:]) and "white" in notes[0]
    palette = Image.fromarray(GREY).convert("P")
    x, notes = pictures.read(saved(palette, "PNG", transparency=int(np.asarray(palette)[0, 0])))
    assert (x[0, 0] == 255).all() and notes


TURNED = {
    1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2), 6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x.transpose(1, 0, 2), 2),
    8: lambda x: np.rot90(x), 9: lambda x: x,
}  # fmt: skip


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", TURNED)
def test_exif_orientation_is_applied(orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    x, notes = pictures.read(saved(Image.fromarray(RGB), form, exif=exif, **options))
    assert np.array_equal(x, TURNED[orientation](RGB)) and not notes


@pytest.mark.parametrize(
    "form, options",
    [
        ("JPEG", {"quality": 95}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_can_be_read_as_they_are_stored(orientation, form, options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain, _ = pictures.read(saved(Image.fromarray(RGB), form, **options))
    data = saved(Image.fromarray(RGB), form, exif=exif, **options)
    assert pictures.is_turned(data) == (orientation > 1)
    x, notes = pictures.read(data, upright=False)
    assert np.array_equal(x, plain) and not notes


def tiff_block(*entries: tuple[int, int, int, bytes]) -> bytes:
    """An EXIF block: a TIFF structure with one directory of (tag, type, count, value) entries (TIFF 6.0, section 2)."""
    at, body, table = 8 + 2 + 12 * len(entries) + 4, b"", struct.pack("<H", len(entries))
    for tag, kind, count, value in entries:
        if len(value) > 4:
            body, value = body + value, struct.pack("<I", at + len(body))
        table += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")
    return struct.pack("<2sHI", b"II", 42, 8) + table + bytes(4) + body


UPRIGHT_LEFT = (0x0112, 3, 1, struct.pack("<H", 6))
BROKEN = {
    "a rational with a zero": (UPRIGHT_LEFT, (0x9204, 10, 1, struct.pack("<ii", -1, 0))),
    "an unknown type": (UPRIGHT_LEFT, (0x9003, 77, 3, b"abc")),
    "text for a number": (UPRIGHT_LEFT, (0x011A, 2, 3, b"abc")),
    "a value outside of the block": (UPRIGHT_LEFT, (0x8769, 4, 1, struct.pack("<I", 2**31))),
}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("entries", BROKEN.values(), ids=BROKEN)
def test_broken_exif_leaves_the_picture_upright(entries, form):
    plain, _ = pictures.read(saved(Image.fromarray(RGB), form))
    x, notes = pictures.read(saved(Image.fromarray(RGB), form, exif=b"Exif\0\0" + tiff_block(*entries)))
    assert np.array_equal(x, TURNED[6](plain)) and not notes


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_no_damage_to_exif_stops_a_picture(form):
    """300 blocks with bytes changed or cut off: the picture is read, in any orientation."""
    rng = np.random.default_rng(0)
    plain, _ = pictures.read(saved(Image.fromarray(RGB), form))
    block = tiff_block(UPRIGHT_LEFT, (0x829A, 5, 1, struct.pack("<II", 1, 60)), (0x0110, 2, 6, b"Camera"))
    for _ in range(300):
        broken = bytearray(block)
        for place in rng.integers(0, len(block), 4):
            broken[place] = rng.integers(256)
        exif = b"Exif\0\0" + bytes(broken[: rng.integers(8, len(block) + 1)])
        x, _ = pictures.read(saved(Image.fromarray(RGB), form, exif=exif))
        assert any(np.array_equal(x, turn(plain)) for turn in TURNED.values())


def test_an_error_of_any_type_in_a_decoder_becomes_a_user_error(monkeypatch):
    """Pillow does not convert the errors of its decoders: struct.error, ZeroDivisionError, KeyError, ..."""
    data = saved(Image.fromarray(RGB), "PNG")
    for error in (ZeroDivisionError("x"), KeyError("x"), ValueError("x"), RuntimeError("x")):

        def load(self, error=error):
            raise error

        monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
        with pytest.raises(UserError, match="damaged picture"):
            pictures.read(data)


@pytest.mark.parametrize("space", [b"GRAY", b"RGB "])
@pytest.mark.parametrize("mode, form", [("L", "PNG"), ("LA", "PNG"), ("L", "JPEG")])
def test_a_profile_of_a_grey_picture_is_applied(mode, form, space):
    """With alpha and without; programs also give grey pictures an RGB profile."""
    image = Image.fromarray(GREY // 2)
    if mode == "LA":
        image.putalpha(255)
    x, notes = pictures.read(saved(image, form, icc_profile=linear_profile(space, "linear")))
    assert not notes and x.mean() > (GREY // 2).mean() * 1.3


def test_1_bit_pictures_and_the_first_picture_of_mpo_files_are_read(tmp_path):
    black = np.random.default_rng(0).integers(0, 2, (9, 17)).astype(bool)
    Image.fromarray(black).save(tmp_path / "x.pbm")
    assert np.array_equal(pictures.read((tmp_path / "x.pbm").read_bytes())[0][..., 0], black * 255)
    second = Image.fromarray(255 - RGB)
    x, notes = pictures.read(saved(Image.fromarray(RGB), "MPO", save_all=True, append_images=[second], quality=95))
    assert np.abs(x.astype(int) - RGB).mean() < np.abs(x.astype(int) - (255 - RGB)).mean()
    assert notes == ["it has 2 pictures, only the main one is used"]


def test_colour_profiles_become_srgb():
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    x, notes = pictures.read(saved(Image.fromarray(RGB), "PNG", icc_profile=srgb))
    assert np.array_equal(x, RGB) and not notes
    for profile in (b"nonsense", lab):  # one that is damaged, one that does not fit the mode
        x, notes = pictures.read(saved(Image.fromarray(RGB), "PNG", icc_profile=profile))
        assert np.array_equal(x, RGB) and "profile" in notes[0]


def test_a_linear_profile_with_srgb_in_its_name_is_applied():
    """As in the files that image editors export: "GIMP built-in Linear sRGB"."""
    linear = linear_profile(b"RGB ", "built-in Linear sRGB")
    assert "sRGB" in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(linear)))
    x, notes = pictures.read(saved(Image.fromarray(RGB // 2), "PNG", icc_profile=linear))
    assert not notes and x.mean() > (RGB // 2).mean() * 1.3


def linear_profile(space: bytes, name: str) -> bytes:
    """A minimal ICC v2 profile with gamma 1 and the primaries of sRGB (ICC.1:2001-04). space: "GRAY" or "RGB "."""

    def xyz(*v):
        return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(a * 65536)) for a in v)

    text = name.encode()
    curves = {b"kTRC": b"curv" + bytes(4) + struct.pack(">I", 0)}
    if space == b"RGB ":
        columns = (0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)
        curves = {letter + b"TRC": curves[b"kTRC"] for letter in (b"r", b"g", b"b")}
        curves |= {letter + b"XYZ": xyz(*c) for letter, c in zip((b"r", b"g", b"b"), columns, strict=True)}
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text) + 1) + text + bytes(1 + 8 + 3 + 67),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
    } | curves
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    head = bytearray(128)
    head[8:12] = b"\x02\x10\0\0"
    head[12:24] = b"mntr" + space + b"XYZ "
    head[36:40] = b"acsp"
    head[68:80] = xyz(0.9642, 1.0, 0.8249)[8:]
    head[:4] = struct.pack(">I", at + len(body))
    return bytes(head) + struct.pack(">I", len(tags)) + table + body


def test_only_the_first_frame_is_used():
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    x, notes = pictures.read(saved(frames[0], "TIFF", save_all=True, append_images=frames[1:]))
    assert np.array_equal(x, RGB) and "2 frames" in notes[0]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "JPEG2000", "AVIF", "HEIF"])
def test_damaged_pictures_are_errors_that_name_the_format(form):
    if form not in pictures.READS:
        pytest.skip(f"{form} is not available")
    if form == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    data = saved(Image.fromarray(RGB), form)
    for n in (24, 30, 50, len(data) // 2):
        with pytest.raises(UserError, match="damaged"):
            pictures.read(data[:n])


def test_files_that_are_no_pictures_are_errors():
    with pytest.raises(UserError, match="empty"):
        pictures.read(b"")
    with pytest.raises(UserError, match="not a picture of a format that is read"):
        pictures.read(b"%PDF-1.7 and so on")


def test_decompression_bombs_and_unsupported_depths_are_errors(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="too many pixels"):
        pictures.read(saved(Image.fromarray(RGB), "PNG"))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="TIFF.*floating-point"):
        pictures.read(saved(Image.fromarray(GREY.astype(np.float32)), "TIFF"))


def test_unknown_suffixes_are_errors():
    for suffix in (".egic", "", ".exe"):
        with pytest.raises(ValueError, match="cannot write"):
            pictures.check_suffix(suffix)
