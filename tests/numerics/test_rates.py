"""A codec of any rate: gains, loss, files at any quality, and files of a given size."""

import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from egic.coding import bitstream
from egic.coding.bitstream import BitstreamError
from egic.model import Model
from egic.networks.codec import Codec
from egic.networks.gains import BETA_REF, Gains, beta_of
from egic.training import losses, steps
from egic.training.steps import Batch
from tests.codec_models import TINY, frozen_model, tiny_model
from tests.numerics.test_coding import picture
from tests.numerics.test_hostile_files import mutated
from tests.perturbed import variants

pytestmark = pytest.mark.usefixtures("one_thread")
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "one_rate"
RATES = 6


@pytest.fixture(scope="module")
def model():
    return tiny_model(rates=RATES)


def test_initial_gains_follow_from_the_anchors_loss_weights():
    gains, anchors = Gains(RATES, 3), torch.arange(RATES, dtype=torch.float32)
    y = torch.ones(RATES, 3, 2, 2)
    scaled = gains.scale(y, anchors)
    torch.testing.assert_close(scaled[:, 0, 0, 0], torch.sqrt(BETA_REF / beta_of(anchors)))
    torch.testing.assert_close(beta_of(anchors)[[0, 5]], torch.tensor([0.032, 0.001]))
    torch.testing.assert_close(gains.restore(scaled, anchors), y)


def test_gains_between_two_anchors_are_their_geometric_means():
    gains = Gains(RATES, 2)
    with torch.no_grad():
        gains.log_gain.normal_()
        gains.offset.normal_()
    at = {q: gains.scale(torch.ones(1, 2, 1, 1), torch.tensor([q])).flatten() for q in (2.0, 2.5, 3.0)}
    torch.testing.assert_close(at[2.5], torch.sqrt(at[2.0] * at[3.0]))
    offset = gains.restore(torch.zeros(1, 2, 1, 1), torch.tensor([4.25])).flatten()
    torch.testing.assert_close(offset, 0.75 * gains.offset[4] + 0.25 * gains.offset[5])


def test_the_loss_equals_a_computation_by_hand():
    """Two crops of 128 pixels: squared errors 4 and 9, 1000 and 2000 bits, at the first and last anchor."""
    x = torch.zeros(2, 3, 128, 128)
    x_hat = torch.stack([torch.full((3, 128, 128), 2.0), torch.full((3, 128, 128), 3.0)])
    found = losses.rate_distortion(x_hat, x, torch.tensor([1000.0, 2000.0]), torch.tensor([0.0, 5.0]))
    s = [1 / (65536 * (beta * 0.00566) ** 0.5) for beta in (0.032, 0.001)]
    expected = (s[0] * (4 + 0.032 * 4000) + s[1] * (9 + 0.001 * 8000)) / 2
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_qualities_depend_only_on_the_position():
    def drawn(positions: list[int]) -> torch.Tensor:
        n = len(positions)
        return steps.qualities(Batch(torch.zeros(n, 3, 1, 1), None, None, positions), RATES, seed=1)

    many = drawn(list(range(1000)))
    assert torch.equal(drawn([5, 3]), many[[5, 3]])
    assert 0 <= many.min() and many.max() <= RATES - 1 and many.mean() == pytest.approx(2.5, abs=0.15)


def test_old_files_of_a_codec_of_one_rate_decode_to_the_same_pictures():
    """The files were written before codecs had several rates."""
    model = frozen_model()
    names = sorted(FIXTURES.glob("*.egic"))
    assert len(names) == 3
    for path in names:
        data = path.read_bytes()
        x_hat = model.decompress(data, 0.5)
        header, _ = bitstream.unpack(data)
        assert (header.quality, header.version) == (None, 1)
        if (kept := path.with_suffix(".png")).exists():
            assert np.abs(np.asarray(Image.open(kept)).astype(int) - x_hat).max() <= 1


def test_identity_depends_on_all_that_the_decoder_uses():
    def identity_after(name: str) -> bytes:
        changed = tiny_model(rates=RATES)
        with torch.no_grad():
            changed.codec.get_parameter(name).add_(0.01)
        return changed.identity

    same = tiny_model(rates=RATES).identity
    assert same != tiny_model().identity
    assert identity_after("gains.log_inverse") != same and identity_after("gains.offset") != same
    assert identity_after("gains.log_gain") == same  # only the encoder uses it


@pytest.mark.parametrize("quality", [0, 37, 100])
@pytest.mark.parametrize("height, width", [(1, 1), (17, 333), (65, 130)])
def test_any_size_and_quality_decodes_to_the_encoders_latents(model, height, width, quality):
    x = picture(height, width)
    data = model.compress(x, quality=quality)
    y_hat, header = model.decode_latents(data)
    assert (header.height, header.width, header.quality, header.version) == (height, width, quality, 2)
    with torch.inference_mode():
        y = model.codec.scale(model.codec.g_a(model._padded(x) / 255), model._q(quality))
        coded = model.coder.encode(y, height, width)[2]
        assert torch.equal(y_hat, model.codec.restore(coded, model._q(quality)))
    assert model.decompress(data, 0.5).shape == (height, width, 3)


