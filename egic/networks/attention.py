"""Attention within windows on CPUs while the bias is learned, too.

torch's fused kernel has no gradient for a bias; where one is wanted, torch keeps the scores of all windows in memory
and goes over them a dozen times. Here the fused kernel goes forward, and the way back makes the scores of a few windows
at a time again: they stay in the cache, and none are kept. It takes half the time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 2**17  # scores that are worked on at a time


class LearnedBiasAttention(torch.autograd.Function):
    """softmax(q k^T / sqrt(d) + bias) v, in float32 on the way back.

    qkv (3, n, heads, area, d), bias (n or 1, heads, area, area) float32 -> (n, heads, area, d) in qkv's dtype.
    """

    @staticmethod
    def forward(ctx, qkv: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(qkv, bias)
        q, k, v = qkv
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.detach().to(qkv.dtype))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        qkv, bias = ctx.saved_tensors
        _, n, heads, area, d = qkv.shape
        grad_qkv, grad_bias = torch.empty_like(qkv), torch.zeros_like(bias)
        step = max(1, CHUNK // (heads * area**2))
        for start in range(0, n, step):
            part = slice(start, start + step)
            which = part if len(bias) == n else slice(None)
            q, k, v = qkv[:, part].to(bias.dtype).flatten(1, 2)
            out, q = grad[part].to(bias.dtype).flatten(0, 1), q * d**-0.5
            scores = torch.bmm(q, k.mT).unflatten(0, (-1, heads))
            p = scores.add_(bias[which]).softmax(-1).flatten(0, 1)
            of_scores = torch.bmm(out, v.mT).mul_(p)
            of_scores.addcmul_(p, of_scores.sum(-1, keepdim=True), value=-1)
            grads = torch.bmm(of_scores, k).mul_(d**-0.5), torch.bmm(of_scores.mT, q), torch.bmm(p.mT, out)
            for whole, here in zip(grad_qkv, grads, strict=True):
                whole[part] = here.unflatten(0, (-1, heads))
            grad_bias[which] += of_scores.unflatten(0, (-1, heads)).sum_to_size(grad_bias[which].shape)
        return grad_qkv, grad_bias
