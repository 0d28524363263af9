"""Pre-trained timm models as frozen multi-scale features (as in Projected GAN, arXiv 2111.01007)."""

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from egic.errors import UserError


class FrozenFeatures(nn.Module):
    """Feature maps of a timm model. Its weights are buffers outside of state_dict: they are neither trained nor stored.

    name: any timm model that supports `features_only=True` and pictures of any size. num_levels: maps of strides 2,
    4, ... 2^num_levels are used. weights: `find`'s; without them the features are random, which is enough to compute
    sizes. Raises UserError for a name or weights that do not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, num_levels: int, weights: Mapping[str, Tensor] | None = None):
        super().__init__()
        self.levels, indices = _levels(name, num_levels)
        """Level (0 is stride 2) of each map, ascending."""
        self.net: Any = _create(name, indices)
        if weights is not None:
            missing = self.net.state_dict().keys() ^ weights.keys()
            if missing:
                raise UserError(f"the weights are not those of {name}: {sorted(missing)[0]} does not fit")
            self.net.load_state_dict(dict(weights))
        self.channels: tuple[int, ...] = tuple(self.net.feature_info.channels())
        """Channels of each map."""
        for statistic, values in _pixel_statistics(name).items():
            self.register_buffer(statistic, 255 * torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.net.eval()
        _freeze(self.net)

    def train(self, mode: bool = True) -> "FrozenFeatures":
        """Keeps eval mode: the statistics of its normalisation layers are frozen, too."""
        return super().train(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (B, 3, H, W) in 0..255 -> for each level a map (B, channels, H / 2^(level + 1), W / 2^(level + 1))."""
        return self.net((x - self.mean) / self.std)


def digest(weights: Mapping[str, Tensor]) -> str:
    """sha256 (hex) of the values, without names, which differ between versions of timm."""
    each = (value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy() for value in weights.values())
    digests = sorted(hashlib.sha256(value.data).hexdigest() for value in each)
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def find(name: str, num_levels: int, file: str = "") -> dict[str, Tensor]:
    """Pre-trained weights of `FrozenFeatures(name, num_levels)`.

    file: with timm's weights of the whole model (.safetensors or .pth). Without one, `<name>.safetensors` or
    `<name>.pth` in $EGIC_WEIGHTS is taken, else timm's download. Raises UserError when there are no weights, and for
    a file of another model.
    """
    _, indices = _levels(name, num_levels)
    path = Path(file) if file else _in_folder(name)
    if file and not Path(file).is_file():
        raise UserError(f"discriminator.encoder_weights {file} is not a file; give timm's weights of {name}")
    # timm loads what fits and ignores the rest: values that were not loaded differ between two random starts.
    first, second = (_load(name, indices, path, seed) for seed in (0, 1))
    if missing := [key for key, value in first.items() if not torch.equal(value, second[key])]:
        raise UserError(f"{path or name} lacks weights of {name}: {missing[0]} ({len(missing)} in all)")
    return first


def _in_folder(name: str) -> Path | None:
    """The weights in $EGIC_WEIGHTS, if there are any."""
    folder = os.environ.get("EGIC_WEIGHTS")
    files = [Path(folder) / f"{name}.{ending}" for ending in ("safetensors", "pth")] if folder else []
    return next((path for path in files if path.is_file()), None)


def _load(name: str, indices: Sequence[int], path: Path | None, seed: int) -> dict[str, Tensor]:
    overlay = {"file": str(path)} if path else None
    logging.getLogger("timm").setLevel(logging.ERROR)  # it warns of the classifier's weights, which are not used
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = _create(name, indices, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # timm, huggingface_hub, safetensors and torch have no exception in common
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if path:
            raise UserError(f"{path} does not hold timm's weights of {name} ({reason})") from error
        raise UserError(
            f"timm could not download weights of {name} ({reason}); go online, or give a local file with "
            f"--discriminator.encoder-weights FILE or as {name}.safetensors in EGIC_WEIGHTS"
        ) from error
    return net.state_dict()


def _create(name: str, indices: Sequence[int], **options: Any) -> Any:
    import timm  # takes seconds

    return timm.create_model(name, features_only=True, out_indices=tuple(indices), **options)


def _pixel_statistics(name: str) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation of the pixels that the model was trained on, per colour, of pictures in 0..1."""
    import timm

    found = timm.get_pretrained_cfg(name)
    assert found is not None  # `_levels` has asked timm for the name
    return {"mean": tuple(found.mean), "std": tuple(found.std)}


def _levels(name: str, num_levels: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Levels for which a timm model has a map, and the indices of these maps; of equal strides the last."""
    try:
        import timm  # takes seconds
    except ImportError as error:
        raise UserError("discriminator.encoder needs timm, which is not installed; pip install timm") from error
    if not timm.is_model(name):
        raise UserError(f"discriminator.encoder is {name!r}, which timm {timm.__version__} does not know")
    try:
        with torch.device("meta"):
            net: Any = timm.create_model(name, features_only=True)
        maps = [m.shape for m in net.eval()(torch.zeros(1, 3, 64, 64, device="meta"))]
    except (RuntimeError, AssertionError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"timm's {name} cannot be an encoder: no maps of pictures of any size ({reason})") from error
    strides, channels = net.feature_info.reduction(), net.feature_info.channels()
    if maps != [(1, c, 64 // s, 64 // s) for c, s in zip(channels, strides, strict=True)]:
        raise UserError(f"timm's {name} cannot be an encoder: its maps are not (B, C, H / stride, W / stride)")
    found = {stride.bit_length() - 2: i for i, stride in enumerate(strides) if stride in (2, 4, 8, 16, 32, 64)}
    levels = sorted(level for level in found if level < num_levels)
    if not levels:
        raise UserError(f"timm's {name} has maps at strides {strides}; discriminator.down has {num_levels} levels")
    return tuple(levels), tuple(found[level] for level in levels)


def _freeze(net: nn.Module) -> None:
    """Convert parameters and buffers to buffers that are not in state_dict."""
    for module in net.modules():
        for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            delattr(module, name)
            module.register_buffer(name, value.detach(), persistent=False)
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False  # else load_state_dict asks for a counter; eval mode has no other use