def test_y_hat_equals_that_of_the_training_path(model):
    x = picture(128, 256)
    trained_on = model.codec.encode(torch.from_numpy(x).permute(2, 0, 1)[None].float(), torch.tensor([3.5]))
    decoded = model.decode_latents(model.compress(x, quality=70))[0]
    torch.testing.assert_close(decoded, trained_on, rtol=0, atol=2e-3)


def test_higher_qualities_need_more_bytes(model):
    x = picture(128, 192)
    sizes = [len(model.compress(x, quality=q)) for q in (0, 25, 50, 75, 100)]
    assert sizes == sorted(sizes) and sizes[-1] > 1.5 * sizes[0]
    assert len(model.compress(x)) == sizes[2]


@pytest.mark.parametrize("name, other, threads", [pytest.param(*v, id=v[0]) for v in variants(tiny_model(rates=RATES))])
def test_files_of_every_quality_decode_with_other_arithmetic(model, name, other, threads):
    """200 crops over all arithmetics, each with another quality."""
    for seed in range(50):
        data = model.compress(picture(64, 64, seed), quality=2 * seed)
        y_hat = model.decode_latents(data)[0]
        torch.set_num_threads(threads)
        decoded = other.decode_latents(data)[0].cpu()
        torch.set_num_threads(1)
        torch.testing.assert_close(decoded.float(), y_hat, rtol=1e-4, atol=4e-3)


def test_mutated_files_of_every_quality_are_errors(model):
    rng, pixels = random.Random(0), np.random.default_rng(0)
    files = [model.compress(pixels.integers(0, 256, (9, 20, 3), np.uint8), quality=q) for q in range(0, 101, 10)]
    files.append(tiny_model().compress(np.zeros((5, 5, 3), np.uint8)))
    for _ in range(20_000):
        data = mutated(rng, files)
        if data not in files[:-1]:
            with pytest.raises(BitstreamError):
                model.decompress(data)


def test_invalid_qualities_in_files_are_refused(model):
    header, payload = bitstream.unpack(model.compress(picture(8, 8), quality=3))
    for quality, word in ((101, "quality is 101"), (255, "quality is 255")):
        with pytest.raises(BitstreamError, match=word):
            model.decompress(bitstream.pack(replace(header, quality=quality), payload))
    with pytest.raises(BitstreamError, match="its format is not that of its model"):
        model.decompress(bitstream.pack(replace(header, quality=None), payload))


@pytest.mark.parametrize("pictures", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_files_have_the_requested_size(model, pictures):
    """Pictures of odd sizes: never larger, and at least 0.9 of the requested size if a quality allows it."""
    rng = np.random.default_rng(3)
    for i in range(pictures):
        height, width = (int(n) for n in rng.integers(20, 100, 2))
        x = picture(height, width, i)
        least, most = (len(model.compress(x, quality=q)) for q in (0, 100))
        limit = int(rng.integers(least, most + 50))
        size = len(model.compress(x, max_bytes=limit))
        assert size <= limit and size >= 0.9 * min(limit, most), (height, width, limit, size)


def test_bpp_limits_count_the_original_pixels(model):
    x = picture(70, 90)
    limit = 0.5 * (len(model.compress(x, quality=0)) + len(model.compress(x, quality=100))) * 8 / (70 * 90)
    assert 0.9 * limit <= 8 * len(model.compress(x, bpp=limit)) / (70 * 90) <= limit


def test_invalid_requests_are_one_line(model):
    x = picture(40, 50)
    least = len(model.compress(x, quality=0))
    for arguments, word in (
        ({"max_bytes": least - 1}, f"a picture of 50 x 40 takes at least {least} bytes"),
        ({"bpp": 0.001}, "takes at least"),
        ({"quality": 101}, "whole number in 0..100"),
        ({"quality": float("nan")}, "whole number in 0..100"),
        ({"quality": 2.5}, "whole number in 0..100"),
        ({"bpp": float("nan")}, "positive number"),
        ({"max_bytes": 0}, "at least 1"),
        ({"quality": 1, "bpp": 1.0}, "quality and bpp exclude each other"),
    ):
        with pytest.raises(ValueError, match=re.escape(word)) as caught:
            model.compress(x, **arguments)
        assert "\n" not in str(caught.value)
    for arguments in ({"quality": 50}, {"bpp": 1.0}, {"max_bytes": 10_000}):
        with pytest.raises(ValueError, match="codes at one rate only"):
            tiny_model().compress(x, **arguments)


def test_transforms_run_once_for_a_requested_size(model, monkeypatch):
    calls = []
    forward = type(model.codec.g_a).forward
    monkeypatch.setattr(type(model.codec.g_a), "forward", lambda self, x: calls.append(self) or forward(self, x))
    model.compress(picture(64, 64), max_bytes=100_000)
    assert sum(module is model.codec.g_a for module in calls) == 1


def test_files_decode_with_all_models_of_the_family(model):
    data = model.compress(picture(64, 100), quality=20)
    gan = Codec(replace(TINY, rates=RATES))
    gan.load_state_dict(model.codec.state_dict())
    torch.nn.init.normal_(gan.g_s.stages[-1].resample.reduction.weight)
    assert torch.equal(Model(gan).decode_latents(data)[0], model.decode_latents(data)[0])
