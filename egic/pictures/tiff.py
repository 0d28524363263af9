"""TIFF files that Pillow decodes to wrong pixels."""

from PIL import TiffImagePlugin

from egic.errors import UserError


def check(image: TiffImagePlugin.TiffImageFile) -> None:
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
