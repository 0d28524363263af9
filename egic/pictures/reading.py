"""Picture files <-> uint8 RGB arrays: formats, bit depths, orientation, transparency and colour profiles.

Does not import torch, so that commands can check pictures before they load a model.
"""

import io
import warnings
from collections import Counter
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin, UnidentifiedImageError, features

from egic.errors import UserError
from egic.pictures import cicp, heif

_HEIC = (".heic", ".heif", ".hif")

_SUFFIXES = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "GIF": (".gif",),
    **({"AVIF": (".avif",)} if find_spec("PIL._avif") else {}),
    **({"JPEG2000": (".jp2", ".j2k", ".jpx")} if features.check_codec("jpg_2000") else {}),
    **({"HEIF": _HEIC} if find_spec("pillow_heif") else {}),
}
"""File suffixes by Pillow's name of the format, for all formats that can be read.

Pillow may be built without two of them, and reads HEIF through pillow-heif, of the extra `heic`.
"""
READS = tuple(_SUFFIXES)
READ_SUFFIXES = tuple(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
_OTHERS = (
    ".heic .heif .hif .avif .jp2 .j2k .jpx .jxl .jxr .psd .tga .ico .icns .svg .exr .hdr .pfm .qoi .dds .dng .raw .cr2 "
    ".cr3 .nef .arw .orf .raf .rw2 .srw .pef"
).split()
"""Suffixes of pictures in formats that cannot be read, or only with an optional part of Pillow or pillow-heif."""
_WRITES: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True}),
    ".tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".bmp": ("BMP", {}),
    ".ppm": ("PPM", {}),
}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the transposition that makes the picture upright."""


def open_file(data: bytes) -> Image.Image:
    """A picture file as a Pillow image whose pixels are not decoded yet. Raises what Pillow's plugins raise.

    Registers pillow-heif with Pillow for a HEIC file. Raises UserError for one if pillow-heif is not installed.
    """
    if not heif.is_heic(data):
        return Image.open(io.BytesIO(data), formats=[form for form in READS if form != "HEIF"])
    try:
        from pillow_heif import register_heif_opener
    except ModuleNotFoundError as error:
        raise UserError("HEIC pictures need the package pillow-heif: pip install 'egic[heic]'") from error
    register_heif_opener()
    return Image.open(io.BytesIO(data), formats=["HEIF"])


def read(data: bytes, max_pixels: int | None = None, *, upright: bool = True) -> tuple[np.ndarray, list[str]]:
    """The bytes of a picture file -> uint8 sRGB (H, W, 3), and notes for the user about the conversion.

    upright: apply the EXIF orientation. False for pictures whose labels belong to the pixels as stored. The rotation
    of HEIC pictures is a part of decoding, and always applied.

    16-bit values become 8-bit ones; transparency becomes white; colour profiles are converted to sRGB; other metadata
    is ignored. docs/format.md lists what is read and what is refused.
    Raises UserError for data that is not a picture, is damaged, is of a kind that Pillow decodes wrongly, or has more
    than `max_pixels` or Pillow's limit against decompression bombs (179 M pixels).
    """
    notes: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's: large pictures, odd metadata
            with open_file(data) as image:
                if max_pixels is not None and image.width * image.height > max_pixels:
                    raise UserError(f"{image.width}x{image.height} pixels are over the limit of {max_pixels}")
                _note_other_pictures(image, data, notes)
                pixels = _to_rgb(image, data, notes)
                pixels = _upright(pixels, image, notes) if upright else pixels
                return np.asarray(pixels), notes
    except (UserError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"too many pixels ({error})") from error
    except UnidentifiedImageError as error:
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            raise UserError("this kind of TIFF is not read; convert it to PNG first") from error
        raise UserError(f"not a picture of a format that is read ({', '.join(READS)})") from error
    except Exception as error:  # decoders raise whatever their parts do: struct.error, ZeroDivisionError, ...
        raise UserError(f"damaged picture ({error or type(error).__name__})") from error


def from_image(image: Image.Image) -> tuple[np.ndarray, list[str]]:
    """A Pillow image of any mode -> uint8 sRGB (H, W, 3), and notes for the user, as `read` has them.

    The colour profile in `image.info` is applied, but not the EXIF orientation, so that the picture keeps its size.
    What Pillow does not tell of a PNG or AVIF (transparent colour, colours by CICP numbers) is read from the file that
    it was opened from by name; for an image of a stream, or a copy, it is not known.
    Raises UserError for values whose range is not known, and as `read` does for pictures that are not read.
    """
    notes: list[str] = []
    name = getattr(image, "filename", "")
    file = Path(name) if name and image.format in ("PNG", "AVIF") else None
    return np.asarray(_to_rgb(image, file.read_bytes() if file and file.is_file() else b"", notes)), notes


def is_turned(data: bytes) -> bool:
    """Whether EXIF says that the pixels of a picture file are not stored upright; False if that cannot be read."""
    try:
        with open_file(data) as image:
            return image.getexif().get(ExifTags.Base.Orientation, 1) in _TURNS
    except Exception:  # Pillow's reader raises whatever its parts do; `read` has the message
        return False


def _note_other_pictures(image: Image.Image, data: bytes, notes: list[str]) -> None:
    """Note what a file holds besides the picture that is used: frames, pages, depth and gain maps."""
    num = getattr(image, "n_frames", 1)
    if num > 1 and image.format in ("MPO", "HEIF"):
        notes.append(f"it has {num} pictures, only the main one is used")
    elif num > 1:
        notes.append(f"it has {num} frames, only the first is used")
    kinds = []
    if image.info.get("depth_images"):
        kinds.append("depth map")
    extra = image.info.get("aux", {})  # of pillow-heif, by type: urn:com:apple:photo:2020:aux:hdrgainmap
    gain_maps = [kind for kind in extra if "gainmap" in kind]
    ultra_hdr = image.format in ("JPEG", "MPO") and b"hdrgm:Version=" in image.info.get("xmp", b"")
    if gain_maps or ultra_hdr or b"tmap" in heif.brands(data):
        kinds.append("gain map")
    if len(extra) > len(gain_maps):
        kinds.append("auxiliary pictures")
    if kinds:
        notes.append(f"left out: {', '.join(kinds)}")


def _to_rgb(image: Image.Image, data: bytes, notes: list[str]) -> Image.Image:
    """Any image -> RGB of 8 bits in sRGB. data: its file; empty if that is not known."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_tiff(image)
    profile = _profile(image, data)
    image.load()
    if data.startswith(b"\x89PNG"):
        image = _with_key(image, depth=data[24], kind=data[25])
    return _to_srgb(_to_8_bits(image), profile, notes)


