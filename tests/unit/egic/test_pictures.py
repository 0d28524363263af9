"""Every kind of picture file comes in as upright 8-bit sRGB."""

import io

import numpy as np
import PIL
import pytest
from PIL import Image, ImageCms

from egic import pictures

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


def test_jpeg_is_close():
    smooth = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[:, None, None], (64, 64, 3)).copy()
    x, _ = pictures.read(pictures.write(smooth, ".jpg"))
    assert np.abs(x.astype(int) - smooth).max() < 6


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_is_rounded_to_8(form):
    values = np.array([[0, 128, 129, 257, 65407, 65535]], np.uint16)
    x, _ = pictures.read(saved(Image.fromarray(values), form))
    assert x[0, :, 0].tolist() == [0, 0, 1, 1, 255, 255] and x.shape == (1, 6, 3)


def png_16_bit_colour(x: np.ndarray) -> bytes:
    """Pillow writes no 16-bit RGB, so by hand (PNG specification, chunks IHDR, IDAT, IEND)."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in x)
    header = struct.pack(">IIBBBBB", x.shape[1], x.shape[0], 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_16_bit_colour():
    x, _ = pictures.read(png_16_bit_colour(RGB.astype(np.uint16) * 257))
    assert np.array_equal(x, RGB)


OLD = pytest.mark.skipif(PIL.__version__ < "13", reason="Pillow 12 cannot read the YCbCr TIFF that it writes")


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", pytest.param("YCbCr", marks=OLD)])
def test_other_modes(mode):
    image = Image.fromarray(RGB).convert(mode)
    form = {"CMYK": "TIFF", "YCbCr": "TIFF"}.get(mode, "PNG")
    x, _ = pictures.read(saved(image, form))
    assert np.abs(x.astype(int) - np.asarray(image.convert("RGB"))).max() <= 2


def test_transparency_goes_on_white_with_a_warning():
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


@pytest.mark.parametrize("orientation, turned", [(3, lambda x: x[::-1, ::-1]), (6, lambda x: np.rot90(x, -1))])
def test_exif_rotation(orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    x, _ = pictures.read(saved(Image.fromarray(RGB), "PNG", exif=exif))
    assert np.array_equal(x, turned(RGB))


def test_colour_profiles_become_srgb():
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    x, notes = pictures.read(saved(Image.fromarray(RGB), "PNG", icc_profile=srgb))
    assert np.array_equal(x, RGB) and not notes
    for profile in (b"nonsense", lab):  # one that is damaged, one that does not fit the mode
        x, notes = pictures.read(saved(Image.fromarray(RGB), "PNG", icc_profile=profile))
        assert np.array_equal(x, RGB) and "profile" in notes[0]


def test_another_colour_space_changes_values(tmp_path):
    """A profile whose curves are linear makes the sRGB values brighter."""
    x, notes = pictures.read(saved(Image.fromarray(GREY // 2), "PNG", icc_profile=linear_grey_profile()))
    assert not notes and x.mean() > (GREY // 2).mean() * 1.3


def linear_grey_profile() -> bytes:
    """A minimal ICC v2 grey profile with gamma 1 (ICC.1:2001-04)."""
    import struct

    def xyz(*v):
        return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(a * 65536)) for a in v)

    text = b"linear"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text) + 1) + text + bytes(1 + 8 + 3 + 67),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"kTRC": b"curv" + bytes(4) + struct.pack(">I", 0),
    }
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    head = bytearray(128)
    head[8:12] = b"\x02\x10\0\0"
    head[12:24] = b"mntrGRAYXYZ "
    head[36:40] = b"acsp"
    head[68:80] = xyz(0.9642, 1.0, 0.8249)[8:]
    head[:4] = struct.pack(">I", at + len(body))
    return bytes(head) + struct.pack(">I", len(tags)) + table + body


def test_only_the_first_frame_is_taken():
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    x, notes = pictures.read(saved(frames[0], "TIFF", save_all=True, append_images=frames[1:]))
    assert np.array_equal(x, RGB) and "2 frames" in notes[0]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_damaged_pictures_are_errors(form):
    data = saved(Image.fromarray(RGB), form)
    for n in (0, 1, 10, 30, len(data) // 2):
        with pytest.raises(ValueError):
            pictures.read(data[:n])


def test_bombs_and_strange_depths_are_errors(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="too many pixels"):
        pictures.read(saved(Image.fromarray(RGB), "PNG"))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="8 nor 16 bit"):
        pictures.read(saved(Image.fromarray(GREY.astype(np.float32)), "TIFF"))


def test_unknown_names_are_errors():
    for suffix in (".egic", "", ".exe"):
        with pytest.raises(ValueError, match="cannot write"):
            pictures.check_suffix(suffix)
