"""The Swin-transformer transforms g_a, g_s, h_a, h_s (SwinT-ChARM, Zhu et al., ICLR 2022).

Features are NHWC inside (attention and LayerNorm act on the last axis), and NCHW at inputs and outputs, as convolutions
and entropy models use them.

Without gradients, a stage is computed strip by strip in place (egic/networks/tiled_inference.py): the same arithmetic
with far less memory.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from egic.networks import tiled_inference
from egic.networks.swin import LayerNorm, SwinBlock


class PatchMerging(nn.Module):
    """(B, H, W, C) -> (B, H/2, W/2, out): gather 2x2 neighbours, LayerNorm, Linear without bias."""

    def __init__(self, dim: int, out: int):
        super().__init__()
        self.norm = LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.reduction(self.norm(x))


def depth_to_space(x: Tensor) -> Tensor:
    """(B, H, W, 4C) -> (B, 2H, 2W, C) in TensorFlow's channel order, (dy * 2 + dx) * C + c (not pixel_shuffle's)."""
    b, h, w, c = x.shape
    return x.view(b, h, w, 2, 2, c // 4).permute(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c // 4)


class PatchSplitting(nn.Module):
    """(B, H, W, C) -> (B, 2H, 2W, out): Linear without bias, LayerNorm, depth-to-space."""

    def __init__(self, dim: int, out: int):
        super().__init__()
        self.reduction = nn.Linear(dim, 4 * out, bias=False)
        self.norm = LayerNorm(4 * out)

    def forward(self, x: Tensor) -> Tensor:
        return depth_to_space(self.norm(self.reduction(x)))


class PatchUnpack(nn.Module):
    """(B, H, W, C) -> (B, 2H, 2W, out): Linear with bias, depth-to-space; the last layer of a synthesis."""

    def __init__(self, dim: int, out: int):
        super().__init__()
        self.reduction = nn.Linear(dim, 4 * out)

    def forward(self, x: Tensor) -> Tensor:
        return depth_to_space(self.reduction(x))


class SwinStage(nn.Module):
    """Swin blocks at one resolution, alternately unshifted and shifted by half a window, then a resampling."""

    def __init__(self, dim: int, depth: int, window: int, resample: nn.Module):
        super().__init__()
        self.blocks = nn.Sequential(*(SwinBlock(dim, window, (i % 2) * window // 2) for i in range(depth)))
        self.resample = resample

    def forward(self, x: Tensor, keep: bool = True) -> Tensor:
        """(B, H, W, dim) -> (B, H', W', out). With keep=False and without gradients the blocks overwrite x."""
        if torch.is_grad_enabled():
            return self.resample(self.blocks(x))
        x = x.clone(memory_format=torch.contiguous_format) if keep else x
        for block in cast(Iterable[SwinBlock], self.blocks):
            tiled_inference.swin_block_(block, x)
        return x if isinstance(self.resample, nn.Identity) else tiled_inference.by_rows(self.resample, x)


class Analysis(nn.Module):
    """g_a or h_a: a 2x2 stride-2 convolution, then stages that each halve the resolution, except for the last.

    forward: (B, in, H, W) -> (B, dims[-1], H / 2^len(dims), W / 2^len(dims)).
    """

    def __init__(self, inp: int, dims: tuple[int, ...], depths: tuple[int, ...], window: int):
        super().__init__()
        self.patch_embed = nn.Conv2d(inp, dims[0], 2, stride=2)
        down = [PatchMerging(a, b) for a, b in zip(dims, dims[1:], strict=False)] + [nn.Identity()]
        self.stages = nn.ModuleList(SwinStage(c, n, window, d) for c, n, d in zip(dims, depths, down, strict=True))

    def _embed(self, x: Tensor) -> Tensor:
        return self.patch_embed(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = tiled_inference.by_rows(self._embed, x.permute(0, 2, 3, 1))
        for stage in self.stages:
            x = stage(x, keep=False)
        return x.permute(0, 3, 1, 2).contiguous()


class Synthesis(nn.Module):
    """g_s or h_s: stages that each double the resolution, the last one unpacking to the output channels.

    forward: (B, dims[0], H, W) -> (B, out, H * 2^len(dims), W * 2^len(dims)).
    """

    def __init__(self, out: int, dims: tuple[int, ...], depths: tuple[int, ...], window: int):
        super().__init__()
        up = [PatchSplitting(a, b) for a, b in zip(dims, dims[1:], strict=False)] + [PatchUnpack(dims[-1], out)]
        self.stages = nn.ModuleList(SwinStage(c, n, window, u) for c, n, u in zip(dims, depths, up, strict=True))

    def last_features(self, y: Tensor) -> Tensor:
        """The input of the last stage and of ORP, (B, 2^(n-1) H, 2^(n-1) W, dims[-1]) NHWC."""
        h = y.permute(0, 2, 3, 1)
        for k, stage in enumerate(self.stages[:-1]):
            h = stage(h, keep=k == 0)
        return h

    def last_stage(self, h: Tensor, keep: bool = True) -> Tensor:
        """Features of `last_features` -> (B, out, H', W'); `keep` as in `SwinStage`."""
        return self.stages[-1](h, keep).permute(0, 3, 1, 2).contiguous()

    def forward(self, y: Tensor) -> Tensor:
        return self.last_stage(self.last_features(y), keep=False)
