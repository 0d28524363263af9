"""One optimizer step per stage, plain PyTorch (EGIC sections 3 and 4).

A step takes networks, optimizers, a batch and settings, and returns its losses as 0-d tensors.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from egic.metrics.perceptual import LPIPS
from egic.networks.codec import Codec
from egic.networks.discriminator import Discriminator
from egic.networks.orp import ResidualHead
from egic.training import losses
from egic.training.update import Guard, update

MAX_SEED = 2**63 - 1


@dataclass
class Batch:
    """x (B, 3, H, W) float 0..255; label (B, H, W) int64, 0 void; weight (B, H, W) float; position of each sample.

    A position is the index of the sample in the order of the whole run. It seeds the sample's randomness, so that noise
    does not depend on how many workers share a batch.
    """

    x: Tensor
    label: Tensor
    weight: Tensor
    position: list[int]
    drawn: dict[tuple, Tensor] = field(default_factory=dict)
    """Random numbers by function and arguments, drawn before the step if it is captured as a CUDA graph."""

    def draw(self, function: Callable[..., Tensor], *args: Any) -> Tensor:
        """function(self, *args), computed once."""
        if (function, *args) not in self.drawn:
            self.drawn[function, *args] = function(self, *args)
        return self.drawn[function, *args]

    def part(self, which: slice) -> "Batch":
        """Some of the batch's samples."""
        return Batch(self.x[which], self.label[which], self.weight[which], self.position[which])


@dataclass(kw_only=True)
class Nets:
    """How the networks of a stage are run. Each stage has a subclass with its networks as fields."""

    trained: dict[str, nn.Module] = field(default_factory=dict)
    """The modules to call where gradients flow to weights, by the name of their optimizer: the network itself, or its
    DistributedDataParallel wrapper."""
    precision: torch.dtype = torch.float32
    guard: Guard | None = None
    """Decides on the device whether updates are made; None: a step raises NonFiniteError instead."""

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """Mixed precision of transforms, D and LPIPS; rates stay float32 inside."""
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.precision == torch.bfloat16)

    def networks(self) -> dict[str, nn.Module]:
        """The networks by the names of their fields: codec, discriminator, orp, lpips."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, nn.Module)}


@dataclass(kw_only=True)
class SegmentationNets(Nets):
    """Networks of `segmentation_step`."""

    discriminator: Discriminator


@dataclass(kw_only=True)
class CodecNets(Nets):
    """Networks of `mse_codec_step`."""

    codec: Codec


@dataclass(kw_only=True)
class GanNets(Nets):
    """Networks of `warmup_step` and `gan_step`."""

    codec: Codec
    discriminator: Discriminator
    lpips: LPIPS


@dataclass(kw_only=True)
class OrpNets(Nets):
    """Networks of `orp_step`."""

    codec: Codec
    orp: ResidualHead


def per_sample(batch: Batch, seed: int, draw: int) -> Iterable[torch.Generator]:
    """One generator per sample on the batch's device, a pure function of (seed, draw, position)."""
    for position in batch.position:
        generator = torch.Generator(batch.x.device)
        # odd multipliers spread (seed, draw, position) over 63 bits; generators hash their seed once more
        mixed = (seed * 0x9E3779B97F4A7C15 + draw * 0xC2B2AE3D27D4EB4F + position * 0x165667B19E3779F9) & MAX_SEED
        yield generator.manual_seed(mixed)


def uniform_noise(batch: Batch, shape: tuple[int, ...], seed: int, draw: int) -> Tensor:
    """(B, *shape) float32 in [-1/2, 1/2)."""
    device = batch.x.device
    return torch.stack([torch.rand(shape, generator=g, device=device) for g in per_sample(batch, seed, draw)]) - 0.5


def coins(batch: Batch, classes: int, seed: int) -> Tensor:
    """(B, classes) bool: LabelMix's fair coin for every class of every image."""
    device = batch.x.device
    return torch.stack([torch.rand(classes, generator=g, device=device) < 0.5 for g in per_sample(batch, seed, 2)])


def qualities(batch: Batch, rates: int, seed: int) -> Tensor:
    """(B,) float32 in [0, rates - 1]: the quality at which a codec with gains codes each sample."""
    device = batch.x.device
    drawn = [torch.rand((), generator=g, device=device) for g in per_sample(batch, seed, 3)]
    return torch.stack(drawn) * (rates - 1)


