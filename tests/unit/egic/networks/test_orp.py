"""The residual head: number of parameters, initial weights, and blending with alpha."""

import torch

from egic.networks.codec import Codec, CodecConfig
from egic.networks.orp import ResidualHead, blend
from tests.codec_models import TINY


def test_the_number_of_parameters_is_that_of_the_paper():
    with torch.device("meta"):
        head = ResidualHead(CodecConfig())
    assert sum(p.numel() for p in head.parameters()) == 399_892


@torch.no_grad()
def test_it_starts_as_a_copy_of_the_last_stage_of_g_s():
    torch.manual_seed(0)
    codec, head, y_hat = Codec(TINY).eval(), ResidualHead(TINY).eval(), torch.randn(1, 64, 4, 8)
    h = codec.g_s.last_features(y_hat)
    assert not torch.equal(head(h), codec.synthesise(y_hat))
    head.start_from(codec.g_s)
    x_gan = codec.synthesise(y_hat)
    assert torch.equal(head(h), x_gan)
    next(head.parameters()).add_(1)
    assert torch.equal(codec.synthesise(y_hat), x_gan)


def test_alpha_0_is_the_mse_picture_and_1_the_gan_picture():
    x_gan, x_mse = torch.tensor([10.0, 200.0]), torch.tensor([20.0, 100.0])
    assert torch.equal(blend(x_gan, x_mse, 0), x_mse)
    assert torch.equal(blend(x_gan, x_mse, 1), x_gan)
    torch.testing.assert_close(blend(x_gan, x_mse, 0.25), 0.25 * x_gan + 0.75 * x_mse)
