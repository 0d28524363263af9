"""OASIS-C: a U-Net that labels every pixel with a class or "fake", conditioned on y_hat (EGIC section 3.2; OASIS,
arXiv 2012.04781). Classes: 0 void (never a target), 1..K the data set's categories, K + 1 fake.

With `DiscriminatorConfig.encoder`, the encoder of the U-Net is a frozen pre-trained network, as in DP-SIMS (arXiv
2312.13314): each of its feature maps is normalised over its channels and projected by a 1x1 convolution.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from egic.errors import UserError
from egic.networks import frozen_features
from egic.networks.codec import STRIDE_Y
from egic.networks.frozen_features import FrozenFeatures

PIXEL_MEAN, PIXEL_STD = 127.5, 64.0  # of photographs in 0..255, for the initialisation alone
SLOPE = 0.2


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Widths of OASIS-C; the defaults are the paper's 22,450,247 parameters."""

    down: tuple[int, ...] = (128, 128, 256, 256, 512, 512)
    """Channels after each down block; every block halves the resolution. Default: OASIS's U-Net, as EGIC has it."""
    up: tuple[int, ...] = (512, 256, 256, 128, 128, 64)
    """Channels after each up block; every block doubles the resolution. Default: OASIS's U-Net, as EGIC has it."""
    latent_channels: int = 320
    """Channels M of the codec's y_hat, the condition. Default: the paper's codec."""
    num_categories: int = 133
    """Categories of the data set (133 in COCO panoptic); the logits add void and fake. 0 stands for as many as the data
    has, which training puts in its place. Default: COCO panoptic; the presets have 0."""
    encoder: str = ""
    """timm model whose frozen pre-trained features take the place of the down blocks, at each level for which it has a
    feature map (its maps need strides 2, 4, 8, ...; convolutional models have them). Empty: down blocks that are
    trained. Default: empty, as in EGIC."""
    encoder_weights: str = ""
    """File with timm's weights of the encoder (.safetensors or .pth). Empty: ENCODER.safetensors in $EGIC_WEIGHTS,
    else timm's download. Default: empty, so that nothing has to be set up."""
    encoder_sha256: str = ""
    """Digest of the encoder's weights; other weights are refused. Empty: any weights, whose digest training puts in
    its place. Default: empty; models have it, since they do not contain the encoder's weights."""

    def __post_init__(self):
        if len(self.down) != len(self.up) or len(self.down) < 2:
            raise UserError(f"down and up need the same number (at least 2) of widths, got {self.down} and {self.up}")
        for name, least in (("latent_channels", 1), ("num_categories", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.encoder and (self.encoder_weights or self.encoder_sha256):
            raise UserError("encoder_weights and encoder_sha256 need an encoder; give the name of a timm model")

    def recorded(self) -> dict[str, Any]:
        """The fields that decide what a discriminator is, as JSON values: without `encoder_weights`, which names a
        file of one machine, and without the fields of an encoder where there is none."""
        left_out = {"encoder_weights"} if self.encoder else {"encoder", "encoder_weights", "encoder_sha256"}
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    @property
    def num_classes(self) -> int:
        """Logits per pixel: void, the categories, fake (135 for COCO)."""
        return self.num_categories + 2

    @property
    def fake(self) -> int:
        """Label of a fake pixel (134 for COCO)."""
        return self.num_categories + 1


def normalised_conv(inp: int, out: int, size: int, input_rms: float) -> nn.Conv2d:
    """Weight-normalised convolution (g * v / |v|, bias), initialised so that its output has variance 1.

    DIFFERS: the reference initialises g and the bias from the first batch; this analytic initialisation is the
    same on every worker and for every number of workers.
    """
    conv = nn.Conv2d(inp, out, size, padding=size // 2)
    nn.init.normal_(conv.weight)
    with torch.no_grad():
        conv.weight.mul_(1 / (input_rms * conv.weight.flatten(1).norm(dim=1)).view(-1, 1, 1, 1))
        assert conv.bias is not None  # Conv2d's default
        conv.bias.zero_()
    return weight_norm(conv)


def leaky_rms(variance: float) -> float:
    """Root mean square of LeakyReLU of a centred Gaussian with this variance."""
    return (variance * (1 + SLOPE**2) / 2) ** 0.5


def mean_of_neighbours(kernel: Tensor) -> Tensor:
    """Kernels (out, inp, 3, 3) -> (out, inp, 4, 4), averages over 2x2 of the kernel between zeros."""
    one_by_one = torch.eye(9, device=kernel.device).view(9, 1, 3, 3)
    averages = F.avg_pool2d(one_by_one, 2, 1, padding=1).view(9, 16)
    return (kernel.flatten(2) @ averages).unflatten(2, (4, 4))  # pooling the kernels directly takes six times as long


def doubled_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """conv3x3 of x (B, C, H, W) upsampled by nearest neighbours -> (B, out, 2H, 2W), with 4/9 of its products.

    An output depends on only 2x2 different pixels, so kernel values that multiply the same pixel are added.
    """
    kernel = 4 * mean_of_neighbours(conv.weight).transpose(0, 1).flip(2, 3)
    return F.conv_transpose2d(x, kernel, conv.bias, stride=2, padding=1)


def halved_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """2x2 average of the conv3x3 of x (B, C, H, W) -> (B, out, H/2, W/2), with 4/9 of its products."""
    return F.conv2d(x, mean_of_neighbours(conv.weight), conv.bias, stride=2, padding=1)


class Block(nn.Module):
    """Residual block: [LeakyReLU, (x2),] conv3x3, LeakyReLU, conv3x3, (average pool) + shortcut with conv1x1.

    Pooling and upsampling are part of the adjacent conv3x3 (`halved_conv`, `doubled_conv`), and the shortcut's conv1x1,
    which commutes with both, is computed at the lower resolution.
    """

    def __init__(self, inp: int, out: int, *, variance: float, up: bool = False, first: bool = False):
        super().__init__()
        self.up, self.first = up, first
        rms = PIXEL_STD if first else leaky_rms(variance)
        self.conv1 = normalised_conv(inp, out, 3, rms)
        self.conv2 = normalised_conv(out, out, 3, leaky_rms(1.0))
        self.conv_s = normalised_conv(inp, out, 1, PIXEL_STD if first else variance**0.5) if inp != out else None
        self.variance = 1.0 + (variance if inp == out else 1.0)
        if first:  # subtract the mean of pixels
            with torch.no_grad():
                for conv in (self.conv1, self.conv_s):
                    assert conv is not None and conv.bias is not None
                    conv.bias.sub_(PIXEL_MEAN * conv.weight.sum((1, 2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inp, H, W) -> (B, out, H/2, W/2), or (B, out, 2H, 2W) if `up`."""
        main = x if self.first else F.leaky_relu(x, SLOPE)
        main = F.leaky_relu(doubled_conv(self.conv1, main) if self.up else self.conv1(main), SLOPE)
        main = self.conv2(main) if self.up else halved_conv(self.conv2, main)
        skip = x if self.up else F.avg_pool2d(x, 2)
        skip = skip if self.conv_s is None else self.conv_s(skip)
        return main + (F.interpolate(skip, scale_factor=2.0) if self.up else skip)


class Lateral(nn.Module):
    """A frozen feature map on its way into the U-Net: normalised over its channels, then conv1x1.

    Each position is normalised by itself: normalising each channel over the picture loses what the picture shows as a
    whole, and 75 steps of segmentation then label 13 % of the pixels right in place of 21 %.
    """

    variance = 1.0

    def __init__(self, inp: int, out: int):
        super().__init__()
        self.conv = normalised_conv(inp, out, 1, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inp, H, W) -> (B, out, H, W)."""
        x = F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],))
        return self.conv(x.permute(0, 3, 1, 2))


class Discriminator(nn.Module):
    """OASIS-C. forward: pictures and their latents -> logits per pixel.

    encoder: weights of `config.encoder` (`frozen_features.find`). Without them it has random weights, which is
    enough to compute sizes and costs. Raises UserError for an encoder that timm does not have, and for
    weights whose digest is not `config.encoder_sha256`.
    """

    def __init__(self, config: DiscriminatorConfig, encoder: Mapping[str, Tensor] | None = None):
        super().__init__()
        if config.num_categories < 1:
            raise UserError("num_categories is 0; put the data's number of categories in its place")
        self.encoder = FrozenFeatures(config.encoder, len(config.down), encoder) if config.encoder else None
        if self.encoder:
            found = "random" if encoder is None else frozen_features.digest(encoder)
            if encoder is not None and config.encoder_sha256 not in ("", found):
                raise UserError(
                    f"this discriminator needs weights of {config.encoder} with digest {config.encoder_sha256[:16]}, "
                    f"not {found[:16]}; give them as {config.encoder}.safetensors in EGIC_WEIGHTS"
                )
            config = replace(config, encoder_sha256=found)
        self.config = config
        maps = dict(zip(self.encoder.levels, self.encoder.channels, strict=True)) if self.encoder else {}
        self.latent = normalised_conv(config.latent_channels, config.up[-1], 3, 1.0)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        inp, variance, skips = 3, 1.0, []
        for i, out in enumerate(config.down):
            block = Lateral(maps[i], out) if i in maps else Block(inp, out, variance=variance, first=i == 0)
            self.down.append(block)
            inp, variance = out, block.variance
            skips.append((out, variance))
        skips[-1] = (0, variance)
        for out in config.up:
            width, skip_variance = skips.pop()
            variance = (inp * variance + width * skip_variance) / (inp + width)
            block = Block(inp + width, out, variance=variance, up=True)
            self.up.append(block)
            inp, variance = out, block.variance
        self.out = nn.Conv2d(inp, config.num_classes, 1)

    @property
    def multiple(self) -> int:
        """Sides of a picture must be multiples of this many pixels."""
        return 2 ** len(self.down)

    def forward(self, x: Tensor, y_hat: Tensor | None = None) -> Tensor:
        """x (B, 3, H, W) in 0..255, y_hat (B, M, H/16, W/16) or None (unconditioned) -> logits (B, classes, H, W)."""
        skips, x = [], x.contiguous(memory_format=torch.channels_last)
        maps = dict(zip(self.encoder.levels, self.encoder(x), strict=True)) if self.encoder else {}
        for level, block in enumerate(self.down):
            x = block(maps[level] if level in maps else x)
            skips.append(x)
        x = self.up[0](skips.pop())
        for block in self.up[1:]:
            x = block(torch.cat([skips.pop(), x], 1))
        logits = self.out(x)
        return logits if y_hat is None else logits + self.projection(x, y_hat)

    def projection(self, features: Tensor, y_hat: Tensor) -> Tensor:
        """Inner product of the last features (B, C, H, W) with the condition, each latent covering 16x16: (B, 1, H, W).

        DIFFERS only in cost: the condition is never upsampled.
        """
        condition = F.leaky_relu(self.latent(y_hat), SLOPE)
        b, c, h, w = condition.shape
        tiles = features.view(b, c, h, STRIDE_Y, w, STRIDE_Y)
        return torch.einsum("bchiwj,bchw->bhiwj", tiles, condition).reshape(b, 1, h * STRIDE_Y, w * STRIDE_Y)