def _profile(image: Image.Image, data: bytes) -> bytes | None:
    """The ICC profile of a picture's colours; None for sRGB. Raises UserError for colours that are not read."""
    profile = image.info.get("icc_profile")
    if image.format == "PNG":
        colours = cicp.of_png(data)  # has precedence over a profile (PNG, third edition, section 4.3)
    elif profile is None and (stated := image.info.get("nclx_profile")):  # of pillow-heif
        colours = stated["color_primaries"], stated["transfer_characteristics"]
    else:
        colours = cicp.of_avif(data) if profile is None and image.format == "AVIF" else None
    return profile if colours is None else cicp.icc_profile(*colours)


def _check_tiff(image: TiffImagePlugin.TiffImageFile) -> None:
    """Raise UserError for TIFFs that Pillow decodes to wrong pixels without an error (tests compare with tifffile)."""
    tags = image.tag_v2
    bits, forms = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)), tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))
    photometric = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 1)
    planar = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) == 2 and tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1) > 1
    plain = tags.get(TiffImagePlugin.COMPRESSION, 1) == 1
    reason = ""
    if set(forms) != {1} or max(bits) > 16:
        reason = "its samples are signed, floating-point or over 16 bits; supported are unsigned ones of 1 to 16 bits"
    elif photometric in (8, 9, 10):
        reason = "it is in CIE Lab; supported are grey, palette, RGB, CMYK and YCbCr"
    elif photometric == 6 and plain and planar:
        reason = "it is uncompressed YCbCr in planes; supported is compressed YCbCr"
    elif planar and image.mode in ("LA", "La"):
        reason = "its transparency is stored in a separate plane; supported is transparency interleaved with the pixels"
    elif planar and max(bits) > 8 and plain:
        reason = "its 16-bit colours are uncompressed planes; supported are interleaved or compressed ones"
    if reason:
        raise UserError(f"this kind of TIFF is not read: {reason}. Convert it to PNG first")


