"""Properties of files: the encoder's y_hat bit for bit, the model's rate, any size, decoding with other arithmetic."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from egic.coding import bitstream
from egic.coding.bitstream import BitstreamError
from egic.coding.latent_coder import exact_float32
from egic.model import Model
from egic.networks import tiled_inference
from egic.networks.codec import Codec
from tests.codec_models import TINY, full_model, tiny_model
from tests.perturbed import noisy, variants

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def full(golden):
    return full_model(golden)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours with some texture, uint8."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (3 + height // 40, 3 + width // 40, 3), np.uint8))
    x = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    return (x + rng.normal(0, 6, x.shape)).clip(0, 255).astype(np.uint8)


def ideal_bits(model: Model, x: np.ndarray) -> float:
    """The model's bits for a picture that needs no padding, at continuous scale indices."""
    with torch.inference_mode():
        y = model.codec.analyse(torch.from_numpy(x).permute(2, 0, 1)[None].float())
        z_hat = torch.round(model.codec.h_a(y))
        return (model.codec.quantized(y, z_hat)[1] + model.codec.prior.bits(z_hat).sum()).item()


@pytest.mark.parametrize("height, width", [(1, 1), (1, 300), (17, 333), (64, 64), (65, 130), (500, 375)])
def test_pictures_of_any_size_decode_to_the_encoders_latents(model, height, width):
    x = picture(height, width)
    encoded = []
    with torch.inference_mode():
        y = model.codec.analyse(model._padded(x))
        encoded = model.coder.encode(y, height, width)[2]
    data = model.compress(x)
    y_hat, header = model.decode_latents(data)
    assert torch.equal(y_hat, encoded)
    assert (header.height, header.width) == (height, width)
    assert model.decompress(data).shape == (height, width, 3)


def test_y_hat_equals_that_of_the_training_path(model):
    x = picture(128, 256)
    trained_on = model.codec.encode(torch.from_numpy(x).permute(2, 0, 1)[None].float())
    torch.testing.assert_close(model.decode_latents(model.compress(x))[0], trained_on, rtol=0, atol=1e-3)


def test_file_size_does_not_exceed_the_models_rate(model):
    """For a model with random weights, which fits badly, tables with a minimum and escapes need fewer bits."""
    x = picture(256, 384)
    assert 8 * len(model.compress(x)) < ideal_bits(model, x) * 1.008 + 8 * 40


def test_file_size_of_the_full_model_is_close_to_its_rate(full):
    """Differences to the rate at continuous indices: rounded indices (0.4 %), phases (0.2 %) and container."""
    x = picture(256, 256)
    size, ideal = 8 * len(full.compress(x)), ideal_bits(full, x)
    assert ideal * 0.98 < size < ideal * 1.008 + 8 * 40


def test_a_picture_of_one_pixel_makes_a_small_file(model):
    """320 latents and 23 bytes of container; the padding needs no bits."""
    with torch.inference_mode():
        y = model.codec.analyse(model._padded(picture(1, 1)))
        payload = model.coder.encode(y, 1, 1)[0]
    assert len(model.compress(picture(1, 1))) == len(payload) + 23


def test_padding_is_not_coded(model):
    """One more row of pixels needs one more row of latents, not all of the padding."""
    m = TINY.multiple
    wide = picture(m + 1, 8 * m)
    assert len(model.compress(wide)) < 1.45 * len(model.compress(wide[:m]))  # 5 rows of latents against 4


@pytest.mark.parametrize("name, other, threads", [pytest.param(*v, id=v[0]) for v in variants(tiny_model())])
def test_files_decode_with_other_arithmetic(model, name, other, threads):
    for seed in range(8):
        data = model.compress(picture(128, 128, seed))
        y_hat = model.decode_latents(data)[0]
        torch.set_num_threads(threads)
        decoded = other.decode_latents(data)[0].cpu()
        torch.set_num_threads(1)
        torch.testing.assert_close(decoded.float(), y_hat, rtol=1e-4, atol=2e-3)


@pytest.mark.slow
def test_files_of_the_full_model_decode_with_other_arithmetic(full, kodak):
    pictures = [np.asarray(Image.open(path).convert("RGB"))[:256, :256] for path in sorted(kodak.glob("*.png"))[:2]]
    others = list(variants(full))
    for x in pictures:
        data = full.compress(x)
        for _, other, threads in others:
            torch.set_num_threads(threads)
            other.decode_latents(data)
            torch.set_num_threads(1)


