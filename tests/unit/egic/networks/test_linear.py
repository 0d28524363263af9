"""Linear layers with GELU or a residual sum in them: with and without gradients the same."""

import pytest
import torch
from torch import nn

from egic.networks.linear import linear


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


def test_autocast_decides_the_precision():
    layer, x = nn.Linear(32, 32), torch.randn(5, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert linear(layer, x).dtype == linear(layer, x, gelu=True).dtype == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert linear(layer, x).dtype == torch.float32
