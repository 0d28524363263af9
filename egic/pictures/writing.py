"""uint8 RGB arrays -> picture files."""

import io
from typing import Any

import numpy as np
from PIL import Image

from egic.errors import UserError

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
