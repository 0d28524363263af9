"""The codec: g_a, h_a, prior, h_s, ChARM, g_s (EGIC section 3.1; SwinT-ChARM, Zhu et al. 2022), and optional gains.

`Codec` holds the networks and the training forward pass. Files are made and read in `egic.coding.latent_coder`.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from egic.errors import UserError
from egic.networks import entropy
from egic.networks.charm import ChARM, Code, Index
from egic.networks.gains import Gains
from egic.networks.transforms import Analysis, Synthesis

STRIDE_Y = 16  # pixels per latent
STRIDE_Z = 64  # pixels per hyper-latent


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Widths and depths of SwinT-ChARM; the defaults are the paper's 32,556,240 parameters."""

    dims: tuple[int, ...] = (128, 192, 256, 320)
    """Channels of g_a's four stages (g_s mirrors them); the last is the number of latent channels M. Default:
    SwinT-ChARM's."""
    depths: tuple[int, ...] = (2, 2, 6, 2)
    """Swin blocks in each stage of g_a (g_s mirrors them). Default: SwinT-ChARM's."""
    window: int = 8
    """Attention window of g_a and g_s, in features. Default: SwinT-ChARM's."""
    hyper_dims: tuple[int, ...] = (192, 192)
    """Channels of h_a's two stages (h_s mirrors them); the last is the number of hyper-latent channels. Default:
    SwinT-ChARM's."""
    hyper_depths: tuple[int, ...] = (5, 1)
    """Swin blocks in each stage of h_a (h_s mirrors them). Default: SwinT-ChARM's."""
    hyper_window: int = 4
    """Attention window of h_a and h_s, in features. Default: SwinT-ChARM's."""
    num_slices: int = 10
    """Channel slices of the autoregressive entropy model. Default: ChARM's (Minnen & Singh 2020)."""
    rates: int = 0
    """Anchors of a codec that serves every rate (egic/networks/gains.py), the first for the smallest files; 0 for a
    codec of one rate, set by mse_codec.beta. Default: off, as in the paper."""

    def __post_init__(self):
        if self.rates < 0 or self.rates == 1:
            raise UserError(f"rates must be 0 (one rate) or at least 2, got {self.rates}")
        for name, dims, depths, n in (
            ("dims", self.dims, self.depths, 4),
            ("hyper_dims", self.hyper_dims, self.hyper_depths, 2),
        ):
            if len(dims) != n or len(depths) != n:
                raise UserError(f"{name} and its depths need {n} entries each, got {dims} and {depths}")
            if any(d <= 0 or d % 32 for d in dims):
                raise UserError(f"{name} must be positive multiples of 32 (the head dimension), got {dims}")
            if any(d < 1 for d in depths):
                raise UserError(f"every depth of {name} must be at least 1, got {depths}")
        if self.num_slices < 1 or self.dims[-1] % self.num_slices:
            raise UserError(f"num_slices must divide the {self.dims[-1]} latent channels, got {self.num_slices}")
        for name, window in (("window", self.window), ("hyper_window", self.hyper_window)):
            if window < 2 or window % 2 or (window & (window - 1)):
                raise UserError(f"{name} must be a power of two of at least 2, got {window}")

    @property
    def multiple(self) -> int:
        """Sides of a picture inside the networks are multiples of this many pixels (256 for the paper's codec)."""
        return max(STRIDE_Y * self.window, STRIDE_Z * self.hyper_window)


@dataclass
class Coded:
    """Result of `Codec.forward`: x_hat (B, 3, H, W) in 0..255, y_hat (B, M, H/16, W/16), bits (B,) per image.

    y_hat is the input of g_s, after `Codec.restore`.
    """

    x_hat: Tensor
    y_hat: Tensor
    bits_y: Tensor
    bits_z: Tensor

    @property
    def bits(self) -> Tensor:
        """Bits of each image, (B,) float32."""
        return self.bits_y + self.bits_z


