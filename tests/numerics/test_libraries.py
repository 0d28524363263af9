"""Our Swin block and factorized prior equal timm's and compressai's in values and gradients."""

import pytest
import torch
from torch import nn

from egic.networks.entropy import FactorizedPrior
from egic.networks.swin import LayerNorm, SwinBlock


def timms_block(dim: int, window: int, shift: int) -> nn.Module:
    """timm's block with window and shift unchanged on small maps, as in the reference."""
    swin = pytest.importorskip("timm.models.swin_transformer")
    return swin.SwinTransformerBlock(
        dim, (window, window), num_heads=dim // 32, window_size=window, shift_size=shift,
        always_partition=True, dynamic_mask=True, norm_layer=LayerNorm,
    )  # fmt: skip


@pytest.mark.parametrize("window, shift", [(8, 4), (8, 0), (4, 2)])
@pytest.mark.parametrize("size", [(8, 8), (16, 24)])
def test_swin_block_equals_timms(window, shift, size):
    torch.manual_seed(0)
    ours, theirs = SwinBlock(64, window, shift), timms_block(64, window, shift)
    for p in theirs.parameters():
        nn.init.normal_(p, 0, 0.2)
    ours.load_state_dict(theirs.state_dict())
    x, upstream = torch.randn(2, *size, 64), torch.randn(2, *size, 64)
    results = []
    for block in (ours, theirs):
        given = x.clone().requires_grad_()
        out = block(given)
        (out * upstream).sum().backward()
        results.append([out, given.grad, *(block.get_parameter(name).grad for name, _ in ours.named_parameters())])
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_prior_equals_compressais():
    models = pytest.importorskip("compressai.entropy_models")
    torch.manual_seed(0)
    ours, theirs = FactorizedPrior(7), models.EntropyBottleneck(7, filters=(3, 3), likelihood_bound=0)
    fresh = theirs.state_dict()
    for name, p in ours.named_parameters():
        if not name.startswith("biases"):  # biases are random already
            torch.testing.assert_close(p, fresh[name])
            p.data += torch.randn(p.shape) * 0.3
    theirs.load_state_dict(ours.state_dict(), strict=False)
    z = (torch.randn(2, 7, 5, 6) * 4).round()
    likelihood = theirs(z, training=False)[1]  # medians are 0, so rounding keeps integers
    known = likelihood > 1e-4  # theirs is a difference of two sigmoids, inaccurate in the tails
    assert known.float().mean() > 0.9
    torch.testing.assert_close(ours.bits(z)[known], -likelihood[known].log2(), rtol=2e-3, atol=0)
