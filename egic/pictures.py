"""Picture files <-> uint8 RGB arrays: formats, bit depths, orientation, transparency and colour profiles.

Needs no torch, so that a command line can look at pictures before it loads a model.
"""

import io
import warnings
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from egic.errors import UserError

READS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM", "GIF")
READ_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".gif")
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


def read(data: bytes, max_pixels: int | None = None) -> tuple[np.ndarray, list[str]]:
    """The bytes of a picture file -> uint8 sRGB (H, W, 3), upright, and what the user should know of the conversion.

    16-bit values become 8-bit ones; transparency goes on white; colour profiles are converted to sRGB.
    Raises UserError for what is no picture, is damaged, or is too large: has more than `max_pixels`, or than Pillow's
    limit against bombs (179 M pixels).
    """
    notes: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's: large pictures, odd metadata
            with Image.open(io.BytesIO(data), formats=READS) as image:
                if max_pixels is not None and image.width * image.height > max_pixels:
                    raise UserError(f"{image.width}x{image.height} pixels are over the limit of {max_pixels}")
                frames = getattr(image, "n_frames", 1)
                if frames > 1 and image.format != "MPO":
                    notes.append(f"it has {frames} frames, only the first is taken")
                profile = image.info.get("icc_profile")
                image.load()
                return np.asarray(_to_srgb(ImageOps.exif_transpose(image), profile, notes)), notes
    except Image.DecompressionBombError as error:
        raise UserError(f"too many pixels ({error})") from error
    except UnidentifiedImageError as error:
        raise UserError("not a picture of a known format (PNG, JPEG, WebP, TIFF, ...)") from error
    except (OSError, SyntaxError, EOFError, TypeError) as error:  # 30,000 damaged files raised no others
        raise UserError(f"damaged picture ({error})") from error


def _to_srgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """Any mode -> RGB."""
    image = _to_8_bits(image)
    alpha = None
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    if image.mode in ("P", "1", "RGBA", "RGBX"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    image = _convert_profile(image, profile, notes)
    if alpha is not None and np.asarray(alpha).min() < 255:
        notes.append("its transparency is put on white")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=alpha)
        return white
    return image


def _to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit grey -> 8-bit grey, rounded. (Pillow itself reads 16-bit colour as 8-bit.)"""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise UserError("its values are neither 8 nor 16 bit; convert it first")
    return Image.fromarray(np.rint(values / 257).astype(np.uint8))


def _convert_profile(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """RGB by the embedded profile, or as the mode says without one."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "srgb" in ImageCms.getProfileDescription(source).lower() and image.mode == "RGB":
                return image
            srgb = ImageCms.createProfile("sRGB")
            # None comes with inPlace alone
            return ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")  # type: ignore[return-value]
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError) as error:
            notes.append(f"its colour profile is left out ({error})")
    return image.convert("RGB")


def check_suffix(suffix: str) -> None:
    """Raise UserError unless pictures can be written under names that end so."""
    if suffix.lower() not in _WRITES:
        raise UserError(f"cannot write {suffix or 'a name without suffix'}: use {', '.join(_WRITES)}")


def write(x: np.ndarray, suffix: str = ".png") -> bytes:
    """uint8 (H, W, 3) -> the bytes of a picture file of the suffix's format; only JPEG loses anything."""
    check_suffix(suffix)
    form, options = _WRITES[suffix.lower()]
    if form == "WEBP" and max(x.shape) > 16383:
        raise UserError(
            f"WebP holds at most 16383 pixels a side, this picture has {x.shape[1]} x {x.shape[0]}: use PNG"
        )
    out = io.BytesIO()
    Image.fromarray(x).save(out, form, **options)
    return out.getvalue()
