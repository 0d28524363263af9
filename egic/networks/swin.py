"""The Swin block: attention and an MLP inside windows of a feature map, shifted by half in every other block.

Attention combines pixels of one window only, and all other layers act on single pixels, so that a block can be computed
window by window: on whole maps (`SwinBlock.forward`) or strips (egic/networks/tiled_inference.py), with equal results.
Source: Liu et al. 2021 (arXiv 2103.14030); parameters are named as timm names them.
"""

from collections import OrderedDict
from contextlib import suppress
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_DIM = 32
SCORES = 2**17  # attention scores that the backward pass computes at a time on CPUs, to stay in the cache
LayerNorm = partial(nn.LayerNorm, eps=1e-5)


def linear(layer: nn.Linear, x: Tensor, *, gelu: bool = False, plus: Tensor | None = None) -> Tensor:
    """layer(x), optionally followed by GELU or added to `plus`: (..., in) -> (..., out).

    Autocast applies as it does to the layer. On CPUs and without gradients, GELU and sum are fused with the product if
    torch has an operator for it.
    """
    if _may_fuse(x):
        with suppress(AttributeError, RuntimeError):  # torch without this operator, or one that refuses these tensors
            return _fused_linear(layer, x, gelu, plus)
    y = layer(x)
    y = F.gelu(y) if gelu else y
    return y if plus is None else plus + y


def _may_fuse(x: Tensor) -> bool:
    """Whether the fused operator supports x: float32 or bfloat16 on a CPU, no gradients, no fake tensor."""
    known = x.dtype in (torch.float32, torch.bfloat16) and type(x) is Tensor
    return known and x.device.type == "cpu" and not torch.is_grad_enabled() and torch.backends.mkldnn.is_available()


def _fused_linear(layer: nn.Linear, x: Tensor, gelu: bool, plus: Tensor | None) -> Tensor:
    """`linear` as one operator, which torch.compile uses for such layers. It is not documented by torch."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else layer.weight.dtype
    x, weight, bias = x.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype)
    operator = torch.ops.mkldnn._linear_pointwise
    if plus is None:
        return operator(x, weight, bias, "gelu" if gelu else "none", [], "none")
    return operator.binary(x, plus.to(dtype), weight, bias, "add")


class WindowAttention(nn.Module):
    """Multi-head self-attention over the pixels of a window, with a learned bias per head and relative position."""

    relative_position_index: Tensor

    def __init__(self, dim: int, window: int):
        super().__init__()
        self.num_heads = dim // HEAD_DIM
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, self.num_heads))
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        apart = torch.arange(window)[:, None] - torch.arange(window) + window - 1
        index = apart[:, None, :, None] * (2 * window - 1) + apart[None, :, None, :]
        self.register_buffer("relative_position_index", index.reshape(window**2, window**2), persistent=False)

    def position_bias(self) -> Tensor:
        """(1, heads, w^2, w^2)."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1).contiguous()[None]

    def forward(self, t: Tensor, bias: Tensor, plus: Tensor) -> Tensor:
        """plus + attention of windows t (n, w^2, C) with an additive bias (n or 1, heads, w^2, w^2): (n, w^2, C)."""
        n, area, c = t.shape
        qkv = linear(self.qkv, t).view(n, area, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        return linear(self.proj, _attention(qkv, bias).transpose(1, 2).reshape(n, area, c), plus=plus)


def _attention(qkv: Tensor, bias: Tensor) -> Tensor:
    """(3, n, heads, w^2, d) -> (n, heads, w^2, d)."""
    if qkv.device.type == "cpu" and torch.is_grad_enabled():
        return LearnedBiasAttention.apply(qkv, bias)
    if qkv.dtype != torch.bfloat16 or qkv.device.type != "cpu":
        q, k, v = qkv
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(qkv.dtype))
    # on CPUs the fused kernel is not faster in bfloat16; bfloat16 products and a float32 softmax take 0.6 of its time
    _, n, heads, area, d = qkv.shape
    q, k, v = qkv.reshape(3, n * heads, area, d)
    scores = torch.bmm(q, k.transpose(1, 2)).view(n, heads, area, area).float().mul_(d**-0.5).add_(bias)
    return torch.bmm(scores.softmax(-1).to(v.dtype).view(-1, area, area), v).view(n, heads, area, d)


