"""Our codec with CompressAI's interface: CompressAI's evaluation measures the same bytes and PSNR as ours."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from egic.errors import UserError
from egic.metrics.quality import Quality
from egic.networks.codec import Codec
from tests.codec_models import tiny_model

pytest.importorskip("compressai")
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::FutureWarning")]

from compressai.models import CompressionModel  # noqa: E402
from compressai.registry import MODELS  # noqa: E402

from egic.compat.compressai import EGIC  # noqa: E402


@pytest.fixture(scope="module", params=[0, 3], ids=["one rate", "every rate"])
def ours(request):
    return tiny_model(rates=request.param)


@pytest.fixture
def theirs(ours):
    return EGIC(ours.codec).eval()


def test_it_is_a_registered_model(theirs):
    assert isinstance(theirs, CompressionModel) and MODELS["egic"] is EGIC
    assert theirs.update() and not theirs.update() and theirs.update(force=True)


def test_compressais_evaluation_measures_our_bytes_and_psnr(ours, theirs, kodak, tmp_path):
    from compressai.utils.eval_model.__main__ import collect_images, eval_model

    crops = {"a.png": (192, 256), "b.png": (256, 192)}  # multiples of 64, since CompressAI pads others itself
    for (name, (height, width)), source in zip(crops.items(), sorted(kodak.glob("*.png")), strict=False):
        Image.open(source).crop((200, 100, 200 + width, 100 + height)).save(tmp_path / name)
    files = collect_images(tmp_path)
    found = eval_model(theirs, tmp_path, tmp_path, files, architecture="egic", half=False, per_image=False)
    bpp, psnr = [], []
    for file in files:
        x = np.asarray(Image.open(file).convert("RGB"))
        data = ours.compress(x)
        bpp.append(8 * len(data) / (x.shape[0] * x.shape[1]))
        psnr.append(Quality(("psnr_db",), {})(ours.decompress(data), x)["psnr_db"])
    assert len(files) == 2 and found["bpp"] == pytest.approx(np.mean(bpp), rel=1e-12)
    assert found["psnr-rgb"] == pytest.approx(np.mean(psnr), abs=1e-4)


@torch.no_grad()
def test_likelihoods_are_the_codecs_bits(ours):
    x = torch.rand(2, 3, 128, 256, generator=torch.Generator().manual_seed(0))
    codec = Codec(ours.codec.config).eval()
    for net in codec.charm.scale_nets:  # wide scales, so that no likelihood is below the minimum of 1e-9
        torch.nn.init.constant_(net[-1].bias, 40.0)
    q = torch.tensor([1.0, 1.0]) if codec.gains is not None else None
    coded, out = codec(255 * x, q=q), EGIC(codec, None if q is None else 50).eval()(x)
    assert out["x_hat"].shape == x.shape
    torch.testing.assert_close(255 * out["x_hat"], coded.x_hat)
    for name, bits in (("y", coded.bits_y), ("z", coded.bits_z)):
        assert -out["likelihoods"][name].log2().sum().item() == pytest.approx(bits.sum().item(), rel=1e-3)
    assert out["likelihoods"]["y"].shape == (2, 64, 8, 16) and out["likelihoods"]["z"].shape == (2, 32, 2, 4)


def test_noise_is_added_in_training_mode_only_and_gradients_reach_the_codec(ours, theirs):
    x = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        assert torch.equal(theirs(x)["likelihoods"]["y"], theirs(x)["likelihoods"]["y"])
    theirs.train()
    out, again = theirs(x), theirs(x)
    assert not torch.equal(out["likelihoods"]["y"], again["likelihoods"]["y"])
    (out["x_hat"].mean() - out["likelihoods"]["y"].log().mean()).backward()
    assert all(p.grad is not None for p in theirs.codec.g_a.parameters())
    theirs.zero_grad(set_to_none=True)
    theirs.eval()


def test_batches_of_pictures_of_any_size_are_decoded(ours, theirs):
    x = torch.rand(2, 3, 70, 90)
    coded = theirs.compress(x)
    assert len(coded["strings"]) == 1 and len(coded["strings"][0]) == 2 and tuple(coded["shape"]) == (2, 2)
    found = theirs.decompress(**coded)["x_hat"]
    assert found.shape == x.shape and found.dtype == torch.float32 and 0 <= found.min() and found.max() <= 1
    assert theirs(x)["x_hat"].shape == x.shape
    assert math.isfinite(sum(v.log().sum().item() for v in theirs(x)["likelihoods"].values()))


def test_a_state_dict_makes_the_same_model(ours, theirs, tmp_path):
    torch.save(theirs.state_dict(), tmp_path / "checkpoint.pth.tar")
    again = EGIC.from_state_dict(torch.load(tmp_path / "checkpoint.pth.tar", weights_only=True)).eval()
    x = torch.rand(1, 3, 64, 64)
    assert again.compress(x) == theirs.compress(x)
    other = EGIC(tiny_model(seed=1, rates=ours.codec.config.rates).codec)
    before = other.compress(x)
    other.load_state_dict(theirs.state_dict())
    assert other.compress(x) == theirs.compress(x) != before
    with pytest.raises(UserError, match="the state_dict has no _extra_state"):
        EGIC.from_state_dict(ours.codec.state_dict())


def test_quality_is_refused_for_a_codec_of_one_rate():
    with pytest.raises(UserError, match="this codec has one rate"):
        EGIC(tiny_model().codec, quality=10)
    codec, x = tiny_model(rates=3).codec, torch.rand(1, 3, 64, 64)
    sizes = [len(EGIC(codec, quality).compress(x)["strings"][0][0]) for quality in (0, 100)]
    assert sizes[0] != sizes[1]


def test_the_package_does_not_import_compressai():
    code = "import sys, egic, egic.cli.main, egic.report.anchors; print('compressai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
