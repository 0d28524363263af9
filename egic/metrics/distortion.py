"""Measures of pictures and label maps. Pictures are measured as they are stored: 8 bits, clipped and rounded."""

import torch
from torch import Tensor


def to_uint8(x: Tensor) -> Tensor:
    """Float picture in 0..255 -> uint8, clipped and rounded to nearest."""
    return x.clamp(0, 255).round().to(torch.uint8)


def psnr_db(x_hat: Tensor, x: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each 8-bit picture (B, 3, H, W) uint8 -> (B,) dB; 100 dB for equal ones."""
    mse = ((x_hat.double() - x.double()) ** 2).mean((1, 2, 3))
    return (10 * torch.log10(255**2 / mse.clamp_min(255**2 * 1e-10))).float()


def overlap(predicted: Tensor, label: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Intersection and union in pixels of every class, (num_classes,) int64 each, over pixels that are not void (0).

    Add them over a data set; `mean_iou` of the sums is mIoU.
    """
    seen = label != 0
    predicted, label = predicted[seen], label[seen]
    count = torch.bincount(label * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)
    hit = count.diagonal()
    return hit, count.sum(0) + count.sum(1) - hit


def mean_iou(intersection: Tensor, union: Tensor) -> float:
    """Mean intersection over union of the classes that occur; 0 when none does."""
    occurs = union > 0
    return (intersection[occurs] / union[occurs]).double().mean().item() if occurs.any() else 0.0
