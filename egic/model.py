"""A model that makes and reads .egic files: `egic.load(folder).compress(image)`, `.decompress(data, alpha=)`."""

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from egic import artifact, pictures
from egic.coding import bitstream
from egic.coding.bitstream import MAX_QUALITY, BitstreamError, Header
from egic.coding.latent_coder import LatentCoder, identity
from egic.errors import UserError
from egic.file_size import bpp
from egic.metrics.distortion import to_uint8
from egic.networks.codec import Codec
from egic.networks.orp import ResidualHead, blend

DEFAULT_QUALITY = 50


class Model:
    """A codec, with or without ORP, ready to code pictures on its device.

    precision: of g_a, h_a, g_s and ORP. Entropy parameters are always computed in float32, so that a file decodes with
    any precision, whichever it was made with.
    """

    def __init__(self, codec: Codec, orp: ResidualHead | None = None, precision: str = "float32"):
        if precision not in ("float32", "bfloat16"):
            raise UserError(f"precision must be float32 or bfloat16, got {precision!r}")
        self.codec, self.orp = codec.eval(), orp.eval() if orp is not None else None
        self.precision = getattr(torch, precision)
        self._identity: bytes | None = None
        self._coder: LatentCoder | None = None

    @property
    def identity(self) -> bytes:
        """Identity of the entropy model, stored in each file's header. Models trained from the same codec share it."""
        if self._identity is None:
            self._identity = identity(self.codec)
        return self._identity

    @property
    def coder(self) -> LatentCoder:
        if self._coder is None:
            self._coder = LatentCoder(self.codec)
        return self._coder

    @property
    def device(self) -> torch.device:
        return next(self.codec.parameters()).device

    def _transforms(self) -> torch.autocast:
        """Autocast context of the transforms' precision."""
        low = self.precision == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=low, cache_enabled=False)

    @property
    def has_quality(self) -> bool:
        """Whether the model codes at any quality, rather than at one rate."""
        return self.codec.gains is not None

    def to(self, device: str | torch.device) -> "Model":
        """The same model on another device."""
        self.codec.to(device)
        if self.orp is not None:
            self.orp.to(device)
        return self

    @torch.inference_mode()
    def compress(
        self,
        image: np.ndarray | Image,
        *,
        quality: int | None = None,
        bpp: float | None = None,
        max_bytes: int | None = None,
    ) -> bytes:
        """RGB picture, uint8 (H, W, 3), or Pillow image of any mode -> the bytes of an .egic file.

        A Pillow image is converted to sRGB by its colour profile. It is not turned by its EXIF orientation: use
        `PIL.ImageOps.exif_transpose`.

        A model that codes at any quality takes one of: quality, 0 (smallest file) to 100, default 50; bpp, an upper
        limit in bits per pixel; max_bytes, an upper limit in bytes. The limits select the highest quality that fits.
        Raises UserError for other inputs, for a limit that is too low, and for any of the three on a model of one rate.
        """
        x = _as_array(image)
        self._check_rate(quality, bpp, max_bytes)
        if bpp is not None:
            max_bytes = int(bpp * x.shape[0] * x.shape[1] / 8)
        with self._transforms():
            y = self.codec.g_a(self._padded(x) / 255).float()
            if not self.has_quality:
                return self._file(y, x.shape[:2], None)
            if max_bytes is None:
                return self._file(y, x.shape[:2], DEFAULT_QUALITY if quality is None else int(quality))
            return self._largest_file(y, x.shape[:2], max_bytes)

    def _check_rate(self, quality: int | None, bpp: float | None, max_bytes: int | None) -> None:
        given = {k: v for k, v in {"quality": quality, "bpp": bpp, "max_bytes": max_bytes}.items() if v is not None}
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} exclude each other; give one of them")
        if given and not self.has_quality:
            raise UserError(f"this model codes at one rate only, so {next(iter(given))} has no meaning: leave it out")
        if quality is not None and not (0 <= quality <= MAX_QUALITY and quality == int(quality)):
            raise UserError(f"quality must be a whole number in 0..{MAX_QUALITY} (0 the smallest file), got {quality}")
        if bpp is not None and not 0 < bpp < float("inf"):
            raise UserError(f"bpp must be a positive number of bits per pixel, got {bpp}")
        if max_bytes is not None and not max_bytes >= 1:  # NaN, too
            raise UserError(f"max_bytes must be at least 1, got {max_bytes}")

    def _q(self, quality: int | None) -> Tensor | None:
        """Quality 0..100 of a file -> q (1,) in [0, rates - 1] of the codec's gains."""
        if quality is None:
            return None
        return torch.tensor([quality / MAX_QUALITY * (self.codec.config.rates - 1)], device=self.device)

    def _file(self, y: Tensor, size: tuple[int, ...], quality: int | None) -> bytes:
        """Unscaled latents of the padded picture -> the bytes of its file at this quality."""
        height, width = size
        payload, crc, _ = self.coder.encode(self.codec.scale(y, self._q(quality)).float(), height, width)
        header = Header(model_id=self.identity, height=height, width=width, symbols_crc=crc, quality=quality)
        return bitstream.pack(header, payload)

    def _largest_file(self, y: Tensor, size: tuple[int, ...], max_bytes: int) -> bytes:
        """The file of the highest quality that has at most max_bytes, by bisection over real files."""
        best = self._file(y, size, 0)
        if len(best) > max_bytes:
            raise UserError(
                f"a picture of {size[1]} x {size[0]} takes at least {len(best)} bytes "
                f"({bpp(len(best), *size):.4f} bpp) with this model, more than the {max_bytes} asked for"
            )
        low, high = 0, MAX_QUALITY + 1  # the file of `low` fits
        while high - low > 1:
            middle = (low + high) // 2
            data = self._file(y, size, middle)
            low, high, best = (middle, high, data) if len(data) <= max_bytes else (low, middle, best)
        return best

    def _padded(self, x: np.ndarray) -> Tensor:
        """uint8 (H, W, 3) -> float (1, 3, H', W') 0..255, reflected at bottom and right to the codec's multiple."""
        m = self.codec.config.multiple
        x = np.pad(x, ((0, -x.shape[0] % m), (0, -x.shape[1] % m), (0, 0)), mode="reflect")
        return torch.from_numpy(x).to(self.device).permute(2, 0, 1)[None].float()

    @torch.inference_mode()
    def decode_latents(self, data: bytes, max_pixels: int = bitstream.MAX_PIXELS) -> tuple[Tensor, Header]:
        """A file's y_hat (1, M, H/16, W/16) of the padded picture and its header. Raises BitstreamError."""
        header, payload = bitstream.unpack(data, max_pixels)
        if header.model_id != self.identity:
            raise BitstreamError(
                f"the file was made with model {header.model_id.hex()}, this is model {self.identity.hex()}: decode it "
                "with the model that made it, or with one trained from that (egic models FOLDER shows which)"
            )
        if (header.quality is not None) != self.has_quality:
            raise BitstreamError("damaged .egic file: its format is not that of its model")
        y_hat = self.coder.decode(payload, header.height, header.width, header.symbols_crc)
        return self.codec.restore(y_hat, self._q(header.quality)), header

    @torch.inference_mode()
    def _render(self, y_hat: Tensor, header: Header, gan: bool, orp: ResidualHead | None) -> dict[str, Tensor]:
        """Decoded pictures by name, "gan" if `gan` and "mse" if `orp`: float (H, W, 3), 0..255, not clipped."""
        found = {}
        with self._transforms():
            h = self.codec.g_s.last_features(y_hat)
            if gan:
                found["gan"] = self.codec.g_s.last_stage(h, keep=orp is not None).float() * 255
            if orp is not None:
                found["mse"] = orp(h, keep=False)
        return {name: x[0, :, : header.height, : header.width].permute(1, 2, 0) for name, x in found.items()}

    def decode_pictures(self, data: bytes) -> tuple[Tensor, Tensor | None]:
        """(x_gan, x_mse), float (H, W, 3), 0..255, not clipped; x_mse is None without ORP."""
        y_hat, header = self.decode_latents(data)
        found = self._render(y_hat, header, True, self.orp)
        return found["gan"], found.get("mse")

    def check_alpha(self, alpha: float) -> float:
        """alpha as a float. Raises UserError for an alpha that this model cannot use."""
        if not 0 <= alpha <= 1:
            raise UserError(f"alpha must lie in [0, 1] (0 most faithful, 1 most realistic), got {alpha}")
        if self.orp is None:
            raise UserError("this model has no ORP head, so alpha has no meaning: leave it out, or take an ORP model")
        return float(alpha)

    def decompress(self, data: bytes, alpha: float | None = None, max_pixels: int = bitstream.MAX_PIXELS) -> np.ndarray:
        """The bytes of a file -> uint8 (H, W, 3). alpha: 0 most faithful, 1 (the default) most realistic.

        Raises BitstreamError for a bad file or one of more than `max_pixels`, UserError for alpha outside [0, 1] or
        for a model without ORP.
        """
        alpha = 1.0 if alpha is None else self.check_alpha(alpha)
        y_hat, header = self.decode_latents(data, max_pixels)
        found = self._render(y_hat, header, alpha > 0, self.orp if alpha < 1 else None)
        if len(found) == 1:
            return as_bytes(*found.values())
        return as_bytes(blend(found["gan"], found["mse"], alpha))


