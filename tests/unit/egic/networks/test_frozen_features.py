"""timm models as frozen features: weights come from the file, are not in the state_dict, and never train."""

import pytest
import safetensors.torch
import timm
import torch

from egic.errors import UserError
from egic.networks.frozen_features import FrozenFeatures, digest, find
from tests.encoders import NAME, write_weights


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / f"{NAME}.safetensors")


@pytest.fixture(scope="module")
def weights(file):
    return find(NAME, 5, str(file))


@torch.no_grad()
def test_features_equal_timms_on_normalised_pixels(file, weights):
    model = timm.create_model(NAME, features_only=True, pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    config = timm.get_pretrained_cfg(NAME)
    x = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (config.mean, config.std))
    wanted = model.eval()((x / 255 - mean) / std)
    features = FrozenFeatures(NAME, 5, weights).train()
    found = features(x)
    assert features.levels == (0, 1, 2, 3, 4) and features.channels == (16, 24, 32, 48, 64)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_weights_are_frozen_and_not_stored_and_gradients_reach_the_picture(weights):
    features = FrozenFeatures(NAME, 5, weights)
    assert not list(features.parameters()) and not features.state_dict()
    before = {name: b.clone() for name, b in features.named_buffers()}
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    sum(m.sum() for m in features.train()(x)).backward()
    assert x.grad.abs().max() > 0
    assert all(torch.equal(b, before[name]) and not b.requires_grad for name, b in features.named_buffers())


def test_only_the_needed_levels_are_computed(file):
    features = FrozenFeatures(NAME, 2, find(NAME, 2, str(file)))
    assert features.levels == (0, 1) and features.channels == (16, 24)
    assert [m.shape for m in features(torch.zeros(1, 3, 64, 32))] == [(1, 16, 32, 16), (1, 24, 16, 8)]


def test_weights_of_another_model_are_refused(weights):
    with pytest.raises(UserError, match="the weights are not those of test_resnet"):
        FrozenFeatures("test_resnet", 5, weights)


def test_a_model_without_a_map_at_stride_2_has_one_level_less():
    assert FrozenFeatures("test_convnext", 4).levels == (1, 2, 3)


def test_the_digest_depends_only_on_values(weights):
    renamed = {f"x.{name}": value for name, value in reversed(weights.items())}
    assert digest(renamed) == digest(weights) and len(digest(weights)) == 64
    name = next(iter(weights))
    assert digest(weights | {name: weights[name] + 1}) != digest(weights)


def test_weights_are_loaded_from_egic_weights(file, weights, monkeypatch):
    monkeypatch.setenv("EGIC_WEIGHTS", str(file.parent))
    assert digest(find(NAME, 5)) == digest(weights)


@pytest.mark.parametrize(
    "name, file, message",
    [
        ("no_such_model", "", "'no_such_model', which timm .* does not know"),
        ("vit_tiny_patch16_224", "", "vit_tiny_patch16_224 cannot be an encoder"),
        ("efficientnet_lite1", "", "download weights of .*lite1 .*; go online, or give .*--discriminator.encoder"),
        (NAME, "missing.safetensors", "missing.safetensors is not a file; give timm's weights of test_efficientnet"),
    ],
)
def test_an_unusable_encoder_is_one_clear_line(name, file, message, monkeypatch):
    monkeypatch.delenv("EGIC_WEIGHTS", raising=False)
    with pytest.raises(UserError, match=message) as caught:
        find(name, 5, file)
    assert "\n" not in str(caught.value)


def test_files_of_other_models_are_refused(file, tmp_path):
    other = write_weights(tmp_path / "other.safetensors", "test_resnet")
    with pytest.raises(UserError, match="other.safetensors (lacks weights|does not hold timm's weights) of"):
        find(NAME, 5, str(other))
    state = safetensors.torch.load_file(file)
    del state["conv_stem.weight"]
    safetensors.torch.save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=r"part.safetensors lacks weights of .*: conv_stem.weight \(1 in all\)"):
        find(NAME, 5, str(tmp_path / "part.safetensors"))
    (tmp_path / "text.pth").write_text("nothing of the kind")
    with pytest.raises(UserError, match="text.pth does not hold timm's weights"):
        find(NAME, 5, str(tmp_path / "text.pth"))
