"""The digest of a frozen encoder's weights: it is part of a stage's key, and must be that of the parent."""

from dataclasses import replace

import pytest

from egic import artifact
from egic.errors import UserError
from egic.networks.discriminator import Discriminator
from egic.networks.frozen_features import digest
from jobs.config.presets import tiny
from jobs.training.encoder import find_encoder, with_encoder
from jobs.training.num_categories import check_parent, with_categories
from jobs.training.stage import ingredients, load_stage, stage_key
from tests import encoders


@pytest.fixture
def config(tmp_path):
    file = encoders.write_weights(tmp_path / "w.safetensors")
    plain = with_categories(tiny(), 5)
    chosen = replace(plain.discriminator, encoder=encoders.NAME, encoder_weights=str(file))
    return replace(plain, discriminator=chosen)


def key(config, stage="segmentation"):
    return stage_key(ingredients(load_stage(stage), config, parents={}, data="", lpips=""))


def test_the_key_depends_on_the_weights_and_not_on_their_path(tmp_path, config):
    plain = with_categories(tiny(), 5)
    assert with_encoder(plain) == plain and find_encoder(plain) is None
    found = with_encoder(config)
    assert found.discriminator.encoder_sha256 == digest(find_encoder(config))
    moved = str(encoders.write_weights(tmp_path / "moved.safetensors"))
    other = str(encoders.write_weights(tmp_path / "other.safetensors", seed=1))
    moved, other = (
        with_encoder(replace(config, discriminator=replace(config.discriminator, encoder_weights=file)))
        for file in (moved, other)
    )
    assert key(moved) == key(found) and len({key(plain), key(found), key(other)}) == 3
    assert key(found, "mse-codec") == key(plain, "mse-codec")


def test_a_configured_digest_must_match_the_weights(config):
    pinned = with_encoder(config)
    assert with_encoder(pinned) == pinned
    wrong = replace(config, discriminator=replace(config.discriminator, encoder_sha256="0" * 64))
    with pytest.raises(UserError, match="discriminator.encoder_sha256 is 000.*; the weights of test_efficientnet have"):
        with_encoder(wrong)


def test_a_discriminator_with_another_encoder_is_refused_as_parent(tmp_path, config):
    found, plain = with_encoder(config), with_categories(tiny(), 5)
    artifact.save(tmp_path / "a", {"discriminator": Discriminator(config.discriminator, find_encoder(config))}, {})
    check_parent(found, "gan", "parent", tmp_path / "a")
    with pytest.raises(UserError, match="of parent has the encoder test_efficientnet .*, this configuration none"):
        check_parent(plain, "gan", "parent", tmp_path / "a")
    artifact.save(tmp_path / "b", {"discriminator": Discriminator(plain.discriminator)}, {})
    with pytest.raises(UserError, match="of parent has the encoder none, this configuration test_efficientnet"):
        check_parent(found, "gan", "parent", tmp_path / "b")