def _with_key(image: Image.Image, *, depth: int, kind: int) -> Image.Image:
    """The image of a PNG; the transparent colour (tRNS) of a grey one is scaled to 8 bits, as Pillow does pixels only.

    Raises UserError for 16-bit RGB: Pillow keeps 8 bits, too few to distinguish the colour from similar ones.
    """
    key = image.info.get("transparency")
    if kind == 2 and depth == 16 and key is not None:
        raise UserError("16-bit RGB with a transparent colour is not read; convert it to 8 bits or to RGBA first")
    if kind == 0 and depth in (2, 4) and isinstance(key, int):
        image = image.copy()  # the other one may be the caller's
        image.info["transparency"] = key * 255 // (2**depth - 1)
    return image


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 9 to 16 bits -> 8-bit grey, rounded, with an alpha channel if one value is transparent.

    Other pictures are returned as they are: Pillow reads colour of 16 bits as 8 bits.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise UserError("its values are neither 8 nor 16 bit; convert it first")
    top, white_is_0 = 65535, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # Pillow does not scale or invert the values of a TIFF
        top = 2 ** image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0] - 1
        white_is_0 = image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    grey = Image.fromarray(np.rint((top - values if white_is_0 else values) * (255 / top)).astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


def _upright(image: Image.Image, source: Image.Image, notes: list[str]) -> Image.Image:
    """`image` transposed by the EXIF orientation of `source`."""
    try:
        orientation = source.getexif().get(ExifTags.Base.Orientation, 1)
        return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image
    except Exception as error:  # Pillow's reader raises whatever its parts do
        notes.append(f"its EXIF data is damaged, so that it may not be upright ({error or type(error).__name__})")
        return image


def _to_srgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """Any mode of 8 bits -> RGB."""
    alpha = None
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        grey = image.mode in ("1", "L", "LA", "La")
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.getchannel("R") if grey else image  # a grey profile fits only grey
    if image.mode in ("P", "1", "RGBA", "RGBX"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    image = _convert_profile(image, profile, notes)
    if alpha is not None and np.asarray(alpha).min() < 255:
        notes.append("its transparency is replaced by white")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=alpha)
        return white
    return image


def _convert_profile(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """To RGB by the embedded profile, or without one by Pillow's conversion from the image's mode."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            to_srgb = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), image.mode, "RGB")
            if image.mode == "RGB" and _changes_nothing(to_srgb):
                return image
            return ImageCms.applyTransform(image, to_srgb)  # type: ignore[return-value]  # None only with inPlace
        except Exception as error:  # a picture with any damage to its profile is still read
            notes.append(f"its colour profile is ignored ({error})")
    return image.convert("RGB")


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether the transform of an RGB profile rounds only, as from one of the many profiles of sRGB itself."""
    values = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    changed = np.asarray(ImageCms.applyTransform(Image.fromarray(values), transform))
    return np.abs(changed.astype(int) - values).max() <= 3


def left_out(names: Iterable[str]) -> str:
    """Counts of picture files in formats that cannot be read: "3 .cr2, 1 .dng"; empty for none.

    If HEIC files are among them, the text ends with the command that installs their reader.
    """
    kinds = Counter(PurePath(name).suffix.lower() for name in names)
    unread = {kind: n for kind, n in kinds.most_common() if kind in _OTHERS and kind not in READ_SUFFIXES}
    counts = ", ".join(f"{n} {kind}" for kind, n in unread.items())
    fix = not unread.keys().isdisjoint(_HEIC) and "HEIF" not in READS
    return f"{counts}; for HEIC: pip install 'egic[heic]'" if fix else counts


def printable(name: str) -> str:
    """A file name as valid Unicode: bytes that are not UTF-8 become \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def check_suffix(suffix: str) -> None:
    """Raise UserError for a suffix in whose format pictures cannot be written."""
    if suffix.lower() not in _WRITES:
        raise UserError(f"cannot write {suffix or 'a name without suffix'}: use {', '.join(_WRITES)}")


def write(x: np.ndarray, suffix: str = ".png") -> bytes:
    """uint8 (H, W, 3) -> the bytes of a picture file in the suffix's format; all but JPEG are lossless."""
    check_suffix(suffix)
    form, options = _WRITES[suffix.lower()]
    if form == "WEBP" and max(x.shape) > 16383:
        raise UserError(
            f"WebP allows at most 16383 pixels a side, this picture has {x.shape[1]} x {x.shape[0]}: use PNG"
        )
    out = io.BytesIO()
    Image.fromarray(x).save(out, form, **options)
    return out.getvalue()
