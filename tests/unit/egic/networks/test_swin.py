"""Attention with a learned bias is torch's own, values and gradients."""

import pytest
import torch
import torch.nn.functional as F

from egic.networks import attention


def tensors(num_biases: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    qkv = torch.randn(7, 16, 3, 2, 8, generator=g, dtype=torch.float64).to(dtype).permute(2, 0, 3, 1, 4)
    bias = torch.randn(num_biases, 2, 16, 16, generator=g, dtype=torch.float64)
    return qkv.requires_grad_(), bias.to(torch.float64 if dtype == torch.float64 else torch.float32).requires_grad_()


def torchs_own(qkv: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(*qkv, attn_mask=bias.to(qkv.dtype))


@pytest.mark.parametrize("num_biases", [1, 7])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_values_and_gradients_are_torchs(num_biases, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", 3 * 2 * 16**2)  # 7 windows: two chunks of three, and one of one
    weight, found = None, []
    for function in (attention.LearnedBiasAttention.apply, torchs_own):
        qkv, bias = tensors(num_biases, dtype)
        out = function(qkv, bias)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        out.backward(weight)
        found.append((out.detach(), qkv.grad, bias.grad))
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
