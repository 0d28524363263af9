"""Entropy models: bits under the deep factorized prior of z and under the conditional Gaussian of y; quantisation.

Rates are computed in float32 and in the log domain, so that even very unlikely values have a finite cost and a gradient
towards likelier ones. Sources: Balle et al. 2018 (arXiv 1802.01436, appendix 6.1); Minnen & Singh 2020.
"""

import math
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALE_MIN, SCALE_MAX, NUM_SCALES = 0.11, 256.0, 64
_LOG_STEP = (math.log(SCALE_MAX) - math.log(SCALE_MIN)) / (NUM_SCALES - 1)


def log1mexp(d: Tensor) -> Tensor:
    """log(1 - exp(-d)) for d > 0 without cancellation."""
    small = d < math.log(2)
    d_small, d_large = torch.where(small, d, 1.0), torch.where(small, 1.0, d)
    return torch.where(small, torch.log(-torch.expm1(-d_small)), torch.log1p(-torch.exp(-d_large)))


def log_ndtr(x: Tensor) -> Tensor:
    """log of the standard normal CDF, with a gradient that is accurate in the far left tail, too.

    The gradient of torch.special.log_ndtr has no correct digits below -1000 in float32 and vanishes below -50000.
    """
    left = x < -1
    z = torch.where(left, x, -1.0) * -math.sqrt(0.5)
    tail = torch.log(torch.special.erfcx(z) / 2) - z * z
    return torch.where(left, tail, torch.special.log_ndtr(torch.where(left, -1.0, x)))


def _bits_between(log_cdf_low: Tensor, log_cdf_high: Tensor) -> Tensor:
    """-log2(exp(high) - exp(low)) of two log-probabilities, low < high."""
    gap = (log_cdf_high - log_cdf_low).clamp_min(1e-12)
    return (log_cdf_high + log1mexp(gap)) / -math.log(2)


def gaussian_bits(d: Tensor, sigma: Tensor) -> Tensor:
    """Bits of the offset d = y - mu under N(0, sigma) convolved with U(-1/2, 1/2). float32, any shape, elementwise."""
    tail = -d.abs()  # the tails are symmetric; the logarithm is exact in the left one
    return _bits_between(log_ndtr((tail - 0.5) / sigma), log_ndtr((tail + 0.5) / sigma))


class FactorizedPrior(nn.Module):
    """Deep factorized prior of z (192 channels: 5,376 parameters): a small monotonic network per channel.

    Source: Balle et al. 2018 (arXiv 1802.01436, appendix 6.1), with (3, 3) hidden units; medians stay at 0.
    """

    def __init__(self, channels: int, widths: tuple[int, ...] = (1, 3, 3, 1), init_scale: float = 10):
        super().__init__()
        scale, pairs = init_scale ** (1 / (len(widths) - 1)), list(zip(widths, widths[1:], strict=False))
        matrices = (torch.full((channels, out, inp), math.log(math.expm1(1 / scale / out))) for inp, out in pairs)
        self.matrices = nn.ParameterList(matrices)
        self.biases = nn.ParameterList(torch.rand(channels, out, 1) - 0.5 for _, out in pairs)
        self.factors = nn.ParameterList(torch.zeros(channels, out, 1) for _, out in pairs[:-1])

    def logits(self, values: Tensor) -> Tensor:
        """Logit of the cumulative distribution at values (C, 1, N), same shape; increasing in each value."""
        for matrix, bias, factor in zip_longest(self.matrices, self.biases, self.factors):
            values = F.softplus(matrix) @ values + bias
            if factor is not None:
                values = values + torch.tanh(factor) * torch.tanh(values)
        return values

    def bits(self, z: Tensor) -> Tensor:
        """Bits of each value of z (B, C, H, W), float32, same shape: -log2 P(z - 1/2 < Z < z + 1/2)."""
        values = z.transpose(0, 1).reshape(z.shape[1], 1, -1)
        low, high = self.logits(values - 0.5), self.logits(values + 0.5)
        flip = low + high > 0  # use the left tail, where the logarithm of the sigmoid is exact
        low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
        bits = _bits_between(F.logsigmoid(low), F.logsigmoid(high))
        return bits.reshape(z.shape[1], z.shape[0], *z.shape[2:]).transpose(0, 1)


class _Clamp(torch.autograd.Function):
    """clamp(x, low, high). Outside the bounds, a gradient is passed on only if descending it moves x back inside."""

    @staticmethod
    def forward(ctx, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,), (low, high) = ctx.saved_tensors, ctx.bounds
        passes = ((x >= low) | (grad < 0)) & ((x <= high) | (grad > 0))
        return grad * passes, None, None


def sigma_of(index: Tensor) -> Tensor:
    """Scale (standard deviation) of a continuous index clamped to [0, 63]; for its gradient see `_Clamp`."""
    return torch.exp(math.log(SCALE_MIN) + _Clamp.apply(index, 0.0, NUM_SCALES - 1.0) * _LOG_STEP)


def quantize(y: Tensor, mu: Tensor) -> Tensor:
    """round(y - mu) + mu; gradient 1 to y, 0 to mu (straight-through). The value is exact, since y - y is exactly 0."""
    return (torch.round(y - mu) + mu).detach() + (y - y.detach())


def quantize_int(z: Tensor) -> Tensor:
    """round(z) with a straight-through gradient."""
    return torch.round(z).detach() + (z - z.detach())