class LearnedBiasAttention(torch.autograd.Function):
    """softmax(q k^T / sqrt(d) + bias) v with a gradient for the bias, on CPUs; the backward pass is float32.

    torch's fused kernel has no gradient for a bias: if one is needed, torch stores the scores of all windows and reads
    them a dozen times. Here the forward pass uses the fused kernel, and the backward pass recomputes the scores of some
    windows at a time, which stay in the cache. This takes half the time.

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
        step = max(1, SCORES // (heads * area**2))
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


class SwinBlock(nn.Module):
    """x + attention(norm1 x), then x + mlp(norm2 x), in windows that are shifted by `shift` pixels to the lower right.

    With a shift, the windows of the last row and column wrap around; pixels of opposite borders do not attend to each
    other.
    """

    masks: Tensor  # None without a shift
    mlp: Any  # fc1, act, fc2

    def __init__(self, dim: int, window: int, shift: int):
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = LayerNorm(dim)
        self.attn = WindowAttention(dim, window)
        self.norm2 = LayerNorm(dim)
        layers = ("fc1", nn.Linear(dim, 4 * dim)), ("act", nn.GELU()), ("fc2", nn.Linear(4 * dim, dim))
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.register_buffer("masks", _wrap_masks(window, shift) if shift else None, persistent=False)

    def on_windows(self, t: Tensor, bias: Tensor) -> Tensor:
        """Windows (n, w^2, C) -> the same; bias as in `WindowAttention`."""
        t = self.attn(self.norm1(t), bias, plus=t)
        return linear(self.mlp.fc2, linear(self.mlp.fc1, self.norm2(t), gelu=True), plus=t)

    def bias_of(self, position_bias: Tensor, kinds: Tensor) -> Tensor:
        """Position bias and mask of windows of the given kinds (n,): see `window_kinds`."""
        return position_bias + self.masks[kinds] if self.shift else position_bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) with H and W multiples of the window -> the same."""
        b, height, width, _ = x.shape
        w, s = self.window, self.shift
        t = to_windows(torch.roll(x, (-s, -s), (1, 2)) if s else x, w)
        kinds = window_kinds(b, height // w, width // w, x.device)
        t = self.on_windows(t, self.bias_of(self.attn.position_bias(), kinds))
        x = from_windows(t, b, height, width, w)
        return torch.roll(x, (s, s), (1, 2)) if s else x


def to_windows(x: Tensor, w: int) -> Tensor:
    """(B, H, W, C) -> (B H/w W/w, w^2, C), by rows of windows."""
    b, height, width, c = x.shape
    return x.reshape(b, height // w, w, width // w, w, c).transpose(2, 3).reshape(-1, w * w, c)


def from_windows(t: Tensor, b: int, height: int, width: int, w: int) -> Tensor:
    """The reverse of `to_windows`."""
    return t.view(b, height // w, width // w, w, w, -1).transpose(2, 3).reshape(b, height, width, -1)


def window_kinds(
    b: int, down: int, across: int, device: torch.device, first: int = 0, last: int | None = None
) -> Tensor:
    """Kinds of the windows in rows first..last, (b rows across,): 1 more in the last column, 2 more in the last row."""
    kinds = torch.zeros(b, (down if last is None else last) - first, across, dtype=torch.long, device=device)
    kinds[..., -1] = 1
    kinds[:, down - 1 - first :] += 2
    return kinds.flatten()


def _wrap_masks(w: int, shift: int) -> Tensor:
    """(4, 1, w^2, w^2) by kind of window: -100 between pixels that lie together only because the shift wraps around."""
    wrapped = torch.arange(w) >= w - shift
    right, bottom = wrapped.repeat(w), wrapped.repeat_interleave(w)
    apart_x, apart_y = right[:, None] != right, bottom[:, None] != bottom
    return torch.stack([apart_x & False, apart_x, apart_y, apart_x | apart_y])[:, None] * -100.0
