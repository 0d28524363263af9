"""Picture files -> upright uint8 RGB arrays."""

import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from egic.errors import UserError
from egic.pictures import heif, jpeg, png, tiff
from egic.pictures.colours import to_rgb
from egic.pictures.formats import READS, format_of, open_file

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


def read(data: bytes, max_pixels: int | None = None, *, upright: bool = True) -> tuple[np.ndarray, list[str]]:
    """The bytes of a picture file -> uint8 sRGB (H, W, 3), and notes for the user about the conversion.

    upright: apply the EXIF orientation. False for pictures whose labels belong to the pixels as stored. The rotation
    of HEIC pictures is a part of decoding, and always applied.

    16-bit values become 8-bit ones; transparency becomes white; colour profiles are converted to sRGB; other metadata
    is ignored. docs/format.md lists what is read and what is refused.
    Raises UserError for data that is not a picture, is damaged, is of a kind that Pillow decodes wrongly, or has more
    than `max_pixels` or Pillow's limit against decompression bombs (179 M pixels).
    """
    for content, notes in _attempts(data):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's: large pictures, odd metadata
                return _read(content, data, max_pixels, upright, notes), notes
        except (UserError, MemoryError):
            raise
        except Exception as error:  # decoders raise whatever their parts do: struct.error, ZeroDivisionError, ...
            failure = error
    raise _refusal(data, failure) from failure


def _attempts(data: bytes) -> Iterator[tuple[bytes, list[str]]]:
    """(a file to decode, notes about it): the file itself, and if that fails, without the metadata that may be why."""
    yield data, []
    ways = {"PNG": png.without_metadata, "JPEG": jpeg.without_metadata, "AVIF": heif.without_metadata}
    bare = ways.get(format_of(data), bytes)(data)
    if bare != data:
        yield bare, ["part of its metadata is damaged or too large, and is ignored"]


def _read(content: bytes, data: bytes, max_pixels: int | None, upright: bool, notes: list[str]) -> np.ndarray:
    """The pixels of the file `content`, which may be `data` without metadata."""
    with open_file(content, upright=upright) as image:
        if max_pixels is not None and image.width * image.height > max_pixels:
            raise UserError(f"{image.width}x{image.height} pixels are over the limit of {max_pixels}")
        _note_other_pictures(image, data, notes)
        pixels = to_rgb(image, data, notes)
        return np.asarray(_upright(pixels, image, notes) if upright else pixels)


def _refusal(data: bytes, error: Exception) -> UserError:
    """The error of a user for what Pillow raised when it read a file."""
    if isinstance(error, Image.DecompressionBombError):
        return UserError(f"too many pixels ({error})")
    form = format_of(data)
    if not data:
        return UserError("the file is empty")
    if form not in READS:
        return UserError(f"not a picture of a format that is read ({', '.join(READS)})")
    if form == "TIFF":
        return tiff.refusal(tiff.main_page(data))
    if isinstance(error, UnidentifiedImageError):
        return UserError(f"damaged {form} picture, or of a kind that is not read")
    return UserError(f"damaged picture ({error or type(error).__name__})")


def from_image(image: Image.Image) -> tuple[np.ndarray, list[str]]:
    """A Pillow image of any mode -> uint8 sRGB (H, W, 3), and notes for the user, as `read` has them.

    The colour profile in `image.info` is applied, but not the EXIF orientation, so that the picture keeps its size.
    What Pillow does not tell of a PNG, AVIF or JPEG 2000 file (transparent colour, colours by CICP numbers, depths) is
    read from the file that it was opened from by name; for an image of a stream, or a copy, it is not known.
    Raises UserError for values whose range is not known, and as `read` does for pictures that are not read.
    """
    notes: list[str] = []
    name = getattr(image, "filename", "")
    file = Path(name) if name and image.format in ("PNG", "AVIF", "JPEG2000") else None
    return np.asarray(to_rgb(image, file.read_bytes() if file and file.is_file() else b"", notes)), notes


def is_turned(data: bytes) -> bool:
    """Whether EXIF says that the pixels of a picture file are not stored upright; False if that cannot be read."""
    for content, _ in _attempts(data):
        with suppress(Exception), open_file(content) as image:  # Pillow raises whatever its parts do; see `read`
            return image.getexif().get(ExifTags.Base.Orientation, 1) in _TURNS
    return False


def _note_other_pictures(image: Image.Image, data: bytes, notes: list[str]) -> None:
    """Note what a file holds besides the picture that is used: frames, pages, depth and gain maps."""
    num = getattr(image, "n_frames", 1)
    if image.format == "TIFF" and (note := tiff.note(data)):
        notes.append(note)
    elif num > 1 and image.format in ("MPO", "HEIF"):
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


def _upright(image: Image.Image, source: Image.Image, notes: list[str]) -> Image.Image:
    """`image` transposed by the EXIF orientation of `source`."""
    try:
        orientation = source.getexif().get(ExifTags.Base.Orientation, 1)
        return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image
    except Exception as error:  # Pillow's reader raises whatever its parts do
        notes.append(f"its EXIF data is damaged, so that it may not be upright ({error or type(error).__name__})")
        return image
