"""OASIS-C: number of parameters, equality of the fast blocks with their definition, initial values, encoders."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from egic.errors import UserError
from egic.networks.discriminator import SLOPE, Block, Discriminator, DiscriminatorConfig, Lateral
from egic.networks.frozen_features import digest, find
from tests import encoders

SMALL = DiscriminatorConfig(down=(16, 32, 32, 64), up=(64, 32, 32, 16), latent_channels=24, num_categories=7)


@pytest.fixture
def small() -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(SMALL).eval()


def photograph(size: int, num: int = 2) -> torch.Tensor:
    """Pictures with bright and dark regions and some texture, 0..255."""
    g = torch.Generator().manual_seed(3)
    coarse = F.interpolate(torch.rand(num, 3, 6, 6, generator=g) * 255, size=(size, size), mode="bicubic")
    return (coarse + 8 * torch.randn(num, 3, size, size, generator=g)).clamp(0, 255)


def test_the_number_of_parameters_is_that_of_the_paper():
    with torch.device("meta"):
        model = Discriminator(DiscriminatorConfig())
    assert sum(p.numel() for p in model.parameters()) == 22_450_247
    assert model.config.num_classes == 135 and model.config.fake == 134 and model.multiple == 64


@torch.no_grad()
def test_one_map_of_logits_per_class_at_full_resolution(small):
    logits = small(photograph(64, 2)[..., :48], torch.randn(2, 24, 4, 3))
    assert logits.shape == (2, 9, 64, 48)


@torch.no_grad()
def test_projection_is_the_inner_product_with_the_upsampled_condition(small):
    features, y_hat = torch.randn(2, 16, 48, 32), torch.randn(2, 24, 3, 2)
    condition = F.interpolate(F.leaky_relu(small.latent(y_hat), SLOPE), scale_factor=16.0, mode="nearest")
    naive = (features * condition).sum(1, keepdim=True)
    torch.testing.assert_close(small.projection(features, y_hat), naive, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_condition_adds_the_same_map_to_all_logits(small):
    x, y_hat = photograph(64), torch.randn(2, 24, 4, 4)
    difference = small(x, y_hat) - small(x)
    assert difference.abs().max() > 1e-2
    torch.testing.assert_close(difference, difference[:, :1].expand_as(difference), rtol=0, atol=1e-4)


def naive_block(block: Block, x: torch.Tensor) -> torch.Tensor:
    """The block as the paper defines it: upsampling before its convolutions, pooling after them."""
    main = x if block.first else F.leaky_relu(x, SLOPE)
    main = F.interpolate(main, scale_factor=2.0, mode="nearest") if block.up else main
    main = block.conv2(F.leaky_relu(block.conv1(main), SLOPE))
    skip = F.interpolate(x, scale_factor=2.0, mode="nearest") if block.up else x
    skip = skip if block.conv_s is None else block.conv_s(skip)
    return main + skip if block.up else F.avg_pool2d(main + skip, 2)


@torch.no_grad()
@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("inp, out", [(12, 12), (12, 20)])
def test_the_fast_block_equals_its_definition(up, inp, out):
    torch.manual_seed(1)
    block, x = Block(inp, out, variance=1.0, up=up), torch.randn(2, inp, 12, 8)
    assert (block.conv_s is None) == (inp == out)
    torch.testing.assert_close(block(x), naive_block(block, x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_initial_features_have_the_predicted_variance_on_pictures():
    """At the paper's widths, and initial logits favour no class."""
    torch.manual_seed(0)
    model = Discriminator(DiscriminatorConfig()).eval()
    ratios = {}

    def note(name):
        return lambda module, _, out: ratios.__setitem__(name, (out.var() / module.variance).item())

    for name, block in model.named_modules():
        if isinstance(block, Block):
            block.register_forward_hook(note(name))
    x = photograph(64)
    logits = model(x, torch.randn(2, 320, 4, 4))
    # neighbouring pixels are similar, so pooling keeps much of their variance: the prediction is an order of magnitude
    assert len(ratios) == 12 and all(0.05 < r < 5 for r in ratios.values()), ratios
    assert 0.02 < model(x).std() < 3 and logits.isfinite().all()
    assert F.log_softmax(logits, 1).mean((0, 2, 3)).min() > -8  # ln(1/135) is -4.9


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"down": (16, 32)}, "same number"),
        ({"down": (16,), "up": (16,)}, "at least 2"),
        ({"latent_channels": 0}, "latent_channels must be at least 1"),
        ({"num_categories": -1}, "num_categories must be at least 0"),
        ({"num_categories": 0}, "put the data's number of categories in its place"),
    ],
)
def test_invalid_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Discriminator(DiscriminatorConfig(**changes))


@torch.no_grad()
def test_an_encoder_replaces_the_down_blocks():
    model = Discriminator(replace(SMALL, encoder=encoders.NAME)).eval()
    assert all(isinstance(block, Lateral) for block in model.down)
    x = photograph(64)
    assert model(x, torch.randn(2, 24, 4, 4)).shape == (2, 9, 64, 64)
    assert 0.02 < model(x).std() < 3
    trained = [name for name, _ in model.named_parameters()]
    assert trained == list(model.state_dict()) and {n.split(".")[0] for n in trained} == {"latent", "down", "up", "out"}


@torch.no_grad()
def test_levels_without_a_feature_map_keep_trained_blocks():
    model = Discriminator(replace(SMALL, encoder="test_convnext")).eval()  # nothing at stride 2
    assert [type(block) for block in model.down] == [Block, Lateral, Lateral, Lateral]
    assert model(photograph(64)).isfinite().all()
    deep = replace(SMALL, down=(8,) * 6, up=(8,) * 6, encoder=encoders.NAME)  # nothing at stride 64
    model = Discriminator(deep).eval()
    assert [type(block) for block in model.down] == [Lateral] * 5 + [Block]
    assert model(photograph(64)).isfinite().all()


def test_an_encoders_weights_must_match_their_digest(tmp_path):
    weights = find(encoders.NAME, 4, str(encoders.write_weights(tmp_path / "a.safetensors")))
    named = Discriminator(replace(SMALL, encoder=encoders.NAME), weights).config
    assert named.encoder_sha256 == digest(weights)
    Discriminator(named, weights)
    other = find(encoders.NAME, 4, str(encoders.write_weights(tmp_path / "b.safetensors", seed=1)))
    with pytest.raises(UserError, match=f"needs weights of test_efficientnet with digest {digest(weights)[:16]}, not"):
        Discriminator(named, other)


def test_without_an_encoder_its_fields_are_not_recorded():
    assert list(SMALL.recorded()) == ["down", "up", "latent_channels", "num_categories"]
    with pytest.raises(UserError, match="encoder_weights and encoder_sha256 need an encoder"):
        replace(SMALL, encoder_weights="somewhere.safetensors")
    assert "encoder_weights" not in replace(SMALL, encoder=encoders.NAME, encoder_weights="a.pth").recorded()
