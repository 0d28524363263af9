"""A model that makes and reads .egic files: `egic.load(folder).compress(image)`, `.decompress(data, alpha=)`."""

from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from egic import artifact
from egic.coding import bitstream
from egic.coding.bitstream import BitstreamError, Header
from egic.coding.latent_coder import LatentCoder, identity
from egic.errors import UserError
from egic.metrics.distortion import to_uint8
from egic.networks.codec import Codec
from egic.networks.orp import ResidualHead, blend


class Model:
    """A codec, with or without ORP, ready to code pictures on its device.

    `precision` is that of g_a, h_a, g_s and ORP. Entropy parameters keep the weights' float32, so that a file decodes
    whatever the precision of either side.
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
        """What a file's header pins: the entropy model, shared by all stages of a family."""
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
        """The precision of the transforms, for a `with` block."""
        low = self.precision == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=low, cache_enabled=False)

    def to(self, device: str | torch.device) -> "Model":
        """The same model on another device."""
        self.codec.to(device)
        if self.orp is not None:
            self.orp.to(device)
        return self

    @torch.inference_mode()
    def compress(self, image: np.ndarray | Image) -> bytes:
        """RGB picture, uint8 (H, W, 3) or PIL -> the bytes of an .egic file. Raises UserError for other inputs."""
        x = _as_array(image)
        height, width = x.shape[:2]
        with self._transforms():
            y = self.codec.analyse(self._padded(x)).float()
            payload, crc, _ = self.coder.encode(y, height, width)
        header = Header(model_id=self.identity, height=height, width=width, symbols_crc=crc)
        return bitstream.pack(header, payload)

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
                f"the file was made with model {header.model_id.hex()}, this is model {self.identity.hex()}"
            )
        return self.coder.decode(payload, header.height, header.width, header.symbols_crc), header

    @torch.inference_mode()
    def _render(self, y_hat: Tensor, header: Header, gan: bool, orp: ResidualHead | None) -> dict[str, Tensor]:
        """`gan` if asked for, and `mse` by `orp`: float (H, W, 3), 0..255, not clipped; no work for the other."""
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
        """alpha, when this model can blend with it; else UserError."""
        if not 0 <= alpha <= 1:
            raise UserError(f"alpha must lie in [0, 1] (0 most faithful, 1 most realistic), got {alpha}")
        if self.orp is None:
            raise UserError("this model has no ORP head, so alpha has no meaning: leave it out, or take an ORP model")
        return float(alpha)

    def decompress(self, data: bytes, alpha: float | None = None, max_pixels: int = bitstream.MAX_PIXELS) -> np.ndarray:
        """File -> uint8 (H, W, 3). alpha 0 is the most faithful picture, 1 (the default) the most realistic one.

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
    """uint8 (H, W, 3), checked."""
    x = np.asarray(image.convert("RGB") if isinstance(image, Image) else image)
    if x.dtype != np.uint8 or x.ndim != 3 or x.shape[2] != 3 or not x.size:
        raise UserError(f"a picture is RGB, uint8 of shape (H, W, 3); got {x.dtype} of shape {x.shape}")
    bitstream.check_size(*x.shape[:2])
    return x


def load(folder: str | Path, device: str | torch.device = "cpu", precision: str = "float32") -> Model:
    """The model of an artifact folder: its codec, and its ORP head where it has one. Raises UserError."""
    configs = artifact.read_config(folder)
    if "codec" not in configs:
        raise UserError(f"{folder} holds no codec (only {', '.join(configs)}); name an MSE-codec, GAN or ORP model")
    parts = artifact.load(folder, *(name for name in ("codec", "orp") if name in configs))
    return Model(parts["codec"], parts.get("orp"), precision).to(device)
