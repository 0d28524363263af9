"""The discriminator's frozen encoder: the driver finds its weights, whose digest is part of a stage's key."""

from dataclasses import replace
from typing import TypeVar

from torch import Tensor

from egic.errors import UserError
from egic.networks import frozen_features
from jobs.config.schema import Config

C = TypeVar("C", bound=Config)


def find_encoder(config: Config) -> dict[str, Tensor] | None:
    """Weights of `discriminator.encoder`; None without an encoder. Raises UserError; see `frozen_features.find`."""
    d = config.discriminator
    return frozen_features.find(d.encoder, len(d.down), d.encoder_weights) if d.encoder else None


def with_encoder(config: C) -> C:
    """The configuration with the digest of the encoder's weights, which is part of a stage's key.

    Raises UserError when the weights are missing, or differ from `discriminator.encoder_sha256`.
    """
    weights, named = find_encoder(config), config.discriminator.encoder_sha256
    if weights is None:
        return config
    found = frozen_features.digest(weights)
    if named not in ("", found):
        raise UserError(
            f"discriminator.encoder_sha256 is {named}; the weights of {config.discriminator.encoder} have {found}"
        )
    return replace(config, discriminator=replace(config.discriminator, encoder_sha256=found))
