"""The Swin block: attention equals torch's in values and gradients; fused layers equal plain ones."""

import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from egic.networks import swin
from egic.networks.swin import linear


def tensors(num_biases: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    qkv = torch.randn(7, 16, 3, 2, 8, generator=g, dtype=torch.float64).to(dtype).permute(2, 0, 3, 1, 4)
    bias = torch.randn(num_biases, 2, 16, 16, generator=g, dtype=torch.float64)
    return qkv.requires_grad_(), bias.to(torch.float64 if dtype == torch.float64 else torch.float32).requires_grad_()


def torchs_own(qkv: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(*qkv, attn_mask=bias.to(qkv.dtype))


@pytest.mark.parametrize("num_biases", [1, 7])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_attention_equals_torchs_in_values_and_gradients(num_biases, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(swin, "SCORES", 3 * 2 * 16**2)  # 7 windows: two chunks of three, and one of one
    weight, found = None, []
    for function in (swin.LearnedBiasAttention.apply, torchs_own):
        qkv, bias = tensors(num_biases, dtype)
        out = function(qkv, bias)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        out.backward(weight)
        found.append((out.detach(), qkv.grad, bias.grad))
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("how", [{}, {"gelu": True}, {"plus": True}])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float64, 1e-12)])
def test_fused_and_plain_layers_agree(how, dtype, tolerance):
    """Outputs are of order 1: float32 sums differ in their order, bfloat16 has 8 bits."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 96).to(dtype)
    x = torch.randn(2, 7, 64, dtype=dtype)
    how = how | ({"plus": torch.randn(2, 7, 96, dtype=dtype)} if "plus" in how else {})
    plain = linear(layer, x, **how)
    with torch.no_grad():
        found = linear(layer, x, **how)
    assert plain.requires_grad and found.dtype == dtype and found.shape == (2, 7, 96)
    torch.testing.assert_close(found, plain.detach(), rtol=tolerance, atol=tolerance)


def test_autocast_sets_the_precision():
    layer, x = nn.Linear(32, 32), torch.randn(5, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert linear(layer, x).dtype == linear(layer, x, gelu=True).dtype == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert linear(layer, x).dtype == torch.float32


def test_torch_has_the_fused_operator():
    """If this fails, torch has changed an undocumented operator: layers then run unfused, and slower."""
    layer, x = nn.Linear(64, 96), torch.randn(2, 7, 64)
    with torch.no_grad():
        found = swin._fused_linear(layer, x, True, None)
    torch.testing.assert_close(found, F.gelu(layer(x)).detach(), rtol=1e-5, atol=1e-5)


def refuses(*args):
    raise RuntimeError("oneDNN does not take these tensors")


@pytest.mark.parametrize("operator", ["missing", "refuses"])
def test_layers_run_unfused_without_the_fused_operator(operator, monkeypatch):
    """As with a torch release without the operator, or with other arguments: values are those of plain layers."""
    changed = types.SimpleNamespace() if operator == "missing" else types.SimpleNamespace(_linear_pointwise=refuses)
    if operator == "refuses":
        changed._linear_pointwise.binary = refuses
    monkeypatch.setattr(torch.ops, "mkldnn", changed)
    layer, x, plus = nn.Linear(64, 96), torch.randn(2, 7, 64), torch.randn(2, 7, 96)
    with torch.no_grad():
        assert torch.equal(linear(layer, x, gelu=True), F.gelu(layer(x)))
        assert torch.equal(linear(layer, x, plus=plus), plus + layer(x))


def test_other_errors_of_the_fused_operator_are_raised():
    with torch.no_grad(), pytest.raises(RuntimeError, match="shapes"):
        linear(nn.Linear(64, 96), torch.randn(2, 7, 32))