def as_bytes(x: Tensor) -> np.ndarray:
    """Float picture (H, W, 3) in 0..255 -> uint8, rounded and clipped."""
    return to_uint8(x).cpu().numpy()


def _as_array(image: np.ndarray | Image) -> np.ndarray:
    """A picture as a uint8 array (H, W, 3). Raises UserError for other types and shapes.

    A Pillow image is converted to sRGB, with a warning for its transparency.
    """
    if isinstance(image, Image):
        image, notes = pictures.from_image(image)
        for note in notes:
            warnings.warn(f"the picture to compress: {note}", stacklevel=3)
    x = np.asarray(image)
    if x.dtype != np.uint8 or x.ndim != 3 or x.shape[2] != 3 or not x.size:
        raise UserError(f"a picture is RGB, uint8 of shape (H, W, 3); got {x.dtype} of shape {x.shape}")
    bitstream.check_size(*x.shape[:2])
    return x


def load(folder: str | Path, device: str | torch.device = "cpu", precision: str = "float32") -> Model:
    """Load the model of an artifact folder: its codec and, if stored, its ORP head. Raises UserError."""
    configs = artifact.read_config(folder)
    if "codec" not in configs:
        raise UserError(f"{folder} holds no codec (only {', '.join(configs)}); name an MSE-codec, GAN or ORP model")
    parts = artifact.load(folder, *(name for name in ("codec", "orp") if name in configs))
    return Model(parts["codec"], parts.get("orp"), precision).to(device)