def test_without_phases_other_arithmetic_fails(model, monkeypatch):
    """The reason for phases: with one rounding grid for all indices, the same noise makes a file undecodable."""
    monkeypatch.setattr("egic.coding.robust_rounding.ABSOLUTE", 0.0)
    monkeypatch.setattr("egic.coding.robust_rounding.RELATIVE", 0.0)
    other, broken = noisy(model, 1e-5), 0
    for seed in range(8):
        data = model.compress(picture(256, 256, seed))
        try:
            other.decode_latents(data)
        except BitstreamError:
            broken += 1
    assert broken > 2


def test_tf32_is_off_while_indices_are_computed_on_gpus():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with exact_float32(torch.device("cuda")):
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (False, False)
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_too_much_drift_is_an_error(model):
    data = model.compress(picture(128, 128))
    with pytest.raises(BitstreamError):
        noisy(model, 1e-2).decompress(data)


def test_files_decode_with_models_of_the_same_family_only(model):
    data = model.compress(picture(64, 100))
    gan = Codec(TINY)
    gan.load_state_dict(model.codec.state_dict())
    torch.nn.init.normal_(gan.g_s.stages[-1].resample.reduction.weight)
    assert torch.equal(Model(gan).decode_latents(data)[0], model.decode_latents(data)[0])
    with pytest.raises(BitstreamError, match="made with model"):
        tiny_model(seed=1).decompress(data)
    other = dataclasses.replace(TINY, hyper_window=4)
    assert Model(Codec(other)).identity != model.identity


def test_alpha_blends_the_two_pictures(model):
    data = model.compress(picture(96, 96))
    gan, mse = model.decode_pictures(data)
    for alpha in (0, 0.25, 1):
        expected = (gan + (1 - alpha) * (mse - gan)).round().clamp(0, 255).numpy().astype(np.uint8)
        assert np.array_equal(model.decompress(data, alpha), expected)
    assert np.array_equal(model.decompress(data), model.decompress(data, 1.0))
    with pytest.raises(ValueError, match="no ORP"):
        tiny_model(orp=False).decompress(data, 0.5)
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="alpha must lie"):
            model.decompress(data, alpha)


def test_only_the_needed_pictures_are_computed(model, monkeypatch):
    data = model.compress(picture(64, 64))

    def forbidden(*args, **kwargs):
        raise AssertionError("called")

    with monkeypatch.context() as m:
        m.setattr(model.orp, "forward", forbidden)
        model.decompress(data)
    with monkeypatch.context() as m:
        m.setattr(model.codec.g_s, "last_stage", forbidden)
        model.decompress(data, 0)


def test_invalid_pictures_are_refused(model):
    for bad in (
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 3)),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ):
        with pytest.raises(ValueError, match="uint8"):
            model.compress(bad)


def test_bfloat16_transforms_keep_files_portable(model):
    low = Model(model.codec, model.orp, "bfloat16")
    x = picture(128, 128)
    data = low.compress(x)
    assert torch.equal(low.decode_latents(data)[0], model.decode_latents(data)[0])
    assert np.abs(low.decompress(data).astype(int) - model.decompress(data)).mean() < 1


@pytest.mark.parametrize("chunk", [1, 2**13])
def test_strips_equal_whole_maps(model, monkeypatch, chunk):
    """Strips, down to single windows, compared with the training path."""
    monkeypatch.setitem(tiled_inference.CHUNK, "cpu", chunk)
    codec = model.codec
    x = torch.from_numpy(np.stack([picture(128, 256, s) for s in (0, 1)])).permute(0, 3, 1, 2).float()
    y = codec.analyse(x)
    h = codec.g_s.last_features(y)
    with torch.no_grad():
        torch.testing.assert_close(codec.analyse(x), y, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(codec.g_s.last_features(y), h, rtol=1e-4, atol=1e-4)
        used_up = h.detach().clone()
        assert torch.equal(codec.g_s.last_stage(h), codec.g_s.last_stage(used_up, keep=False))
        assert not torch.equal(used_up, h)


def test_files_of_flat_pictures_have_the_minimum_size(model):
    """4 bytes for each 256 x 256 pixels, so that a short file cannot make the decoder allocate a large picture."""
    data = model.compress(np.full((64, 3000, 3), 127, np.uint8))
    assert len(bitstream.unpack(data)[1]) >= bitstream.least_payload(64, 3000) == 48