def drawn_quality(codec: Codec, batch: Batch, seed: int) -> Tensor | None:
    """`qualities` of the batch for a codec with gains, None for a codec of one rate."""
    return batch.draw(qualities, codec.config.rates, seed) if codec.gains is not None else None


def segmentation_step(
    nets: SegmentationNets, opt: Mapping[str, Optimizer], batch: Batch, *, clip_norm: float
) -> dict[str, Tensor]:
    """Train D to label real photographs, without fake pixels and without its latent branch (EGIC, section 4.1)."""
    with nets.autocast(batch.x.device):
        logits = nets.trained["discriminator"](batch.x)
    loss = losses.seg(logits, batch.label, batch.weight)
    norm = update(opt["discriminator"], loss, clip_norm, nets.guard, seg=loss)
    return {"seg": loss.detach(), "grad_norm": norm}


def mse_codec_step(
    nets: CodecNets, opt: Mapping[str, Optimizer], batch: Batch, *, beta: float, clip_norm: float, seed: int
) -> dict[str, Tensor]:
    """Rate and distortion: mse255 + beta * bits per image, with noisy rates (SwinT-ChARM, section 3).

    A codec with gains takes `losses.rate_distortion` at a random quality per sample instead, and no beta.
    """
    c, (h, w) = nets.codec.config, batch.x.shape[2:]
    noise_y = batch.draw(uniform_noise, (c.dims[-1], h // 16, w // 16), seed, 0)
    noise_z = batch.draw(uniform_noise, (c.hyper_dims[-1], h // 64, w // 64), seed, 1)
    with nets.autocast(batch.x.device):
        q = drawn_quality(nets.codec, batch, seed)
        coded = nets.trained["codec"](batch.x, noise_y, noise_z, q)
    mse, bits = losses.mse255(coded.x_hat, batch.x), coded.bits.mean()
    loss = mse + beta * bits if q is None else losses.rate_distortion(coded.x_hat, batch.x, coded.bits, q)
    norm = update(opt["codec"], loss, clip_norm, nets.guard, mse255=mse, bits=bits)
    return {"loss": loss.detach(), "mse255": mse.detach(), "bpp": bits.detach() / (h * w), "grad_norm": norm}


@dataclass(frozen=True, kw_only=True)
class GanLoss:
    """Weights of the GAN stage's losses, with the paper's symbols (EGIC, section 4.2)."""

    lam: float = 2.0
    """lambda, weight of bpp in the generator's loss; constant there, since the encoder is frozen. Default: EGIC's
    (section 4.2)."""
    k_m: float = 0.1 * 2**-5
    """k_M, weight of the distortion term (HiFiC). Default: HiFiC's 0.1 * 2^-5."""
    c_d: float = 0.75
    """C_d, inner weight of mse255. Default: HiFiC's."""
    k_p: float = 1.0
    """k_P, weight of LPIPS (HiFiC). Default: HiFiC's."""
    beta: float = 0.15
    """beta, weight of the generator's segmentation loss against D. Default: EGIC's (section 4.2)."""
    lam_lm: float = 10.0
    """lambda_LM, weight of LabelMix in D's loss (OASIS). Default: OASIS's."""


def frozen_picture(nets: GanNets, x: Tensor, q: Tensor | None) -> tuple[Tensor, Tensor]:
    """Restored y_hat and bits per pixel of the frozen encoder at quality q, both without gradients."""
    with torch.no_grad():
        y = nets.codec.analyse(x, q).float()
        z_hat = torch.round(nets.codec.h_a(y).float())
        y_hat, bits_y = nets.codec.quantized(y, z_hat)
        y_hat = nets.codec.restore(y_hat, q)
        with torch.autocast(x.device.type, enabled=False):
            bits = bits_y + nets.codec.prior.bits(z_hat).sum((1, 2, 3))
    return y_hat, bits.mean() / (x.shape[2] * x.shape[3])


def distortion(nets: GanNets, x_hat: Tensor, x: Tensor, w: GanLoss) -> dict[str, Tensor]:
    """The generator's reconstruction terms, unweighted, and their weighted sum `rec`."""
    mse, lpips = losses.mse255(x_hat, x), nets.lpips(x_hat, x).float()
    return {"mse255": mse, "lpips": lpips, "rec": w.k_m * w.c_d * mse + w.k_p * lpips}


def warmup_step(
    nets: GanNets, opt: Mapping[str, Optimizer], batch: Batch, *, loss: GanLoss, clip_norm: float, seed: int
) -> dict[str, Tensor]:
    """Train g_s for distortion and LPIPS; encoder, hyper-codec and priors are frozen."""
    with nets.autocast(batch.x.device):
        y_hat, bpp = frozen_picture(nets, batch.x, drawn_quality(nets.codec, batch, seed))
        x_hat = nets.trained["g_s"](y_hat).float() * 255
        terms = distortion(nets, x_hat, batch.x, loss)
    total = terms.pop("rec") + loss.lam * bpp
    norm = update(opt["g_s"], total, clip_norm, nets.guard, **terms)
    return {"loss": total.detach(), "bpp": bpp, "grad_norm": norm} | {k: v.detach() for k, v in terms.items()}


def discriminator_step(
    nets: GanNets,
    opt: Optimizer,
    batch: Batch,
    y_hat: Tensor,
    x_hat: Tensor,
    *,
    loss: GanLoss,
    clip_norm: float,
    flips: Tensor,
) -> dict[str, Tensor]:
    """seg(real) + seg(fake) + lambda_LM * LabelMix, D seeing real, fake and mixed images in one batch."""
    mask = losses.labelmix_mask(batch.label, flips)
    mixed = torch.where(mask[:, None], batch.x, x_hat)
    with nets.autocast(batch.x.device):
        logits = nets.trained["discriminator"](torch.cat([batch.x, x_hat, mixed]), y_hat.repeat(3, 1, 1, 1))
    real, fake, mix = logits.chunk(3)
    terms = {
        "d_seg_real": losses.seg(real, batch.label, batch.weight),
        "d_seg_fake": losses.seg_fake(fake, nets.discriminator.config.fake),
        "d_labelmix": losses.labelmix(mix, real, fake, mask),
    }
    total = terms["d_seg_real"] + terms["d_seg_fake"] + loss.lam_lm * terms["d_labelmix"]
    norm = update(opt, total, clip_norm, nets.guard, **terms)
    return {"d_loss": total.detach(), "d_grad_norm": norm} | {k: v.detach() for k, v in terms.items()}


def gan_step(
    nets: GanNets, opt: Mapping[str, Optimizer], batch: Batch, *, loss: GanLoss, clip_norm: float, seed: int
) -> dict[str, Tensor]:
    """One update of D on the first half of the batch, then one of g_s on the second (EGIC, section 4.2).

    The frozen encoder codes both halves in one pass, and g_s draws D's fakes without gradients.
    """
    half = len(batch.position) // 2
    with nets.autocast(batch.x.device):
        y_hat, bpp = frozen_picture(nets, batch.x, drawn_quality(nets.codec, batch, seed))
        with torch.no_grad():
            fake = nets.codec.synthesise(y_hat[:half])
    for_d, for_g = batch.part(slice(0, half)), batch.part(slice(half, None))
    flips = batch.draw(coins, nets.discriminator.config.num_classes, seed)[:half]
    logs = discriminator_step(
        nets, opt["discriminator"], for_d, y_hat[:half], fake, loss=loss, clip_norm=clip_norm, flips=flips
    )
    nets.discriminator.requires_grad_(False)
    try:
        with nets.autocast(batch.x.device):
            x_hat = nets.trained["g_s"](y_hat[half:]).float() * 255
            terms = distortion(nets, x_hat, for_g.x, loss)
            logits = nets.discriminator(x_hat, y_hat[half:])
        terms["seg"] = losses.seg(logits, for_g.label, for_g.weight)
        total = terms.pop("rec") + loss.lam * bpp + loss.beta * terms["seg"]
        norm = update(opt["g_s"], total, clip_norm, nets.guard, **terms)
    finally:
        nets.discriminator.requires_grad_(True)
    logs |= {"loss": total.detach(), "bpp": bpp, "grad_norm": norm}
    return logs | {k: v.detach() for k, v in terms.items()}


def orp_step(
    nets: OrpNets, opt: Mapping[str, Optimizer], batch: Batch, *, clip_norm: float, seed: int
) -> dict[str, Tensor]:
    """Train only the residual head, so that alpha = 0 returns the MSE picture (EGIC, section 3.3)."""
    with nets.autocast(batch.x.device):
        with torch.no_grad():
            q = drawn_quality(nets.codec, batch, seed)
            h = nets.codec.g_s.last_features(nets.codec.encode(batch.x, q))
        loss = losses.mse255(nets.trained["orp"](h), batch.x)
    norm = update(opt["orp"], loss, clip_norm, nets.guard, mse255=loss)
    return {"mse255": loss.detach(), "grad_norm": norm}
