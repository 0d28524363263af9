"""LPIPS as a loss: the published values, and its random backbone."""

import numpy as np
import pytest
import torch
from PIL import Image

from egic.metrics.perceptual import LPIPS
from egic.metrics.pretrained import find_backbone


@pytest.fixture(autouse=True)
def no_folder(monkeypatch):
    monkeypatch.delenv("EGIC_WEIGHTS", raising=False)


@pytest.fixture(scope="module")
def random_lpips() -> LPIPS:
    return LPIPS(None)


def test_lpips_equals_the_published_values(weights, monkeypatch):
    folder = weights.parent / "lpips_example_images"
    if not folder.is_dir():
        pytest.skip("lpips_example_images is not beside EGIC_WEIGHTS")
    monkeypatch.setenv("EGIC_WEIGHTS", str(weights))
    name, backbone = find_backbone("")
    assert name.startswith("alexnet_features.pth sha256:")
    lpips = LPIPS(backbone)
    ref, p0, p1 = (
        torch.from_numpy(np.array(Image.open(folder / f"ex_{n}.png").convert("RGB"))).permute(2, 0, 1)[None].float()
        for n in ("ref", "p0", "p1")
    )
    with torch.no_grad():
        assert lpips(p0, ref).item() == pytest.approx(0.722, abs=1e-3)
        assert lpips(p1, ref).item() == pytest.approx(0.138, abs=1e-3)


def test_the_random_backbone_is_seeded_and_leaves_the_generator_alone(random_lpips):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = LPIPS(None)
    assert torch.equal(torch.get_rng_state(), before)
    for mine, other in zip(random_lpips.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(mine, other)


def test_weights_are_frozen_and_gradients_reach_the_picture(random_lpips):
    assert not any(p.requires_grad for p in random_lpips.parameters()) and not random_lpips.training
    x = torch.rand(2, 3, 64, 64) * 255
    x_hat = (x + 20 * torch.randn_like(x)).requires_grad_()
    distance = random_lpips(x_hat, x)
    distance.backward()
    assert distance.shape == () and distance > 0 and x_hat.grad.abs().sum() > 0
    assert random_lpips(x, x).item() == 0