class Codec(nn.Module):
    """SwinT-ChARM. Pictures are float RGB (B, 3, H, W) in 0..255 with sides that are multiples of `config.multiple`."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.config = config
        c, m = config, config.dims[-1]
        self.g_a = Analysis(3, c.dims, c.depths, c.window)
        self.h_a = Analysis(m, c.hyper_dims, c.hyper_depths, c.hyper_window)
        self.prior = entropy.FactorizedPrior(c.hyper_dims[-1])
        self.h_s = Synthesis(2 * m, c.hyper_dims[::-1], c.hyper_depths[::-1], c.hyper_window)
        self.charm = ChARM(m, c.num_slices)
        self.g_s = Synthesis(3, c.dims[::-1], c.depths[::-1], c.window)
        self.gains = Gains(c.rates, m) if c.rates else None
        last_bias = self.g_s.get_parameter("stages.3.resample.reduction.bias")
        nn.init.constant_(last_bias, 0.5)  # start at mid-grey, not at black

    def analyse(self, x: Tensor, q: Tensor | None = None) -> Tensor:
        """Picture (B, 3, H, W) in 0..255 -> y (B, M, H/16, W/16), scaled by the gains of quality q (B,)."""
        return self.scale(self.g_a(x / 255), q)

    def scale(self, y: Tensor, q: Tensor | None) -> Tensor:
        """Latents of g_a -> what the entropy model codes at quality q (B,) in [0, rates - 1]; None without gains."""
        assert (q is None) == (self.gains is None), "q goes with a codec that has gains"
        return y if self.gains is None else self.gains.scale(y, cast(Tensor, q))

    def restore(self, y_hat: Tensor, q: Tensor | None) -> Tensor:
        """Quantised latents -> the input of g_s, ORP and the discriminator; the inverse of `scale`, up to offsets."""
        return y_hat if self.gains is None else self.gains.restore(y_hat, cast(Tensor, q))

    def synthesise(self, y_hat: Tensor) -> Tensor:
        """y_hat (B, M, H/16, W/16) -> picture (B, 3, H, W), 0..255, not clipped."""
        return self.g_s(y_hat).float() * 255

    def hyper(self, z_hat: Tensor) -> tuple[Tensor, Tensor]:
        """z_hat (B, N, H/64, W/64) -> hyper means and hyper scales, each (B, M, H/16, W/16)."""
        means, scales = self.h_s(z_hat).chunk(2, 1)
        return means, scales

    def decode_latents(self, z_hat: Tensor, code: Code) -> Tensor:
        """z_hat -> y_hat through the ChARM loop, in the weights' precision, never a lower one; see `ChARM.forward`."""
        with torch.autocast(z_hat.device.type, enabled=False):
            return self.charm(*self.hyper(z_hat.to(next(self.charm.parameters()).dtype)), code)

    def encode(self, x: Tensor, q: Tensor | None = None) -> Tensor:
        """Picture -> restored y_hat (B, M, H/16, W/16), quantised as in a file; its rate is not computed."""
        y = self.analyse(x, q).float()
        slices = y.split(self.charm.width, 1)
        z_hat = torch.round(self.h_a(y).float())
        return self.restore(self.decode_latents(z_hat, lambda k, mu, _: entropy.quantize(slices[k], mu)), q)

    def quantized(self, y: Tensor, z_hat: Tensor, noise_y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Quantise y slice by slice: y_hat, not yet restored, and its bits per image (B,).

        Bits are computed at y + noise, or at the rounded y without noise.
        """
        width, bits = self.charm.width, []

        def code(k: int, mu: Tensor, index: Index) -> Tensor:
            part = slice(k * width, (k + 1) * width)
            y_k = y[:, part]
            y_hat_k = entropy.quantize(y_k, mu)
            seen = y_hat_k if noise_y is None else y_k + noise_y[:, part]
            bits.append(entropy.gaussian_bits(seen - mu, entropy.sigma_of(index())).sum((1, 2, 3)))
            return y_hat_k

        y_hat = self.decode_latents(z_hat, code)
        return y_hat, torch.stack(bits).sum(0)

    def forward(
        self, x: Tensor, noise_y: Tensor | None = None, noise_z: Tensor | None = None, q: Tensor | None = None
    ) -> Coded:
        """x (B, 3, H, W) in 0..255, at quality q (B,) if the codec has gains -> `Coded`.

        Rates are computed with uniform noise in [-1/2, 1/2), shaped like y and z, or with rounded latents if it is
        None; g_s always uses rounded latents, with a straight-through gradient (Minnen & Singh 2020).
        """
        y = self.analyse(x, q).float()
        z = self.h_a(y).float()
        z_hat = entropy.quantize_int(z)
        with torch.autocast(x.device.type, enabled=False):
            bits_z = self.prior.bits(z_hat if noise_z is None else z + noise_z).sum((1, 2, 3))
            y_hat, bits_y = self.quantized(y, z_hat, noise_y)
            y_hat = self.restore(y_hat, q)
        return Coded(self.synthesise(y_hat), y_hat, bits_y, bits_z)
