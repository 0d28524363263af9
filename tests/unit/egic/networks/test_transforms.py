"""Swin transforms: number of parameters, order of channels, receptive fields, strips compared with whole maps."""

import pytest
import torch

from egic.networks import tiled_inference
from egic.networks.codec import Codec, CodecConfig
from egic.networks.swin import SwinBlock
from egic.networks.transforms import Analysis, PatchMerging, SwinStage, Synthesis, depth_to_space

PARTS = {
    "g_a": 9_139_416,
    "h_a": 3_065_892,
    "h_s": 3_314_020,
    "g_s": 9_139_300,
    "charm.mean_nets": 3_946_118,
    "charm.scale_nets": 3_946_118,
    "prior": 5_376,
}


def test_the_numbers_of_parameters_are_those_of_the_paper():
    with torch.device("meta"):
        codec = Codec(CodecConfig())
    found = {name: sum(p.numel() for p in codec.get_submodule(name).parameters()) for name in PARTS}
    assert found == PARTS
    assert sum(p.numel() for p in codec.parameters()) == 32_556_240 == sum(PARTS.values())


@pytest.mark.parametrize("window", [4, 8])
def test_blocks_alternate_between_no_shift_and_half_a_window(window):
    stage = SwinStage(32, 5, window, torch.nn.Identity())
    assert [block.shift for block in stage.blocks] == [0, window // 2, 0, window // 2, 0]


def test_depth_to_space_uses_tensorflows_order():
    x = torch.arange(2 * 3 * 2 * 12.0).view(2, 3, 2, 12)
    out = depth_to_space(x)
    assert out.shape == (2, 6, 4, 3)
    for b, i, j, dy, dx, c in torch.cartesian_prod(*(torch.arange(n) for n in (2, 3, 2, 2, 2, 3))).tolist():
        assert out[b, 2 * i + dy, 2 * j + dx, c] == x[b, i, j, (dy * 2 + dx) * 3 + c]


def test_patch_merging_gathers_neighbours_in_the_swin_order():
    merge = PatchMerging(2, 8)
    merge.norm = torch.nn.Identity()
    merge.reduction.weight.data = torch.eye(8)
    x = torch.randn(1, 4, 4, 2)
    out = merge(x)[0, 1, 0]
    torch.testing.assert_close(out, torch.cat([x[0, 2, 0], x[0, 3, 0], x[0, 2, 1], x[0, 3, 1]]))


def changed_pixels(block: SwinBlock, row: int, col: int, size: int = 12) -> set[tuple[int, int]]:
    """The output pixels that depend on the input pixel (row, col)."""
    x = torch.randn(1, size, size, 32)
    other = x.clone()
    other[0, row, col] += 1
    moved = (block(x) - block(other)).abs().amax(-1)[0] > 0
    return {tuple(p) for p in moved.nonzero().tolist()}


@torch.no_grad()
@pytest.mark.parametrize(
    "shift, pixel, rows, cols",
    [
        (0, (5, 9), range(4, 8), range(8, 12)),
        (2, (5, 9), range(2, 6), range(6, 10)),
        (2, (0, 0), range(0, 2), range(0, 2)),  # windows at the border are cut and do not wrap around
        (2, (11, 4), range(10, 12), range(2, 6)),
    ],
)
def test_a_block_mixes_only_pixels_of_one_window(shift, pixel, rows, cols):
    torch.manual_seed(0)
    block = SwinBlock(32, 4, shift).eval()
    assert changed_pixels(block, *pixel) == {(r, c) for r in rows for c in cols}


@pytest.mark.parametrize("chunk", [1, 3000, 2**18])
def test_strips_equal_whole_maps(monkeypatch, chunk):
    """Without gradients a transform runs in strips of any height and does not change its input."""
    monkeypatch.setitem(tiled_inference.CHUNK, "cpu", chunk)
    torch.manual_seed(0)
    g_a = Analysis(3, (32, 32, 64), (2, 2, 2), 4).eval()
    g_s = Synthesis(3, (64, 32, 32), (2, 2, 2), 4).eval()
    for transform, x in ((g_a, torch.randn(2, 3, 64, 96)), (g_s, torch.randn(2, 64, 8, 12))):
        kept = x.clone()
        whole = transform(x)
        with torch.no_grad():
            torch.testing.assert_close(transform(x), whole, rtol=1e-4, atol=1e-5)
        assert torch.equal(x, kept)


@torch.no_grad()
def test_last_stage_of_last_features_is_the_synthesis():
    torch.manual_seed(0)
    g_s, y = Synthesis(3, (64, 32, 32), (1, 2, 1), 4).eval(), torch.randn(1, 64, 4, 8)
    h = g_s.last_features(y)
    assert h.shape == (1, 16, 32, 32)
    kept = h.clone()
    assert torch.equal(g_s.last_stage(h), g_s(y))
    assert torch.equal(h, kept)  # g_s must not change it, since ORP reads it afterwards
