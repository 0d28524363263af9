"""Pictures of the demo page: compress and decode an upload once, and render it at any alpha without the networks.

alpha blends two decoded pictures before they are rounded (`egic.networks.orp`). Both are kept, so that another alpha
runs no network, and equals the output of `egic decompress --alpha` bit for bit.
"""

import re
import time
import warnings
from dataclasses import dataclass
from pathlib import PurePath
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from egic import file_size, pictures
from egic.coding import bitstream
from egic.errors import UserError
from egic.metrics import distortion
from egic.model import as_bytes
from egic.networks.orp import blend
from egic.report import anchors

MAX_BYTES = 2**25
"""Largest upload. Pictures of 4 million pixels are smaller in all usual formats."""


class Coder(Protocol):
    """Interface that the page codes with: `egic.model.Model`, or replicas of it on Ray Serve."""

    def compress(self, image: np.ndarray, *, quality: int | None = None, max_bytes: int | None = None) -> bytes: ...

    def decode_pictures(self, data: bytes) -> tuple[Tensor, Tensor | None]: ...


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A picture or an .egic file that was opened, with all that the page shows of it."""

    name: str
    """Name of the upload without its suffix."""
    data: bytes
    """The .egic file."""
    quality: int | None
    """Quality of the file, 0 to 100; None for a model of one rate."""
    original: np.ndarray | None
    """uint8 (H, W, 3); None if an .egic file was opened."""
    jpeg: anchors.Coded | None
    """The original as the JPEG file nearest in size; None without original."""
    x_gan: Tensor
    """Picture at alpha 1, float (H, W, 3) in 0..255, neither rounded nor clipped."""
    x_mse: Tensor | None
    """Picture at alpha 0; None for a model without ORP."""
    notes: tuple[str, ...]
    """Notes for the user about the conversion of the picture (`egic.pictures.read`)."""
    compress_s: float | None
    decompress_s: float

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.x_gan.shape[0], self.x_gan.shape[1]

    @property
    def bpp(self) -> float:
        return file_size.bpp(len(self.data), *self.size)

    def at(self, alpha: float) -> np.ndarray:
        """uint8 (H, W, 3), equal to `Model.decompress(data, alpha)`. Raises UserError for alpha outside [0, 1]."""
        if not 0 <= alpha <= 1:
            raise UserError(f"alpha must lie in [0, 1] (0 most faithful, 1 most realistic), got {alpha}")
        if self.x_mse is None or alpha == 1:
            return as_bytes(self.x_gan)
        if alpha == 0:  # as blended, x_gan + (x_mse - x_gan) is x_mse only up to float rounding
            return as_bytes(self.x_mse)
        return as_bytes(blend(self.x_gan, self.x_mse, alpha))

    def psnr_db(self, x_hat: np.ndarray) -> float | None:
        """PSNR of a decoded picture, None without original."""
        if self.original is None:
            return None
        x, y = (torch.from_numpy(a.copy()).permute(2, 0, 1)[None] for a in (self.original, x_hat))
        return distortion.psnr_db(y, x).item()


@dataclass(frozen=True, kw_only=True)
class File:
    """An .egic file, and the seconds that compression took; None for an uploaded file."""

    data: bytes
    compress_s: float | None


class UploadCoder:
    """Opens uploads with a coder, and compresses them again at another rate."""

    def __init__(self, coder: Coder, max_pixels: int):
        self.coder, self.max_pixels = coder, max_pixels

    def open(self, name: str, data: bytes) -> Opened:
        """Open an upload: a picture is compressed first; the .egic file is then decoded.

        Raises UserError with one line for the user.
        """
        if not data:
            raise UserError("the file is empty")
        image: np.ndarray | None = None
        notes: list[str] = []
        if data[:4] == bitstream.MAGIC:
            header, _ = bitstream.unpack(data)
            self._check_size(header.height, header.width)
        else:
            self._check_size(*_sides(data))
            image, notes = pictures.read(data)
        file = File(data=data, compress_s=None) if image is None else self.compress(image)
        return self._decoded(_plain(name), file, image, tuple(notes))

    def compress(self, image: np.ndarray, **rate: int) -> "File":
        """Compress a picture. rate: quality or max_bytes, as in `egic.model.Model.compress`. Raises UserError."""
        start = time.perf_counter()
        data = self.coder.compress(image, **rate)
        return File(data=data, compress_s=time.perf_counter() - start)

    def replaced(self, opened: Opened, file: "File") -> Opened:
        """The same picture with another file, decoded."""
        return self._decoded(opened.name, file, opened.original, opened.notes)

    def _decoded(self, name: str, file: "File", original: np.ndarray | None, notes: tuple[str, ...]) -> Opened:
        start = time.perf_counter()
        x_gan, x_mse = self.coder.decode_pictures(file.data)
        decompress_s = time.perf_counter() - start
        return Opened(
            name=name, data=file.data, quality=bitstream.unpack(file.data)[0].quality, original=original,
            jpeg=None if original is None else _jpeg(original, len(file.data)), notes=notes, x_gan=x_gan.cpu(),
            x_mse=None if x_mse is None else x_mse.cpu(), compress_s=file.compress_s, decompress_s=decompress_s,
        )  # fmt: skip

    def _check_size(self, height: int, width: int) -> None:
        """Raise UserError for a picture that is too large, before it is decoded.

        The networks work on sides rounded up to whole blocks.
        """
        padded = bitstream.blocks(height, width) * bitstream.BLOCK**2
        if padded > self.max_pixels:
            raise UserError(
                f"{width} × {height} pixels are too many for this page, which takes {self.max_pixels / 1e6:.1f} "
                f"million (sides rounded up to {bitstream.BLOCK}): make the picture smaller, or start the page with "
                "a higher --max-pixels"
            )


def _sides(data: bytes) -> tuple[int, int]:
    """Height and width from a picture's header; (0, 0) if it cannot be read: `pictures.read` then raises the error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pictures.open_file(data) as image:
                return image.height, image.width
    except Exception:  # decoders raise whatever their parts do
        return 0, 0


def _plain(name: str) -> str:
    """A file's name without suffix, and with only characters that are valid on any file system."""
    return re.sub(r"[^\w.-]+", "_", PurePath(name).stem)[:60].strip("._") or "picture"


def _jpeg(x: np.ndarray, num_bytes: int) -> anchors.Coded | None:
    """The JPEG file of nearest size; None for sides over JPEG's limit."""
    (codec,), _ = anchors.find(("jpeg",))
    try:
        return anchors.Matcher(codec, x).nearest(num_bytes)
    except UserError:
        return None
