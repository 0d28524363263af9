"""Losses of the four stages, pure functions (EGIC sections 3 and 4; OASIS for segmentation and LabelMix)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from egic.networks.gains import BETA_REF, beta_of

VOID = 0


def mse255(x_hat: Tensor, x: Tensor) -> Tensor:
    """Mean squared error of pictures in 0..255, a scalar on that scale."""
    return F.mse_loss(x_hat.float(), x.float())


def rate_distortion(x_hat: Tensor, x: Tensor, bits: Tensor, q: Tensor) -> Tensor:
    """Loss of a codec with gains: mean over samples of s * (mse255 + beta(q) * bits per 256 x 256 pixels).

    x_hat, x (B, 3, H, W) in 0..255; bits (B,) of each sample; q (B,). s = 1 / (65536 * sqrt(beta(q) * beta_ref)) gives
    both ends of the range the same weight. Beta is the weight of bits per 256 x 256 pixels, whatever the size of crops.
    """
    mse = (x_hat.float() - x.float()).square().mean((1, 2, 3))
    beta = beta_of(q)
    cost = mse + beta * bits * (65536 / (x.shape[2] * x.shape[3]))
    return (cost / (65536 * torch.sqrt(beta * BETA_REF))).mean()


def seg(logits: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """OASIS segmentation loss: weighted cross-entropy per image, averaged over images.

    logits (B, classes, H, W); label (B, H, W) int64, 0 = void, which has no cost; weight (B, H, W) float. Per image
    the sum is divided by the number of pixels with a cost.
    """
    rows = logits.permute(0, 2, 3, 1).flatten(0, 2)  # D's memory layout; cross-entropy of rows is fast on CPUs
    cost = F.cross_entropy(rows.float(), label.flatten(), ignore_index=VOID, reduction="none").view_as(label) * weight
    counted = (cost != 0).sum((1, 2)).clamp_min(1)
    return (cost.sum((1, 2)) / counted).mean()


def seg_fake(logits: Tensor, fake: int) -> Tensor:
    """`seg` with every pixel labelled fake and every weight 1."""
    label = torch.full_like(logits[:, 0], fake, dtype=torch.int64)
    return seg(logits, label, torch.ones_like(logits[:, 0], dtype=torch.float32))


def labelmix_mask(label: Tensor, coins: Tensor) -> Tensor:
    """label (B, H, W) int64 and a fair coin per image and class (B, classes) bool -> True for real pixels.

    DIFFERS: the reference draws one set of coins per batch and overwrites the label map while looping over classes.
    """
    return coins.gather(1, label.flatten(1)).view_as(label)


def labelmix(mixed_logits: Tensor, real_logits: Tensor, fake_logits: Tensor, mask: Tensor) -> Tensor:
    """MSE between logits of the mixed image and the same mix of the two logit maps; mask (B, H, W), True = real."""
    target = torch.where(mask[:, None], real_logits.float(), fake_logits.float())
    return F.mse_loss(mixed_logits.float(), target)
