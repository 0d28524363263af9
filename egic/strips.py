"""Swin blocks and resampling without gradients, strip by strip: little memory, warm caches, the same arithmetic.

A window reads and writes its own pixels only, shifted or not, and everything else in a block acts on single pixels.
So each group of windows goes through the whole block and back into the map it came from: no halo, no seams, and one
feature map in memory instead of a dozen.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor

CHUNK = {"cpu": 2**19, "cuda": 2**26}  # elements of a feature map that are worked on at a time


def _chunk(x: Tensor, unit: int) -> int:
    """How many units of `unit` elements make a chunk on x's device."""
    return max(1, CHUNK.get(x.device.type, CHUNK["cuda"]) // unit)


def by_rows(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x), for one that maps each pair of rows of x (B, H, W, C) to rows of its own.

    With gradients in one piece, without in strips; then the result is contiguous.
    """
    if torch.is_grad_enabled():
        return function(x)
    b, height, width, channels = x.shape
    rows, out = 2 * _chunk(x, 2 * b * width * channels), None
    for top in range(0, height, rows):
        part = function(x[:, top : top + rows])
        if out is None:
            up, down = part.shape[1], min(rows, height)
            out = part.new_empty(b, height * up // down, *part.shape[2:])
        start = top * up // down
        out[:, start : start + part.shape[1]] = part
    return out


def swin_block_(block: SwinTransformerBlock, x: Tensor) -> None:
    """Put the block's output in place of its input x (B, H, W, C) with sides that are multiples of the window."""
    b, height, width, channels = x.shape
    w, shift = block.window_size[0], block.shift_size[0]
    down, across = height // w, width // w
    rows, step = _chunk(x, b * w * width * channels), _chunk(x, w * w * channels)
    biases = _biases(block)
    for row in range(0, down, rows):
        n = min(rows, down - row)
        t = _windows(_rows(x, row * w + shift, n * w), w, shift)
        kinds = torch.zeros(b, n, across, dtype=torch.long, device=x.device)
        if shift:
            kinds[..., -1] = 1
            kinds[:, down - 1 - row :] += 2
        kinds = kinds.flatten()
        for i in range(0, len(t), step):
            _block_(block, t[i : i + step], biases[kinds[i : i + step]] if shift else biases)
        _put_rows(x, row * w + shift, _pixels(t, b, n, across, w, shift))


def _rows(x: Tensor, top: int, number: int) -> Tensor:
    """Rows top..top + number of x, going on at the top after the bottom."""
    below = top + number - x.shape[1]
    return torch.cat([x[:, top:], x[:, :below]], 1) if below > 0 else x[:, top : top + number]


def _put_rows(x: Tensor, top: int, rows: Tensor) -> None:
    """The reverse of `_rows`."""
    inside = min(rows.shape[1], x.shape[1] - top)
    x[:, top : top + inside] = rows[:, :inside]
    x[:, : rows.shape[1] - inside] = rows[:, inside:]


def _windows(x: Tensor, w: int, shift: int) -> Tensor:
    """(B, n w, W, C) -> (B n W/w, w^2, C), columns shifted to the left; always a copy."""
    x = torch.roll(x, -shift, 2) if shift else x
    b, height, width, c = x.shape
    t = x.view(b, height // w, w, width // w, w, c).transpose(2, 3)
    return t.clone(memory_format=torch.contiguous_format).view(-1, w * w, c)


def _pixels(t: Tensor, b: int, n: int, across: int, w: int, shift: int) -> Tensor:
    """The reverse of `_windows`."""
    x = t.view(b, n, across, w, w, t.shape[-1]).transpose(2, 3).reshape(b, n * w, across * w, t.shape[-1])
    return torch.roll(x, shift, 2) if shift else x


def _biases(block: SwinTransformerBlock) -> Tensor:
    """(4 or 1, heads, w^2, w^2): what is added to attention inside, at the right, at the bottom, in the corner.

    Position bias, and -100 between pixels that lie together only because the shift wraps around.
    """
    bias, (w, _), (shift, _) = block.attn._get_rel_pos_bias(), block.window_size, block.shift_size
    if not shift:
        return bias
    wrapped = torch.arange(w, device=bias.device) >= w - shift
    right = wrapped.repeat(w)
    bottom = wrapped.repeat_interleave(w)
    apart_x, apart_y = right[:, None] != right, bottom[:, None] != bottom
    kinds = torch.stack([apart_x & False, apart_x, apart_y, apart_x | apart_y])
    return bias + kinds[:, None] * -100.0


def _block_(block: SwinTransformerBlock, t: Tensor, bias: Tensor) -> None:
    """A Swin block on windows t (n, w^2, C), in place, with bias (n or 1, heads, w^2, w^2)."""
    n, area, c = t.shape
    heads = block.attn.num_heads
    qkv = block.attn.qkv(block.norm1(t)).view(n, area, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
    t += block.attn.proj(_attention(qkv, bias).transpose(1, 2).reshape(n, area, c))
    t += block.mlp(block.norm2(t))


def _attention(qkv: Tensor, bias: Tensor) -> Tensor:
    """(3, n, heads, w^2, d) -> (n, heads, w^2, d)."""
    if qkv.dtype != torch.bfloat16 or qkv.device.type != "cpu":
        return F.scaled_dot_product_attention(*qkv, attn_mask=bias.to(qkv.dtype))
    # on CPUs the fused kernel gains nothing from bfloat16: products in it and softmax in float32 take 0.6 of its time
    _, n, heads, area, d = qkv.shape
    q, k, v = qkv.reshape(3, n * heads, area, d)
    scores = torch.bmm(q, k.transpose(1, 2)).view(n, heads, area, area).float().mul_(d**-0.5).add_(bias)
    return torch.bmm(scores.softmax(-1).to(v.dtype).view(-1, area, area), v).view(n, heads, area, d)
