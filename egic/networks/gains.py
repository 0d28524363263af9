"""Gains at the bottleneck: one codec for every rate (Cui et al. 2021, arXiv 2003.02012; Tong et al. 2023, QVRF).

A codec with `rates` = Q has Q anchors, each trained for its own rate weight beta_k = 0.032 * 2^-k. The latents are
multiplied by a gain per channel before the entropy model, which makes the quantisation finer or coarser, and by an
inverse gain after it. Everything in between (h_a, prior, h_s, ChARM, rounding) works on the scaled latents and does not
depend on the gains. The logarithmic gains of a quality q between two anchors are interpolated linearly.
"""

import math

import torch
from torch import Tensor, nn

BETA_MAX = 0.032
"""Weight of the bits at q = 0, the smallest files. Bits are those of a picture of 256 x 256 pixels."""
BETA_REF = 0.00566
"""The weight at which a new codec's gain is 1: the geometric mean of the six anchors of the shipped model."""


def beta_of(q: Tensor) -> Tensor:
    """Rate weight of qualities q, any shape, float32: 0.032 * 2^-q."""
    return BETA_MAX * torch.exp2(-q)


class Gains(nn.Module):
    """Tables of (Q, M) logarithmic gains A, inverse gains D and offsets C, interpolated at q (B,) in [0, Q - 1]."""

    def __init__(self, rates: int, channels: int):
        super().__init__()
        anchors = torch.arange(rates, dtype=torch.float32, device="cpu")  # has values also under torch.device("meta")
        a = torch.tensor([math.log(BETA_REF / beta) / 2 for beta in beta_of(anchors).tolist()])
        a = a[:, None].repeat(1, channels)
        self.log_gain = nn.Parameter(a)
        self.log_inverse = nn.Parameter(-a)
        self.offset = nn.Parameter(torch.zeros(rates, channels))

    def _at(self, table: Tensor, q: Tensor) -> Tensor:
        """Rows of `table` (Q, M) at q (B,), interpolated linearly: (B, M, 1, 1)."""
        low = q.floor().long().clamp(0, len(table) - 2)
        return torch.lerp(table[low], table[low + 1], (q - low).to(table.dtype)[:, None])[..., None, None]

    def scale(self, y: Tensor, q: Tensor) -> Tensor:
        """exp(A(q)) * y: latents of g_a (B, M, h, w) -> the input of the entropy model, float32."""
        return torch.exp(self._at(self.log_gain, q)) * y.float()

    def restore(self, y_hat: Tensor, q: Tensor) -> Tensor:
        """exp(D(q)) * y_hat + C(q): quantised latents (B, M, h, w) -> the input of g_s, ORP and D, float32."""
        return torch.exp(self._at(self.log_inverse, q)) * y_hat.float() + self._at(self.offset, q)
