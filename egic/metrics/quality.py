"""How close a decoded picture is to its original: PSNR, MS-SSIM, LPIPS and DISTS of 8-bit RGB pictures.

LPIPS and DISTS run at full resolution.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from egic.metrics import distortion, perceptual
from egic.metrics.pretrained import BACKBONES

NAMES = ("psnr_db", "ms_ssim", "lpips_alex", "lpips_vgg", "dists")
"""Columns of the measures, in order."""
NETWORK_OF = {f"lpips_{net}": network for net, network in BACKBONES.items()} | {"dists": "vgg16"}
"""Measure -> the network of `egic.metrics.pretrained` it runs on."""
MS_SSIM_SIDE = 161
"""Shortest side for MS-SSIM: five scales of its 11-pixel window."""

Measure = Callable[[Tensor, Tensor], float | None]


class Quality:
    """The named measures, with their networks on one device; `quality(x_hat, x)` -> {name: value}.

    states: convolutions (as from `pretrained.find`) by network, for the measures that have one.
    Raises UserError when a measure's package is missing.
    """

    def __init__(self, names: Sequence[str], states: dict[str, dict[str, Tensor]], device: str | torch.device = "cpu"):
        self.device = torch.device(device)
        self.measures: dict[str, Measure] = {}
        for name in names:
            if name in NETWORK_OF:
                self.measures[name] = _on(_network(name, states[NETWORK_OF[name]], self.device), name)
            else:
                self.measures[name] = {"psnr_db": psnr_db, "ms_ssim": ms_ssim}[name]

    @torch.inference_mode()
    def __call__(self, x_hat: np.ndarray, x: np.ndarray) -> dict[str, float | None]:
        """Both uint8 (H, W, 3). None where a picture is too small for a measure."""
        if x_hat.shape != x.shape or x_hat.dtype != np.uint8 or x.dtype != np.uint8:
            raise ValueError(f"pictures must be uint8 of one shape, got {x_hat.dtype} {x_hat.shape} and {x.shape}")
        pair = [torch.from_numpy(np.array(a)).permute(2, 0, 1)[None].to(self.device) for a in (x_hat, x)]
        return {name: measure(*pair) for name, measure in self.measures.items()}


def psnr_db(x_hat: Tensor, x: Tensor) -> float:
    """PSNR of uint8 (1, 3, H, W) over all three channels; 100 dB for equal pictures."""
    return distortion.psnr_db(x_hat, x).item()


def ms_ssim(x_hat: Tensor, x: Tensor) -> float | None:
    """MS-SSIM (five scales, mean over channels) of uint8 (1, 3, H, W); None below `MS_SSIM_SIDE` pixels a side."""
    from pytorch_msssim import ms_ssim as measure

    return measure(x_hat.float(), x.float(), data_range=255).item() if min(x.shape[2:]) >= MS_SSIM_SIDE else None


def _on(network: Callable[[Tensor, Tensor], Tensor], name: str) -> Measure:
    """A network as a measure of uint8 (1, 3, H, W); None where its poolings leave nothing of a picture."""
    smallest, scale = 32 if name == "lpips_alex" else 16, 255 if name == "dists" else 1

    def measure(x_hat: Tensor, x: Tensor) -> float | None:
        if min(x.shape[2:]) < smallest:
            return None
        return float(network(x_hat.float() / scale, x.float() / scale))

    return measure


def _network(name: str, backbone: dict[str, Tensor], device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """The network of a measure, as a function of two pictures."""
    if name != "dists":
        return _lpips(perceptual.LPIPS(backbone, name.removeprefix("lpips_")).to(device))
    network: Any = perceptual.dists(backbone).to(device)
    network.forward_once = _remembering(network.forward_once)
    return network


def _lpips(network: perceptual.LPIPS) -> Callable[[Tensor, Tensor], Tensor]:
    """`LPIPS.distances`, which equals it bit by bit, with a memory of the features after their normalisation."""
    from lpips import normalize_tensor

    net: Any = network.net
    features = _remembering(lambda x: [normalize_tensor(h) for h in net.net(net.scaling_layer(x / 127.5 - 1))])

    def distances(x_hat: Tensor, x: Tensor) -> Tensor:
        levels = zip(net.lins, features(x_hat), features(x), strict=True)
        return sum(lin((a - b).square_()).mean((2, 3)) for lin, a, b in levels).flatten()

    return distances


def _remembering(features: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """Caches the results for the last two inputs: many versions of a picture are compared with one original,
    whose features are half of the work. Inputs of more than 4 million pixels are not remembered: their features take
    gigabytes."""
    last: list[tuple[Tensor, Any]] = []

    def remembered(x: Tensor) -> Any:
        for i, (known, found) in enumerate(last):
            if torch.equal(known, x):
                last.append(last.pop(i))
                return found
        found = features(x)
        if x.shape[2] * x.shape[3] <= 4_000_000:
            last.append((x, found))
            del last[:-2]
        return found

    return remembered
