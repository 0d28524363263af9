"""Decoded pictures of any mode -> 8-bit sRGB: depths, transparency, colour profiles."""

import io

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin

from egic.errors import UserError
from egic.pictures import cicp, jpeg2000, png, tiff

_SRGB_CHROMATICITY = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
"""x and y of the white, red, green and blue of sRGB, as in a PNG's cHRM."""


def to_rgb(image: Image.Image, data: bytes, notes: list[str]) -> Image.Image:
    """Any image -> RGB of 8 bits in sRGB. data: its file; empty if that is not known."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tiff.check(image.tag_v2)
    if image.format == "JPEG2000":
        jpeg2000.check(data, image.mode)
    profile = _profile(image, data, notes)
    image.load()
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        image = tiff.with_palette(image)
    if data.startswith(png.START):
        image = _with_key(image, depth=data[24], kind=data[25])
    return _to_srgb(_to_8_bits(image), profile, notes)


def _profile(image: Image.Image, data: bytes, notes: list[str]) -> bytes | None:
    """The ICC profile of a picture's colours; None for sRGB. Raises UserError for colours that are not read."""
    profile = image.info.get("icc_profile")
    if image.format == "PNG":
        colours = cicp.of_png(data)  # has precedence over a profile (PNG, third edition, section 4.3)
        profile = None if colours else _png_profile(image, data, notes)
    elif profile is None and (stated := image.info.get("nclx_profile")):  # of pillow-heif
        colours = stated["color_primaries"], stated["transfer_characteristics"]
    else:
        colours = cicp.of_avif(data) if profile is None and image.format == "AVIF" else None
    return profile if colours is None else cicp.icc_profile(*colours)


def _png_profile(image: Image.Image, data: bytes, notes: list[str]) -> bytes | None:
    """The ICC profile of a PNG without cICP: that of iCCP, or one of gAMA; None for sRGB."""
    try:
        if profile := image.info.get("icc_profile") or png.profile(data):
            return profile
    except ValueError as error:
        notes.append(f"its colour profile is ignored ({error})")
    if "srgb" in image.info:
        return None
    stated = image.info.get("chromaticity", _SRGB_CHROMATICITY)
    if max(abs(a - b) for a, b in zip(stated, _SRGB_CHROMATICITY, strict=True)) > 0.01:
        notes.append("its primaries (cHRM) are read as those of sRGB")
    gamma = image.info.get("gamma", 0)
    usual = not 0.1 < gamma < 10 or abs(gamma * 2.2 - 1) < 0.05  # 1 / 2.2 stands for the transfer function of sRGB
    return None if usual else cicp.gamma_profile(gamma)


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
            if image.mode == "L" and source.profile.xcolor_space == "RGB ":
                image = image.convert("RGB")
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
