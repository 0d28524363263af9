"""A codec with the interface of a CompressAI model, for scripts written for `compressai.models`.

    model = EGIC(egic.load(folder).codec)                     # or EGIC.from_state_dict(torch.load(checkpoint))
    out = model(x)                                            # {"x_hat": ..., "likelihoods": {"y": ..., "z": ...}}
    coded = model.compress(x)                                 # {"strings": [[file of each picture]], "shape": ...}
    model.decompress(coded["strings"], coded["shape"])        # {"x_hat": ...}

Pictures are float RGB (B, 3, H, W) in 0..1 of any size. A string is a whole .egic file, so that bits counted over
`strings` are those of `egic.Model.compress`, and pictures are those of `egic.Model.decompress`.
Interface: https://interdigitalinc.github.io/CompressAI/models.html
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from compressai.models import CompressionModel
from compressai.registry import register_model
from torch import Tensor

from egic.coding.bitstream import MAX_QUALITY
from egic.errors import UserError
from egic.model import DEFAULT_QUALITY, Model
from egic.networks import entropy
from egic.networks.charm import Index
from egic.networks.codec import STRIDE_Z, Codec, CodecConfig

LIKELIHOOD_MIN = 1e-9  # as in CompressAI, so that the logarithm is finite
CONFIG = "_extra_state"
"""Key of the codec's configuration in a state_dict: JSON as bytes (torch.nn.Module.get_extra_state)."""


@register_model("egic")
class EGIC(CompressionModel):
    """A codec with CompressAI's interface.

    codec: of one rate or of any rate. quality: for a codec of any rate, 0 (smallest files) to 100, None for 50; for a
    codec of one rate, None. Raises UserError for another quality.
    """

    def __init__(self, codec: Codec, quality: int | None = None):
        super().__init__()
        if codec.gains is None and quality is not None:
            raise UserError("this codec has one rate, so quality has no meaning; leave it out")
        if quality is not None and not 0 <= quality <= MAX_QUALITY:
            raise UserError(f"quality must lie in 0..{MAX_QUALITY} (0 the smallest files), got {quality}")
        self.codec = codec
        self.quality = DEFAULT_QUALITY if codec.gains is not None and quality is None else quality
        self._model: Model | None = None

    def forward(self, x: Tensor) -> dict[str, Any]:
        """x_hat (B, 3, H, W), and the likelihood of each element of y and z of the padded picture.

        Likelihoods are those of noisy latents in training mode, of rounded latents in eval mode.
        """
        height, width = x.shape[2:]
        m = self.codec.config.multiple
        x = F.pad(255 * x, (0, -width % m, 0, -height % m), mode="replicate")
        q = self._q(len(x))
        y = self.codec.analyse(x, q).float()
        z = self.codec.h_a(y).float()
        z_hat = entropy.quantize_int(z)
        bits: list[Tensor] = []

        def noisy(value: Tensor, rounded: Tensor) -> Tensor:
            return value + torch.rand_like(value) - 0.5 if self.training else rounded

        def code(k: int, mu: Tensor, index: Index) -> Tensor:
            y_k = y.split(self.codec.charm.width, 1)[k]
            y_hat_k = entropy.quantize(y_k, mu)
            bits.append(entropy.gaussian_bits(noisy(y_k, y_hat_k) - mu, entropy.sigma_of(index())))
            return y_hat_k

        y_hat = self.codec.restore(self.codec.decode_latents(z_hat, code), q)
        likelihoods = {"y": torch.cat(bits, 1), "z": self.codec.prior.bits(noisy(z, z_hat))}
        return {
            "x_hat": self.codec.synthesise(y_hat)[:, :, :height, :width] / 255,
            "likelihoods": {name: torch.exp2(-b).clamp_min(LIKELIHOOD_MIN) for name, b in likelihoods.items()},
        }

    def _q(self, batch: int) -> Tensor | None:
        if self.quality is None:
            return None
        rates = self.codec.config.rates
        return torch.full((batch,), self.quality / MAX_QUALITY * (rates - 1), device=next(self.parameters()).device)

    @property
    def model(self) -> Model:
        """The codec with its coding tables. `update` and `load_state_dict` discard it."""
        if self._model is None:
            self._model = Model(self.codec)
        return self._model

    def compress(self, x: Tensor) -> dict[str, Any]:
        """Compress pictures, rounded to 8 bits: strings [[.egic file of each]], shape (rows, columns) of z."""
        pictures = (255 * x).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        strings = [[self.model.compress(picture, quality=self.quality) for picture in pictures]]
        return {"strings": strings, "shape": torch.Size(-(-side // STRIDE_Z) for side in x.shape[2:])}

    def decompress(self, strings: Sequence[Sequence[bytes]], shape: Sequence[int]) -> dict[str, Tensor]:
        """x_hat (B, 3, H, W), rounded to 8 bits. Raises BitstreamError for a damaged string or one of another model."""
        pictures = [torch.from_numpy(self.model.decompress(data)) for data in strings[0]]
        x = torch.stack(pictures).permute(0, 3, 1, 2).to(next(self.parameters()).device)
        return {"x_hat": x.float() / 255}

    def update(self, scale_table: Tensor | None = None, force: bool = False, **ignored: object) -> bool:
        """Compute the entropy coder's tables from the weights. Returns True if no tables existed before."""
        had_none = self._model is None
        if force:
            self._model = None
        _ = self.model.coder
        return had_none or force

    def get_extra_state(self) -> Tensor:
        """The codec's configuration and quality as JSON in a uint8 tensor."""
        text = json.dumps(dataclasses.asdict(self.codec.config) | {"quality": self.quality})
        return torch.tensor(list(text.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Does nothing: `from_state_dict` reads the configuration before the weights are loaded."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any:
        self._model = None
        return super().load_state_dict(dict(state_dict), strict)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any]) -> "EGIC":
        """A model from its `state_dict()`. Raises UserError for a state_dict without the configuration."""
        if CONFIG not in state_dict:
            raise UserError(f"the state_dict has no {CONFIG}; it is not of egic.compat.compressai.EGIC")
        found: dict[str, Any] = json.loads(bytes(state_dict[CONFIG].tolist()))
        quality = found.pop("quality")
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}
        config = CodecConfig(**settings)
        model = cls(Codec(config), quality)
        model.load_state_dict(state_dict)
        return model
