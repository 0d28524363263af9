"""Measures of pictures against published values and against other libraries."""

import numpy as np
import pytest
import torch
from PIL import Image

from egic.metrics import perceptual
from egic.metrics.pretrained import NETWORKS
from egic.metrics.quality import NAMES, Quality


@pytest.fixture(scope="module")
def pair(kodak) -> tuple[np.ndarray, np.ndarray]:
    """A photograph, uint8 (256, 384, 3), and a coarse version of it."""
    x = np.asarray(Image.open(kodak / "kodim05.png").convert("RGB"))[100:356, 100:484]
    return np.ascontiguousarray(x // 16 * 16 + 8), np.ascontiguousarray(x)


@pytest.fixture(scope="module")
def vgg16() -> dict[str, torch.Tensor]:
    """Seeded convolutions of VGG16's shapes."""
    g, state = torch.Generator().manual_seed(0), {}
    for name, shape in NETWORKS["vgg16"].shapes.items():
        fan_in = float(np.prod(shape[1:])) if len(shape) > 1 else 1e4
        state[name] = torch.randn(shape, generator=g) * (2 / fan_in) ** 0.5
    return state


def test_psnr_and_ms_ssim_equal_other_libraries(pair):
    image = pytest.importorskip("torchmetrics.functional.image")  # its MS-SSIM is 2e-5 off both others: borders
    piq = pytest.importorskip("piq")  # adds 1e-8 to the error before it takes PSNR
    x_hat, x = (torch.from_numpy(a).permute(2, 0, 1)[None].double() for a in pair)
    found = Quality(["psnr_db", "ms_ssim"], {})(*pair)
    assert found["psnr_db"] == pytest.approx(image.peak_signal_noise_ratio(x_hat, x, data_range=255.0).item(), abs=1e-4)
    assert found["ms_ssim"] == pytest.approx(piq.multi_scale_ssim(x_hat, x, data_range=255.0).item(), abs=1e-6)
    assert found["ms_ssim"] < 0.999


def test_lpips_equals_the_published_values(weights, monkeypatch):
    from egic.metrics.pretrained import find

    folder = weights.parent / "lpips_example_images"
    if not folder.is_dir():
        pytest.skip("lpips_example_images is not beside EGIC_WEIGHTS")
    quality = Quality(["lpips_alex"], {"alexnet": find("alexnet", str(weights))[1]})
    ref, p0, p1 = (np.asarray(Image.open(folder / f"ex_{n}.png").convert("RGB")) for n in ("ref", "p0", "p1"))
    assert quality(p0, ref)["lpips_alex"] == pytest.approx(0.722, abs=1e-3)
    assert quality(p1, ref)["lpips_alex"] == pytest.approx(0.138, abs=1e-3)


def test_networks_of_vgg16_hold_the_given_weights_and_measure(pair, vgg16):
    before = torch.get_rng_state()
    quality = Quality(["lpips_vgg", "dists"], {"vgg16": vgg16})
    assert torch.equal(torch.get_rng_state(), before)
    x_hat, x = (a[:64, :64] for a in pair)
    near = (x.astype(int) + x_hat) // 2
    equal, small, large = quality(x, x), quality(near.astype(np.uint8), x), quality(x_hat, x)
    for name in ("lpips_vgg", "dists"):
        assert equal[name] == pytest.approx(0, abs=1e-6) and 0 < small[name] < large[name]
    again = quality(x, x), quality(x_hat, x), quality(x, x_hat), quality(x_hat, x)
    assert again[0] == equal and again[1] == again[3] == large  # cached features belong to the right picture
    assert again[2]["lpips_vgg"] == pytest.approx(large["lpips_vgg"], rel=1e-5)
    other = Quality(["dists"], {"vgg16": {k: v + 0.01 for k, v in vgg16.items()}})
    assert other(x_hat, x)["dists"] != large["dists"]


@pytest.mark.parametrize(
    "net, name", [("alex", "lpips_alex"), pytest.param("vgg", "lpips_vgg", marks=pytest.mark.slow)]
)
def test_lpips_with_remembered_features_equals_the_one_of_training_bit_by_bit(pair, vgg16, net, name):
    alexnet = perceptual.LPIPS(None).net.net.state_dict()
    state = vgg16 if net == "vgg" else {k.split(".", 1)[1]: v for k, v in alexnet.items()}
    quality, whole = Quality([name], {"vgg16": state, "alexnet": state}), perceptual.LPIPS(state, net)
    x_hat, x = pair
    for version in (x_hat, x // 2, x_hat):
        tensors = [torch.from_numpy(a).permute(2, 0, 1)[None].float() for a in (version, x)]
        assert quality(version, x) == {name: whole.distances(*tensors).item()} != {name: 0}


def test_too_small_pictures_have_no_value_instead_of_a_wrong_one(vgg16):
    x = np.random.default_rng(0).integers(0, 256, (15, 400, 3), dtype=np.uint8)
    quality = Quality([n for n in NAMES if n != "lpips_alex"], {"vgg16": vgg16})
    found = quality(x, x)
    assert found.pop("psnr_db") == 100 and set(found.values()) == {None}
    x = np.zeros((160, 161, 3), np.uint8)
    assert Quality(["ms_ssim"], {})(x, x) == {"ms_ssim": None}
    x = np.zeros((161, 161, 3), np.uint8)
    assert Quality(["ms_ssim"], {})(x, x) == {"ms_ssim": pytest.approx(1)}


def test_pictures_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match="uint8 of one shape"):
        Quality(["psnr_db"], {})(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8))
